"""Times calls on a GPU, or on the CPU in the same way: rounds in turns, cold caches, paired ratios.

What is compared are *sides*. A side has one call for each of several inputs that hold the same
problem in memory of its own. A round runs every side once, in random order, through all of its
inputs: together they are several times as large as the last-level cache, so each call finds its
input cold. Zeroing a large buffer between calls would not do: it leaves dirty lines, whose eviction
is billed to the call. *Warm* times are those of one input again and again.

On a GPU the whole round is queued and waited for once. The device spins until the host has queued
enough, so no time has launch latency in it. Calls too short for that are captured in a CUDA graph.
Times of a round are compared within the round: the ratio is the median of the rounds' own ratios,
and its interval that of order statistics, which assumes nothing of the noise.
"""

from __future__ import annotations

import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bench.machine.facts import cpu_name

if TYPE_CHECKING:
    from bench.machine.gpu import GpuReader

Call = Callable[[], object]
Name = TypeVar("Name")

COLD_FACTOR: Final = 3
"""Inputs in turn hold at least so many times the last-level cache."""

SHORT_CALL_S: Final = 20e-6
"""A shorter call is captured: about what a launch from Python takes."""

LEAST_QUEUED_S: Final = 500e-6
"""What a side runs at least in a round on a GPU: an event resolves half a microsecond."""

MOST_QUEUED: Final = 512
"""Calls of a side in a round at most: a stream takes about a thousand before the host waits."""

MOST_AHEAD_S: Final = 50e-3
"""The device spins no longer than this for the host."""

FALLBACK_CACHE_BYTES: Final = 32 * 2**20
"""Assumed of a CPU that does not say."""


class CpuDevice:
    """The processor time of this process: what other processes do is not in it."""

    kind = "cpu"
    """As torch names it."""
    clock = "process_time"
    """What times are of."""
    queues = False
    """Whether calls return before they are done."""

    def __init__(self) -> None:
        self.cache_bytes = cpu_cache_bytes()

    def mark(self) -> float:
        """Read the clock, in seconds."""
        return time.process_time()

    def seconds(self, before: float, after: float) -> float:
        """The difference."""
        return after - before

    def synchronize(self) -> None:
        """Nothing is ever queued."""

    def run_ahead(self, seconds: float) -> None:
        """Nothing is ever queued."""

    def capture(self, calls: Sequence[Call]) -> Call | None:
        """There are no graphs."""
        return None

    def sm_mhz(self) -> int | None:
        """None: cores have clocks of their own, and CPU time is no wall time."""
        return None

    def preheat(self) -> None:
        """Nothing: untimed calls do."""

    def describe(self) -> dict[str, str | None]:
        """There is no driver and no identity."""
        return {"device": cpu_name(), "driver": None, "uuid": None}


class CudaDevice:
    """Events in the current stream of the current CUDA device; `cuda` is `torch.cuda`."""

    kind = "cuda"
    clock = "cuda_event"
    queues = True
    SPIN_HERTZ: Final = 2e9
    """Cycles of a spinning second: at a lower clock it spins longer, which harms nothing."""
    PREHEAT_S: Final = 1.0
    PREHEAT_SIZE: Final = 4096

    def __init__(self, cuda: Any = None) -> None:
        if cuda is None:
            import torch

            cuda = torch.cuda
        if not cuda.is_available():
            raise RuntimeError("--device cuda: torch finds no GPU here; leave it for the CPU")
        self._cuda = cuda
        self._properties = cuda.get_device_properties(cuda.current_device())
        self.cache_bytes = int(self._properties.L2_cache_size)
        uuid = getattr(self._properties, "uuid", None)
        self._uuid = None if uuid is None else f"GPU-{uuid}"
        self._reader: GpuReader | None = None

    def mark(self) -> Any:
        """Record an event."""
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, before: Any, after: Any) -> float:
        """Between two events."""
        return float(before.elapsed_time(after)) / 1e3

    def synchronize(self) -> None:
        """Wait for the device."""
        self._cuda.synchronize()

    def run_ahead(self, seconds: float) -> None:
        """Queue a kernel that counts cycles."""
        self._cuda._sleep(int(seconds * self.SPIN_HERTZ))

    def capture(self, calls: Sequence[Call]) -> Call | None:
        """Capture the calls in a CUDA graph; None if one of them waits for the device."""
        try:
            return self.graph(calls)
        except Exception:
            # Each library says in its own way that it cannot be captured; it is timed uncaptured.
            self.synchronize()
            return None

    def graph(self, calls: Sequence[Call]) -> Call:
        """The calls as a CUDA graph. Each was made before: what compiles cannot be captured."""
        graph = self._cuda.CUDAGraph()
        self.synchronize()
        with self._cuda.graph(graph):
            for call in calls:
                call()
        replay: Call = graph.replay
        return replay

    def sm_mhz(self) -> int | None:
        """Clock of the multiprocessors now; None where it cannot be read."""
        if self._reader is None:
            from bench.machine.gpu import GpuReader

            self._reader = GpuReader(self._uuid)
        return self._reader.sm_mhz()

    def preheat(self) -> None:
        """Multiply matrices for a second: a GPU raises its clocks when it has work."""
        import torch

        matrix = torch.ones(
            self.PREHEAT_SIZE, self.PREHEAT_SIZE, dtype=torch.bfloat16, device="cuda"
        )
        until = time.monotonic() + self.PREHEAT_S
        while time.monotonic() < until:
            for _ in range(8):
                torch.mm(matrix, matrix)
            self.synchronize()

    def describe(self) -> dict[str, str | None]:
        """As torch and the driver say."""
        from bench.machine.gpu import driver_version

        return {
            "device": self._properties.name,
            "driver": driver_version(),
            "uuid": self._uuid,
        }


