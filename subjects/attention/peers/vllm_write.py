"""vLLM's Triton cache writes, of vllm/v1/attention/ops/triton_reshape_and_cache_flash.py.

`triton_reshape_and_cache_flash` is driven in its layout with heads in a row. It takes the strides
of the key cache for both, and the heads of a token for dense. The write that quantises per token
and head is given codes and scales as views of the records.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from reference.attention.contract import Capabilities, WriteBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.vllm_wheel import check_gpu, load_writers, minor_release

CODES: Final = {"int8-token-head": torch.int8, "e4m3-token-head": torch.float8_e4m3fn}
"""What codes are, by codec."""

_writers: Any = None


def _prepare(device: str) -> None:
    check_gpu("vllm-write", device)
    global _writers  # noqa: PLW0603 - one kernel in one process
    minor_release()
    _writers = load_writers()


@prepared_by(_prepare)
@declares(
    Capabilities(
        kind="write",
        kv_dtypes=frozenset({"e4m3"}),
        codecs=frozenset(CODES),
        declines=frozenset({"empty", "strides=query", "layout=apart", "layout=padded"}),
    )
)
def write(batch: WriteBatch) -> None:
    """Store the tokens of a step."""
    new, caches = (batch.keys, batch.values), (batch.key_cache, batch.value_cache)
    if batch.codec:
        size = batch.keys.shape[2]
        codes = [each.view(CODES[batch.codec])[..., :size] for each in caches]
        scales = [each[..., size:].view(torch.float32).squeeze(3) for each in caches]
        _writers.triton_reshape_and_cache_flash_per_token_head_quant(
            *new, *codes, *scales, batch.slot_mapping, None
        )
        return
    numbers = torch.tensor([batch.k_scale, batch.v_scale], device=batch.keys.device)
    name = "fp8" if batch.key_cache.element_size() == 1 else "auto"
    _writers.triton_reshape_and_cache_flash(
        *new, *caches, batch.slot_mapping, name, *numbers.unbind()
    )
