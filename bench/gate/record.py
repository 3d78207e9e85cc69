"""The record of one gate run, as JSON: all that was asked, counted and timed, and the verdicts.

`bench.gate.verdict.judge` comes to the same verdicts from a record alone.
"""

from __future__ import annotations

import math
from typing import Final, Literal, Self

from pydantic import model_validator

from bench.machine.environment import GateEnvironment
from bench.machine.gpu import GpuState
from bench.machine.record import StrictRecord

SCHEMA_VERSION: Final = 1

Mode = Literal["gate", "aa", "plant"]
"""Base against head; base against itself; head slowed on purpose."""

Verdict = Literal["pass", "fail", "inconclusive", "not run"]
"""Of one benchmark. `not run`: the base's tree lacks what it measures, or the run ended before it
was timed."""

RunVerdict = Literal[
    "pass",
    "fail",
    "inconclusive",
    "wrong",
    "fails to build",
    "outputs differ",
    "harness failed",
    "interrupted",
]

Stage = Literal["screen", "confirm"]
"""Launches that look for suspects, and fresh ones that only confirm or clear a suspect."""

CounterVerdict = Literal["equal", "better", "worse", "not there"]

SubjectKind = Literal["kernel", "allocator"]

TruthVerdict = Literal["right", "wrong", "not there", "not checked"]
"""Of one side's subject. `wrong` is also what does not import; `not there` is what the tree lacks;
`not checked` is where nothing could be said."""

OutputVerdict = Literal["equal", "within tolerance", "differs", "not there"]


class ContestantRecord(StrictRecord):
    """Code and an interpreter."""

    name: str
    """What it is called in reports: the commit's first 12 digits, a folder, requirements."""
    asked: str
    """As it was given on the command line."""
    path: str
    """Folder of the tree. That of a commit is temporary and gone when the run is over."""
    commit: str | None
    dirty: bool | None
    """Full hash, and whether the tree has changes that are not committed; None where the folder is
    no checkout."""
    committed_at: str | None = None
    """When the commit was made, ISO 8601; None where there is none."""
    python: str
    """The interpreter."""
    requirements: list[str] = []
    """What the environment was built of; empty where an existing one was used."""
    environment: GateEnvironment | None = None
    """None where its worker never came to say it."""


class Design(StrictRecord):
    """The tests."""

    alpha: float = 0.01
    """Of one benchmark's screening, over all looks and each way: suspect, pass, improved."""
    confirm_alpha: float = 0.05
    """Of the confirmation of one suspect, over all its looks."""
    family_alpha: float = 0.05
    """Of Holm's procedure over the suite."""
    margin: float = 0.01
    """A slowdown up to it is allowed: 0.01 is 1 %."""
    equivalence: float = 0.03
    """A benchmark passes once a slowdown as large as this is ruled out."""
    wall_margin: float = 0.25
    """The same as `margin` for wall-clock time, which also sees waiting; wide, because the time
    that other processes take is in it."""
    looks: tuple[int, ...] = (9, 13, 19, 28, 40)
    confirm_looks: tuple[int, ...] = (6, 13, 20)
    """Numbers of launches at which the tests are looked at."""
    quarantine_sd: float = 0.05
    """A benchmark whose launches spread more than this, as a fraction, is not judged."""

    @model_validator(mode="after")
    def _can_decide(self) -> Self:
        if not 0 <= self.margin < self.equivalence:
            raise ValueError(
                f"margin {self.margin} and equivalence {self.equivalence}: a slowdown that may "
                f"pass must be larger than one that is allowed"
            )
        for name, looks, alpha in (
            ("looks", self.looks, self.alpha),
            ("confirm_looks", self.confirm_looks, self.confirm_alpha),
        ):
            if not looks or list(looks) != sorted(set(looks)):
                raise ValueError(f"{name} {looks}: numbers of launches, increasing")
            if not 0 < alpha < 1:
                raise ValueError(f"an error rate of {alpha}: give one between 0 and 1")
            fewest = math.log2(len(looks)) - math.log2(alpha)
            if looks[0] < fewest:
                raise ValueError(
                    f"{name} {looks} at {alpha}: {looks[0]} launches decide nothing even if all "
                    f"agree; begin with {math.ceil(fewest)}"
                )
        return self


