"""Writes by slot mapping and copies of blocks, in torch, into a cache that was there before."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from bench.gate.benchmark import Output, Prepared, of_group

if TYPE_CHECKING:
    from paged.cache import KVCache

BLOCK_SIZE: Final = 16


class Size(NamedTuple):
    """Of a cache."""

    blocks: int
    heads: int
    head_dim: int


SMALL: Final = Size(256, 4, 64)
LLAMA: Final = Size(1024, 8, 128)
"""One layer of Llama-3-8B."""

DTYPES: Final = {
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}


def cache(dtype: torch.dtype, size: Size = SMALL) -> KVCache:
    """A cache that is full of small whole numbers, exact in every type."""
    from paged.cache import KVCache

    made = KVCache.allocate(
        num_blocks=size.blocks,
        block_size=BLOCK_SIZE,
        num_kv_heads=size.heads,
        head_dim=size.head_dim,
        dtype=dtype,
    )
    held = small_numbers(size.blocks, BLOCK_SIZE, seed=1, size=size).to(dtype)
    for tensor in (made.key_cache, made.value_cache):
        tensor.copy_(held)
    return made


def small_numbers(*rows: int, seed: int, size: Size = SMALL) -> torch.Tensor:
    """[*rows, heads, head size] float32: whole numbers from -4 to 4."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, (*rows, size.heads, size.head_dim), generator=rng).float()


def slots(count: int, size: Size = SMALL) -> torch.Tensor:
    """[count] int64: different slots, scattered over the cache."""
    rng = torch.Generator().manual_seed(2)
    return torch.randperm(size.blocks * BLOCK_SIZE, generator=rng)[:count]


def pairs(count: int, size: Size = SMALL) -> torch.Tensor:
    """[count, 2] int64: different source and destination blocks."""
    rng = torch.Generator().manual_seed(3)
    return torch.randperm(size.blocks, generator=rng)[: 2 * count].view(count, 2)


def contents(held: KVCache) -> Mapping[str, Output]:
    """All that the cache holds."""
    return {
        "keys": Output(held.key_cache.float().numpy().copy()),
        "values": Output(held.value_cache.float().numpy().copy()),
    }


def _write(dtype: torch.dtype, num_tokens: int, size: Size = SMALL) -> Prepared:
    held = cache(dtype, size)
    keys, values = (small_numbers(num_tokens, seed=seed, size=size).bfloat16() for seed in (4, 5))
    where = slots(num_tokens, size)
    return Prepared(call=lambda: held.write(keys, values, where), outputs=lambda: contents(held))


def _copy(num_copies: int, size: Size = SMALL) -> Prepared:
    held = cache(torch.bfloat16, size)
    which = [(source, destination) for source, destination in pairs(num_copies, size).tolist()]
    return Prepared(call=lambda: held.copy(which), outputs=lambda: contents(held))


_benchmark = of_group("cache", "paged.cache:KVCache")

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
    *(
        _benchmark(
            f"write[llama,{tokens},{name}]",
            f"{tokens:,} tokens of a layer of Llama-3-8B are stored as {name}.",
            partial(_write, dtype, tokens, LLAMA),
            gated=False,
        )
        for tokens in (64, 2048)
        for name, dtype in DTYPES.items()
    ),
    *(
        _benchmark(
            f"copy[llama,{count}]",
            f"{count} blocks of a layer of Llama-3-8B are copied.",
            partial(_copy, count, LLAMA),
            gated=False,
        )
        for count in (1, 64)
    ),
)
