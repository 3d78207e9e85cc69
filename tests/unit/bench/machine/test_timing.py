"""How calls are timed: in turns, in balanced random order, over inputs that leave the cache."""

import itertools
import random
from collections import Counter, OrderedDict
from collections.abc import Iterable
from threading import Event

import numpy as np
import pytest

from bench.machine.timing import (
    COLD_FACTOR,
    LEAST_QUEUED_S,
    SHORT_CALL_S,
    CpuDevice,
    Side,
    Timer,
    balanced_orders,
    copies_needed,
    cpu_cache_bytes,
    median_interval,
    paired_ratio,
)

CACHE_BYTES = 1000


class FakeGpu:
    """A device with a virtual clock, and a cache that forgets what was used longest ago.

    A call of an input that the cache holds takes a tenth of the time of one that it does not.
    """

    clock = "fake"
    queues = True
    cache_bytes = CACHE_BYTES

    def __init__(self, *, captures: bool = True, clocks: Iterable[int | None] = ()) -> None:
        self.now = 0.0
        self.waited = 0
        self.ahead: list[float] = []
        self.ran: list[tuple[str, int]] = []
        self.graphs: list[int] = []
        self.clocks = iter(clocks)
        self._captures = captures
        self._cache: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._marks: set[float] = set()
        self._recording = False

    def run(self, side: str, index: int, input_bytes: int, seconds: float) -> None:
        if self._recording:
            return
        self.ran.append((side, index))
        key = (side, index) if input_bytes else ("nothing", 0)
        hit = key in self._cache
        self._cache[key] = input_bytes
        self._cache.move_to_end(key)
        while sum(self._cache.values()) > self.cache_bytes:
            self._cache.popitem(last=False)
        self.now += seconds / 10 if hit else seconds

    def mark(self) -> tuple[float, int]:
        return self.now, self.waited

    def seconds(self, before: tuple[float, int], after: tuple[float, int]) -> float:
        assert self.waited > after[1], "the times are read before the device is done"
        return after[0] - before[0]

    def synchronize(self) -> None:
        self.waited += 1

    def sm_mhz(self) -> int | None:
        return next(self.clocks, None)

    def run_ahead(self, seconds: float) -> None:
        self.ahead.append(seconds)

    def capture(self, calls):
        if not self._captures:
            return None

        def replay() -> None:
            for call in list(calls):
                call()

        self._recording = True
        replay()
        self._recording = False
        self.graphs.append(len(calls))
        return replay


def side(gpu, name="a", *, inputs, input_bytes=400, seconds=1e-3):
    def call(index):
        return lambda: gpu.run(name, index, input_bytes, seconds)

    return Side(name=name, calls=tuple(call(index) for index in range(inputs)))


def timed(gpu=None, *, inputs=8, seconds=1e-3, **options):
    """The times of one side, and the device that they were taken on."""
    gpu = gpu or FakeGpu()
    return Timer(gpu, **options).time([side(gpu, inputs=inputs, seconds=seconds)])["a"], gpu


# --- cold and warm -------------------------------------------------------------------------------


def test_the_clock_of_each_round_that_counts_is_kept_if_all_were_read():
    read, _ = timed(FakeGpu(clocks=[1, 2, 1980, 1755]), rounds=2, warm_up=2)
    assert read.sm_mhz == [1980, 1755]
    lost, _ = timed(FakeGpu(clocks=[1, 2, 1980, None]), rounds=2, warm_up=2)
    assert lost.sm_mhz == []
    assert len(lost.cold_s) == 2


def test_inputs_in_turn_find_the_cache_cold_and_one_again_and_again_finds_it_warm():
    several, _ = timed(inputs=copies_needed(400, CACHE_BYTES), rounds=4, warm=True)
    assert several.cold_s == pytest.approx([1e-3] * 4)
    assert several.warm_s == pytest.approx([1e-4] * 4)
    single, _ = timed(inputs=1, rounds=4)
    assert single.cold_s == pytest.approx([1e-4] * 4)


