"""Our cache write and block copy as kernels that anybody may call: see `paged.cache`."""

from __future__ import annotations

import torch
from torch import Tensor

from paged.cache import copy_blocks, write_slots
from reference.attention.codecs import encode
from reference.attention.contract import (
    Capabilities,
    CopyBatch,
    WriteBatch,
    declares,
    everything,
)


@declares(everything("write"))
def write(batch: WriteBatch) -> None:
    """Store the tokens of a step; a record is put together first."""
    caches, new = (batch.key_cache, batch.value_cache), (batch.keys, batch.values)
    if batch.rope is not None:
        caches, new = (batch.key_cache,) * 2, (torch.cat(new, -1),) * 2
    slots, scales = batch.slot_mapping, (batch.k_scale, batch.v_scale)
    if batch.codec:
        new, scales = _encoded(batch, new), (1.0, 1.0)
    write_slots(*caches, *new, slots, k_scale=scales[0], v_scale=scales[1])


def _encoded(batch: WriteBatch, new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Records of bytes."""
    k_scale = batch.k_scale if batch.k_scales is None else batch.k_scales
    v_scale = batch.v_scale if batch.v_scales is None else batch.v_scales
    codec, rope = batch.codec, batch.rope or 0
    keys, values = new
    return (
        encode(codec, keys, scale=k_scale, rope=rope),
        encode(codec, values, scale=v_scale, rope=rope),
    )


@declares(
    Capabilities(
        kind="copy",
        also=frozenset({"records", "value_size"}),
        codecs=everything("copy").codecs,
    )
)
def copy(batch: CopyBatch) -> None:
    """Copy the blocks of each layer."""
    for keys, values in zip(batch.key_caches, batch.value_caches or batch.key_caches, strict=True):
        copy_blocks(keys, values, batch.pairs)
