"""Our cache write and block copy as kernels that anybody may call: see `kernels.cache_ops`."""

from __future__ import annotations

from kernels.cache_ops import copy_blocks, write_slots
from kernels.cache_records import write_records
from reference.attention.contract import Capabilities, CopyBatch, WriteBatch, declares
from reference.attention.records import CODECS

_APART = ("head-major", "heads-first", "packed", "padded")


@declares(
    Capabilities(
        kind="write", codecs=frozenset({"e4m3-token-head", "int8-token-head", "int4-token-head"})
    )
)
def write(batch: WriteBatch) -> None:
    """Store the tokens of a step."""
    caches, new = (batch.key_cache, batch.value_cache), (batch.keys, batch.values)
    if batch.codec:
        write_records(batch.codec, caches, new, batch.slot_mapping)
        return
    slots, scales = batch.slot_mapping, (batch.k_scale, batch.v_scale)
    write_slots(*caches, *new, slots, k_scale=scales[0], v_scale=scales[1])


@declares(
    Capabilities(
        kind="copy",
        codecs=frozenset(name for name, record in CODECS.items() if not record.latent),
        # The heads of a slot have to be contiguous, and so have the pairs.
        declines=frozenset({"strides=table", *(f"layout={name}" for name in _APART)}),
    )
)
def copy(batch: CopyBatch) -> None:
    """Copy the blocks of each layer."""
    for keys, values in zip(batch.key_caches, batch.value_caches, strict=True):
        copy_blocks(keys, values, batch.pairs)
