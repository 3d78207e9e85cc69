"""One run of the gate: outputs, counters, then launches until everything is decided."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from bench.command.exit_codes import HARNESS_FAILED, INTERRUPTED
from bench.command.progress import Progress, Silence
from bench.command.words import plural
from bench.gate.benchmark import Count
from bench.gate.contestant import Contestant, Side, snapshot, standing
from bench.gate.counters import compare_counters, compare_outputs
from bench.gate.machine_code import TARGETS, compiled_counters, could_differ
from bench.gate.record import (
    BenchmarkRecord,
    ContestantRecord,
    CounterRecord,
    Design,
    GateParameters,
    GateRecord,
    LaunchRecord,
    Mode,
    NoiseRecord,
    OutputRecord,
    Sample,
)
from bench.gate.statistics import resampled, robust_sd
from bench.gate.suite import Benchmark, chosen
from bench.gate.temporary import remove_abandoned, temporary_folder
from bench.gate.timers import Device
from bench.gate.turns import (
    SIDES,
    GateFailure,
    NotThere,
    Schedule,
    WorkerProcess,
    Workplace,
    launch,
    usable_cores,
    workers,
)
from bench.gate.verdict import (
    Examined,
    examine,
    judge_benchmarks,
    judge_run,
)
from bench.gate.worker import load_suite
from bench.machine.environment import GateEnvironment
from bench.machine.facts import ROOT, version_of
from bench.machine.gpu import GpuReader, GpuState
from reference.errors import BadInput

SLOWDOWNS: Final = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5)
"""That `--aa` tries out on its launches."""

POWER: Final = 0.95
TRIALS: Final = 1000

MOST_DROPPED: Final = 10
"""Launches in which the GPU changed."""

SUSPECTS_FIRST: Final = 0.6
"""Share of the time after which launches are for suspects as long as there are any: a finding that
nobody confirmed is worth less than a benchmark that stays open."""

EXACT: Final[Mapping[str, str]] = {"PYTHONHASHSEED": "0"}
"""Counters are of one hash seed: the order of a set is not to be counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePlan:
    """What to run."""

    base: Contestant
    head: Contestant
    """The contestants."""
    mode: Mode = "gate"
    """With `aa`, every benchmark gets all launches that there is time for; with `plant`, head does
    extra work."""
    design: Design = field(default_factory=Design)
    """The tests."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Of counters, over the defaults; see `bench.gate.counters.limit_of`."""
    benchmarks: tuple[str, ...] = ()
    """Patterns; empty: all. See `bench.gate.suite.chosen`."""
    pairs: int = 16
    turn_s: float = 0.003
    plant: float = 0.0
    seed: int = 0
    device: Device = "cpu"
    """As in `GateParameters`."""
    time_limit_s: float = 540.0
    """No launch begins that would end after so many seconds."""
    answer_limit_s: float = 120.0
    """A worker that says nothing for so long hangs."""
    keep_going: bool = False
    """Time benchmarks although counters are worse."""
    compiled: bool | None = None
    """Compile the kernels of both sides, too; None: where they could differ and no benchmarks were
    chosen."""
    compiled_targets: tuple[str, ...] = TARGETS
    """For which, as `pagedbench compile --target` names them."""
    cores: tuple[int, ...] | None = None
    """To pin launches to; None: all that this process may use."""
    suite: str | None = None
    """Another suite's module or file; None: the gate's own."""


