"""The conversations share prefixes about as the Mooncake trace's do; each figure has its band."""

import numpy as np
import pytest

from bench.waste.prefix_replay import replay
from bench.workloads.conversations import PREFIX_TOKENS, ConversationFit
from bench.workloads.source import read_all


@pytest.fixture(scope="module")
def drawn():
    return read_all(ConversationFit(seed=0))


def test_lengths_and_rate_come_near_the_traces(drawn):
    assert len(drawn) == 12_031
    assert drawn.prompt_tokens.mean() == pytest.approx(12_035, rel=0.04)
    assert drawn.prompt_tokens.std() / drawn.prompt_tokens.mean() == pytest.approx(1.31, abs=0.05)
    assert PREFIX_TOKENS < drawn.prompt_tokens.min() <= 891
    assert drawn.prompt_tokens.max() == 126_195
    assert drawn.output_tokens.mean() == pytest.approx(343, rel=0.02)
    assert drawn.output_tokens.min() >= 1
    assert 1 / np.diff(drawn.arrival_s).mean() == pytest.approx(3.40, rel=0.05)


def test_blocks_are_shared_about_as_the_traces(drawn):
    _, counts = np.unique(drawn.prefix.ids, return_counts=True)
    assert drawn.prefix.ids.size == pytest.approx(288_500, rel=0.04)
    assert counts.size == pytest.approx(182_790, rel=0.04)
    assert np.mean(counts > 1) == pytest.approx(0.242, abs=0.04)
    assert counts[counts > 1].sum() / counts.sum() == pytest.approx(0.519, abs=0.03)
    # One block that all begin with; nothing else is nearly as popular.
    assert sorted(counts)[-1] == len(drawn)
    assert sorted(counts)[-2] < 60


def test_gaps_between_uses_of_a_block_come_near_the_traces(drawn):
    last, gaps = {}, []
    for request, now_s in enumerate(drawn.arrival_s.tolist()):
        for block in drawn.prefix.of(request).tolist():
            if block in last:
                gaps.append(now_s - last[block])
            last[block] = now_s
    assert np.quantile(gaps, 0.5) == pytest.approx(114, abs=15)
    assert np.quantile(gaps, 0.9) == pytest.approx(519, abs=110)


def test_caches_hit_about_as_often_as_with_the_trace(drawn):
    for tokens, rate, slack in (
        (3_000_000, 0.139, 0.02),
        (10_000_000, 0.291, 0.02),
        (None, 0.374, 0.015),
    ):
        assert replay(drawn, tokens).hit_rate == pytest.approx(rate, abs=slack)


def test_a_block_stands_at_one_place_behind_one_prefix(drawn):
    """What makes ids prefix ids: whoever has a block has all that was before it."""
    before = {}
    for request in range(len(drawn)):
        blocks = drawn.prefix.of(request).tolist()
        for previous, block in zip([None, *blocks], blocks, strict=False):
            assert before.setdefault(block, previous) == previous


def test_a_prompts_unfilled_last_block_is_never_shared(drawn):
    _, first, counts = np.unique(drawn.prefix.ids, return_index=True, return_counts=True)
    times_used = np.zeros(drawn.prefix.ids.size, dtype=int)
    times_used[first] = counts
    last = drawn.prefix.offsets[1:] - 1
    unfilled = drawn.prompt_tokens % PREFIX_TOKENS != 0
    assert times_used[last[unfilled]].max() == 1


def test_twice_the_rate_is_twice_the_conversations_with_the_same_pauses():
    double = read_all(ConversationFit(seed=0, rate_per_s=2 * 3.401, num_requests=24_000))
    assert 1 / np.diff(double.arrival_s).mean() == pytest.approx(6.8, rel=0.05)
    assert np.count_nonzero(np.diff(double.arrival_s) < 0) == 0
