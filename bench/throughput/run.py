"""The work of `pagedbench throughput`: points, one after the other, into a record."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import FrameType
from typing import Final

import torch

from bench.command.exit_codes import INTERRUPTED, RIGHT, WRONG
from bench.command.progress import Progress
from bench.machine.environment import describe_environment
from bench.machine.gpu import GpuReader
from bench.machine.roof import RoofRecord, measure_roof
from bench.machine.timing import (
    Call,
    Device,
    Interval,
    Side,
    Timer,
    Times,
    describe,
    median_interval,
    paired_ratio,
)
from bench.throughput.bars import judge_bars
from bench.throughput.candidates import Absent, Candidate
from bench.throughput.points import Point
from bench.throughput.record import (
    IntervalRecord,
    LoopRecord,
    PointRecord,
    SubjectRecord,
    ThroughputRecord,
)
from bench.throughput.tensors import Copy, make_copies

WARM_UP: Final = 2

CPU_BYTES: Final = 3 * 2**30
"""Most keys and values of a point's copies on a CPU; a contiguous cache takes more than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputPlan:
    """What to time."""

    points: Sequence[Point]
    candidates: Sequence[Candidate | Absent]
    """Each candidate on each point."""
    device: str
    """`cpu` or `cuda`."""
    rounds: int
    seed: int = 0
    """As in `bench.machine.timing.Timer`."""
    with_bars: bool = False
    """Whether the bars are judged."""
    loops: Callable[[Progress, threading.Event], Iterator[LoopRecord]] | None = None
    """What the kernels compile to, called with the progress and the event; None for nothing."""
    time_limit_s: float = 180.0
    """Seconds that a candidate may take to plan its calls of one input."""


class TooLong(BaseException):
    """A candidate took longer to plan than it may. No compiler takes it for an error of its own."""


def run_throughput(
    plan: ThroughputPlan, device: Device, *, progress: Progress, stop: threading.Event
) -> ThroughputRecord:
    """Time everything; if `stop` is set, what has been timed until then."""
    started, began = datetime.now(UTC), time.monotonic()
    gpu = GpuReader(device.describe()["uuid"])
    clocks = gpu.clocks()
    progress.begin("copy bandwidth and matrix rate", 1)
    roof = measure_roof(device)
    progress.advance(1)
    points: list[PointRecord] = []
    loops: list[LoopRecord] = []
    with torch.no_grad():
        for point in plan.points:
            if stop.is_set():
                break
            points.append(_time_point(plan, point, device, roof, progress, stop))
    if plan.loops is not None and not stop.is_set():
        loops = list(plan.loops(progress, stop))
    done = not stop.is_set()
    after = gpu.clocks()
    wrong = any(each.status == "wrong" for point in points for each in point.subjects)
    return ThroughputRecord(
        started_at=started.isoformat(timespec="seconds"),
        elapsed_s=time.monotonic() - began,
        environment=describe_environment(plan.device),
        device=plan.device,
        clock=device.clock,
        cache_bytes=device.cache_bytes,
        clocks=clocks if clocks == after else f"before: {clocks}; after: {after}",
        rounds=plan.rounds,
        seed=plan.seed,
        roof=roof,
        points=points,
        bars=judge_bars(points, device=plan.device, seed=plan.seed) if plan.with_bars else [],
        loops=loops,
        complete=done,
        exit_code=WRONG if wrong else RIGHT if done else INTERRUPTED,
    )


class _Entry:
    """A candidate on a point: its outputs, and its call of each input."""

    def __init__(self, candidate: Candidate, copies: Sequence[Copy]) -> None:
        self.candidate = candidate
        self._copies = copies
        self._batches = [
            copy.batch.replace(out=torch.full_like(copy.batch.out, torch.nan)) for copy in copies
        ]

    def plan(self, limit_s: float) -> Side:
        """Do what is not timed."""
        calls: list[Call] = []
        for batch in self._batches:
            with time_limit(limit_s):
                calls.append(self.candidate.plan(batch))
        return Side(name=self.candidate.name, calls=tuple(calls))

    def forget(self) -> None:
        """Make the outputs of the last round unusable."""
        for batch in self._batches:
            batch.out.fill_(torch.nan)

    def finding(self) -> str:
        """What is wrong with the outputs of the last round."""
        for number, (copy, batch) in enumerate(zip(self._copies, self._batches, strict=True)):
            if finding := copy.finding(batch.out):
                return f"input {number + 1} of {len(self._copies)}: {finding}"
        return ""