def run_gate(
    plan: GatePlan,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> GateRecord:
    """Compare head with base.

    Whatever goes wrong is in the record, with its exit code: that the harness failed is a verdict,
    too. What was made for the run is gone when it is over.

    Raises BadInput: there is no such contestant or benchmark, so that nothing was measured.

    Set `stop` to end early: what is measured is in the record. `say` is told in a line what is
    decided and what is open, whenever that changes.
    """
    run = _Run(plan, progress or Silence(), stop or threading.Event(), say)
    try:
        run.go()
    except GateFailure as failure:
        run.failure = str(failure)
    return run.record()


class _Run:
    """A run in progress: what is known so far, of which a record can be made at any moment."""

    def __init__(
        self,
        plan: GatePlan,
        progress: Progress,
        stop: threading.Event,
        say: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._progress = progress
        self._stop = stop
        self._say = say
        self._began = time.monotonic()
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._exact_s = 0.0
        self._suite: tuple[Benchmark, ...] = ()
        self._not_there: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        self._launches: list[LaunchRecord] = []
        self._counters: list[CounterRecord] = []
        self._outputs: list[OutputRecord] = []
        self._contestants = {"base": _unmade(plan.base), "head": _unmade(plan.head)}
        self._cores: tuple[int, ...] = ()
        self._state: Callable[[], GpuState | None] = lambda: None
        self._complete = False
        self.failure: str | None = None

    def go(self) -> None:
        """Do it.

        Raises GateFailure: the harness failed; what is known stays. Raises BadInput: see above.
        """
        plan = self._plan
        self._suite = chosen(plan.benchmarks, load_suite(plan.suite), device=plan.device)
        if not self._suite:
            asked = ", ".join(plan.benchmarks) or "an empty suite"
            raise BadInput(
                f"{asked}: no benchmark for the {plan.device} has such a name; "
                f"'pagedbench gate --list' has them all"
            )
        self._cores = plan.cores or usable_cores()
        remove_abandoned()
        self._progress.begin("contestants", len(SIDES))
        with ExitStack() as stack:
            home = stack.enter_context(snapshot(ROOT, rooms=("bench",)))
            sides = {}
            for role, contestant in (("base", plan.base), ("head", plan.head)):
                sides[role] = stack.enter_context(standing(contestant))
                self._contestants[role] = sides[role].record
                self._progress.advance(1)
            place = Workplace(
                home=home, time_limit_s=plan.answer_limit_s, suite=plan.suite, device=plan.device
            )
            self._exact(sides, place)
            if self._stop.is_set() or self._decided_without_timing():
                return
            self._time(sides, place)

    def _decided_without_timing(self) -> bool:
        differs = any(each.verdict == "differs" for each in self._outputs)
        worse = any(each.fails for each in self._counters) and not self._plan.keep_going
        self._complete = differs or worse or not self._numbers
        return self._complete

    def _exact(self, sides: Mapping[str, Side], place: Workplace) -> None:
        """Compare outputs and counters of all benchmarks; calibrate those that are timed."""
        began = time.monotonic()
        order = random.Random(self._plan.seed)
        self._progress.begin("outputs and counters", len(self._suite))
        enough = threading.Event()

        compile_side = partial(
            compiled_counters,
            stopped=lambda: self._stop.is_set() or enough.is_set(),
            targets=self._plan.compiled_targets,
        )
        with (
            # Beside the counting, one side after the other: what is exact minds no company.
            ThreadPoolExecutor(1) as beside,
            ExitStack() as at_the_end,
            temporary_folder() as folder,
            workers(sides, order, place, EXACT) as both,
        ):
            at_the_end.callback(enough.set)
            roles = SIDES if self._compiles(sides) else ()
            compiled = {role: beside.submit(compile_side, sides[role]) for role in roles}
            for role, worker in both.items():
                environment, uuid = _environment(worker)
                self._state = GpuReader(uuid).read
                self._contestants[role] = self._contestants[role].model_copy(
                    update={"environment": environment}
                )
            for benchmark in self._suite:
                if self._stop.is_set():
                    return
                self._count(benchmark, both, folder)
                self._progress.advance(1)
            if compiled:
                self._progress.begin("machine code", len(SIDES))
                found = {}
                for role, figures in compiled.items():
                    found[role] = figures.result()
                    self._progress.advance(1)
                for key in dict.fromkeys((*found["head"], *found["base"])):
                    self._counters += compare_counters(
                        key, found["base"].get(key), found["head"].get(key), self._plan.limits
                    )
        self._exact_s = time.monotonic() - began

    def _compiles(self, sides: Mapping[str, Side]) -> bool:
        if self._plan.compiled is not None:
            return self._plan.compiled
        return not self._plan.benchmarks and could_differ(sides)

    def _count(self, benchmark: Benchmark, both: Mapping[str, WorkerProcess], folder: Path) -> None:
        outputs: dict[str, Any] = {}
        counters: dict[str, dict[str, Count]] = {}
        for role in SIDES:
            worker = both[role]
            try:
                worker.prepare(benchmark.key)
            except NotThere as missing:
                if role == "head":
                    raise GateFailure(
                        f"{benchmark.key}: {worker.name} has no {missing}, which the benchmark "
                        f"needs: a benchmark goes when what it measures goes"
                    ) from None
                self._not_there[benchmark.key] = str(missing)
                continue
            place = folder / role
            place.mkdir(exist_ok=True)
            about = benchmark.key
            outputs[role] = worker.ask("outputs", about=about, folder=str(place))["outputs"]
            said = worker.ask("counters", about=about)["counters"]
            counters[role] = {name: Count(**each) for name, each in said.items()}
        self._counters += compare_counters(
            benchmark.key, counters.get("base"), counters["head"], self._plan.limits
        )
        if "base" not in outputs:
            return
        self._outputs += compare_outputs(benchmark.key, outputs["base"], outputs["head"])
        if benchmark.timed:
            said = both["base"].ask("calibrate", about=benchmark.key, turn_s=self._plan.turn_s)
            self._numbers[benchmark.key] = said["number"]

    def _time(self, sides: Mapping[str, Side], place: Workplace) -> None:
        """Make launches until all is decided, time is up, or somebody wants to stop."""
        plan = self._plan
        schedule = Schedule(
            place=place, pairs=plan.pairs, cores=self._cores, seed=plan.seed, state=self._state
        )
        if plan.plant:
            self._numbers = {
                key: whole_units(number, plan.plant) for key, number in self._numbers.items()
            }
        longest = 0.0
        until = 0
        said = ""
        while not self._stop.is_set():
            examined = {key: examine(self._samples[key], plan.design) for key in self._numbers}
            wanted = [key for key, found in examined.items() if self._wants(key, found)]
            if time.monotonic() - self._began > SUSPECTS_FIRST * plan.time_limit_s:
                suspects = [key for key in wanted if examined[key].suspect is not None]
                wanted = suspects or wanted
            if (standing := _standing(examined)) != said:
                said = standing
                done = plural(len(self._launches), "launch", "launches")
                self._say(f"after {done}: {said}")
            if not wanted:
                self._complete = True
                return
            if time.monotonic() - self._began + longest > plan.time_limit_s:
                return
            index = len(self._launches)
            if index >= until:
                until = next((look for look in plan.design.looks if look > index), index + 1)
                self._progress.begin(f"launches to {until}", (until - index) * len(wanted))
            confirming = [key for key in wanted if examined[key].suspect is not None]
            record, samples = launch(
                index,
                sides,
                {key: planted(self._numbers[key], plan.plant) for key in wanted},
                schedule,
                confirming=confirming,
                began=self._began,
                advance=self._progress.advance,
                stop=self._stop,
            )
            self._launches.append(record)
            longest = max(longest, record.elapsed_s)
            if record.dropped:
                self._refuse_to_go_on_dropping()
                continue
            for key, sample in samples.items():
                self._samples[key].append(sample)

    def _refuse_to_go_on_dropping(self) -> None:
        dropped = [each for each in self._launches if each.dropped]
        if len(dropped) > MOST_DROPPED:
            raise GateFailure(
                f"{len(dropped)} launches were dropped, the last because {dropped[-1].dropped}: "
                f"this GPU is too hot or short of power to be measured on; cool it or cap its power"
            )

    def _wants(self, key: str, found: Examined) -> bool:
        """Whether another launch of the benchmark could tell something."""
        if self._plan.mode == "aa":
            # Noise is to be known, not decided about.
            return not found.over or len(self._samples[key]) < self._plan.design.looks[-1]
        return not found.over

    def record(self) -> GateRecord:
        """All that is known."""
        plan, design = self._plan, self._plan.design
        benchmarks = judge_benchmarks(
            [self._benchmark(each) for each in self._suite],
            design,
            counters=self._counters,
            complete=self._complete,
        )
        verdict, code, reason = judge_run(benchmarks, self._counters, self._outputs)
        if self.failure is not None:
            verdict, code, reason = "harness failed", HARNESS_FAILED, self.failure
        elif self._stop.is_set() and not self._complete:
            verdict, code, reason = "interrupted", INTERRUPTED, "interrupted; what was done is here"
        return GateRecord(
            mode=plan.mode,
            pagedbench=version_of("pagedbench"),
            started_at=self._started_at,
            elapsed_s=time.monotonic() - self._began,
            exact_s=self._exact_s,
            parameters=GateParameters(
                **design.model_dump(),
                pairs=plan.pairs,
                turn_s=plan.turn_s,
                plant=plan.plant,
                time_limit_s=plan.time_limit_s,
                benchmarks=list(plan.benchmarks),
                seed=plan.seed,
                cores=list(self._cores),
                device=plan.device,
            ),
            base=self._contestants["base"],
            head=self._contestants["head"],
            launches=self._launches,
            benchmarks=benchmarks,
            counters=self._counters,
            outputs=self._outputs,
            noise=self._noise() if plan.mode == "aa" else [],
            complete=self._complete,
            verdict=verdict,
            exit_code=code,
            reason=reason,
        )

    def _benchmark(self, benchmark: Benchmark) -> BenchmarkRecord:
        """What is known of a benchmark, not judged by its time yet."""
        key = benchmark.key
        counted = any(each.benchmark == key for each in self._outputs)
        verdict: Literal["pass", "inconclusive", "not run"] = "not run"
        if key in self._not_there:
            reason = f"the base's tree has no {self._not_there[key]}"
        elif not benchmark.timed and counted:
            verdict, reason = "pass", "outputs agree and counters are not worse; not timed"
        elif not counted:
            reason = "the run ended before it"
        elif self._complete:
            reason = "not timed: outputs or counters decide already"
        else:
            # Nothing speaks against it, and nothing for it: that is no pass.
            verdict, reason = "inconclusive", "the run ended before it was timed"
        return BenchmarkRecord(
            key=key,
            title=benchmark.title,
            timed=benchmark.timed,
            number=self._numbers.get(key),
            samples=self._samples[key],
            verdict=verdict,
            reason=reason,
        )

    def _noise(self) -> list[NoiseRecord]:
        rng = np.random.default_rng(self._plan.seed)
        return [
            noise_of(key, [sample.d_timer for sample in samples], self._plan.design, rng=rng)
            for key, samples in self._samples.items()
            if len(samples) >= self._plan.design.looks[0]
        ]


def noise_of(
    key: str, d: Sequence[float], design: Design, *, rng: np.random.Generator
) -> NoiseRecord:
    """What can be seen of a benchmark with as many launches as there are, by drawing them anew."""
    found = {
        slowdown: float(
            resampled(d, slowdown, design, trials=TRIALS, rng=rng, most=len(d)).failed.mean()
        )
        for slowdown in SLOWDOWNS
    }
    spread = robust_sd(d)
    return NoiseRecord(
        benchmark=key,
        launches=len(d),
        launch_sd=spread,
        detectable=next((slow for slow in SLOWDOWNS[1:] if found[slow] >= POWER), None),
        found={f"{slowdown:g}": share for slowdown, share in found.items()},
        quarantined=spread > design.quarantine_sd,
    )


def whole_units(number: int, plant: float) -> int:
    """Calls in a turn, about `number`, of which `plant` is a whole number, hardly more."""
    extra = max(1, round(number * plant))
    return max(1, math.floor(extra / plant))


def planted(number: int, plant: float) -> dict[str, int]:
    """Calls in a turn of either side: head makes extra ones."""
    return {"base": number, "head": number + (math.ceil(number * plant - 1e-9) if plant else 0)}


def _standing(examined: Mapping[str, Examined]) -> str:
    found = list(examined.values())
    confirming = sum(each.suspect is not None and not each.over for each in found)
    return (
        f"{sum(each.passed for each in found)} of {len(found)} passed, "
        f"{sum(not each.over for each in found)} open, {confirming} of them suspect"
    )


def _environment(worker: WorkerProcess) -> tuple[GateEnvironment, str | None]:
    """What a worker runs on, and the GPU's identity for NVML; None on the CPU."""
    said = worker.introduce()
    uuid = said.pop("uuid")
    return GateEnvironment.here(**said, copy_gbs=worker.ask("bandwidth")["copy_gbs"]), uuid


def _unmade(contestant: Contestant) -> ContestantRecord:
    """What is known of a contestant that does not stand yet, or cannot."""
    return ContestantRecord(
        name=contestant.asked,
        asked=contestant.asked,
        path="",
        commit=None,
        dirty=None,
        python=contestant.python,
    )
