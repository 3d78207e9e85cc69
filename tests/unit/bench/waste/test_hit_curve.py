"""Hit curves: one pass for all sizes of an LRU cache finds what a replay of each finds."""

import random
from dataclasses import replace

import pytest

from bench.waste.hit_curve import ORDERS, behind_pool, hit_curve, lru_tokens, tier_words
from bench.waste.prefix_replay import replay
from bench.workloads.prefix import PrefixBlocks
from bench.workloads.source import StreamSource, head
from bench.workloads.stream import RequestStream
from bench.workloads.traces import TraceSource
from helpers.published import published_file
from paged.tiers import Tier

SIZE = 16


def tree_stream(seed: int, requests: int = 120) -> RequestStream:
    """Prompts that follow a few paths of a tree, and leave them at random."""
    draw = random.Random(seed)
    ids, prompts = [], []
    for number in range(requests):
        family, shared, blocks = draw.randrange(4), draw.randrange(9), draw.randrange(1, 12)
        ids.append(
            [
                family * 100 + at if at < shared else 10_000 + number * 100 + at
                for at in range(blocks)
            ]
        )
        prompts.append(blocks * SIZE - draw.randrange(SIZE))
    return RequestStream(
        name="tree",
        source="a test",
        prompt_tokens=prompts,
        output_tokens=[1] * requests,
        prefix=PrefixBlocks.of_lists(ids, SIZE),
    )


@pytest.mark.parametrize("seed", range(4))
def test_one_pass_finds_what_a_replay_of_each_size_finds(seed: int) -> None:
    source = tree_stream(seed)
    found, requests, tokens, unique = lru_tokens(source)
    for blocks in (1, 2, 3, 5, 8, 13, 21, 55, 200, unique):
        replayed = replay(source, blocks * SIZE, "lru")
        below = sum(each for depth, each in found.items() if depth <= blocks)
        assert below == replayed.hit_tokens, blocks
        assert (requests, tokens) == (replayed.requests, replayed.queried_tokens)
    assert sum(found.values()) == replay(source, None).hit_tokens


def test_every_curve_rises_to_the_limit_and_none_beats_the_optimum() -> None:
    curve = hit_curve(tree_stream(7), "t")
    for order in ORDERS:
        rates = curve.rates[order]
        assert len(rates) == len(curve.sizes)
        assert max(rates) <= curve.limit
        assert all(rate <= best for rate, best in zip(rates, curve.rates["belady"], strict=True))
    assert list(curve.rates["lru"]) == sorted(curve.rates["lru"])


def test_a_published_trace_is_judged_by_its_own_curve() -> None:
    """W8: any trace was held against the conversation trace's numbers."""
    source: StreamSource = head(TraceSource(published_file("mooncake-conv")), 600)
    found, _, tokens, _ = lru_tokens(source)
    for blocks in (500, 4000):
        below = sum(each for depth, each in found.items() if depth <= blocks)
        assert below / tokens == pytest.approx(replay(source, blocks * 512, "lru").hit_rate)


def test_a_tier_is_worth_what_loading_saves() -> None:
    # Three prompts of two blocks, three times round; the pool holds two of the three.
    prompts = [[number * 10, number * 10 + 1] for number in range(3)] * 3
    source = RequestStream(
        name="round",
        source="a test",
        prompt_tokens=[2 * SIZE] * 9,
        output_tokens=[1] * 9,
        prefix=PrefixBlocks.of_lists(prompts, SIZE),
    )
    host = Tier(name="host", slots=2 * SIZE, load_ps_per_token=10_000, store_ps_per_token=10_000)
    small = replace(host, slots=SIZE - 1)
    # Behind the small one, which has no room for a block, the other is what it is alone.
    behind = behind_pool([small, host], pool_slots=4 * SIZE, prompt_ns=1000)
    nothing, worth = hit_curve(source, "round", tiers=behind).tiers
    # LRU finds nothing in the pool, and everything but the first round in both.
    assert worth.found_tokens == 6 * 2 * SIZE
    assert worth.stored_tokens == 7 * 2 * SIZE
    assert worth.saved_s == pytest.approx(worth.found_tokens * 1e-6)
    assert worth.loading_s == pytest.approx(worth.found_tokens * 1e-8)
    assert "It is worth it" in tier_words(worth, 9 * 2 * SIZE)
    slow = replace(worth, loading_s=1.0)
    assert "not worth it: loading" in tier_words(slow, 9 * 2 * SIZE)
    assert "it finds nothing" in tier_words(nothing, 9 * 2 * SIZE)