def _time_point(
    plan: ThroughputPlan,
    point: Point,
    device: Device,
    roof: RoofRecord,
    progress: Progress,
    stop: threading.Event,
) -> PointRecord:
    present: list[Candidate] = []
    subjects: dict[str, SubjectRecord] = {}
    for each in plan.candidates:
        why = each.why if isinstance(each, Absent) else each.refusal(point.problem)
        name = each.name if isinstance(each, Absent) else each.subject
        subjects[each.name] = SubjectRecord(name=each.name, subject=name, status="not run", why=why)
        if not isinstance(each, Absent) and not why:
            present.append(each)

    progress.begin(f"{point.name}: inputs and plans", 1 + len(present))
    copies = make_copies(
        point,
        device=plan.device,
        cache_bytes=device.cache_bytes,
        most_bytes=_most_bytes(plan.device),
    )
    progress.advance(1)
    entries: dict[str, _Entry] = {}
    sides: list[Side] = []
    for candidate in present:
        if stop.is_set():
            break
        entry = _Entry(candidate, copies)
        try:
            sides.append(entry.plan(plan.time_limit_s))
            entries[candidate.name] = entry
        except TooLong as error:
            subjects[candidate.name] = _not_timed(candidate, "not run", str(error))
        except Exception as error:  # a peer that raises ends nobody's run but its own
            subjects[candidate.name] = _not_timed(candidate, "raised", describe(error))
        progress.advance(1)

    progress.begin(f"{point.name}: rounds", WARM_UP + plan.rounds)
    fits_the_cache = point.kv_bytes <= device.cache_bytes
    timer = Timer(device, rounds=plan.rounds, warm_up=WARM_UP, seed=plan.seed, warm=fits_the_cache)
    times = timer.time(
        sides,
        before_round=partial(_forget, list(entries.values())),
        judge=lambda name: entries[name].finding(),
        advance=progress.advance,
        stop=stop,
    )
    for name, entry in entries.items():
        subjects[name] = _subject(entry.candidate, point, times, roof)
    problem = point.problem
    checked = len(copies[0].sample.problem.requests)
    return PointRecord(
        name=point.name,
        kind=point.kind,
        batch=point.batch,
        ragged=point.ragged,
        block_size=problem.block_size,
        problem=str(problem),
        context_tokens=problem.cache_tokens,
        kv_bytes=point.kv_bytes,
        flops=point.flops,
        copies=len(copies),
        cold=len(copies) * point.kv_bytes >= 3 * device.cache_bytes,
        checked=(
            f"after every round: all rows finite, and {len(copies[0].sample.rows):,} of "
            f"{problem.num_tokens:,} rows of each input within the tolerance of float64 "
            f"({checked} sequences or parts of one, all heads)"
        ),
        subjects=list(subjects.values()),
    )


def _forget(entries: Sequence[_Entry]) -> None:
    for entry in entries:
        entry.forget()


def _most_bytes(device: str) -> int:
    # Peers lay the cache out anew, and a contiguous one is larger: the rest is for them.
    return torch.cuda.mem_get_info()[0] // 4 if device == "cuda" else CPU_BYTES


def _not_timed(candidate: Candidate, status: str, why: str) -> SubjectRecord:
    return SubjectRecord.model_validate(
        {"name": candidate.name, "subject": candidate.subject, "status": status, "why": why}
    )


def _subject(
    candidate: Candidate, point: Point, times: dict[str, Times], roof: RoofRecord
) -> SubjectRecord:
    mine = times[candidate.name]
    if mine.out or not mine.cold_s:
        status = "wrong" if mine.wrong else "raised" if mine.raised else "interrupted"
        return _not_timed(candidate, status, mine.wrong or mine.raised)
    seconds = median_interval(mine.cold_s)
    rate, speed = point.kv_bytes / seconds.median / 1e9, point.flops / seconds.median / 1e12
    return SubjectRecord(
        name=candidate.name,
        subject=candidate.subject,
        status="timed",
        cold_s=mine.cold_s,
        warm_s=mine.warm_s,
        seconds=_interval(seconds),
        warm_seconds=_interval(median_interval(mine.warm_s)) if mine.warm_s else None,
        gigabytes_per_s=rate,
        bandwidth_share=rate / roof.copy_gigabytes_per_s,
        teraflops_per_s=speed,
        matrix_share=speed / roof.matrix_teraflops_per_s,
        captured=mine.captured,
        times_of={
            name: _interval(paired_ratio(mine.cold_s, other.cold_s))
            for name, other in times.items()
            if name != candidate.name and other.cold_s and not other.out
        },
    )


def _interval(interval: Interval) -> IntervalRecord:
    return IntervalRecord(median=interval.median, low=interval.low, high=interval.high)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong in what takes longer. Only the main thread can be interrupted so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"took longer than {seconds:g} s to plan; give it more with --time-limit")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
