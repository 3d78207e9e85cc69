"""Compiles variants for targets in children, and collects their figures.

A child serves one target, and is forked from one process that has imported torch and Triton. It is
killed and replaced when a compile takes too long or kills it, which is then what is said of that
compile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench.command.progress import Progress, Silence
from bench.compile.record import CompileRecord, Refused, Result, Stored
from bench.machine.facts import version_of
from bench.search.lanes import HarnessError, Lane, run_lanes
from bench.search.nursery import nursery_of
from kernels.compiled.figures import VariantFigures
from kernels.compiled.targets import Target
from kernels.compiled.variants import Variant
from subjects.loading import SubjectError
from subjects.process import SubjectDied, SubjectProcess
from subjects.starting import start_of

TIME_LIMIT_S: Final = 120.0
"""For all launches of one variant on one target. The slowest of ours takes a few seconds; a tile
that is far too large can take a minute and more."""

CACHE_VARIABLE: Final = "PAGEDBENCH_COMPILE_CACHE"


class NotSupported(Exception):
    """The subject declares that it cannot do a problem; the message says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to compile."""

    targets: tuple[Target, ...]
    variants: tuple[Variant, ...]
    """Each variant for each target, unless the variant declines."""
    key_names: tuple[str, ...] = ()
    """Constexprs that may hold the KV tokens of an iteration; the usual ones if empty."""
    lanes: int = 1
    """Children that run at once."""
    time_limit_s: float = TIME_LIMIT_S
    """Seconds for one variant on one target."""
    cache: Path | None = None
    """Folder of Triton's cache for these compiles; see `cache_folder`."""
    python: str | None = None
    """Interpreter of the children, with a Triton of its own; ours if None."""
    only_triton: bool = False
    """Whether a subject that launches no Triton kernel is passed over; else that is a failure."""
    stored: Stored
    """What the figures are compared with."""


