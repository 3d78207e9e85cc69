"""Writes by slot mapping and copies of blocks, in torch.

A cache of one layer of Llama-3-8B, 1,024 blocks of 16 tokens, shuffled. `make bench` turns the
clock on; without it each is one call whose effect is read back.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from paged.cache import KVCache

NUM_BLOCKS = 1024
BLOCK_SIZE = 16
HEADS, HEAD_DIM = 8, 128
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

dtypes = pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float32, *FLOAT8],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def empty_cache(dtype: torch.dtype) -> KVCache:
    scale = 0.5 if dtype in FLOAT8 else 1.0
    return KVCache.allocate(
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        num_kv_heads=HEADS,
        head_dim=HEAD_DIM,
        dtype=dtype,
        k_scale=scale,
        v_scale=scale,
    )


@pytest.mark.benchmark(group="write 64 tokens, one for each sequence (decode)")
@dtypes
def test_write_a_decode_step(benchmark: BenchmarkFixture, dtype: torch.dtype) -> None:
    write(benchmark, dtype, num_tokens=64)


@pytest.mark.benchmark(group="write 2,048 tokens (prefill)")
@dtypes
def test_write_a_prefill_chunk(benchmark: BenchmarkFixture, dtype: torch.dtype) -> None:
    write(benchmark, dtype, num_tokens=2048)


def write(benchmark: BenchmarkFixture, dtype: torch.dtype, *, num_tokens: int) -> None:
    cache = empty_cache(dtype)
    shape = (num_tokens, HEADS, HEAD_DIM)
    # Whole numbers up to 4: exact in every dtype, also divided by the scale.
    keys, values = (torch.randint(-4, 5, shape, generator=rng()).bfloat16() for _ in "kv")
    values = -values
    slots = torch.randperm(cache.num_slots, generator=rng())[:num_tokens]
    benchmark(cache.write, keys, values, slots)
    for stored, scale, given in (
        (cache.key_cache, cache.k_scale, keys),
        (cache.value_cache, cache.v_scale, values),
    ):
        read = stored.float().view(-1, HEADS, HEAD_DIM)[slots] * scale
        assert torch.equal(read, given.float())


@pytest.mark.benchmark(group="copy blocks (copy-on-write)")
@pytest.mark.parametrize("num_copies", [1, 64])
def test_copy_blocks(benchmark: BenchmarkFixture, num_copies: int) -> None:
    cache = empty_cache(torch.bfloat16)
    cache.key_cache.normal_(generator=rng())
    cache.value_cache.normal_(generator=rng())
    blocks = torch.randperm(NUM_BLOCKS, generator=rng())[: 2 * num_copies]
    source, destination = blocks.view(2, num_copies)
    assert not torch.equal(cache.key_cache[source], cache.key_cache[destination])
    benchmark(cache.copy, list(zip(source.tolist(), destination.tolist(), strict=True)))
    for half in (cache.key_cache, cache.value_cache):
        assert torch.equal(half[source], half[destination])