@pytest.mark.parametrize("input_bytes", [1, 399, 1000, 2999, 3000, 10**9])
def test_inputs_are_several_times_the_cache_and_at_least_two(input_bytes):
    count = copies_needed(input_bytes, CACHE_BYTES)
    assert count * input_bytes >= COLD_FACTOR * CACHE_BYTES
    assert count >= 2
    assert count == 2 or (count - 1) * input_bytes < COLD_FACTOR * CACHE_BYTES


# --- rounds --------------------------------------------------------------------------------------


def test_every_input_is_called_in_every_round_and_long_calls_are_not_captured():
    times, gpu = timed(rounds=3, warm_up=1)
    assert Counter(index for _, index in gpu.ran) == dict.fromkeys(range(8), 4)
    assert (times.captured, gpu.graphs) == (False, [])


def test_warm_up_is_not_counted():
    gpu = FakeGpu()
    costs = itertools.chain([9.0, 9.0], itertools.repeat(1e-3))
    slow_at_first = Side(name="a", calls=(lambda: gpu.run("a", 0, 0, next(costs)),))
    # Bytes of 0 are one input for all: only its first call misses the cache.
    times = Timer(gpu, rounds=3, warm_up=2).time([slow_at_first])["a"]
    assert times.cold_s == pytest.approx([1e-4] * 3)


def test_orders_are_random_and_each_place_is_taken_equally_often():
    orders = list(itertools.islice(balanced_orders("abcd", random.Random(1)), 400))
    for place in range(4):
        assert Counter(order[place] for order in orders) == dict.fromkeys("abcd", 100)
    # All 24 are drawn, none much more often than the others.
    counts = Counter(map(tuple, orders))
    assert len(counts) == 24
    assert max(counts.values()) < 40


def test_the_rounds_follow_those_orders_and_a_seed_gives_the_same_ones():
    ran = []
    for seed in (0, 0, 1):
        gpu = FakeGpu()
        sides = [side(gpu, name, inputs=1, seconds=1.0) for name in "abc"]
        Timer(gpu, rounds=8, warm_up=1, seed=seed).time(sides)
        ran.append([gpu.ran[at : at + 3] for at in range(0, 27, 3)])
        assert gpu.waited == 9, "a round is waited for once"
    assert ran[0] == ran[1] != ran[2]
    assert all(sorted(name for name, _ in once) == list("abc") for once in ran[0])
    assert len({tuple(once) for once in ran[0]}) > 1


def test_calls_are_repeated_until_events_can_resolve_them():
    _, gpu = timed(rounds=2, warm_up=1, seconds=25e-6)
    # The first round assumes nothing; then it takes 20 calls, and 24 are 3 times 8 inputs.
    assert round(LEAST_QUEUED_S / 25e-6) == 20
    assert len(gpu.ran) == 8 + 2 * 24


def test_short_calls_are_captured_all_sides_alike():
    gpu = FakeGpu()
    sides = [
        side(gpu, "short", inputs=8, seconds=SHORT_CALL_S / 2),
        side(gpu, "long", inputs=8, seconds=1e-3),
    ]
    times = Timer(gpu, rounds=3, warm=True).time(sides)
    assert times["short"].captured
    assert times["long"].captured
    assert times["short"].cold_s == pytest.approx([SHORT_CALL_S / 2] * 3)
    assert times["short"].warm_s == pytest.approx([SHORT_CALL_S / 20] * 3)
    assert times["long"].cold_s == pytest.approx([1e-3] * 3)
    assert gpu.graphs == [56, 56, 8, 8]  # cold and warm of each, a multiple of the inputs


def test_what_cannot_be_captured_is_timed_as_it_is():
    times, _ = timed(FakeGpu(captures=False), rounds=3, seconds=SHORT_CALL_S / 2)
    assert not times.captured
    assert times.cold_s == pytest.approx([SHORT_CALL_S / 2] * 3)


