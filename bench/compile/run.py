"""Compiles variants for targets in children, and collects their figures.

A child serves one target, because importing torch and Triton takes seconds; it is killed and
replaced when a compile takes too long or kills it, which is then what is said of that compile.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.command.progress import Progress, Silence
from bench.machine.facts import version_of
from kernels.compiled.figures import VariantFigures
from kernels.compiled.targets import Target
from kernels.compiled.variants import Variant
from subjects.loading import SubjectError
from subjects.process import SubjectDied, SubjectProcess
from subjects.starting import start_of

TIME_LIMIT_S: Final = 120.0
"""For all launches of one variant on one target. The slowest of ours takes a few seconds; a tile
that is far too large can take a minute and more."""

GRACE_S: Final = 3.0
"""For the compiles that are under way when the work is to end; then their children are killed."""

CACHE_VARIABLE: Final = "PAGEDBENCH_COMPILE_CACHE"


class HarnessError(RuntimeError):
    """What went wrong is ours: it says nothing about the kernel."""


class NotSupported(Exception):
    """The subject declares that it cannot do a problem; the message says what."""


@dataclass(frozen=True, slots=True)
class Result:
    """One variant on one target."""

    target: str
    variant: str
    figures: VariantFigures


@dataclass(slots=True)
class Compiled:
    """What a run gave."""

    triton: str
    """Its version."""
    toolchains: dict[str, str] = field(default_factory=dict)
    """The assembler of each target."""
    results: list[Result] = field(default_factory=list)
    """In the order of targets, then variants."""
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    """(target, variant, reason) of what was not run."""
    complete: bool = False
    """Whether all was compiled that was asked for."""


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


def cache_folder() -> Path:
    """Where compiled kernels are kept: a cache of our own, by Triton's version.

    Triton's usual cache may hold binaries without the intermediate code and without line numbers,
    which figures need (TRITON_STORE_BINARY_ONLY, TRITON_DISABLE_LINE_INFO), and versions may share
    it. PAGEDBENCH_COMPILE_CACHE names another place.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "pagedbench" / f"triton-{version_of('triton')}"


def default_lanes() -> int:
    """One child for each core that this process may use, four at most."""
    return min(len(os.sched_getaffinity(0)), 4)


