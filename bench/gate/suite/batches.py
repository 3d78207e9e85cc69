"""Attention calls of the suite, built from the contract alone, the same bits on both sides.

Not by `reference.attention.layout`: a worker takes that room from the tree that it measures, and
older trees lack it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from reference.attention.contiguous import ContiguousBatch
    from reference.attention.contract import PagedBatch

SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sequences of one length, the last `query_len` tokens of each asking."""

    num_seqs: int
    query_len: int
    seq_len: int
    block_size: int = 16
    """As in the contract; `seq_len` is a multiple of the block size."""
    num_kv_heads: int = 2
    group_size: int = 4
    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16
    """Of the layer."""
    cache_dtype: torch.dtype | None = None
    """Of keys and values; None: as `dtype`."""

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.cache_dtype or self.dtype


def contiguous_batch(shape: Shape) -> ContiguousBatch:
    """Normal numbers in a contiguous cache; output and log-sum-exp preallocated."""
    from reference.attention.contiguous import ContiguousBatch

    tensors, keys, values = _tensors(shape)
    return ContiguousBatch(**tensors, key_cache=keys, value_cache=values)


def paged_batch(shape: Shape, *, device: str = "cpu", seed: int = SEED) -> PagedBatch:
    """The same numbers in shuffled blocks; another seed gives other numbers and places."""
    from reference.attention.contract import PagedBatch

    tensors, keys, values = _tensors(shape, device=device, seed=seed)
    columns = shape.seq_len // shape.block_size
    rng = torch.Generator(device).manual_seed(seed + 1)
    table = torch.randperm(shape.num_seqs * columns, generator=rng, device=device)
    caches = []
    for contiguous in (keys, values):
        blocks = contiguous.view(-1, shape.block_size, shape.num_kv_heads, shape.head_dim)
        # torch scatters no float8, but its bytes.
        moved = blocks.view(torch.uint8) if blocks.element_size() == 1 else blocks
        cache = torch.empty_like(moved)
        cache[table] = moved
        caches.append(cache.view(shape.kv_dtype))
    return PagedBatch(
        **tensors,
        key_cache=caches[0],
        value_cache=caches[1],
        block_table=table.view(shape.num_seqs, columns).to(torch.int32),
        max_query_len=shape.query_len,
        max_seq_len=shape.seq_len,
    )


def _tensors(
    shape: Shape, *, device: str = "cpu", seed: int = SEED
) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    rng = torch.Generator(device).manual_seed(seed)

    def normal(*size: int, dtype: torch.dtype = shape.dtype) -> torch.Tensor:
        return torch.randn(size, generator=rng, device=device).to(dtype)

    rows = shape.num_seqs * shape.query_len
    query = normal(rows, shape.num_kv_heads * shape.group_size, shape.head_dim)
    keys, values = (
        normal(
            shape.num_seqs,
            shape.seq_len,
            shape.num_kv_heads,
            shape.head_dim,
            dtype=shape.kv_dtype,
        )
        for _ in "kv"
    )
    common = {
        "query": query,
        "seq_lens": torch.full((shape.num_seqs,), shape.seq_len, dtype=torch.int32, device=device),
        "query_start_loc": torch.arange(
            0, rows + 1, shape.query_len, dtype=torch.int32, device=device
        ),
        "out": torch.full_like(query, torch.nan),
        "lse": torch.full(query.shape[:2], torch.nan, device=device),
        "scale": shape.head_dim**-0.5,
    }
    return common, keys, values
