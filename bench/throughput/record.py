"""The record of `pagedbench throughput`, as JSON."""

from __future__ import annotations

from typing import Final, Literal

from bench.machine.environment import Environment
from bench.machine.record import Record
from bench.machine.roof import RoofRecord
from bench.machine.timing import Interval

Status = Literal["timed", "wrong", "died", "raised", "not run", "interrupted"]
"""`died`: it ended the process that measures, or hung in it."""

State = Literal["met", "missed", "not measured"]

TIMED: Final = "timed"
FAULTS: Final = ("wrong", "died")


class SubjectRecord(Record):
    """One subject on one point."""

    name: str
    subject: str
    """Who was asked for; `name` has the splits as well."""
    status: Status
    why: str = ""
    """What was wrong, raised, or kept it from being run."""
    cold_s: list[float] = []
    warm_s: list[float] = []
    """Seconds of a call, round by round, over inputs in turn and over one input again and again."""
    sm_mhz: list[int] = []
    """The GPU's clock while each round ran; empty where it could not be read in all of them."""
    cycles: Interval | None = None
    """Cycles of that clock that a cold call took: what two runs at different clocks can compare.
    Within a round all subjects have one clock, and one ratio."""
    seconds: Interval | None = None
    warm_seconds: Interval | None = None
    gigabytes_per_s: float | None = None
    """Keys and values of the batch over the cold median, 10^9 bytes a second."""
    bandwidth_share: float | None = None
    read_share: float | None = None
    """Of the best copy bandwidth of the run, and of the best at which it read; None where that was
    not measured."""
    teraflops_per_s: float | None = None
    matrix_share: float | None = None
    """Of the two products, 10^12 operations a second, and as a share of the dense rate of the run.
    """
    captured: bool = False
    """Whether the calls ran as a CUDA graph."""
    times_of: dict[str, Interval] = {}
    """By the other's name: this subject's time over the other's of the same round."""


class PointRecord(Record):
    """One point and all who were to be timed on it."""

    name: str
    """See `bench.throughput.points.Point`."""
    kind: str
    batch: str
    ragged: bool
    block_size: int
    problem: str
    """Spec of the call."""
    context_tokens: int
    kv_bytes: int
    flops: int
    """What a call reads of keys and values, each once, and computes."""
    copies: int
    cold: bool
    """Inputs in turn, and whether they are enough to find the cache cold."""
    checked: str
    """How much of the answers is held against float64."""
    subjects: list[SubjectRecord]

    @property
    def intensity(self) -> float:
        """Floating-point operations for each byte of keys and values."""
        return self.flops / self.kv_bytes

    def find(self, subject: str) -> SubjectRecord | None:
        """The first of that subject; None if it was not asked for."""
        return next((each for each in self.subjects if each.subject == subject), None)


class LoopRecord(Record):
    """What our Triton kernel compiles to; see `kernels.compiled.figures`."""

    problem: str
    target: str
    kernel: str = ""
    registers: int | None = None
    spill_instructions: int | None = None
    shared_bytes: int | None = None
    occupancy: float | None = None
    instructions_per_key: float | None = None
    failure: str = ""
    """Why there are no figures; empty if there are."""


class BarRecord(Record):
    """A figure that is asked for, and what came of it."""

    what: str
    """In words."""
    point: str
    wanted: float
    got: float | None
    """The figure and the measurement; None where it was not measured, with the reason in `why`."""
    state: State
    why: str = ""


class ThroughputRecord(Record):
    """Everything that `pagedbench throughput` found."""

    schema_version: int = 1
    """Raised when a field changes its meaning."""
    started_at: str
    elapsed_s: float
    environment: Environment
    device: str
    """`cpu` or `cuda`."""
    clock: str
    """`cuda_event`, or `process_time`: CPU seconds."""
    cache_bytes: int
    """Of the last-level cache."""
    clocks: str
    """The GPU's clock and throttle state before and after, or why it was not read."""
    rounds: int
    seed: int
    roof: RoofRecord | None
    points: list[PointRecord]
    bars: list[BarRecord]
    loops: list[LoopRecord]
    complete: bool
    """Whether all was timed that was asked for; false where it was interrupted."""
    exit_code: int

    @property
    def wrong(self) -> list[tuple[PointRecord, SubjectRecord]]:
        """Who gave a wrong answer in a timed round, or died, and where."""
        return [
            (point, subject)
            for point in self.points
            for subject in point.subjects
            if subject.status in FAULTS
        ]
