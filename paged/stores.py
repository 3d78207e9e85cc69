"""Our cache write and block copy as kernels that anybody may call: see `paged.cache`."""

from __future__ import annotations

import torch

from paged.cache import copy_blocks, write_slots
from reference.attention.contract import Capabilities, CopyBatch, WriteBatch, declares


@declares(Capabilities(kind="write", also=frozenset({"records", "value_size"})))
def write(batch: WriteBatch) -> None:
    """Store the tokens of a step; a record is put together first."""
    caches, new = (batch.key_cache, batch.value_cache), (batch.keys, batch.values)
    if batch.rope is not None:
        caches, new = (batch.key_cache,) * 2, (torch.cat(new, -1),) * 2
    slots, scales = batch.slot_mapping, (batch.k_scale, batch.v_scale)
    write_slots(*caches, *new, slots, k_scale=scales[0], v_scale=scales[1])


@declares(Capabilities(kind="copy", also=frozenset({"records", "value_size"})))
def copy(batch: CopyBatch) -> None:
    """Copy the blocks of each layer."""
    for keys, values in zip(batch.key_caches, batch.value_caches or batch.key_caches, strict=True):
        copy_blocks(keys, values, batch.pairs)
