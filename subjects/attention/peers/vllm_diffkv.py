"""vLLM's unified attention for values of another size than keys: `unified_attention_diffkv`.

It is called as `TritonAttentionDiffKVImpl.forward` does
(vllm/v1/attention/backends/triton_attn_diffkv.py), and what that backend supports is declared here.
Its keys and values are views of one record; the launcher takes the strides of each.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

from reference.attention.contract import Capabilities, PagedBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.vllm_unified import arguments_of
from subjects.attention.peers.vllm_wheel import check_gpu, load_diffkv_attention, minor_release

_launcher: Any = None


def _prepare(device: str) -> None:
    check_gpu("vllm-diffkv", device)
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    global _launcher  # noqa: PLW0603 - one kernel in one process
    minor_release()
    _launcher = load_diffkv_attention().unified_attention_diffkv


@prepared_by(_prepare)
@declares(
    Capabilities(
        kv_dtypes=frozenset({"e4m3"}),
        block_sizes=frozenset({16, 32, 64, 128, 256}),
        variants=frozenset({"prefill", "window", "softcap", "alibi", "sinks"}),
        also=frozenset({"value_size"}),
        declines=frozenset({"strides=table"}),
        promises=frozenset({"deterministic", "relabelling"}),
    )
)
def attention(batch: PagedBatch) -> None:
    """Fill `batch.out`."""
    takes = frozenset(inspect.signature(_launcher).parameters)
    arguments = arguments_of(batch, takes)
    if batch.key_cache.dtype == batch.query.dtype:
        arguments |= {"k_descale": None, "v_descale": None}
    _launcher(**arguments)
