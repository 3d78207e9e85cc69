"""What paging costs: sides that compute the same, timed by the one timer, and a refusal if not."""

import threading

import pytest

from bench.check import decode
from bench.check.decode import ROUNDS, WARM_UP, bytes_per_token, that_fit, time_decode
from bench.workloads.running import running_lengths
from bench.workloads.stream import RequestStream
from reference.attention.problem import AttentionProblem

SMALL = AttentionProblem.parse("4x(q1 k1) h2 g2 d16 b8 bf16")
STREAM = RequestStream(
    name="s", source="a test", prompt_tokens=(20, 33, 5), output_tokens=(9, 4, 60)
)


def time_small(**options):
    return time_decode(STREAM, step=SMALL, device="cpu", seed=0, **options)


def test_a_batch_is_cut_to_what_a_contiguous_cache_holds(monkeypatch):
    fits = [([30, 20, 30], 3), ([30, 20, 30, 10], 3), ([30, 51], 1), ([30, 50], 2), ([500], 1)]
    for lengths, count in fits:
        assert that_fit(lengths, slots=100) == lengths[:count]
    assert bytes_per_token(SMALL) == 2 * 2 * 16 * 2
    monkeypatch.setattr(decode, "CPU_CACHE_BYTES", 100 * bytes_per_token(SMALL))
    assert time_small().batch_size < 4


def test_what_was_timed_is_said():
    advanced: list[int] = []
    timed = time_small(advance=advanced.append)
    assert sum(advanced) == WARM_UP + ROUNDS
    lengths = running_lengths(STREAM, 4, seed=0)
    assert (timed.batch_size, timed.context_tokens) == (4, sum(lengths))
    assert timed.kv_bytes == sum(lengths) * bytes_per_token(SMALL)
    assert (timed.num_q_heads, timed.num_kv_heads, timed.head_dim) == (4, 2, 16)
    assert (timed.block_size, timed.dtype) == (8, "bfloat16")
    assert timed.copy_gigabytes_per_s is None
    names = [timing.name for timing in timed.timings]
    assert names == ["contiguous, torch", "paged, torch", "contiguous, torch SDPA"]
    assert timed.timings[0].ratio == 1.0


def test_a_timing_has_the_median_of_each_rounds_own_ratio():
    timing = decode._timing("paged", [3.0, 20.0, 10.0], [1.0, 10.0, 2.0], 10**9, None)
    assert timing.ratio == 3.0  # of 3, 2 and 5; the ratio of the medians would be 5
    assert (timing.median_ms, timing.fastest_ms, timing.slowest_ms) == (10e3, 3e3, 20e3)
    assert timing.gigabytes_per_s == pytest.approx(0.1)
    assert timing.bandwidth_share is None
    shared = decode._timing("paged", [3.0, 20.0, 10.0], [1.0, 10.0, 2.0], 10**9, 0.4)
    assert shared.bandwidth_share == pytest.approx(0.25)


def test_inputs_in_turn_leave_the_cache(monkeypatch):
    seen = []
    honest = decode.paged_attention

    def spy(batch):
        seen.append(batch.key_cache.data_ptr())
        honest(batch)

    monkeypatch.setattr(decode, "paged_attention", spy)
    timed = time_small()
    assert len(set(seen)) * timed.kv_bytes >= 3 * 20_000


@pytest.mark.parametrize("side", ["contiguous_attention", "paged_attention", "sdpa_one_by_one"])
@pytest.mark.parametrize("factor", [1.1, float("nan"), None])
def test_times_of_different_computations_are_refused_whichever_differs(side, factor, monkeypatch):
    honest = getattr(decode, side)

    def other(batch, *lengths):
        if factor is not None:  # else it writes nothing, and cannot pass with what another wrote
            honest(batch, *lengths)
            batch.out.mul_(factor)

    monkeypatch.setattr(decode, side, other)
    with pytest.raises(RuntimeError, match=r"contiguous, torch and .* disagree by .*\(limit"):
        time_small()


def test_stopping_leaves_no_times():
    stop = threading.Event()
    assert time_small(stop=stop, advance=lambda _: stop.set()) is None
