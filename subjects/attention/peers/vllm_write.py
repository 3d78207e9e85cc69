"""vLLM's Triton cache write, `triton_reshape_and_cache_flash`, in its layout with heads in a row.

The launcher takes the strides of the key cache for both, and the heads of a token for dense
(vllm/v1/attention/ops/triton_reshape_and_cache_flash.py).
"""

from __future__ import annotations

from typing import Any

import torch

from reference.attention.contract import Capabilities, WriteBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.vllm_wheel import check_gpu, load_writers, minor_release

_launcher: Any = None


def _prepare(device: str) -> None:
    check_gpu("vllm-write", device)
    global _launcher  # noqa: PLW0603 - one kernel in one process
    minor_release()
    _launcher = load_writers().triton_reshape_and_cache_flash


@prepared_by(_prepare)
@declares(
    Capabilities(
        kind="write",
        kv_dtypes=frozenset({"e4m3"}),
        declines=frozenset({"empty", "strides=query", "layout=apart", "layout=padded"}),
    )
)
def write(batch: WriteBatch) -> None:
    """Store the tokens of a step."""
    scales = (
        torch.tensor(each, device=batch.keys.device) for each in (batch.k_scale, batch.v_scale)
    )
    name = "fp8" if batch.key_cache.element_size() == 1 else "auto"
    caches = (batch.key_cache, batch.value_cache)
    _launcher(batch.keys, batch.values, *caches, batch.slot_mapping, name, *scales)
