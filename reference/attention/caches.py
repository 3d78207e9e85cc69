"""How keys and values lie in memory: the layouts that engines have, full of poison at first.

| layout | keys and values |
| --- | --- |
| together | [blocks, 2, block_size, heads, dim]: a block's keys beside its values |
| apart | [blocks, block_size, heads, dim] each; the values have room for one head more |
| head-major | [blocks, heads, block_size, dim] each |
| packed | [blocks, block_size, heads, 2 dim]: a head's key beside its value |
| layers | [blocks, 3 layers, 2, block_size, heads, dim]: the middle layer |
| keys-first | [2, blocks, block_size, heads, dim] |
| heads-first | [heads, blocks, block_size, dim] each |
| padded | room after each page, row and head, and more of it for the values |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from reference.attention.far import LEAD, cut_ids, cut_offsets, untouched
from reference.attention.problem import AttentionProblem
from reference.attention.records import CODECS

GUARD_BLOCKS: Final = 2
"""Blocks before and after the pool. An index outside the pool lands here, on poison, and not in
another allocation: a wrong kernel is caught and the process lives."""

LARGE: Final = 16384.0
"""Poison for kernels that need finite numbers everywhere: times any weight but zero, it shows."""

PAD: Final = 16
"""Elements after a padded head: a kernel may want 16 bytes aligned."""

MOST_CUT: Final = 32
"""Blocks of a far pool for which it is worked out where an offset that was cut would lead."""

NAN_BYTE: Final = 0xFF
"""Bytes of a codec's cache that nobody owns: scales and codes of it are NaN, float32, bfloat16 and
e4m3 alike."""

LARGE_BYTES: Final = {"fp32": 0x43, "e4m3": 0x43, "": 0x7E}
"""The same by the scales in a record, where all has to be finite: 195 as a float32."""

Poison = Literal["nan", "large"]
New = Callable[[tuple[int, ...]], Tensor]


@dataclass(frozen=True, slots=True)
class Kept:
    """Memory that a kernel may not change, as it was."""

    bits: Tensor
    ids: Tensor | None
    """Rows that are looked at; None for all."""
    before: Tensor

    @classmethod
    def of(cls, bits: Tensor, ids: Tensor | None) -> Kept:
        """What is there now."""
        return cls(bits, ids, bits.clone() if ids is None else bits[ids])

    def changed(self) -> bool:
        """Whether it was written to."""
        now = self.bits if self.ids is None else self.bits[self.ids]
        return not torch.equal(now, self.before)


@dataclass(frozen=True, slots=True)
class Caches:
    """Keys and values, [blocks, block_size, heads, dim], and what is to be kept of their memory.
    Values of a latent cache are a view of the keys.
    """

    keys: Tensor
    values: Tensor
    memory: tuple[tuple[Tensor, Tensor | None], ...]


def near_caches(
    problem: AttentionProblem, layout: str, num_blocks: int, poison: Poison, device: torch.device
) -> Caches:
    """Caches of which every element is poison, with guard blocks around them."""
    poisoned = filler(problem, poison, device)
    storages: list[Tensor] = []

    def new(shape: tuple[int, ...]) -> Tensor:
        storage = torch.empty(shape, dtype=poisoned.dtype, device=device)
        bytes_or_self(storage)[...] = bytes_or_self(poisoned)
        storages.append(storage)
        return storage

    keys, values = _views(problem, layout, num_blocks + 2 * GUARD_BLOCKS, new)
    inside = slice(GUARD_BLOCKS, GUARD_BLOCKS + num_blocks)
    memory = tuple((bits_of(storage), None) for storage in storages)
    return Caches(keys[inside], values[inside], memory)


def far_caches(
    problem: AttentionProblem,
    layout: str,
    num_blocks: int,
    used: Tensor,
    poison: Poison,
    device: torch.device,
) -> Caches:
    """Caches that cost what is touched of them: poison lies in the blocks that are `used`, beside
    them, and where their ids or offsets lead if they lose their upper bits.
    """
    poisoned = filler(problem, poison, device)

    def new(shape: tuple[int, ...]) -> Tensor:
        return untouched(shape, poisoned.dtype, device)

    views = _views(problem, layout, num_blocks + 2 * GUARD_BLOCKS, new)
    inside = slice(GUARD_BLOCKS, GUARD_BLOCKS + num_blocks)
    keys, values = (view[inside] for view in views)
    ids = cut_ids(used, num_blocks).to(device)
    memory = []
    for cache, guarded in zip((keys, values), views, strict=True):
        for guard in (guarded[:GUARD_BLOCKS], guarded[-GUARD_BLOCKS:]):
            bytes_or_self(guard)[...] = bytes_or_self(poisoned)
        flat = bytes_or_self(cache.as_strided((_elements(cache) - LEAD,), (1,), LEAD))
        page = problem.block_size * problem.stored_sizes[0]
        for offset in cut_offsets(used[:MOST_CUT], cache.stride(0)):
            start = cache.storage_offset() - LEAD + offset
            if 0 <= start <= len(flat) - page:
                flat[start : start + page] = bytes_or_self(poisoned)
        bytes_or_self(cache)[ids] = bytes_or_self(poisoned)
        memory.append((bits_of(cache), ids))
    return Caches(keys, values, tuple(memory))


def _views(problem: AttentionProblem, layout: str, blocks: int, new: New) -> tuple[Tensor, Tensor]:
    """Keys and values as views of the memory that a layout asks for."""
    size, heads = problem.block_size, problem.num_kv_heads
    key_size, value_size = problem.stored_sizes
    if problem.rope is not None:
        keys, _ = _separate(layout, blocks, size, heads, key_size, key_size, new)
        return keys, keys[..., :value_size]
    return _separate(layout, blocks, size, heads, key_size, value_size, new)


def _separate(
    layout: str, blocks: int, size: int, heads: int, key_dim: int, value_dim: int, new: New
) -> tuple[Tensor, Tensor]:
    dim, sizes = max(key_dim, value_dim), (key_dim, value_dim)
    if layout == "together":
        both = new((blocks, 2, size, heads, dim)).unbind(1)
    elif layout == "apart":
        both = (
            new((blocks, size, heads, key_dim)),
            new((blocks, size, heads + 1, value_dim))[:, :, :heads],
        )
    elif layout == "head-major":
        keys, values = (new((blocks, heads, size, each)).transpose(1, 2) for each in sizes)
        both = keys, values
    elif layout == "packed":
        both = new((blocks, size, heads, key_dim + value_dim)).split(sizes, -1)
    elif layout == "layers":
        both = new((blocks, 3, 2, size, heads, dim))[:, 1].unbind(1)
    elif layout == "keys-first":
        both = new((2, blocks, size, heads, dim)).unbind(0)
    elif layout == "heads-first":
        keys, values = (new((heads, blocks, size, each)).permute(1, 2, 0, 3) for each in sizes)
        both = keys, values
    else:
        keys, values = (
            new((blocks, size + more, heads + 1, each + more * PAD))[:, :size, :heads]
            for more, each in zip((1, 2), sizes, strict=True)
        )
        both = keys, values
    return both[0][..., :key_dim], both[1][..., :value_dim]


def filler(problem: AttentionProblem, poison: Poison, device: torch.device) -> Tensor:
    """One element of poison, of the cache's dtype; of a codec a byte."""
    if problem.codec:
        byte = NAN_BYTE if poison == "nan" else LARGE_BYTES[CODECS[problem.codec].scales]
        return torch.tensor([byte], dtype=torch.uint8, device=device)
    dtype = problem.torch_kv_dtype
    number = torch.nan if poison == "nan" else min(LARGE, torch.finfo(dtype).max)
    return torch.tensor([number]).to(dtype).to(device)


def _elements(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def bytes_or_self(tensor: Tensor) -> Tensor:
    """A tensor that can be indexed and filled: torch cannot do so with float8, but with bytes."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def bits_of(tensor: Tensor) -> Tensor:
    """The same as integers. Poison is NaN, and NaN differs from itself: untouched memory is
    recognised by its bits.
    """
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])
