"""Replays of a prefix cache: cases worked out by hand, bounds, and a published trace."""

import random
from itertools import accumulate, combinations
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.waste.prefix_replay import ReplayOrder, replay
from bench.workloads.prefix import PrefixBlocks
from bench.workloads.stream import RequestStream
from bench.workloads.traces import read_trace
from helpers.profiles import examples
from helpers.published import published_file
from helpers.streams import stream as stream_of
from paged.allocator import PagedAllocator
from paged.eviction import LRU
from paged.prefix import KeyedPrompt

SIZE = 10
ORDERS = get_args(ReplayOrder)


def stream(
    prompts: Any, *, tokens: list[int] | None = None, tenants: list[int] | None = None
) -> RequestStream:
    """Prompts by their prefix blocks, each full unless `tokens` says otherwise."""
    return stream_of(
        tokens or [SIZE * len(prompt) for prompt in prompts],
        prefix=PrefixBlocks(
            ids=[key for prompt in prompts for key in prompt],
            offsets=[0, *accumulate(map(len, prompts))],
            tokens_per_block=SIZE,
        ),
        tenant=tenants,
        tenant_names=("a", "b") if tenants else (),
    )


@st.composite
def conversations(draw: st.DrawFn) -> list[list[int]]:
    """Paths from the root of a random tree: what prompts with common prefixes are."""
    parents = draw(st.lists(st.integers(-1, 11), min_size=1, max_size=12))
    leaves = draw(st.lists(st.integers(0, len(parents) - 1), min_size=1, max_size=30))
    paths = []
    for leaf in leaves:
        path, node = [], leaf
        while node >= 0:
            path.append(node)
            # Each node hangs on one that came before it, or on the root.
            node = min(parents[node], node - 1)
        paths.append(path[::-1])
    return paths


# Worked out by hand


def test_endless_cache_finds_whatever_was_there_before() -> None:
    result = replay(stream([[1, 2, 3], [1, 2, 4], [1, 2, 3]], tokens=[25, 30, 27]), None)
    assert (result.queried_tokens, result.hit_tokens) == (82, 20 + 27)
    assert (result.queried_blocks, result.hit_blocks) == (9, 5)
    assert (result.unique_blocks, result.reused_blocks) == (4, 3)
    assert (result.evictions, result.ghost_hits) == (0, 0)
    assert result.hit_rate == 47 / 82
    assert result.block_hit_rate == 5 / 9


@pytest.mark.parametrize("order", ["lru", "fifo", "lfu", "perfect-lfu"])
def test_cyclic_scan_over_one_prefix_too_many_never_hits(order: ReplayOrder) -> None:
    """Nine prefixes round and round with room for eight: each comes back just too late."""
    prompts = [[key] for key in range(9)] * 20
    result = replay(stream(prompts), 8 * SIZE, order)
    assert result.hit_tokens == 0
    assert result.evictions == 180 - 8
    assert result.ghost_hits == 180 - 9


@pytest.mark.parametrize("order", ORDERS)
def test_cyclic_scan_with_one_more_place_always_hits(order: ReplayOrder) -> None:
    prompts = [[key] for key in range(9)] * 20
    result = replay(stream(prompts), 9 * SIZE, order)
    assert result.hit_blocks == 180 - 9
    assert (result.evictions, result.ghost_hits) == (0, 0)
    # With eight places foresight does not keep one in each round: eight hits of nine.
    assert replay(stream(prompts[:81]), 8 * SIZE, "belady").hit_blocks == 8 * 9 - 8


@pytest.mark.parametrize(
    ("order", "hits"),
    [
        # Room for two. 1 and 2 are there; 1 is used; 3 comes; who of 1 and 2 went is asked for.
        ("lru", [0, 0, 1, 0, 1, 0]),
        ("fifo", [0, 0, 1, 0, 0, 0]),
        ("lfu", [0, 0, 1, 0, 1, 0]),
        ("belady", [0, 0, 1, 0, 1, 1]),
    ],
)
def test_who_goes_first(order: ReplayOrder, hits: list[int]) -> None:
    prompts = [[1], [2], [1], [3], [1], [2]]
    found = [replay(stream(prompts[:end]), 2 * SIZE, order).hit_blocks for end in range(1, 7)]
    assert [after - before for before, after in zip([0, *found], found)] == hits  # noqa: B905


