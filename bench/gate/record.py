"""The record of one gate run, as JSON: all that was asked, counted and timed, and the verdicts.

`bench.gate.verdict.judge` comes to the same verdicts from a record alone.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION: Final = 1

Mode = Literal["gate", "aa", "plant"]
"""Base against head; base against itself; head slowed on purpose."""

Verdict = Literal["pass", "fail", "inconclusive", "not run"]
"""Of one benchmark. `not run`: the base's tree lacks what it measures, or the run ended before it
was timed."""

RunVerdict = Literal[
    "pass", "fail", "inconclusive", "outputs differ", "harness failed", "interrupted"
]

Stage = Literal["screen", "confirm"]
"""Launches that look for suspects, and fresh ones that only confirm or clear a suspect."""

CounterVerdict = Literal["equal", "better", "worse", "not there"]

OutputVerdict = Literal["equal", "within tolerance", "differs", "not there"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GateEnvironment(_Record):
    """What one contestant ran on and with, said by its own worker.

    Attributes
    ----------
    device
        The GPU's name, or the CPU's.
    driver, cuda
        Versions of the CUDA driver, and of CUDA that torch was built for; None on the CPU.
    timer
        What the verdicts are of: `process_time` (CPU seconds) or `cuda_event`.
    cpu, cores, threads, platform
        The processor, cores that this process may use, torch's threads, the system.
    copy_gbs
        Measured copy bandwidth of one core, or of the GPU: bytes read and written, 10^9 a second,
        the best of a few copies of 64 MiB. None where it was not measured.
    """

    device: str
    driver: str | None
    cuda: str | None
    torch: str
    triton: str
    numpy: str
    python: str
    timer: str
    cpu: str
    cores: int
    threads: int
    platform: str
    copy_gbs: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What two results must have in common before absolute figures are compared.

        Device, driver, CUDA, torch, triton and timer; ratios that were measured side by side need
        no common key.
        """
        return (
            self.device,
            self.driver or "none",
            self.cuda or "none",
            self.torch,
            self.triton,
            self.timer,
        )


class ContestantRecord(_Record):
    """Code and an interpreter.

    Attributes
    ----------
    name
        What it is called in reports: the commit's first 12 digits, a folder, requirements.
    asked
        As it was given on the command line.
    path
        Folder of the tree. That of a commit is temporary and gone when the run is over.
    commit, dirty
        Full hash, and whether the tree has changes that are not committed; None where the folder
        is no checkout.
    committed_at
        When the commit was made, ISO 8601; None where there is none.
    python
        The interpreter.
    requirements
        What the environment was built of; empty where an existing one was used.
    environment
        None where its worker never came to say it.
    """

    name: str
    asked: str
    path: str
    commit: str | None
    dirty: bool | None
    committed_at: str | None = None
    python: str
    requirements: list[str] = []
    environment: GateEnvironment | None = None


class GateParameters(_Record):
    """By what the run was judged.

    Attributes
    ----------
    alpha
        Of one benchmark's screening, over all looks and each way: suspect, pass, improved.
    confirm_alpha
        Of the confirmation of one suspect, over all its looks.
    family_alpha
        Of Holm's procedure over the suite.
    margin
        A slowdown up to it is allowed: 0.01 is 1 %.
    equivalence
        A benchmark passes once a slowdown as large as this is ruled out.
    wall_margin
        The same as `margin` for wall-clock time, which also sees waiting; wide, because the time
        that other processes take is in it.
    looks, confirm_looks
        Numbers of launches at which the tests are looked at.
    pairs
        Turns of each side in a launch.
    turn_s
        Least seconds of a turn by the timer, by which `number` is calibrated.
    quarantine_sd
        A benchmark whose launches spread more than this, as a fraction, is not judged.
    plant
        Extra work of head, as a fraction; 0 if none.
    time_limit_s
        Seconds after which no launch begins.
    benchmarks
        Patterns that were asked for; empty: all.
    seed
        Of every random order; with it the schedule of the launches is the same.
    cores
        On which the launches were pinned, in turn.
    device
        What was timed: `cpu` or `cuda`.
    """

    alpha: float
    confirm_alpha: float
    family_alpha: float
    margin: float
    equivalence: float
    wall_margin: float
    looks: list[int]
    confirm_looks: list[int]
    pairs: int
    turn_s: float
    quarantine_sd: float
    plant: float
    time_limit_s: float
    benchmarks: list[str]
    seed: int
    cores: list[int]
    device: str = "cpu"


