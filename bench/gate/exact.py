"""What a run decides without a clock: subjects against the truth, outputs, counters, machine code.

Everything here is exact and minds no company, so it is done at once: both sides count, and beside
them the truth is asked and kernels are compiled.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.command.progress import Progress
from bench.command.project import Project
from bench.command.words import one_line
from bench.gate.benchmark import Benchmark, Count
from bench.gate.contestant import Side, same_code
from bench.gate.counters import compare_counters, compare_outputs
from bench.gate.machine_code import compiled_counters, could_differ, subject_counters
from bench.gate.record import CounterRecord, OutputRecord, TruthRecord
from bench.gate.temporary import temporary_folder
from bench.gate.truth import Court, truth_at_a_point, with_points
from bench.gate.turns import (
    SIDES,
    DoesNotStart,
    GateFailure,
    NotThere,
    SideDeclined,
    SideRaised,
    WorkerProcess,
    Workplace,
    workers,
)
from bench.machine.environment import GateEnvironment
from bench.machine.gpu import GpuReader

if TYPE_CHECKING:
    from bench.gate.run import GatePlan

EXACT: Final[Mapping[str, str]] = {"PYTHONHASHSEED": "0"}
"""Counters are of one hash seed: the order of a set is not to be counted."""

Counters = Mapping[str, Mapping[str, Count]]
"""By benchmark, or kernel, and name."""


@dataclass(slots=True)
class Said:
    """What one side has to say of a benchmark."""

    outputs: list[dict[str, Any]] | None = None
    """As the worker describes them; None where it has none."""
    counters: dict[str, Count] = field(default_factory=dict)
    interpreted: bool = False
    """Whether Triton's interpreter ran it."""
    missing: str = ""
    declined: str = ""
    """What the side's tree lacks for it; what its subject cannot do."""
    failure: GateFailure | None = None
    """Of its subject: it raised, or ended the process."""

    @property
    def wrong(self) -> str:
        """What the truth has against its outputs."""
        return "; ".join(each["wrong"] for each in self.outputs or () if each["wrong"])