def test_nobody_takes_no_time_and_no_rounds_are_no_measurement():
    assert Timer(FakeGpu(), rounds=3).time([]) == {}
    assert list(balanced_orders([], random.Random(0))) == []
    for options in ({"rounds": 0}, {"rounds": 1, "warm_up": 0}):
        with pytest.raises(ValueError, match="at least one"):
            Timer(FakeGpu(), **options)


def test_stopping_keeps_the_rounds_that_are_done():
    gpu, stop, done = FakeGpu(), Event(), []

    def advance(count):
        done.append(count)
        if len(done) == 5:
            stop.set()

    times = Timer(gpu, rounds=9, warm_up=2).time([side(gpu, inputs=8)], advance=advance, stop=stop)
    assert len(times["a"].cold_s) == 3


# --- who is wrong --------------------------------------------------------------------------------


def test_who_is_wrong_or_raises_is_taken_out_and_the_others_go_on():
    gpu, asked, calls = FakeGpu(), Counter(), itertools.count()

    def judge(name):
        asked[name] += 1
        return "off by 1" if name == "b" and asked[name] == 4 else ""

    def raises_later():
        if next(calls) == 9:
            raise RuntimeError("no such block\nand more")
        gpu.run("c", 0, 400, 1e-3)

    sides = [side(gpu, name, inputs=8) for name in "ab"]
    sides.append(Side(name="c", calls=(raises_later,)))
    times = Timer(gpu, rounds=6, warm_up=2).time(sides, judge=judge)
    assert times["b"].wrong == "off by 1"
    assert len(times["b"].cold_s) == 1  # the round that was wrong does not count
    assert times["c"].raised == "RuntimeError: no such block"
    assert not times["a"].out
    assert len(times["a"].cold_s) == 6
    assert (asked["a"], asked["b"]) == (8, 4)


def test_outputs_are_made_unusable_before_every_round():
    gpu, log = FakeGpu(), []
    Timer(gpu, rounds=2, warm_up=1).time(
        [side(gpu, inputs=8)],
        before_round=lambda: log.append("forget"),
        judge=lambda name: log.append("judge") or "",
    )
    assert log == ["forget", "judge"] * 3


# --- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [9, 15, 30])
def test_the_interval_of_a_median_covers_it_as_often_as_it_says(n):
    draws = np.random.default_rng(0).exponential(size=(20_000, n))
    ranked, ranks = np.sort(draws), median_interval(range(n))
    low, high = ranked[:, int(ranks.low)], ranked[:, int(ranks.high)]
    found = median_interval(draws[0].tolist())
    assert (found.low, found.high) == (low[0], high[0]), "the ranks are all that counts"
    covered = np.mean((low <= np.log(2)) & (np.log(2) <= high))
    assert 0.945 <= covered <= 0.985  # discrete, and never less than it says


@pytest.mark.parametrize(
    ("values", "interval"),
    # Conover, table A3: for 9 values the second from each end, for 5 there is none.
    [(range(1, 10), (5, 2, 8)), (range(1, 31), (15.5, 10, 21)), ([3, 1, 2, 5, 4], (3, None, None))],
)
def test_known_intervals_by_rank(values, interval):
    found = median_interval(values)
    assert (found.median, found.low, found.high) == interval
    with pytest.raises(ValueError, match="no rounds"):
        median_interval([])


def test_a_ratio_is_that_of_the_rounds():
    # A machine that gets twice as slow halfway: the ratio does not notice.
    ours, theirs = [1.0, 1.1, 2.0, 2.2, 2.0], [2.0, 2.2, 4.0, 4.4, 4.0]
    assert paired_ratio(ours, theirs).median == pytest.approx(0.5)


# --- the CPU -------------------------------------------------------------------------------------


def test_on_the_cpu_the_time_is_this_process_own():
    device = CpuDevice()
    assert device.cache_bytes == cpu_cache_bytes() >= 2**18
    work = (lambda: sum(range(200_000)),) * 2
    times = Timer(device, rounds=3).time([Side(name="a", calls=work)])["a"]
    assert len(times.cold_s) == 3
    assert all(0 < seconds < 10 for seconds in times.cold_s)
    assert not times.captured