class GpuState(_Record):
    """A GPU at one moment, by NVML.

    Attributes
    ----------
    sm_mhz, memory_mhz
        Clocks.
    power_w, temperature_c
        Watts, degrees Celsius.
    slowed_by
        Reasons for clocks below the highest; see `bench.machine.gpu`.
    """

    sm_mhz: int
    memory_mhz: int
    power_w: float
    temperature_c: int
    slowed_by: list[str]


class LaunchRecord(_Record):
    """Two fresh processes, one of each side, and the benchmarks that they were timed on.

    Attributes
    ----------
    index
        From 0, in the order of time.
    core
        Both were pinned to it.
    hash_seed, padding
        PYTHONHASHSEED and the length of a variable of the environment, the same for both.
    started_s, elapsed_s
        Seconds since the run began, and how long it took, start of the processes included.
    load
        Load average of the machine at its start, last minute; 1.0 is one busy core.
    order
        Benchmarks in the order in which they were timed.
    gpu
        The GPU's state before the first, between them and after the last; empty on the CPU, and
        where it could not be read.
    dropped
        Why none of its samples is used; empty if they are.
    """

    index: int
    core: int
    hash_seed: int
    padding: int
    started_s: float
    elapsed_s: float
    load: float
    order: list[str]
    gpu: list[GpuState] = []
    dropped: str = ""


class Sample(_Record):
    """One launch of one benchmark.

    Attributes
    ----------
    launch
        Index of the launch.
    stage
        What it counts for.
    d_timer, d_wall
        Median over the pairs of log(head / base), by the run's timer (CPU seconds, or events of a
        GPU) and on the wall.
    base_s, head_s, base_wall_s, head_wall_s
        Median over the turns of the seconds of one call.
    """

    launch: int
    stage: Stage
    d_timer: float
    d_wall: float
    base_s: float
    head_s: float
    base_wall_s: float
    head_wall_s: float


class LookRecord(_Record):
    """The tests at one look, p-values of single exact signed-rank tests, not yet corrected.

    Attributes
    ----------
    stage, launches
        Where: how many launches of the stage.
    p_slow
        Of "not slower than the margin": small if it is slower.
    p_same
        Of "slower by the equivalence bound or more": small if it is not.
    p_fast
        Of "not faster than the margin": small if it is faster.
    p_wall
        As `p_slow`, of wall-clock time and its margin.
    """

    stage: Stage
    launches: int
    p_slow: float
    p_same: float
    p_fast: float
    p_wall: float


class Estimate(_Record):
    """Head's time divided by base's: Hodges-Lehmann estimate, and bounds at 95 %.

    The bounds are those of one look. They are None with fewer than 6 launches, of which no such
    bounds exist.
    """

    ratio: float
    low: float | None
    high: float | None


