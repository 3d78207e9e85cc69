"""Writes by slot mapping and copies of blocks, in torch, into a cache that was there before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from bench.gate.benchmark import Benchmark, Output, Prepared

if TYPE_CHECKING:
    from paged.cache import KVCache

NUM_BLOCKS: Final = 256
BLOCK_SIZE: Final = 16
HEADS: Final = 4
HEAD_DIM: Final = 64


def cache(dtype: torch.dtype) -> KVCache:
    """A cache that is full of small whole numbers, exact in every type."""
    from paged.cache import KVCache

    made = KVCache.allocate(
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        num_kv_heads=HEADS,
        head_dim=HEAD_DIM,
        dtype=dtype,
    )
    for tensor in (made.key_cache, made.value_cache):
        tensor.copy_(small_numbers(NUM_BLOCKS, BLOCK_SIZE, seed=1).to(dtype))
    return made


def small_numbers(*rows: int, seed: int) -> torch.Tensor:
    """[*rows, heads, head size] float32: whole numbers from -4 to 4."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, (*rows, HEADS, HEAD_DIM), generator=rng).float()


def slots(count: int) -> torch.Tensor:
    """[count] int64: different slots, scattered over the cache."""
    rng = torch.Generator().manual_seed(2)
    return torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=rng)[:count]


def pairs(count: int) -> torch.Tensor:
    """[count, 2] int64: different source and destination blocks."""
    rng = torch.Generator().manual_seed(3)
    return torch.randperm(NUM_BLOCKS, generator=rng)[: 2 * count].view(count, 2)


def contents(held: KVCache) -> Mapping[str, Output]:
    """All that the cache holds."""
    return {
        "keys": Output(held.key_cache.float().numpy().copy()),
        "values": Output(held.value_cache.float().numpy().copy()),
    }


def _write(dtype: torch.dtype, num_tokens: int) -> Prepared:
    held = cache(dtype)
    keys, values = (small_numbers(num_tokens, seed=seed).bfloat16() for seed in (4, 5))
    where = slots(num_tokens)
    return Prepared(call=lambda: held.write(keys, values, where), outputs=lambda: contents(held))


def _copy(num_copies: int) -> Prepared:
    held = cache(torch.bfloat16)
    which = [(source, destination) for source, destination in pairs(num_copies).tolist()]
    return Prepared(call=lambda: held.copy(which), outputs=lambda: contents(held))


def _benchmark(name: str, title: str, prepare: Callable[[], Prepared]) -> Benchmark:
    return Benchmark(
        key=f"cache/{name}", title=title, prepare=prepare, needs=("paged.cache:KVCache",)
    )


BENCHMARKS: Final = (
    _benchmark(
        "write[decode,bf16]",
        "16 tokens are stored at their slots, in bfloat16.",
        partial(_write, torch.bfloat16, 16),
    ),
    _benchmark(
        "write[prefill,e4m3]",
        "256 tokens are stored at their slots, in float8.",
        partial(_write, torch.float8_e4m3fn, 256),
    ),
    _benchmark("copy", "32 blocks are copied for copy-on-write.", partial(_copy, 32)),
)