@pytest.mark.parametrize(
    ("prompts", "room", "hits"),
    [
        # 1 is pushed out by 3 and comes back. When 5 comes, 1 is the older of two that were not
        # found since they were cached, but it was asked for twice, and 4 once.
        ([[1], [2], [3], [1], [4], [5], [1]], 2, {"lfu": 0, "perfect-lfu": 1}),
        # The tail goes before the head.
        ([[1, 2, 3], [4], [1, 2, 3]], 3, {**dict.fromkeys(ORDERS, 2), "belady": 3}),
        # FIFO pushes 1 out and leaves 2, which is of no use without it: a gap ends the hits.
        ([[1], [1, 2], [3, 4, 5], [1, 2]], 4, {"fifo": 1, "lru": 2}),
        # A prompt larger than the cache leaves its head.
        ([[1, 2, 3, 4], [1, 2, 3, 4]], 2, {"lru": 2, "belady": 2}),
    ],
)
def test_what_is_found_again(prompts: Any, room: int, hits: dict[ReplayOrder, int]) -> None:
    for order, expected in hits.items():
        assert replay(stream(prompts), room * SIZE, order).hit_blocks == expected, order


def test_warm_up_fills_the_cache_and_is_not_counted() -> None:
    prompts = [[key] for key in (1, 2, 3, 1, 3)]
    result = replay(stream(prompts), 2 * SIZE, warmup_requests=3)
    assert (result.requests, result.queried_blocks, result.hit_blocks) == (2, 2, 1)
    assert (result.evictions, result.ghost_hits) == (1, 1)
    assert (result.unique_blocks, result.reused_blocks) == (2, 0)


def test_tenants_are_told_apart() -> None:
    result = replay(stream([[1, 2], [3], [1, 2]], tenants=[0, 1, 0]), None)
    assert {tenant: hits.hit_rate for tenant, hits in result.tenants.items()} == {0: 0.5, 1: 0.0}


# Bounds


@given(prompts=conversations())
@examples(60)
def test_endless_cache_finds_every_repeated_reference(prompts: list[list[int]]) -> None:
    references = sum(map(len, prompts))
    unique = len({key for prompt in prompts for key in prompt})
    result = replay(stream(prompts), None)
    assert result.hit_blocks == references - unique
    assert result.unique_blocks == unique
    assert replay(stream(prompts), 100 * SIZE, "fifo").hit_blocks == result.hit_blocks


@given(prompts=conversations())
@examples(60)
def test_larger_lru_cache_finds_at_least_as_much(prompts: list[list[int]]) -> None:
    """A smaller LRU cache holds a part of what a larger one does (stack inclusion)."""
    found = [replay(stream(prompts), blocks * SIZE).hit_blocks for blocks in range(1, 13)]
    assert found == sorted(found)


@given(prompts=conversations(), blocks=st.integers(1, 8))
@examples(100)
def test_no_order_beats_foresight(prompts: list[list[int]], blocks: int) -> None:
    best = replay(stream(prompts), blocks * SIZE, "belady").hit_blocks
    for order in ORDERS:
        assert replay(stream(prompts), blocks * SIZE, order).hit_blocks <= best, order


