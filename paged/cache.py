"""The cache itself: two tensors cut into blocks, written by slot mapping, copied block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from paged.errors import BadSize
from reference.attention.inputs import quantise

FLOAT8: Final = (torch.float8_e4m3fn, torch.float8_e5m2)
DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16, *FLOAT8)


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of one layer, in blocks."""

    key_cache: Tensor
    value_cache: Tensor
    """[num_blocks, block_size, num_kv_heads, head_dim]: float32, float16, bfloat16 or float8."""
    k_scale: float = 1.0
    v_scale: float = 1.0
    """What the elements of a float8 cache are multiplied by on reading; 1.0 otherwise."""

    @classmethod
    def allocate(
        cls,
        *,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: str = "cpu",
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> Self:
        """An empty cache. Its memory is not initialised, as in an engine."""
        for name, size in (
            ("num_blocks", num_blocks),
            ("block_size", block_size),
            ("num_kv_heads", num_kv_heads),
            ("head_dim", head_dim),
        ):
            if size < 1:
                raise BadSize(f"{name}={size}: a cache needs at least one")
        if dtype not in DTYPES:
            raise BadSize(f"dtype {dtype}: a cache is of {', '.join(map(str, DTYPES))}")
        for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
            if not (scale > 0 and math.isfinite(scale)):
                raise BadSize(f"{name}={scale}: a scale is positive and finite")
            if scale != 1.0 and dtype not in FLOAT8:
                raise BadSize(f"{name}={scale}: only a float8 cache has scales, not {dtype}")
        shape = (2, num_blocks, block_size, num_kv_heads, head_dim)
        keys, values = torch.empty(shape, dtype=dtype, device=device).unbind(0)
        return cls(keys, values, k_scale, v_scale)

    @property
    def num_slots(self) -> int:
        """Tokens that fit: num_blocks * block_size."""
        return self.key_cache.shape[0] * self.key_cache.shape[1]

    def write(self, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
        """Store tokens; see `write_slots`."""
        write_slots(
            self.key_cache,
            self.value_cache,
            keys,
            values,
            slot_mapping,
            k_scale=self.k_scale,
            v_scale=self.v_scale,
        )

    def copy(self, pairs: Sequence[tuple[int, int]] | Tensor) -> None:
        """Copy whole blocks; see `copy_blocks`."""
        copy_blocks(self.key_cache, self.value_cache, as_pairs(pairs, self.key_cache.device))


def write_slots(
    key_cache: Tensor,
    value_cache: Tensor,
    keys: Tensor,
    values: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Store the keys and values of tokens at their slots.

    The caches, [num_blocks, block_size, num_kv_heads, head_dim], are changed in place. `keys` and
    `values` are [num_tokens, num_kv_heads, head_dim] float32, float16 or bfloat16; values may be of
    another size in both. A float8 cache stores `keys / k_scale` and `values / v_scale` in float32
    arithmetic, saturated, rounded to nearest even. `slot_mapping` is [num_tokens] int64, slot =
    block * block_size + offset; tokens with a negative slot are padding and are not stored, and no
    two tokens have the same slot.

    Raises BadSize: if shapes disagree or a slot lies outside the cache.
    """
    _check_pair(key_cache, value_cache)
    num_slots = key_cache.shape[0] * key_cache.shape[1]
    fits = (keys.shape[1:], values.shape[1:]) == (key_cache.shape[2:], value_cache.shape[2:])
    if len(keys) != len(values) or not fits:
        raise BadSize(
            f"keys {tuple(keys.shape)} and values {tuple(values.shape)} do not fit a cache of "
            f"{tuple(key_cache.shape)}: heads and head size must agree"
        )
    if slot_mapping.shape != keys.shape[:1]:
        raise BadSize(
            f"slot mapping {tuple(slot_mapping.shape)} for {keys.shape[0]} tokens: one slot each"
        )
    if slot_mapping.numel() and int(slot_mapping.max()) >= num_slots:
        raise BadSize(
            f"slot {int(slot_mapping.max())} lies outside a cache of {num_slots} slots: "
            f"the slot mapping is not of this cache"
        )
    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    block, offset = slots // key_cache.shape[1], slots % key_cache.shape[1]
    for cache, new, scale in ((key_cache, keys, k_scale), (value_cache, values, v_scale)):
        stored = new[kept]
        stored = quantise(stored, cache.dtype, scale) if cache.dtype in FLOAT8 else stored
        _indexable(cache)[block, offset] = _indexable(stored.to(cache.dtype))


def copy_blocks(key_cache: Tensor, value_cache: Tensor, pairs: Tensor) -> None:
    """Copy whole blocks within the cache, for copy-on-write.

    The caches, [num_blocks, block_size, num_kv_heads, head_dim], are changed in place. `pairs` is
    [num_pairs, 2] int64, source and destination block.

    Raises BadSize: if a block lies outside the cache, or is a destination twice or source and
    destination.
    """
    _check_pair(key_cache, value_cache)
    if not pairs.numel():
        return
    source, destination = pairs.unbind(1)
    if int(pairs.min()) < 0 or int(pairs.max()) >= key_cache.shape[0]:
        raise BadSize(
            f"copies {pairs.tolist()} leave the cache of {key_cache.shape[0]} blocks: "
            f"block numbers are 0 to {key_cache.shape[0] - 1}"
        )
    if len(set(destination.tolist())) < len(pairs) or bool(torch.isin(source, destination).any()):
        raise BadSize(
            f"copies {pairs.tolist()} depend on their order: a destination must occur once and "
            f"be no source; split them into several calls"
        )
    for cache in (key_cache, value_cache):
        blocks = _indexable(cache)
        blocks[destination] = blocks[source]


def as_pairs(pairs: Sequence[tuple[int, int]] | Tensor, device: torch.device) -> Tensor:
    """(source, destination) blocks as [num_pairs, 2] int64; BadSize if they are no pairs."""
    matrix = torch.as_tensor(pairs, dtype=torch.int64, device=device)
    if matrix.ndim != 2 or matrix.shape[1] != 2:
        if matrix.numel():
            raise BadSize(f"{pairs} are no pairs: give (source, destination) for each copy")
        matrix = matrix.reshape(0, 2)
    return matrix


def _check_pair(key_cache: Tensor, value_cache: Tensor) -> None:
    if key_cache.shape[:3] != value_cache.shape[:3] or key_cache.dtype != value_cache.dtype:
        raise BadSize(
            f"key cache {tuple(key_cache.shape)} {key_cache.dtype} and value cache "
            f"{tuple(value_cache.shape)} {value_cache.dtype}: dtype, blocks and heads must agree"
        )


def _indexable(tensor: Tensor) -> Tensor:
    # torch does not index float8; the bytes move just as well.
    return tensor.view(torch.uint8) if tensor.dtype in FLOAT8 else tensor