Device = CpuDevice | CudaDevice
"""What calls are timed on: a clock, and whether calls are queued, run ahead of and captured."""


def device_of(name: str) -> Device:
    """The device to time on, for `cpu` or `cuda`."""
    return CudaDevice() if name == "cuda" else CpuDevice()


def cpu_cache_bytes() -> int:
    """Size of the largest cache that the first core has, as Linux says."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = file.read_text().strip()[:-1], file.read_text().strip()[-1:]
        if number.isdigit() and unit in {"K", "M"}:
            sizes.append(int(number) * {"K": 2**10, "M": 2**20}[unit])
    return max(sizes, default=FALLBACK_CACHE_BYTES)


def copies_needed(input_bytes: int, cache_bytes: int, *, least: int = 2) -> int:
    """Inputs in turn that find the cache cold: `COLD_FACTOR` times its size."""
    return max(least, -(-COLD_FACTOR * cache_bytes // max(input_bytes, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What is timed."""

    name: str
    """Of the side."""
    calls: tuple[Call, ...]
    """One for each input."""


@dataclass(slots=True, kw_only=True)
class Times:
    """Of one side."""

    cold_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)
    """Seconds of a call, round by round; round n of every side is the same round."""
    sm_mhz: list[int] = field(default_factory=list)
    """Clock of the GPU while each round ran; empty where one round's was not read."""
    captured: bool = False
    """Whether the calls ran as a CUDA graph."""
    wrong: str = ""
    raised: str = ""
    """Why the side was taken out of the rounds; empty if it was not."""

    @property
    def out(self) -> bool:
        """Whether the side was taken out."""
        return bool(self.wrong or self.raised)


@dataclass(frozen=True, slots=True)
class Interval:
    """A median, and where it lies with 95 % confidence; None where the rounds are too few."""

    median: float
    low: float | None
    high: float | None

    @property
    def spread(self) -> str:
        """The interval in words, or nothing where there is none."""
        return "" if self.low is None else f"{self.low:.2f} to {self.high:.2f}"


def median_interval(values: Sequence[float]) -> Interval:
    """The median and its interval by order statistics, whatever the values are distributed like."""
    if not values:
        raise ValueError("the median of no rounds: time at least one")
    from scipy import stats  # not above: a process that is timed has no need of it

    test = stats.quantile_test(values, q=0, p=0.5)
    low, high = test.confidence_interval(0.95)
    # NaN where even the extremes bound nothing, as with five values at 95 %.
    bounds = (None, None) if math.isnan(low) else (float(low), float(high))
    return Interval(statistics.median(values), *bounds)


def paired_ratio(times: Sequence[float], others: Sequence[float]) -> Interval:
    """Median over rounds of one side's time over the other's of the same round."""
    pairs = zip(times, others, strict=False)  # a side that was taken out has fewer rounds
    return median_interval([mine / other for mine, other in pairs])


def balanced_orders(names: Sequence[Name], rng: random.Random) -> Iterator[list[Name]]:
    """Random orders in which, over as many as there are names, each stands in each place once."""
    while names:
        start, shifts = list(names), list(range(len(names)))
        rng.shuffle(start)
        rng.shuffle(shifts)
        for shift in shifts:
            yield start[shift:] + start[:shift]