class GateParameters(Design):
    """By what the run was judged, and how it was measured."""

    pairs: int
    """Turns of each side in a launch."""
    turn_s: float
    """Least seconds of a turn by the timer, by which `number` is calibrated."""
    plant: float
    """Extra work of head, as a fraction; 0 if none."""
    time_limit_s: float
    """Seconds after which no launch begins."""
    benchmarks: list[str]
    """Patterns that were asked for; empty: all."""
    seed: int
    """Of every random order; with it the schedule of the launches is the same."""
    cores: list[int]
    """On which the launches were pinned, in turn."""
    device: str = "cpu"
    """What was timed: `cpu` or `cuda`."""

    @model_validator(mode="before")
    @classmethod
    def _is_whole(cls, said: dict[str, object]) -> dict[str, object]:
        # A record says by what it was judged: nothing is taken for granted.
        if missing := [name for name in Design.model_fields if name not in said]:
            raise ValueError(f"{', '.join(missing)} missing")
        return said


class LaunchRecord(StrictRecord):
    """Two fresh processes, one of each side, and the benchmarks that they were timed on."""

    index: int
    """From 0, in the order of time."""
    core: int
    """Both were pinned to it."""
    hash_seed: int
    padding: int
    """PYTHONHASHSEED and the length of a variable of the environment, the same for both."""
    started_s: float
    elapsed_s: float
    """Seconds since the run began, and how long it took, start of the processes included."""
    load: float
    """Load average of the machine at its start, last minute; 1.0 is one busy core."""
    order: list[str]
    """Benchmarks in the order in which they were timed."""
    gpu: list[GpuState] = []
    """The GPU's state before the first, between them and after the last; empty on the CPU, and
    where it could not be read."""
    dropped: str = ""
    """Why none of its samples is used; empty if they are."""


class Sample(StrictRecord):
    """One launch of one benchmark."""

    launch: int
    """Index of the launch."""
    stage: Stage
    """What it counts for."""
    d_timer: float
    d_wall: float
    """Median over the pairs of log(head / base), by the run's timer (CPU seconds, or events of a
    GPU) and on the wall."""
    d_cycles: float | None = None
    """The same of seconds times the GPU's clock, read after each turn; None where it was not."""
    base_s: float
    head_s: float
    base_wall_s: float
    head_wall_s: float
    """Median over the turns of the seconds of one call."""


class LookRecord(StrictRecord):
    """The tests at one look, p-values of single exact signed-rank tests, not yet corrected."""

    stage: Stage
    launches: int
    """Where: how many launches of the stage."""
    p_slow: float
    """Of "not slower than the margin": small if it is slower."""
    p_same: float
    """Of "slower by the equivalence bound or more": small if it is not."""
    p_fast: float
    """Of "not faster than the margin": small if it is faster."""
    p_wall: float
    """As `p_slow`, of wall-clock time and its margin."""


class Estimate(StrictRecord):
    """Head's time divided by base's: Hodges-Lehmann estimate, and bounds at 95 % of one look.

    They are None with fewer than 6 launches, of which no such bounds exist.
    """

    ratio: float
    low: float | None
    high: float | None


class BenchmarkRecord(StrictRecord):
    """One benchmark."""

    key: str
    """Name of the series, the same in every run: `decode/paged-torch[block=16]`."""
    title: str
    """What one call does, in a sentence."""
    unit: str = "s"
    """Of the samples: `s`, seconds a call."""
    timed: bool
    """Whether it is timed at all; others are only counted and their outputs compared."""
    number: int | None = None
    """Calls in a turn, the same on both sides; None before calibration."""
    samples: list[Sample] = []
    """All its launches, in order."""
    looks: list[LookRecord] = []
    """All looks at the tests."""
    estimate: Estimate | None = None
    wall_estimate: Estimate | None = None
    """Over the screening's launches; of a suspect over those of its confirmation, once there are 6,
    since those of the screening made it one. None without launches."""
    cycles_estimate: Estimate | None = None
    """The same in cycles of the GPU's clock: what another clock did is not in it. None where the
    clock was not read."""
    launch_sd: float | None = None
    """Standard deviation over the launches of `d_timer`, robust: interquartile range / 1.349. None
    with fewer than 4 launches."""
    p_value: float | None = None
    p_holm: float | None = None
    """Of "no slower than the margin" by the two stages together; and after Holm's procedure over
    the suite. None before the first look."""
    suspect: bool = False
    """Whether the screening found it slower."""
    improved: bool = False
    """Whether it is faster by more than the margin."""
    quarantined: bool = False
    """Whether it is too noisy here to be judged."""
    verdict: Verdict
    reason: str
    """And why, in a sentence."""


