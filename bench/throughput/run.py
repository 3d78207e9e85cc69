"""The work of `pagedbench throughput`: points, one after the other, into a record.

Subjects run in a child (`bench.throughput.child`); what they answer is judged here.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import torch

from bench.command.exit_codes import INTERRUPTED, RIGHT, WRONG
from bench.command.progress import Progress
from bench.machine.environment import describe_environment
from bench.machine.gpu import GpuReader
from bench.machine.roof import RoofRecord, measure_roof
from bench.machine.timing import (
    COLD_FACTOR,
    Device,
    Interval,
    Times,
    median_interval,
    paired_ratio,
)
from bench.throughput.bars import judge_bars
from bench.throughput.candidates import Absent, Candidate
from bench.throughput.child import Child, Ended, start
from bench.throughput.points import Point
from bench.throughput.record import (
    FAULTS,
    LoopRecord,
    PointRecord,
    Status,
    SubjectRecord,
    ThroughputRecord,
)
from bench.throughput.tensors import Sample, copies_that_fit, make_samples
from subjects.process import SubjectProcess

WARM_UP: Final = 2

CPU_BYTES: Final = 2**28
"""Most keys and values of a point's copies on a CPU, if that is two of them: a server's CPU may
have a cache of 480 MiB, and rounds through three times as much take minutes."""

TWO_CPU_BYTES: Final = 3 * 2**30
"""Most that two copies may take there; a contiguous cache takes more than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputPlan:
    """What to time."""

    points: Sequence[Point]
    names: Sequence[str]
    """Subjects: built-in ones, `contiguous`, `module:function` or `file.py:function`."""
    splits: Sequence[int | None] = (None,)
    """As in `bench.throughput.candidates.find_candidates`."""
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
    """Seconds that a candidate may take to plan, or to make, one call."""


def run_throughput(
    plan: ThroughputPlan,
    device: Device,
    *,
    progress: Progress,
    stop: threading.Event,
    process: SubjectProcess | None = None,
) -> ThroughputRecord:
    """Time everything; if `stop` is set, what has been timed until then."""
    started, began = datetime.now(UTC), time.monotonic()
    gpu = GpuReader(device.describe()["uuid"])
    clocks = gpu.clocks()
    points: list[PointRecord] = []
    loops: list[LoopRecord] = []
    child = Child(process or start(plan.device), splits=plan.splits, time_limit_s=plan.time_limit_s)
    with closing(child), tempfile.TemporaryDirectory() as folder:
        names = list(dict.fromkeys(plan.names))
        progress.begin("subjects", len(names))
        found: list[Candidate | Absent] = []
        for name in names:
            one = child.find(name)
            found += [one] if isinstance(one, Absent) else one
            progress.advance(1)
        progress.begin("copy bandwidth and matrix rate", 1)
        roof = measure_roof(device)
        progress.advance(1)
        run = _Run(plan, device, roof, child, Path(folder) / "rows", progress, stop)
        for point in plan.points:
            if stop.is_set():
                break
            points.append(run.time(point, found))
    if plan.loops is not None and not stop.is_set():
        loops = list(plan.loops(progress, stop))
    done = not stop.is_set()
    after = gpu.clocks()
    wrong = any(each.status in FAULTS for point in points for each in point.subjects)
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


