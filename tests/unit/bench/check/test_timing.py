"""How times are taken: the same contents on both sides, rounds in turns, ratios in pairs."""

import itertools
import random

import pytest
import torch

from bench.check import timing
from bench.check.timing import (
    ROUNDS,
    WARM_UP,
    DecodeShape,
    decode_batches,
    running_lengths,
    that_fit,
    time_decode,
)
from bench.workloads.stream import RequestStream
from paged.attention import paged_attention
from reference.attention.contiguous import contiguous_attention

SMALL = DecodeShape(batch_size=4, num_kv_heads=2, group_size=2, head_dim=16, block_size=8)


def stream(*requests: tuple[int, int]) -> RequestStream:
    prompt, output = zip(*requests, strict=True)
    return RequestStream(name="s", source="a test", prompt_tokens=prompt, output_tokens=output)


def time_small(**options):
    requests = stream((20, 9), (33, 4), (5, 60))
    return time_decode(requests, shape=SMALL, device="cpu", seed=0, **options)


# Lengths


def test_a_request_runs_as_often_as_it_has_tokens_to_generate():
    lengths = running_lengths(stream((100, 10), (1000, 30), (10_000, 0)), 20_000, seed=0)
    long = sum(length > 1000 for length in lengths) / len(lengths)
    assert long == pytest.approx(30 / 40, abs=0.01)
    assert max(lengths) < 10_000  # what generates nothing is never in the cache


def test_it_is_met_at_every_step_of_its_output_alike():
    lengths = running_lengths(stream((7, 5)), 20_000, seed=1)
    counts = torch.bincount(torch.tensor(lengths)) / len(lengths)
    assert counts[:8].sum() == 0  # the prompt's last step already generated one
    assert counts[8:].tolist() == pytest.approx([0.2] * 5, abs=0.01)


def test_the_same_seed_runs_the_same_requests():
    requests = stream((20, 90), (33, 400))
    draws = [running_lengths(requests, 8, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_a_batch_is_cut_to_what_a_contiguous_cache_holds(monkeypatch):
    monkeypatch.setattr(timing, "CPU_CACHE_BYTES", 100 * SMALL.bytes_per_token)
    assert SMALL.bytes_per_token == 2 * 2 * 16 * 2
    fits = [([30, 20, 30], 3), ([30, 20, 30, 10], 3), ([30, 51], 1), ([30, 50], 2), ([500], 1)]
    for lengths, count in fits:
        assert that_fit(lengths, shape=SMALL, device="cpu") == lengths[:count]
    assert time_small().shape.batch_size < SMALL.batch_size


# Batches


def test_both_caches_hold_the_same_tokens_and_the_pages_are_shuffled():
    lengths = [70, 41, 16, 1]
    contiguous, paged = decode_batches(lengths, shape=SMALL, device="cpu", seed=0)
    used = []
    for row, length in enumerate(lengths):
        position = torch.arange(length)
        block = paged.block_table[row, position // SMALL.block_size].long()
        used += block.unique().tolist()
        for pages, line in (
            (paged.key_cache, contiguous.key_cache),
            (paged.value_cache, contiguous.value_cache),
        ):
            assert torch.equal(pages[block, position % SMALL.block_size], line[row, :length])
    assert sorted(used) == list(range(len(paged.key_cache)))  # no page has two owners
    assert used != sorted(used)
    assert torch.equal(paged.query, contiguous.query)
    assert paged.seq_lens.tolist() == contiguous.seq_lens.tolist() == lengths
    assert paged.max_seq_len == 70
    assert not torch.equal(contiguous.key_cache, contiguous.value_cache)


def test_both_sides_compute_the_same():
    contiguous, paged = decode_batches([70, 41, 16, 1], shape=SMALL, device="cpu", seed=0)
    contiguous_attention(contiguous)
    paged_attention(paged)
    torch.testing.assert_close(contiguous.out, paged.out)


# Rounds


def test_rounds_take_turns_in_changing_order_and_warm_up_is_not_counted():
    order: list[str] = []
    ticks = itertools.count()
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}

    def timer(call):
        call()
        return next(ticks)

    advanced: list[int] = []
    times = timing._interleave(calls, timer, random.Random(0), advanced.append)
    rounds = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert len(rounds) == sum(advanced) == WARM_UP + ROUNDS
    assert {tuple(sorted(names)) for names in rounds} == {("a", "b", "c")}
    assert len({tuple(names) for names in rounds}) > 2
    kept = sorted(time for column in times.values() for time in column)
    assert kept == list(range(3 * WARM_UP, 3 * (WARM_UP + ROUNDS)))
    # Position n of the three lists is one round.
    assert [sorted(row)[-1] - sorted(row)[0] for row in zip(*times.values(), strict=True)] == (
        [2] * ROUNDS
    )


def test_the_ratio_is_the_median_of_each_rounds_own():
    baseline, times = [1.0, 10.0, 2.0], [3.0, 20.0, 10.0]
    summary = timing._summary("paged", times, baseline, kv_bytes=10**6, copy=None)
    assert summary.ratio == 3.0  # of 3, 2 and 5; the ratio of the medians would be 5
    assert (summary.median_ms, summary.fastest_ms, summary.slowest_ms) == (10.0, 3.0, 20.0)
    assert summary.gigabytes_per_s == pytest.approx(0.1)
    assert summary.bandwidth_share is None
    shared = timing._summary("paged", times, baseline, kv_bytes=10**6, copy=0.4)
    assert shared.bandwidth_share == pytest.approx(0.25)


@pytest.mark.parametrize("side", ["contiguous_attention", "paged_attention", "sdpa_one_by_one"])
@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_times_of_different_computations_are_refused_whichever_differs(side, factor, monkeypatch):
    honest = getattr(timing, side)

    def other(batch, *lengths):
        honest(batch, *lengths)
        batch.out.mul_(factor)

    monkeypatch.setattr(timing, side, other)
    with pytest.raises(RuntimeError, match=r"contiguous, torch and .* disagree by .*\(limit"):
        time_small()


def test_an_implementation_that_writes_nothing_is_refused(monkeypatch):
    # Its output is its own: it cannot pass with what another one wrote.
    monkeypatch.setattr(timing, "contiguous_attention", lambda _: None)
    with pytest.raises(RuntimeError, match="disagree by nan"):
        time_small()


def test_what_was_timed_is_said():
    advanced: list[int] = []
    timed = time_small(advance=advanced.append)
    assert sum(advanced) == WARM_UP + ROUNDS
    lengths = running_lengths(stream((20, 9), (33, 4), (5, 60)), 4, seed=0)
    assert timed.shape == SMALL
    assert timed.context_tokens == sum(lengths)
    assert timed.kv_bytes == sum(lengths) * SMALL.bytes_per_token
    assert timed.copy_gigabytes_per_s is None
    assert timed.timings[0].ratio == 1.0
