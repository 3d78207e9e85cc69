"""One run of the gate: outputs, counters, then launches until everything is decided."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import numpy as np

from bench.command.exit_codes import HARNESS_FAILED, INTERRUPTED
from bench.command.progress import Progress, Silence
from bench.command.project import Project, present_project
from bench.command.words import plural
from bench.gate.building import build, keep_log
from bench.gate.contestant import Contestant, Side, standing
from bench.gate.exact import Exact
from bench.gate.machine_code import TARGETS
from bench.gate.record import (
    BenchmarkRecord,
    BuildRecord,
    ContestantRecord,
    Design,
    GateParameters,
    GateRecord,
    LaunchRecord,
    Mode,
    NoiseRecord,
    Sample,
)
from bench.gate.statistics import resampled, robust_sd
from bench.gate.subjects import subjects_of, suite_of
from bench.gate.suite import Benchmark, chosen
from bench.gate.temporary import remove_abandoned, temporary_folder
from bench.gate.timers import Device
from bench.gate.turns import (
    SIDES,
    GateFailure,
    Schedule,
    Workplace,
    launch,
    usable_cores,
)
from bench.gate.verdict import (
    Examined,
    examine,
    judge_benchmarks,
    judge_run,
)
from bench.gate.worker import load_suite
from bench.machine.facts import version_of
from reference.errors import BadInput
from subjects.starting import HOME, PREFIX

SLOWDOWNS: Final = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5)
"""That `--aa` tries out on its launches."""

POWER: Final = 0.95
TRIALS: Final = 1000

MOST_DROPPED: Final = 10
"""Launches in which the GPU changed."""

SUSPECTS_FIRST: Final = 0.6
"""Share of the time after which launches are for suspects as long as there are any: a finding that
nobody confirmed is worth less than a benchmark that stays open."""


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
    project: Project | None = None
    """Whose subjects and suite are compared; None: that of the present folder."""
    suite: str | None = None
    """Another suite's module or file; None: the project's own."""


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
        self._project = plan.project or present_project()
        self._progress = progress
        self._stop = stop
        self._say = say
        self._began = time.monotonic()
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._suite: tuple[Benchmark, ...] = ()
        self._exact = Exact(plan, self._project, (), progress, stop)
        self._builds: list[BuildRecord] = []
        self._numbers: dict[str, int] = {}
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        self._launches: list[LaunchRecord] = []
        self._contestants = {"base": _unmade(plan.base), "head": _unmade(plan.head)}
        self._cores: tuple[int, ...] = ()
        self._complete = False
        self.failure: str | None = None

    def go(self) -> None:
        """Do it.

        Raises GateFailure: the harness failed; what is known stays. Raises BadInput: see above.
        """
        plan, project = self._plan, self._project
        subjects = subjects_of(project)
        suite = suite_of(project) if plan.suite is None else plan.suite
        self._suite = chosen(
            plan.benchmarks, load_suite(suite, subjects, device=plan.device), device=plan.device
        )
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
            sides = {}
            for role, contestant in (("base", plan.base), ("head", plan.head)):
                sides[role] = stack.enter_context(
                    standing(
                        contestant,
                        root=project.root,
                        extensions=not project.build,
                        requirements=project.requirements,
                    )
                )
                self._contestants[role] = sides[role].record
                self._progress.advance(1)
            if not self._build(sides):
                return
            file = stack.enter_context(temporary_folder()) / "subjects.json"
            subjects.write(file)
            place = Workplace(
                home=stack.enter_context(_home(sides)),
                time_limit_s=plan.answer_limit_s,
                suite=suite,
                subjects=file,
                project=project,
                device=plan.device,
            )
            exact = self._exact = Exact(plan, project, self._suite, self._progress, self._stop)
            try:
                exact.compare(sides, place)
            finally:
                for role, environment in exact.environments.items():
                    known = self._contestants[role]
                    self._contestants[role] = known.model_copy(update={"environment": environment})
            self._complete = exact.decided
            if self._stop.is_set() or self._complete:
                return
            self._time(sides, place)

    def _build(self, sides: Mapping[str, Side]) -> bool:
        """Build both sides where the project has something to build; whether to go on.

        Raises GateFailure: base does not build, so that nothing can be said of head.
        """
        command = self._project.build
        if not command:
            return not self._stop.is_set()
        self._progress.begin("builds", len(SIDES))
        for role in SIDES:
            built = build(sides[role], command, stopped=self._stop.is_set)
            if built is None:
                return False
            log = keep_log(built, self._project.root, role) if built.failed else ""
            self._builds.append(
                BuildRecord(
                    side=role,
                    seconds=built.seconds,
                    kept=built.kept,
                    failed=built.failed,
                    said=built.last_lines,
                    log=log,
                )
            )
            self._progress.advance(1)
        failed = {each.side: each.said.rpartition("\n")[2] for each in self._builds if each.failed}
        if "base" in failed:
            who = "neither side builds" if "head" in failed else "base does not build"
            raise GateFailure(f"{who}: {command}: {failed['base']}")
        self._complete = bool(failed)
        return not failed

    def _time(self, sides: Mapping[str, Side], place: Workplace) -> None:
        """Make launches until all is decided, time is up, or somebody wants to stop."""
        plan = self._plan
        schedule = Schedule(
            place=place,
            pairs=plan.pairs,
            cores=self._cores,
            seed=plan.seed,
            gpu=self._exact.gpu,
        )
        self._numbers = {
            key: whole_units(number, plan.plant) if plan.plant else number
            for key, number in self._exact.numbers.items()
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
            counters=self._exact.counters,
            complete=self._complete,
        )
        verdict, code, reason = judge_run(
            benchmarks,
            self._exact.counters,
            self._exact.outputs,
            truth=self._exact.truth,
            builds=self._builds,
        )
        if self.failure is not None:
            verdict, code, reason = "harness failed", HARNESS_FAILED, self.failure
        elif self._stop.is_set() and not self._complete:
            verdict, code, reason = "interrupted", INTERRUPTED, "what was done is here"
        return GateRecord(
            mode=plan.mode,
            pagedbench=version_of("pagedbench"),
            started_at=self._started_at,
            elapsed_s=time.monotonic() - self._began,
            exact_s=self._exact.seconds,
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
            counters=self._exact.counters,
            outputs=self._exact.outputs,
            builds=self._builds,
            truth=self._exact.truth,
            noise=self._noise() if plan.mode == "aa" else [],
            complete=self._complete,
            verdict=verdict,
            exit_code=code,
            reason=reason,
        )

    def _benchmark(self, benchmark: Benchmark) -> BenchmarkRecord:
        """What is known of a benchmark, not judged by its time yet."""
        key, exact = benchmark.key, self._exact
        timed = benchmark.timed and key not in exact.interpreted
        counted = any(each.benchmark == key for each in exact.outputs)
        verdict: Literal["pass", "inconclusive", "not run"] = "not run"
        if key in exact.not_compared:
            reason = exact.not_compared[key]
        elif not timed and counted:
            verdict, reason = "pass", "outputs agree and counters are not worse; not timed"
        elif not counted:
            reason = "the run ended before it"
        elif self._complete:
            reason = "not timed: what was counted decides already"
        else:
            # Nothing speaks against it, and nothing for it: that is no pass.
            verdict, reason = "inconclusive", "the run ended before it was timed"
        return BenchmarkRecord(
            key=key,
            title=benchmark.title,
            timed=timed,
            number=self._numbers.get(key, exact.numbers.get(key)),
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


@contextmanager
def _home(sides: Mapping[str, Side]) -> Iterator[Path]:
    """Where the benchmarks of a tree of pagedbench come from: a copy, that nobody changes."""
    if not any(side.ours for side in sides.values()):
        yield HOME
        return
    if PREFIX:
        raise BadInput(
            "a tree of pagedbench is measured by the pagedbench of a checkout, and this one is "
            "installed: run it from the checkout's own environment"
        )
    with temporary_folder() as folder:
        ignored = shutil.ignore_patterns("__pycache__")
        home = folder / "tree"
        shutil.copytree(HOME / "bench", home / "bench", ignore=ignored)
        (home / "reference").mkdir()
        shutil.copy(HOME / "reference" / "stack.py", home / "reference")  # see `gate.worker.main`
        yield home


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
