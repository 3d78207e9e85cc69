"""vLLM's Triton cache writes, of vllm/v1/attention/ops/triton_reshape_and_cache_flash.py.

`triton_reshape_and_cache_flash` is driven in its layout with heads in a row. It takes the strides
of the key cache for both, and the heads of a token for dense. The write that quantises per token
and head is given codes and scales as views of the records.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch

from reference.attention.codecs import views_of
from reference.attention.contract import Capabilities, WriteBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.vllm_wheel import (
    KVQuantMode,
    check_gpu,
    load_int4_attention,
    load_unified_attention,
    load_writers,
    minor_release,
)

MODES: Final = {
    "e4m3-token-head": KVQuantMode.FP8_PER_TOKEN_HEAD,
    "int8-token-head": KVQuantMode.INT8_PER_TOKEN_HEAD,
    "int4-token-head": KVQuantMode.INT4_PER_TOKEN_HEAD,
}
"""What vLLM calls the codecs that it writes."""

_writers: Any = None


def _prepare(device: str) -> None:
    check_gpu("vllm-write", device)
    global _writers  # noqa: PLW0603 - one kernel in one process
    minor_release()
    load_unified_attention()
    if load_int4_attention() is None:
        known = vars(write)["capabilities"]
        vars(write)["capabilities"] = replace(known, codecs=known.codecs - {"int4-token-head"})
    _writers = load_writers()


@prepared_by(_prepare)
@declares(
    Capabilities(
        kind="write",
        kv_dtypes=frozenset({"e4m3"}),
        codecs=frozenset(MODES),
        declines=frozenset({"empty", "strides=query", "layout=apart", "layout=padded"}),
    )
)
def write(batch: WriteBatch) -> None:
    """Store the tokens of a step."""
    new, caches = (batch.keys, batch.values), (batch.key_cache, batch.value_cache)
    if batch.codec:
        sizes = (each.shape[2] for each in new)
        views = (views_of(batch.codec, *each) for each in zip(caches, sizes, strict=True))
        codes, scales = zip(*views, strict=True)
        _writers.triton_reshape_and_cache_flash_per_token_head_quant(
            *new, *codes, *scales, batch.slot_mapping, MODES[batch.codec]
        )
        return
    numbers = torch.tensor([batch.k_scale, batch.v_scale], device=batch.keys.device)
    name = "fp8" if batch.key_cache.element_size() == 1 else "auto"
    _writers.triton_reshape_and_cache_flash(
        *new, *caches, batch.slot_mapping, name, *numbers.unbind()
    )