class Exact:
    """The exact part of a run, as far as it has come."""

    def __init__(
        self,
        plan: GatePlan,
        project: Project,
        suite: Sequence[Benchmark],
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._plan = plan
        self._project = project
        self._suite = suite
        self._progress = progress
        self._stop = stop
        self._enough = threading.Event()
        self._at_points: list[TruthRecord] = []
        self._failures: dict[tuple[str, str], GateFailure] = {}
        """By subject and role."""
        self.seconds = 0.0
        """That it took."""
        self.truth: list[TruthRecord] = []
        self.outputs: list[OutputRecord] = []
        self.counters: list[CounterRecord] = []
        """What was found."""
        self.numbers: dict[str, int] = {}
        """Calls in a turn, of benchmarks that are to be timed."""
        self.interpreted: set[str] = set()
        """Benchmarks that ran in Triton's interpreter: they are not timed."""
        self.not_compared: dict[str, str] = {}
        """Why not, by benchmark."""
        self.environments: dict[str, GateEnvironment] = {}
        """What each side runs on."""
        self.gpu = GpuReader(None)
        """Reads the GPU's state."""

    @property
    def decided(self) -> bool:
        """Whether nothing is left to be timed."""
        wrong = any(each.head.verdict == "wrong" for each in self.truth)
        differs = any(each.verdict == "differs" for each in self.outputs)
        worse = any(each.fails for each in self.counters) and not self._plan.keep_going
        return wrong or differs or worse or not self.numbers

    def compare(self, sides: Mapping[str, Side], place: Workplace) -> None:
        """Do it.

        Raises GateFailure: the harness failed; what is known stays.
        """
        began = time.monotonic()
        court = self._court()
        with (
            ThreadPoolExecutor(1) as beside,
            ExitStack() as at_the_end,
            temporary_folder() as folder,
        ):
            at_the_end.callback(self._enough.set)
            truth = beside.submit(court.judge, sides)
            compile_side = partial(
                compiled_counters, stopped=self._over, targets=self._plan.compiled_targets
            )
            roles = SIDES if self._compiles(sides) else ()
            compiled = {role: beside.submit(compile_side, sides[role]) for role in roles}
            broke = self._counted(sides, place, folder)
            self._progress.begin("against the truth", len(court.subjects))
            self.truth = with_points(truth.result(), self._at_points)
            self._progress.advance(len(court.subjects))
            if self._stop.is_set() or any(each.head.verdict == "wrong" for each in self.truth):
                return  # which is why it broke, if it did
            self._check(broke)
            self._leave_out_the_incomparable()
            if compiled:
                self._progress.begin("machine code", len(SIDES))
                self._compare_all({role: each.result() for role, each in compiled.items()})
                self._progress.advance(len(SIDES))
            self._compile_subjects(sides)
        self.seconds = time.monotonic() - began

    def _over(self) -> bool:
        return self._stop.is_set() or self._enough.is_set()

    def _court(self) -> Court:
        """Who is to be judged: subjects of which a benchmark was chosen."""
        asked = {each.subject for each in self._suite}
        return Court(
            project=self._project,
            kernels=[each for each in self._project.kernels if each in asked],
            allocators=[each for each in self._project.allocators if each in asked],
            device=self._plan.device,
            seed=random.Random(self._plan.seed).getrandbits(31),
            stopped=self._over,
        )

    def _counted(
        self, sides: Mapping[str, Side], place: Workplace, folder: Path
    ) -> GateFailure | None:
        """Compare outputs and counters of all benchmarks, until one breaks: why it did."""
        try:
            with (
                workers(sides, random.Random(self._plan.seed), place, EXACT) as both,
                ThreadPoolExecutor(len(SIDES)) as pool,
            ):
                for role, worker in both.items():
                    said = worker.introduce()
                    uuid = said.pop("uuid")
                    self.gpu = GpuReader(uuid)
                    self.environments[role] = GateEnvironment.here(
                        **said, copy_gbs=worker.ask("bandwidth")["copy_gbs"]
                    )
                self._progress.begin("outputs and counters", len(self._suite))
                for benchmark in self._suite:
                    if self._stop.is_set():
                        break
                    asked = {
                        role: pool.submit(_say, benchmark, both[role], folder / role)
                        for role in SIDES
                    }
                    self._compare(benchmark, {role: asked[role].result() for role in SIDES}, both)
                    self._progress.advance(1)
        except GateFailure as failure:
            return failure
        return None

    def _check(self, broke: GateFailure | None) -> None:
        """Raise what broke, unless the truth has it of base: then base is not compared with."""
        at_fault = {(each.subject, "base") for each in self.truth if each.base.verdict != "right"}
        of_base = isinstance(broke, DoesNotStart) and broke.role == "base"
        if of_base and 0 < len(self.truth) == len(at_fault):
            words = one_line(str(broke), limit=200)
            self.not_compared = {each.key: words for each in self._suite}
            return
        for failure in (
            broke,
            *(self._failures[each] for each in self._failures.keys() - at_fault),
        ):
            if failure is not None:
                raise failure

    def _compare(
        self, benchmark: Benchmark, said: Mapping[str, Said], both: Mapping[str, WorkerProcess]
    ) -> None:
        key, base, head = benchmark.key, said["base"], said["head"]
        if head.missing:
            raise GateFailure(
                f"{key}: {both['head'].name} has no {head.missing}, which the benchmark needs: a "
                f"benchmark goes when what it measures goes"
            )
        if base.missing:
            self.not_compared[key] = f"the base's tree has no {base.missing}"
        counters = {"base": None if base.missing else base.counters, "head": head.counters}
        for role, side in said.items():
            if side.declined:
                self.not_compared[key] = f"{role}: {side.declined}"
                # From doing it to not doing it is worse than any limit allows.
                counters = {
                    role: {"done": Count(int(not each.declined), "points", more_is_better=True)}
                    for role, each in said.items()
                }
        self.counters += compare_counters(
            key, counters["base"], counters["head"], self._plan.limits
        )
        if base.interpreted or head.interpreted:
            self.interpreted.add(key)
        failures = {role: side.failure for role, side in said.items() if side.failure is not None}
        self._failures |= {(benchmark.subject, role): each for role, each in failures.items()}
        wrong = {role: side.wrong for role, side in said.items() if side.wrong}
        if len(failures) == 1:  # what both raise may be of the harness
            raised = {r: each.how for r, each in failures.items() if isinstance(each, SideRaised)}
            wrong |= raised
        if wrong:
            self._at_points.append(truth_at_a_point(benchmark, wrong, self._plan.device))
        elif base.outputs is not None and head.outputs is not None:
            self.outputs += compare_outputs(key, base.outputs, head.outputs)
            if benchmark.timed and key not in self.interpreted:
                asked = both["base"].ask("calibrate", about=key, turn_s=self._plan.turn_s)
                self.numbers[key] = asked["number"]

    def _leave_out_the_incomparable(self) -> None:
        """Subjects that were wrong at base, or could not be checked there, have no base."""
        why = {each.subject: each.base for each in self.truth if each.base.verdict != "right"}
        for each in self._suite:
            if each.subject in why:
                base = why[each.subject]
                said = "is wrong" if base.verdict == "wrong" else "was not checked"
                words = f"base {said}: {one_line(base.finding, limit=200)}"
                self.not_compared.setdefault(each.key, words)
                self.numbers.pop(each.key, None)
                self.outputs = [one for one in self.outputs if one.benchmark != each.key]
                self.counters = [one for one in self.counters if one.benchmark != each.key]

    def _compiles(self, sides: Mapping[str, Side]) -> bool:
        """Whether pagedbench's own kernels are to be compiled."""
        if not all(side.ours for side in sides.values()):
            return False
        if self._plan.compiled is not None:
            return self._plan.compiled
        return not self._plan.benchmarks and could_differ(sides)

    def _compile_subjects(self, sides: Mapping[str, Side]) -> None:
        """Machine code of subjects that launch Triton kernels, for the points as launched."""
        problems: dict[str, list[str]] = defaultdict(list)
        for each in self._suite:
            if each.key in self.interpreted and each.key not in self.not_compared:
                problems[each.subject].append(each.problem)
        # A benchmark of ours may be interpreted and of no subject.
        problems.pop("", None)
        same = same_code(sides.values())
        if not problems or self._plan.compiled is False or (same and not self._plan.compiled):
            return
        self._progress.begin("machine code of subjects", len(SIDES))
        compile_side = partial(
            subject_counters,
            project=self._project,
            problems=problems,
            stopped=self._over,
            targets=self._plan.compiled_targets,
        )
        with ThreadPoolExecutor(len(SIDES)) as pool:
            found = {role: pool.submit(compile_side, side) for role, side in sides.items()}
            self._compare_all({role: each.result() for role, each in found.items()})
        self._progress.advance(len(SIDES))

    def _compare_all(self, found: Mapping[str, Counters]) -> None:
        for key in dict.fromkeys((*found["head"], *found["base"])):
            self.counters += compare_counters(
                key, found["base"].get(key), found["head"].get(key), self._plan.limits
            )


def _say(benchmark: Benchmark, worker: WorkerProcess, folder: Path) -> Said:
    """Ask one side about a benchmark."""
    key, said = benchmark.key, Said()
    try:
        said.interpreted = worker.prepare(key)
        folder.mkdir(exist_ok=True)
        outputs = worker.ask("outputs", about=key, folder=str(folder))["outputs"]
        counted = worker.ask("counters", about=key)["counters"]
        said.counters = {name: Count(**each) for name, each in counted.items()}
        said.outputs = outputs
    except NotThere as missing:
        said.missing = str(missing)
    except SideDeclined as declined:
        said.declined = str(declined)
    except GateFailure as failure:
        if not benchmark.subject:
            raise
        said.failure = failure
    return said
