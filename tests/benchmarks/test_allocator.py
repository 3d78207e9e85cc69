"""What the bookkeeping of the cache costs, operation by operation, and over a stream of requests.

`make bench` turns the clock on. Without it each of these is run once, as a test that it still runs.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from paged.allocator import PagedAllocator
from paged.subject import PagedSubject
from subjects.allocators.mixed_stream import Request, mixed_stream, serve

BLOCK_SIZE = 16
PROMPT = list(range(256))
caching = pytest.mark.parametrize(
    "prefix_caching", [False, True], ids=["caching off", "caching on"]
)


@caching
def test_append_one_token(benchmark: BenchmarkFixture, *, prefix_caching: bool) -> None:
    """Room in the last block: what decoding does 15 times out of 16."""
    num_appends = 1000
    # Blocks larger than the appends, so that not one of them needs a new block.
    allocator = PagedAllocator(4, 2 * num_appends, prefix_caching=prefix_caching)

    def restart() -> None:
        if allocator.num_used:
            allocator.free("a")
        allocator.admit("a", [1])

    def append() -> None:
        for token in range(num_appends):
            allocator.append("a", token)

    benchmark.extra_info["operations"] = num_appends
    benchmark.pedantic(append, setup=restart, rounds=50)
    assert allocator.num_tokens("a") == num_appends + 1


@caching
def test_append_a_block(benchmark: BenchmarkFixture, *, prefix_caching: bool) -> None:
    """Sixteen single tokens, one of which needs a new block, and one fills it."""
    rounds, repeats = 50, 100
    allocator = PagedAllocator(2 * repeats, BLOCK_SIZE, prefix_caching=prefix_caching)

    def restart() -> None:
        if allocator.num_used:
            allocator.free("a")
        allocator.reset_prefix_cache()
        allocator.admit("a", [1])

    def append() -> None:
        for token in range(repeats * BLOCK_SIZE):
            allocator.append("a", token)

    benchmark.extra_info["operations"] = repeats * BLOCK_SIZE
    benchmark.pedantic(append, setup=restart, rounds=rounds)
    assert allocator.num_tokens("a") == repeats * BLOCK_SIZE + 1


@pytest.mark.parametrize("case", ["caching off", "caching on", "hit", "evicting"])
def test_admit_and_free_256_tokens(benchmark: BenchmarkFixture, case: str) -> None:
    num_blocks = 20 if case == "evicting" else 4096
    allocator = PagedAllocator(num_blocks, BLOCK_SIZE, prefix_caching=case != "caching off")
    fresh = iter(range(1000, 10**9))
    hits = []

    def prompt() -> tuple[tuple[list[int]], dict[str, object]]:
        if case == "hit":
            return (PROMPT,), {}
        if case == "caching on":
            allocator.reset_prefix_cache()
        first = next(fresh)
        return ([first, *PROMPT[1:]],), {}

    def admit_and_free(tokens: list[int]) -> None:
        hits.append(allocator.admit("a", tokens))
        allocator.free("a")

    allocator.admit("a", PROMPT)
    allocator.free("a")
    benchmark.pedantic(admit_and_free, setup=prompt, rounds=2000)
    assert set(hits) == {240 if case == "hit" else 0}
    assert allocator.num_used == 0


def test_fork_and_copy_on_write(benchmark: BenchmarkFixture) -> None:
    """A child of 250 tokens that takes one more, and what that copies, and goes."""
    allocator = PagedAllocator(64, BLOCK_SIZE)
    allocator.admit("parent", PROMPT[:250])

    def fork_and_append() -> list[tuple[int, int]]:
        allocator.fork("parent", "child")
        allocator.append("child", 7)
        copies = allocator.take_copies()
        allocator.free("child")
        return copies

    assert len(benchmark(fork_and_append)) == 1


def decoding_batch() -> tuple[PagedAllocator, range]:
    allocator = PagedAllocator(64 * 128, BLOCK_SIZE)
    sequences = range(64)
    for sequence in sequences:
        allocator.admit(sequence, range(2000))
    return allocator, sequences


def test_block_table_of_64_sequences_of_2000_tokens(benchmark: BenchmarkFixture) -> None:
    allocator, sequences = decoding_batch()
    assert benchmark(allocator.block_table, sequences).shape == (64, 125)


def test_slot_of_the_last_token_of_64_sequences(benchmark: BenchmarkFixture) -> None:
    allocator, sequences = decoding_batch()

    def last_slots() -> list[int]:
        return [int(allocator.slots(sequence, start=1999)[0]) for sequence in sequences]

    assert len(set(benchmark(last_slots))) == 64


def test_slots_of_2000_tokens(benchmark: BenchmarkFixture) -> None:
    allocator, _ = decoding_batch()
    assert benchmark(allocator.slots, 0).shape == (2000,)


@pytest.mark.parametrize("num_blocks", [16384, 3000])
@caching
def test_mixed_stream(
    benchmark: BenchmarkFixture, num_blocks: int, *, prefix_caching: bool
) -> None:
    """Operations per second are `operations` over the time of a round."""
    requests = mixed_stream(1000)

    def pool() -> tuple[tuple[PagedSubject, list[Request]], dict[str, object]]:
        allocator = PagedAllocator(num_blocks, BLOCK_SIZE, prefix_caching=prefix_caching)
        return (PagedSubject(allocator), requests), {"max_running": 64, "commits": False}

    served = benchmark.pedantic(serve, setup=pool, rounds=5)
    expected = sum(request.num_generated + 2 for request in requests)
    benchmark.extra_info["operations"] = served.operations
    assert served.operations == expected
    assert (served.hit_tokens > 0) == prefix_caching