@given(prompts=conversations().map(lambda paths: paths[:7]), blocks=st.integers(1, 3))
@examples(30)
def test_foresight_is_the_best_of_all_choices(prompts: list[list[int]], blocks: int) -> None:
    """Every choice of what stays, after every request, gone through."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for prompt in prompts:
        following: dict[frozenset[int], int] = {}
        for held, found in states.items():
            hits = next((at for at, key in enumerate(prompt) if key not in held), len(prompt))
            there = held | set(prompt)
            for kept in combinations(sorted(there), min(blocks, len(there))):
                key = frozenset(kept)
                following[key] = max(following.get(key, 0), found + hits)
        states = following
    assert replay(stream(prompts), blocks * SIZE, "belady").hit_blocks == max(states.values())


@given(prompts=conversations(), spare=st.integers(0, 4))
@examples(40)
def test_lru_is_what_the_allocator_does(prompts: list[list[int]], spare: int) -> None:
    """A token behind each prompt takes the one block more that the allocator has."""
    blocks = max(map(len, prompts)) + spare
    allocator = PagedAllocator(blocks + 1, SIZE, prefix_caching=True)
    found = 0
    for name, prompt in enumerate(prompts):
        found += allocator.admit(name, KeyedPrompt(SIZE * len(prompt) + 1, tuple(prompt)))
        allocator.free(name)
    result = replay(stream(prompts), blocks * SIZE)
    assert (result.hit_tokens, result.evictions) == (found, allocator.num_evictions)


# A noisy neighbour


def neighbours(share: float) -> RequestStream:
    """A asks for 8 system prompts of 32 blocks; B, with `share` of all requests, for new ones."""
    draw = random.Random(0)
    prompts: list[range] = []
    tenants = []
    for number in range(2000):
        noisy = draw.random() < share
        first = 1000 + 64 * number if noisy else 32 * draw.randrange(8)
        prompts.append(range(first, first + (64 if noisy else 32)))
        tenants.append(int(noisy))
    return stream(prompts, tenants=tenants)


def test_noisy_neighbour_pushes_out_and_a_quota_holds() -> None:
    shares = (0.2, 0.5, 0.8)
    shared = [replay(neighbours(share), 512 * SIZE).tenants[0].hit_rate for share in shares]
    assert shared == pytest.approx([0.896, 0.524, 0.237], abs=0.02)
    for share, order in ((0.2, "lru"), (0.8, "lru"), (0.8, "fifo"), (0.8, "lfu")):
        apart = replay(
            neighbours(share), 512 * SIZE, order, quotas={0: 256, 1: 256}, warmup_requests=500
        )
        assert apart.tenants[0].hit_rate >= 0.99, (order, share)
        assert apart.tenants[1].hit_rate == 0


def test_quota_holds_in_the_allocator_too() -> None:
    """One block more than the quotas add up to: the token behind each prompt has to be computed."""
    rates = {}
    for quotas in ({}, {0: 257, 1: 256}):
        allocator = PagedAllocator(514, SIZE, prefix_caching=True, eviction=LRU(quotas=quotas))
        quiet = []
        asked = neighbours(0.8)
        for name, tenant in enumerate(asked.tenant.tolist()):
            keys = tuple(asked.prefix.of(name).tolist())
            hit = allocator.admit(name, KeyedPrompt(SIZE * len(keys) + 1, keys, tenant))
            allocator.free(name)
            if tenant == 0:
                quiet.append(hit / (SIZE * len(keys)))
        rates[len(quotas)] = sum(quiet) / len(quiet)
    assert rates[0] < 0.3
    assert rates[2] > 0.97


# A published trace


@pytest.fixture(scope="module")
def trace() -> RequestStream:
    return read_trace(published_file("mooncake-conv"))


def test_trace_without_a_limit(trace: RequestStream) -> None:
    result = replay(trace, None)
    assert (result.queried_blocks, result.unique_blocks) == (288_500, 182_790)
    assert 100 * result.hit_rate == pytest.approx(37.4, abs=0.05)
    assert 100 * result.block_hit_rate == pytest.approx(36.6, abs=0.05)
    assert 100 * result.reused_blocks / result.unique_blocks == pytest.approx(24.2, abs=0.1)


@pytest.mark.parametrize(
    ("millions", "order", "rate"),
    [
        # In per cent, as other replays of the trace found them.
        (3, "lru", 13.9),
        (3, "fifo", 12.7),
        (3, "perfect-lfu", 15.5),
        # Of blocks that are due at once the tail goes first here. Where the head does it is 35.7.
        (3, "belady", 36.0),
        (0.1, "lru", 4.3),
        (1, "lru", 5.4),
        (10, "lru", 29.1),
        (30, "lru", 36.6),
    ],
)
def test_trace_in_caches_of_a_size(
    trace: RequestStream, millions: float, order: ReplayOrder, rate: float
) -> None:
    found = replay(trace, int(1e6 * millions), order)
    assert 100 * found.hit_rate == pytest.approx(rate, abs=0.1)


def test_trace_by_share_of_its_blocks(trace: RequestStream) -> None:
    shares = (0.01, 0.05, 0.10, 0.25, 0.50)
    seen = [replay(trace, int(182_790 * share) * 512).block_hit_rate for share in shares]
    assert seen == pytest.approx([0.052, 0.196, 0.279, 0.353, 0.363], abs=0.001)
    # kvcache-simulator 0.1.3, 6,553 blocks, the last half of the requests: 15.3 %.
    result = replay(trace, 6553 * 512, warmup_requests=len(trace) // 2)
    assert 100 * result.hit_rate == pytest.approx(15.3, abs=0.05)
    # Ghosts as counted by a replay that keeps the number of each key's last eviction for ever.
    small, large = (replay(trace, size).ghost_hits for size in (3_000_000, 50_000_000))
    assert (small, large) == (25_549, 840)


# What is refused


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (stream_of([5]), "'s' has no prefix blocks: use a trace"),
        (stream([[1, 2], [3, 3]]), "request 1 of 's' names a prefix block twice"),
    ],
)
def test_stream_that_cannot_be_replayed_is_refused(refused: RequestStream, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replay(refused, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"capacity_tokens": 9}, "capacity_tokens = 9: give at least a block, 10 tokens"),
        ({"capacity_tokens": 10, "order": "mru"}, "order 'mru': choose one of lru"),
        ({"capacity_tokens": 10, "order": "belady", "quotas": {0: 1}}, "leave them out"),
        ({"capacity_tokens": 10, "quotas": {0: -1}}, "quota of tenant 0 = -1"),
        ({"capacity_tokens": 10, "warmup_requests": -1}, "warmup_requests = -1"),
        ({"capacity_tokens": 10, "warmup_requests": 1}, "leaves no request to count"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replay(stream([[1]]), **arguments)