@dataclass(slots=True)
class _Run:
    plan: ThroughputPlan
    device: Device
    roof: RoofRecord
    child: Child
    rows: Path
    """File that the child writes rows of its answers to."""
    progress: Progress
    stop: threading.Event
    dead: dict[str, str] = field(default_factory=dict)
    """Who ended the child, and on which point: it is not asked again."""

    def time(self, point: Point, found: Sequence[Candidate | Absent]) -> PointRecord:
        """Time a point; who ends the child is taken out, and the others are timed anew."""
        subjects: dict[str, SubjectRecord] = {}
        present: dict[str, Candidate] = {}
        for each in found:
            subjects[each.name] = self._before(each, point)
            if isinstance(each, Candidate) and not subjects[each.name].why:
                present[each.name] = each
        copies = copies_that_fit(
            point, cache_bytes=self.device.cache_bytes, most_bytes=most_bytes(point, self.device)
        )
        samples = make_samples(point, copies, device=self.plan.device)
        while present and not self.stop.is_set():
            try:
                self._measure(point, samples, present, subjects)
                break
            except Ended as death:
                subjects[death.name] = _not_timed(present.pop(death.name), "died", death.why)
                self.dead[death.name] = point.name
        for name, each in present.items():
            if self.stop.is_set() and not subjects[name].why and not subjects[name].cold_s:
                subjects[name] = _not_timed(each, "interrupted")
        return _point_record(point, samples, subjects, self.device)

    def _before(self, each: Candidate | Absent, point: Point) -> SubjectRecord:
        """What is said of a subject that is not timed; without a reason if it is to be."""
        if isinstance(each, Absent):
            status: Status = "died" if each.died else "not run"
            return SubjectRecord(name=each.name, subject=each.name, status=status, why=each.why)
        why = each.refusal(point.problem)
        if each.name in self.dead:
            why = f"died on {self.dead[each.name]}"
        return _not_timed(each, "not run", why)

    def _measure(
        self,
        point: Point,
        samples: Sequence[Sample],
        present: dict[str, Candidate],
        subjects: dict[str, SubjectRecord],
    ) -> None:
        plan, copies = self.plan, len(samples)
        self.progress.begin(f"{point.name}: inputs and plans", 1 + len(present))
        self.child.prepare(str(point.problem), copies=copies, candidates=list(present.values()))
        self.progress.advance(1)
        planned = []
        for name, each in present.items():
            if self.stop.is_set():
                return
            raised = self.child.plan(name)
            if raised:
                subjects[name] = _not_timed(each, "raised", raised)
            else:
                planned.append(name)
            self.progress.advance(1)
        self.progress.begin(f"{point.name}: rounds", WARM_UP + plan.rounds)
        question = {
            "names": planned,
            "rows": [sample.rows.tolist() for sample in samples],
            "file": str(self.rows),
            "rounds": plan.rounds,
            "warm_up": WARM_UP,
            "seed": plan.seed,
            "warm": point.kv_bytes <= self.device.cache_bytes
            and _is_cold(point, copies, self.device),
        }
        answer = self.child.rounds(
            question, judge=lambda said: self._finding(samples, said), advance=self._advance
        )
        times = {name: Times(**each) for name, each in answer.items()}
        for name in planned:
            subjects[name] = _subject(present[name], point, times, self.roof)

    def _finding(self, samples: Sequence[Sample], unwritten: Sequence[str]) -> str:
        answers = torch.load(self.rows, weights_only=True)
        for number, (sample, rows, said) in enumerate(
            zip(samples, answers, unwritten, strict=True)
        ):
            if finding := said or sample.finding(rows):
                return f"input {number + 1} of {len(samples)}: {finding}"
        return ""

    def _advance(self, count: int) -> bool:
        self.progress.advance(count)
        return self.stop.is_set()


def _point_record(
    point: Point, samples: Sequence[Sample], subjects: dict[str, SubjectRecord], device: Device
) -> PointRecord:
    problem, copies = point.problem, len(samples)
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
        copies=copies,
        cold=_is_cold(point, copies, device),
        checked=(
            f"after every round: all rows finite, and {len(samples[0].rows):,} of "
            f"{problem.num_tokens:,} rows of each input within the tolerance of float64 "
            f"({len(samples[0].problem.requests)} sequences or parts of one, all heads)"
        ),
        subjects=list(subjects.values()),
    )


def _is_cold(point: Point, copies: int, device: Device) -> bool:
    return copies * point.kv_bytes >= COLD_FACTOR * device.cache_bytes


def most_bytes(point: Point, device: Device) -> int:
    """Most that the inputs of a point may take, keys and values counted."""
    if device.kind == "cuda":
        # Peers lay the cache out anew, and a contiguous one is larger: the rest is for them.
        return int(torch.cuda.mem_get_info()[0]) // 4
    return max(CPU_BYTES, min(2 * point.kv_bytes, TWO_CPU_BYTES))


def _not_timed(candidate: Candidate, status: Status, why: str = "") -> SubjectRecord:
    return SubjectRecord(name=candidate.name, subject=candidate.subject, status=status, why=why)


def _subject(
    candidate: Candidate, point: Point, times: dict[str, Times], roof: RoofRecord
) -> SubjectRecord:
    mine = times[candidate.name]
    if mine.out or not mine.cold_s:
        status: Status = "wrong" if mine.wrong else "raised" if mine.raised else "interrupted"
        return _not_timed(candidate, status, mine.wrong or mine.raised)
    seconds = median_interval(mine.cold_s)
    rate, speed = point.kv_bytes / seconds.median / 1e9, point.flops / seconds.median / 1e12
    return SubjectRecord(
        name=candidate.name,
        subject=candidate.subject,
        status="timed",
        cold_s=mine.cold_s,
        warm_s=mine.warm_s,
        sm_mhz=mine.sm_mhz,
        cycles=_cycles(mine),
        seconds=seconds,
        warm_seconds=median_interval(mine.warm_s) if mine.warm_s else None,
        gigabytes_per_s=rate,
        bandwidth_share=rate / roof.copy_gigabytes_per_s,
        read_share=rate / roof.read_gigabytes_per_s if roof.read_gigabytes_per_s else None,
        teraflops_per_s=speed,
        matrix_share=speed / roof.matrix_teraflops_per_s,
        captured=mine.captured,
        times_of={
            name: paired_ratio(mine.cold_s, other.cold_s)
            for name, other in times.items()
            if name != candidate.name and other.cold_s and not other.out
        },
    )


def _cycles(times: Times) -> Interval | None:
    pairs = zip(times.cold_s, times.sm_mhz, strict=False)
    return median_interval([s * mhz * 1e6 for s, mhz in pairs]) if times.sm_mhz else None