class BuildRecord(StrictRecord):
    """A side's tree was built."""

    side: Literal["base", "head"]
    """Whose."""
    seconds: float
    """What it took."""
    kept: bool
    """Whether a build of the same files, command and versions was there already."""
    failed: bool = False
    said: str = ""
    """Whether it failed, and the last lines of its output if so."""
    log: str = ""
    """The file that has all of it; empty where it succeeded."""


class SideTruth(StrictRecord):
    """What was found of a subject on one side, by `pagedbench check` or `pagedbench fuzz`."""

    verdict: TruthVerdict
    tried: int = 0
    """Problems, or programs of calls, that were run."""
    check: str = ""
    """Which one it failed; empty where it is right."""
    finding: str = ""
    """What was seen, in a line; or why nothing was checked."""
    problem: str = ""
    """The smallest problem that shows it, as its spec."""
    replay: str = ""
    """The command that shows it again, to be typed in the project's folder of that side."""


class TruthRecord(StrictRecord):
    """A subject against the truth, before anything is compared."""

    subject: str
    """As the project names it."""
    kind: SubjectKind
    seed: int
    """By which problems were drawn, the same for both sides."""
    base: SideTruth
    head: SideTruth

    @property
    def mended(self) -> bool:
        """Whether head is right where base was wrong."""
        return self.base.verdict == "wrong" and self.head.verdict == "right"


class CounterRecord(StrictRecord):
    """An exact counter of one benchmark on both sides."""

    benchmark: str
    name: str
    unit: str
    """`decode/paged-torch`, `torch_bytes`, `bytes`."""
    base: int | None
    head: int | None
    """None where that side's tree does not have it."""
    more_is_better: bool
    """Of hits, say. Of most counters less is better."""
    change: float | None
    """(head - base) / base; None where a side has none or base is 0 and head is not."""
    limit: float
    """A change for the worse up to it, as a fraction, is allowed."""
    verdict: CounterVerdict
    """`worse` and `better` whatever the limit."""
    fails: bool
    """Whether it is worse by more than the limit."""


class OutputRecord(StrictRecord):
    """An output of one benchmark, compared between the sides before anything was timed."""

    benchmark: str
    name: str
    """Which."""
    verdict: OutputVerdict
    """`equal` is bit for bit."""
    difference: float | None = None
    limit: float | None = None
    """Largest absolute difference and what is allowed; None for what must be equal."""
    note: str = ""
    """What differs, where that can be said in a line."""


class NoiseRecord(StrictRecord):
    """What this runner can see of one benchmark, from launches of identical code (`--aa`)."""

    benchmark: str
    """Its key."""
    launches: int
    """On which it rests."""
    launch_sd: float
    """As in `BenchmarkRecord`."""
    detectable: float | None
    """Smallest slowdown, of those tried, that at least 95 % of resampled gates fail; None if even
    the largest is found less often."""
    found: dict[str, float]
    """Share of resampled gates that fail, by slowdown: {"0.05": 0.99}. "0.0" is the share of false
    alarms."""
    quarantined: bool
    """By the rule."""


class GateRecord(StrictRecord):
    """Everything that one run of `pagedbench gate` found."""

    schema_version: int = SCHEMA_VERSION
    """Raised when a field changes its meaning."""
    mode: Mode
    """What was run."""
    pagedbench: str
    started_at: str
    """ISO 8601, UTC."""
    elapsed_s: float
    exact_s: float
    """Seconds of the whole run, and of comparing outputs and counters."""
    parameters: GateParameters
    base: ContestantRecord
    head: ContestantRecord
    """The contestants."""
    launches: list[LaunchRecord]
    """All launches; those of a benchmark are its samples."""
    benchmarks: list[BenchmarkRecord]
    counters: list[CounterRecord]
    outputs: list[OutputRecord]
    """In the suite's order."""
    noise: list[NoiseRecord] = []
    """Of `--aa` alone; otherwise empty."""
    builds: list[BuildRecord] = []
    """Of a project that has something to build."""
    truth: list[TruthRecord] = []
    """Of the project's subjects."""
    complete: bool
    """Whether it came to its end: not interrupted, not out of time."""
    verdict: RunVerdict
    exit_code: int
    reason: str
    """Of the run. 0 pass, 1 fail, wrong or fails to build, 3 inconclusive, 4 the harness failed, 5
    outputs differ, 130 interrupted."""

    def benchmark(self, key: str) -> BenchmarkRecord | None:
        """The one of a key."""
        return next((each for each in self.benchmarks if each.key == key), None)