class BenchmarkRecord(_Record):
    """One benchmark.

    Attributes
    ----------
    key
        Name of the series, the same in every run: `decode/paged-torch[block=16]`.
    title
        What one call does, in a sentence.
    unit
        Of the samples: `s`, seconds a call.
    timed
        Whether it is timed at all; others are only counted and their outputs compared.
    number
        Calls in a turn, the same on both sides; None before calibration.
    samples
        All its launches, in order.
    looks
        All looks at the tests.
    estimate, wall_estimate
        Over the screening's launches; of a suspect over those of its confirmation, once there are
        6, since those of the screening made it one. None without launches.
    launch_sd
        Standard deviation over the launches of `d_timer`, robust: interquartile range / 1.349. None
        with fewer than 4 launches.
    p_value, p_holm
        Of "no slower than the margin" by the two stages together; and after Holm's procedure over
        the suite. None before the first look.
    suspect
        Whether the screening found it slower.
    improved
        Whether it is faster by more than the margin.
    quarantined
        Whether it is too noisy here to be judged.
    verdict, reason
        And why, in a sentence.
    """

    key: str
    title: str
    unit: str = "s"
    timed: bool
    number: int | None = None
    samples: list[Sample] = []
    looks: list[LookRecord] = []
    estimate: Estimate | None = None
    wall_estimate: Estimate | None = None
    launch_sd: float | None = None
    p_value: float | None = None
    p_holm: float | None = None
    suspect: bool = False
    improved: bool = False
    quarantined: bool = False
    verdict: Verdict
    reason: str


class CounterRecord(_Record):
    """An exact counter of one benchmark on both sides.

    Attributes
    ----------
    benchmark, name, unit
        `decode/paged-torch`, `torch_bytes`, `bytes`.
    base, head
        None where that side's tree does not have it.
    more_is_better
        Of hits, say. Of most counters less is better.
    change
        (head - base) / base; None where a side has none or base is 0 and head is not.
    limit
        A change for the worse up to it, as a fraction, is allowed.
    verdict
        `worse` and `better` whatever the limit.
    fails
        Whether it is worse by more than the limit.
    """

    benchmark: str
    name: str
    unit: str
    base: int | None
    head: int | None
    more_is_better: bool
    change: float | None
    limit: float
    verdict: CounterVerdict
    fails: bool


class OutputRecord(_Record):
    """An output of one benchmark, compared between the sides before anything was timed.

    Attributes
    ----------
    benchmark, name
        Which.
    verdict
        `equal` is bit for bit.
    difference, limit
        Largest absolute difference and what is allowed; None for what must be equal.
    note
        What differs, where that can be said in a line.
    """

    benchmark: str
    name: str
    verdict: OutputVerdict
    difference: float | None = None
    limit: float | None = None
    note: str = ""


class NoiseRecord(_Record):
    """What this runner can see of one benchmark, from launches of identical code (`--aa`).

    Attributes
    ----------
    benchmark
        Its key.
    launches
        On which it rests.
    launch_sd
        As in `BenchmarkRecord`.
    detectable
        Smallest slowdown, of those tried, that at least 95 % of resampled gates fail; None if even
        the largest is found less often.
    found
        Share of resampled gates that fail, by slowdown: {"0.05": 0.99}. "0.0" is the share of false
        alarms.
    quarantined
        By the rule.
    """

    benchmark: str
    launches: int
    launch_sd: float
    detectable: float | None
    found: dict[str, float]
    quarantined: bool


class GateRecord(_Record):
    """Everything that one run of `pagedbench gate` found.

    Attributes
    ----------
    schema_version
        Raised when a field changes its meaning.
    mode
        What was run.
    started_at
        ISO 8601, UTC.
    elapsed_s, exact_s
        Seconds of the whole run, and of comparing outputs and counters.
    base, head
        The contestants.
    launches
        All launches; those of a benchmark are its samples.
    benchmarks, counters, outputs
        In the suite's order.
    noise
        Of `--aa` alone; otherwise empty.
    complete
        Whether it came to its end: not interrupted, not out of time.
    verdict, exit_code, reason
        Of the run. 0 pass, 1 fail, 3 inconclusive, 4 the harness failed, 5 outputs differ,
        130 interrupted.
    """

    schema_version: int = SCHEMA_VERSION
    mode: Mode
    pagedbench: str
    started_at: str
    elapsed_s: float
    exact_s: float
    parameters: GateParameters
    base: ContestantRecord
    head: ContestantRecord
    launches: list[LaunchRecord]
    benchmarks: list[BenchmarkRecord]
    counters: list[CounterRecord]
    outputs: list[OutputRecord]
    noise: list[NoiseRecord] = []
    complete: bool
    verdict: RunVerdict
    exit_code: int
    reason: str
