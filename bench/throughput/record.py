"""The record of `pagedbench throughput`, as JSON."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from bench.machine.environment import Environment

Status = Literal["timed", "wrong", "raised", "not run", "interrupted"]

State = Literal["met", "missed", "not measured"]

TIMED: Final = "timed"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class IntervalRecord(_Record):
    """A median over rounds and its 95 % interval; see `bench.machine.timing.median_interval`."""

    median: float
    low: float | None
    high: float | None

    @property
    def spread(self) -> str:
        """The interval in words, or nothing where there is none."""
        return "" if self.low is None else f"{self.low:.2f} to {self.high:.2f}"


class SubjectRecord(_Record):
    """One subject on one point.

    Attributes
    ----------
    subject
        Who was asked for; `name` has the splits as well.
    why
        What was wrong, raised, or kept it from being run.
    cold_s, warm_s
        Seconds of a call, round by round, over inputs in turn and over one input again and again.
    gigabytes_per_s
        Keys and values of the batch over the cold median, 10^9 bytes a second.
    bandwidth_share
        Of the best copy bandwidth of the run; None where that was not measured.
    teraflops_per_s, matrix_share
        Of the two products, 10^12 operations a second, and as a share of the dense rate of the run.
    captured
        Whether the calls ran as a CUDA graph.
    times_of
        By the other's name: this subject's time over the other's of the same round.
    """

    name: str
    subject: str
    status: Status
    why: str = ""
    cold_s: list[float] = []
    warm_s: list[float] = []
    seconds: IntervalRecord | None = None
    warm_seconds: IntervalRecord | None = None
    gigabytes_per_s: float | None = None
    bandwidth_share: float | None = None
    teraflops_per_s: float | None = None
    matrix_share: float | None = None
    captured: bool = False
    times_of: dict[str, IntervalRecord] = {}


class PointRecord(_Record):
    """One point and all who were to be timed on it.

    Attributes
    ----------
    name
        See `bench.throughput.points.Point`.
    problem
        Spec of the call.
    kv_bytes, flops
        What a call reads of keys and values, each once, and computes.
    copies, cold
        Inputs in turn, and whether they are enough to find the cache cold.
    checked
        How much of the answers is held against float64.
    """

    name: str
    kind: str
    batch: str
    ragged: bool
    block_size: int
    problem: str
    context_tokens: int
    kv_bytes: int
    flops: int
    copies: int
    cold: bool
    checked: str
    subjects: list[SubjectRecord]

    @property
    def intensity(self) -> float:
        """Floating-point operations for each byte of keys and values."""
        return self.flops / self.kv_bytes

    def find(self, subject: str) -> SubjectRecord | None:
        """The first of that subject; None if it was not asked for."""
        return next((each for each in self.subjects if each.subject == subject), None)


class RoofRecord(_Record):
    """What the device does at best, measured in the same run.

    Attributes
    ----------
    copy_gigabytes_per_s, copy_median_gigabytes_per_s
        A copy of `copy_bytes`, read and written bytes counted, best and median.
    matrix_teraflops_per_s, matrix_median_teraflops_per_s
        A dense product of `matrix_dtype`, best and median.
    """

    copy_bytes: int
    copy_gigabytes_per_s: float
    copy_median_gigabytes_per_s: float
    matrix_dtype: str
    matrix_teraflops_per_s: float
    matrix_median_teraflops_per_s: float


class LoopRecord(_Record):
    """What our Triton kernel compiles to; see `kernels.compiled.figures`.

    Attributes
    ----------
    failure
        Why there are no figures; empty if there are.
    """

    problem: str
    target: str
    kernel: str = ""
    registers: int | None = None
    spill_instructions: int | None = None
    shared_bytes: int | None = None
    occupancy: float | None = None
    instructions_per_key: float | None = None
    failure: str = ""


class BarRecord(_Record):
    """A figure that is asked for, and what came of it.

    Attributes
    ----------
    what
        In words.
    wanted, got
        The figure and the measurement; None where it was not measured, with the reason in `why`.
    """

    what: str
    point: str
    wanted: float
    got: float | None
    state: State
    why: str = ""


class ThroughputRecord(_Record):
    """Everything that `pagedbench throughput` found.

    Attributes
    ----------
    schema_version
        Raised when a field changes its meaning.
    device
        `cpu` or `cuda`.
    clock
        `cuda_event`, or `process_time`: CPU seconds.
    cache_bytes
        Of the last-level cache.
    clocks
        The GPU's clock and throttle state before and after, or why it was not read.
    complete
        Whether all was timed that was asked for; false where it was interrupted.
    """

    schema_version: int = 1
    started_at: str
    elapsed_s: float
    environment: Environment
    device: str
    clock: str
    cache_bytes: int
    clocks: str
    rounds: int
    seed: int
    roof: RoofRecord | None
    points: list[PointRecord]
    bars: list[BarRecord]
    loops: list[LoopRecord]
    complete: bool
    exit_code: int

    @property
    def wrong(self) -> list[tuple[PointRecord, SubjectRecord]]:
        """Who gave a wrong answer in a timed round, and where."""
        return [
            (point, subject)
            for point in self.points
            for subject in point.subjects
            if subject.status == "wrong"
        ]