def start(
    target: Target, *, cache: Path | None = None, time_limit_s: float = TIME_LIMIT_S
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
    command = [sys.executable, "-u", "-P", "-c", main, target.name]
    return SubjectProcess(command, environment=environment, time_limit_s=time_limit_s)


def figures_of(
    subject: str,
    problem: str,
    target: Target,
    *,
    cache: Path | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> VariantFigures:
    """Figures of all that one host function launches, from a child of its own.

    Parameters
    ----------
    subject
        `module:function`, `file.py:function` or a built-in name.
    problem
        Spec of the batch.
    target, cache, time_limit_s
        As in `Plan`.

    Raises SubjectError, NotSupported, HarnessError: as in `ask`.
    """
    with start(target, cache=cache, time_limit_s=time_limit_s) as child:
        return ask(child, Variant(subject, subject, problem))


def run_compile(
    plan: Plan, *, progress: Progress | None = None, stop: threading.Event | None = None
) -> Compiled:
    """Compile each variant for each target.

    Parameters
    ----------
    plan
        What, and how.
    progress
        Told of each compile that is done.
    stop
        Set it to end early; what is done is in the result, which is then not complete.

    Raises SubjectError if a variant's name leads to no function. Raises HarnessError if what goes
    wrong is ours.
    """
    progress, stop = progress or Silence(), stop or threading.Event()
    compiled = Compiled(version_of("triton"))
    queues: dict[str, list[Variant]] = {}
    for target in plan.targets:
        queues[target.name] = []
        for variant in plan.variants:
            if reason := variant.refusal(target.name):
                compiled.refused.append((target.name, variant.name, reason))
            else:
                queues[target.name].append(variant)
    work = _Work(plan, queues, compiled, progress, stop)
    total = work.left()
    progress.begin("compile", total)
    lanes = [_Lane(work) for _ in range(min(plan.lanes, total))]
    if lanes:
        _run_lanes(lanes, stop)
    place = {
        (target.name, variant.name): (row, column)
        for row, target in enumerate(plan.targets)
        for column, variant in enumerate(plan.variants)
    }
    compiled.results.sort(key=lambda result: place[result.target, result.variant])
    compiled.complete = not work.left() and not work.lost
    return compiled


def _run_lanes(lanes: Sequence[_Lane], stop: threading.Event) -> None:
    with ThreadPoolExecutor(max_workers=len(lanes)) as pool:
        pending = {pool.submit(lane.run) for lane in lanes}
        stopped_at = None
        try:
            while pending:
                done, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if stop.is_set():
                    stopped_at = stopped_at or time.monotonic()
                    if time.monotonic() - stopped_at > GRACE_S:
                        for lane in lanes:
                            lane.abandon()
        except BaseException:
            stop.set()
            for lane in lanes:
                lane.abandon()
            raise


class _Work:
    """What the lanes of a run share: what is left to compile, and what came of it."""

    def __init__(
        self,
        plan: Plan,
        queues: dict[str, list[Variant]],
        compiled: Compiled,
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self.plan = plan
        self.stop = stop
        self._targets = {target.name: target for target in plan.targets}
        self._queues = queues
        self._compiled = compiled
        self._progress = progress
        self._lock = threading.Lock()
        self._served: set[str] = set()
        self.lost = False

    def left(self) -> int:
        """Compiles that nobody has begun."""
        return sum(map(len, self._queues.values()))

    def next(self, current: Target | None) -> tuple[Target, Variant] | None:
        """What a lane does next: its own target's, else one that nobody serves, else any."""
        with self._lock:
            waiting = [name for name, queue in self._queues.items() if queue]
            if not waiting or self.stop.is_set():
                return None
            if current is not None and current.name in waiting:
                name = current.name
            else:
                fresh = [name for name in waiting if name not in self._served]
                name = fresh[0] if fresh else max(waiting, key=lambda n: len(self._queues[n]))
            self._served.add(name)
            return self._targets[name], self._queues[name].pop(0)

    def done(self, result: Result) -> None:
        """Take a result."""
        with self._lock:
            self._compiled.results.append(result)
        self._progress.advance(1)

    def unsupported(self, target: Target, variant: Variant, reason: str) -> None:
        """Take a subject's word that it cannot do a problem."""
        with self._lock:
            self._compiled.refused.append((target.name, variant.name, reason))
        self._progress.advance(1)

    def introduced(self, target: Target, said: dict[str, Any]) -> None:
        """Take a child's word for its tools: they are what it compiles with."""
        if said["triton"] != self._compiled.triton:
            raise HarnessError(
                f"the compiling process has triton {said['triton']}, and this one finds "
                f"{self._compiled.triton}: is there a relative path in PYTHONPATH?"
            )
        with self._lock:
            self._compiled.toolchains[target.name] = said["toolchain"]


class _Lane:
    """One child after another, each for one target."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._child: SubjectProcess | None = None
        self._abandoned = False

    def run(self) -> None:
        """Compile until nothing is left."""
        target: Target | None = None
        try:
            while (task := self._work.next(target)) is not None:
                wanted, variant = task
                if self._child is None or wanted is not target:
                    self._close()
                    target = wanted
                    self._child = start(
                        target,
                        cache=self._work.plan.cache,
                        time_limit_s=self._work.plan.time_limit_s,
                    )
                if self._abandoned:
                    self._work.lost = True
                    return
                self._compile(self._child, target, variant)
        finally:
            self._close()

    def abandon(self) -> None:
        """End the child, from another thread; what it was asked has no answer then."""
        self._abandoned = True
        if self._child is not None:
            self._child.kill()

    def _compile(self, child: SubjectProcess, target: Target, variant: Variant) -> None:
        """Ask for one variant. That a child which was ended has died says nothing of the kernel."""
        try:
            self._work.introduced(target, child.introduce())
            figures = ask(child, variant, key_names=self._work.plan.key_names)
        except NotSupported as refusal:
            self._work.unsupported(target, variant, str(refusal))
        except Exception:
            if not self._abandoned:
                raise
            self._work.lost = True
        else:
            if self._abandoned:
                self._work.lost = True
            else:
                self._work.done(Result(target.name, variant.name, figures))

    def _close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def ask(
    child: SubjectProcess, variant: Variant, *, key_names: Sequence[str] = ()
) -> VariantFigures:
    """Figures of one variant, from a child that `start` made; a death of it is a failure.

    Raises NotSupported if the subject declares that it cannot do the problem. Raises SubjectError
    if the variant's subject leads to no function, or its problem is none. Raises HarnessError if
    what goes wrong is ours.
    """
    question = {"subject": variant.subject, "problem": variant.problem, "keys": list(key_names)}
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