class Timer:
    """Times sides in `rounds` rounds, after `warm_up` that do not count, in orders of the seed."""

    def __init__(
        self, device: Device, *, rounds: int, warm_up: int = 2, seed: int = 0, warm: bool = False
    ) -> None:
        if rounds < 1 or warm_up < 1:
            raise ValueError(f"rounds={rounds}, warm_up={warm_up}: at least one of each")
        self._device = device
        self._rounds, self._warm_up = rounds, warm_up
        self._seed = seed
        self._warm = warm

    def time(
        self,
        sides: Sequence[Side],
        *,
        before_round: Callable[[], object] = lambda: None,
        before_side: Callable[[str], object] = lambda _: None,
        judge: Callable[[str], str] = lambda _: "",
        advance: Callable[[int], object] = lambda _: None,
        stop: threading.Event | None = None,
    ) -> dict[str, Times]:
        """Run the rounds; setting `stop` ends them early.

        `judge` is asked after each round what is wrong with the outputs of each side; a side that
        is wrong, or that raises, is taken out.
        """
        times = {side.name: Times() for side in sides}
        if not times:
            return times
        plans = {side.name: _Plan(side) for side in sides}
        orders = balanced_orders([side.name for side in sides], random.Random(self._seed))
        for number in range(self._warm_up + self._rounds):
            if stop is not None and stop.is_set():
                break
            if number == self._warm_up:
                self._shorten(plans, times)
            before_round()
            order = [name for name in next(orders) if not times[name].out]
            cold, warm, sm_mhz = self._round(order, plans, times, before_side)
            for name in order:
                if not times[name].out:
                    times[name].wrong = judge(name)
                if times[name].out:
                    continue
                plans[name].seconds = cold[name]
                if number >= self._warm_up:
                    times[name].cold_s.append(cold[name])
                    times[name].warm_s += [warm[name]] if name in warm else []
                    times[name].sm_mhz += [] if sm_mhz is None else [sm_mhz]
            advance(1)
        for each in times.values():
            if len(each.sm_mhz) < len(each.cold_s):
                each.sm_mhz.clear()
        return times

    def _round(
        self,
        order: list[str],
        plans: dict[str, _Plan],
        times: dict[str, Times],
        before_side: Callable[[str], object],
    ) -> tuple[dict[str, float], dict[str, float], int | None]:
        marks: dict[tuple[str, bool], tuple[Any, Any, int]] = {}
        host_s = sum(plans[name].host_s * plans[name].count(self._device) for name in order)
        self._device.run_ahead(min(host_s, MOST_AHEAD_S))
        for is_warm in (False, True) if self._warm else (False,):
            for name in order:
                if times[name].out:
                    continue
                plan = plans[name]
                run, count = plan.run(self._device, warm=is_warm)
                began = time.perf_counter()  # what follows is work of the host's as well
                before_side(name)
                try:
                    if is_warm:
                        plan.side.calls[-1]()  # brings its input into the cache
                    before = self._device.mark()
                    for call in run:
                        call()
                    marks[name, is_warm] = before, self._device.mark(), count
                except Exception as error:  # somebody's kernel: whatever it raises is its result
                    times[name].raised = describe(error)
                if not is_warm:
                    plan.host_s = (time.perf_counter() - began) / count
        sm_mhz = self._device.sm_mhz()  # while it works: an idle GPU lowers its clock
        self._device.synchronize()
        seconds = {key: self._device.seconds(a, b) / count for key, (a, b, count) in marks.items()}
        found: tuple[dict[str, float], dict[str, float]] = ({}, {})
        for (name, is_warm), value in seconds.items():
            found[is_warm][name] = value
        return *found, sm_mhz

    def _shorten(self, plans: dict[str, _Plan], times: dict[str, Times]) -> None:
        """Capture the sides if one of them has short calls: all, so that they are timed alike."""
        left = {name: plan for name, plan in plans.items() if not times[name].out}
        if not self._device.queues or all(p.seconds >= SHORT_CALL_S for p in left.values()):
            return
        for name, plan in left.items():
            times[name].captured = plan.capture(self._device)


@dataclass(slots=True)
class _Plan:
    """How a side runs in a round: so many times through its inputs, captured or not."""

    side: Side
    seconds: float = LEAST_QUEUED_S
    host_s: float = 0.0
    captured: dict[bool, Call] = field(default_factory=dict)
    captured_count: int = 0

    def count(self, device: Device) -> int:
        inputs = len(self.side.calls)
        if self.captured_count:
            return self.captured_count
        if not device.queues:
            return inputs
        wanted = max(1, -int(-LEAST_QUEUED_S // max(self.seconds, 1e-9)))
        passes = max(1, min(-(-wanted // inputs), MOST_QUEUED // inputs))
        return passes * inputs

    def run(self, device: Device, *, warm: bool) -> tuple[Sequence[Call], int]:
        """What to run, and how many calls that is: every input in turn, or the last alone."""
        count, calls = self.count(device), self.side.calls
        if self.captured:
            return [self.captured[warm]], count
        # The first would still be in the cache when the next round begins with it.
        return (calls[-1:] * count if warm else calls * (count // len(calls))), count

    def capture(self, device: Device) -> bool:
        count = self.count(device)
        graphs = [device.capture(self.run(device, warm=warm)[0]) for warm in (False, True)]
        if graphs[0] is None or graphs[1] is None:
            return False
        self.captured = {False: graphs[0], True: graphs[1]}
        self.captured_count = count
        return True


def forget(outs: Iterable[Any]) -> None:
    """Make the outputs of the last round unusable: tensors, full of NaN from now on."""
    for out in outs:
        out.fill_(math.nan)


def is_lost(synchronize: Callable[[], object]) -> bool:
    """Whether a kernel broke the device for this process, as an illegal access does."""
    try:
        synchronize()
    except RuntimeError:
        return True
    return False


def describe(error: BaseException) -> str:
    """An exception in one line, as it is shown of a kernel that raised it."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