def triton_of(python: str | None) -> str:
    """Version of the Triton that an interpreter imports; of ours if None.

    Raises SubjectError: it has none.
    """
    if python is None:
        return version_of("triton")
    ask_it = "from importlib.metadata import version; print(version('triton'))"
    done = subprocess.run([python, "-P", "-c", ask_it], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SubjectError(
            f"--engine-python {python}: it finds no triton; name one that has it, such as "
            f"triton==3.8.0"
        )
    return done.stdout.strip()


def cache_folder(triton: str | None = None) -> Path:
    """Where compiled kernels are kept: a cache of our own, by Triton's version.

    Triton's usual cache may hold binaries without the intermediate code and the line numbers that
    figures need, and versions may share it.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "pagedbench" / f"triton-{triton or version_of('triton')}"


def start(
    target: Target,
    *,
    cache: Path | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    python: str | None = None,
) -> SubjectProcess:
    """A child that compiles for a target; see `bench.compile.worker` for what it can be asked."""
    environment = {
        "CUDA_VISIBLE_DEVICES": "",  # what is compiled is the same with a GPU and without
        "OMP_NUM_THREADS": "1",
        "TRITON_ALWAYS_COMPILE": "0",
        "TRITON_CACHE_DIR": str(cache or cache_folder()),
        "TRITON_DEFAULT_FP_FUSION": "1",
        "TRITON_DISABLE_LINE_INFO": "0",
        "TRITON_INTERPRET": "0",
        "TRITON_STORE_BINARY_ONLY": "0",
    }
    main = start_of("bench.compile.worker") + "ours.main()"
    command = [python or sys.executable, "-u", "-P", "-c", main, target.name]
    nursery = None if python else nursery_of("bench.compile.worker", environment)
    return SubjectProcess(
        command,
        environment=environment,
        time_limit_s=time_limit_s,
        popen=nursery.popen if nursery is not None else None,
    )


def run_compile(
    plan: Plan, *, progress: Progress | None = None, stop: threading.Event | None = None
) -> tuple[CompileRecord, list[Exception]]:
    """Compile each variant for each target, until all is done or `stop` is set.

    Also returns what kept some from being compiled, and says nothing about the kernel; they are
    among the refused.
    """
    progress, stop = progress or Silence(), stop or threading.Event()
    work = _Work(plan, progress, stop.is_set)
    total = work.left()
    progress.begin("compile", total)
    run_lanes(min(plan.lanes, total), work.compile, over=stop.is_set)
    if work.troubles and not work.results:
        raise work.troubles[0]
    return work.record(), work.troubles


class _Work:
    """What the lanes of a run share: what is left to compile, and what came of it."""

    def __init__(self, plan: Plan, progress: Progress, stopped: Callable[[], bool]) -> None:
        self._plan = plan
        self._progress = progress
        self._stopped = stopped
        self._lock = threading.Lock()
        self._served: set[str] = set()
        self._began = time.monotonic()
        self._triton = triton_of(plan.python)
        self._cache = plan.cache or cache_folder(self._triton)
        self._toolchains: dict[str, str] = {}
        self.results: list[Result] = []
        self._refusals: list[Refused] = []
        self.troubles: list[Exception] = []
        self._asked_for = len(plan.targets) * len(plan.variants)
        self._queues: dict[str, list[Variant]] = {target.name: [] for target in plan.targets}
        for target in plan.targets:
            for variant in plan.variants:
                if reason := variant.refusal(target.name):
                    self._refused(target, variant, reason)
                else:
                    self._queues[target.name].append(variant)

    def left(self) -> int:
        return sum(map(len, self._queues.values()))

    def compile(self, lane: Lane) -> None:
        target: Target | None = None
        while (task := self._next(target)) is not None:
            target, variant = task
            plan = self._plan
            begin = partial(
                start,
                target,
                cache=self._cache,
                time_limit_s=plan.time_limit_s,
                python=plan.python,
            )
            try:
                figures = lane.ask(
                    begin, partial(self._asked, target=target, variant=variant), subject=target
                )
            except NotSupported as refusal:
                self._declined(target, variant, str(refusal))
            except Exception as trouble:
                self._refused(target, variant, str(trouble).partition("\n")[0])
                self.troubles.append(trouble)
            else:
                result = Result(target=target.name, variant=variant.name, figures=figures)
                with self._lock:
                    self.results.append(result)
            self._progress.advance(1)

    def record(self) -> CompileRecord:
        place = {
            (target.name, variant.name): (row, column)
            for row, target in enumerate(self._plan.targets)
            for column, variant in enumerate(self._plan.variants)
        }
        self.results.sort(key=lambda result: place[result.target, result.variant])
        done = len(self.results) + len(self._refusals)
        stored = self._plan.stored
        return CompileRecord(
            pagedbench=version_of("pagedbench"),
            triton=self._triton,
            toolchains=self._toolchains,
            elapsed_s=time.monotonic() - self._began,
            complete=done == self._asked_for and not self.troubles,
            results=self.results,
            refused=self._refusals,
            baseline=stored.name,
            not_compared=stored.missing,
            comparisons=list(stored.compared(self.results, self._toolchains)),
        )

    def _refused(self, target: Target, variant: Variant, reason: str) -> None:
        with self._lock:
            refused = Refused(target=target.name, variant=variant.name, reason=reason)
            self._refusals.append(refused)

    def _declined(self, target: Target, variant: Variant, reason: str) -> None:
        """What a subject declines for one target it declines for all."""
        with self._lock:
            others = [each for each in self._plan.targets if variant in self._queues[each.name]]
            for each in others:
                self._queues[each.name].remove(variant)
            passed_over = variant.by_default and "cannot do kind " in reason
            self._asked_for -= passed_over * (1 + len(others))
        for each in () if passed_over else (target, *others):
            self._refused(each, variant, reason)
        self._progress.advance(len(others))

    def _next(self, current: Target | None) -> tuple[Target, Variant] | None:
        """What a lane does next: its own target's, else one that nobody serves, else any."""
        with self._lock:
            waiting = [name for name, queue in self._queues.items() if queue]
            if not waiting or self._stopped():
                return None
            if current is not None and current.name in waiting:
                name = current.name
            else:
                fresh = [name for name in waiting if name not in self._served]
                name = fresh[0] if fresh else max(waiting, key=lambda n: len(self._queues[n]))
            self._served.add(name)
            target = next(target for target in self._plan.targets if target.name == name)
            return target, self._queues[name].pop(0)

    def _asked(self, child: SubjectProcess, target: Target, variant: Variant) -> VariantFigures:
        """Take a child's word for its tools, which are what it compiles with; then ask it."""
        said = child.introduce()
        if said["triton"] != self._triton:
            raise HarnessError(
                f"the compiling process has triton {said['triton']}, and this one finds "
                f"{self._triton}: is there a relative path in PYTHONPATH?"
            )
        self._toolchains[target.name] = said["toolchain"]
        plan = self._plan
        return ask(child, variant, key_names=plan.key_names, only_triton=plan.only_triton)


def ask(
    child: SubjectProcess,
    variant: Variant,
    *,
    key_names: Sequence[str] = (),
    only_triton: bool = False,
) -> VariantFigures:
    """Figures of one variant, from a child that `start` made; a death of it is a failure.

    Raises NotSupported: the subject declares so. Raises SubjectError: it leads to no function.
    Raises HarnessError: what goes wrong is ours.
    """
    question = {
        "subject": variant.subject,
        "problem": variant.problem,
        "keys": list(key_names),
        "only_triton": only_triton,
    }
    try:
        reply = child.ask(question)
    except SubjectDied as death:
        return VariantFigures(problem=variant.problem, failure=f"the compiling process {death.how}")
    if "unknown" in reply:
        raise SubjectError(reply["unknown"])
    if "unsupported" in reply:
        raise NotSupported(reply["unsupported"])
    if "harness" in reply:
        raise HarnessError(f"{variant.name} ({variant.subject}):\n{reply['harness']}")
    return VariantFigures.model_validate({"problem": variant.problem, **reply})
