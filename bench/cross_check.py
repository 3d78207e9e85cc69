"""Searches for a problem that a kernel gets wrong, and makes what it finds small.

Hypothesis draws in this process; the kernel runs in children, one a lane, so a crash or a hang is
a finding like any other and is shrunk like any other.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, seed, settings

from bench.environment import ROOT
from bench.worker import capabilities_from_json
from reference.conformance import CHECKS, TRUTH, applicable
from reference.contract import Capabilities
from reference.problem import AttentionProblem
from reference.strategies import problems
from reference.verdict import Status, Verdict
from subjects.process import SubjectDied, SubjectProcess
from subjects.resolve import SubjectError

TIME_LIMIT_S: Final = 120.0
"""For one answer: a kernel that takes longer hangs."""

MAX_SHRINKS: Final = 400
"""Attempts at making a failure smaller; each costs one run of the kernel."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A problem that a kernel gets wrong, shrunk.

    Attributes
    ----------
    problem
        The spec.
    check
        Which check failed.
    status
        Failed or crashed.
    findings
        What was seen.
    first_problem
        The spec as it was drawn, before shrinking.
    """

    problem: str
    check: str
    status: Status
    findings: tuple[str, ...]
    first_problem: str


@dataclass(slots=True)
class Outcome:
    """What a search through one kernel's problems gave.

    Attributes
    ----------
    kernel
        Name of the subject.
    capabilities
        What it declares.
    problems
        Problems that were drawn and run.
    counts
        Verdicts by (check, status).
    failure
        The shrunk failure, or None.
    complete
        Whether every problem that was asked for was run.
    """

    kernel: str
    capabilities: Capabilities
    problems: int = 0
    counts: Counter[tuple[str, Status]] = field(default_factory=Counter)
    failure: Failure | None = None
    complete: bool = False

    @property
    def wrong(self) -> bool:
        """Whether the kernel failed a check."""
        return self.failure is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How to search.

    Attributes
    ----------
    kernel
        Name of the subject.
    device
        `cpu` or `cuda`.
    problems
        How many to draw. Two thirds have awkward lengths, one third those of `lengths`.
    lengths
        (prompt tokens, output tokens) of the stream's requests.
    max_len
        Longest context of a problem with the stream's lengths, tokens.
    lanes
        Children that run at once.
    seed
        The same seed draws the same problems.
    saved
        Problems to run first: those that this kernel got wrong before.
    """

    kernel: str
    device: str
    problems: int
    lengths: Sequence[tuple[int, int]]
    max_len: int
    lanes: int
    seed: int
    saved: tuple[AttentionProblem, ...] = ()


class _WrongKernel(Exception):
    """Tells Hypothesis that an example fails."""


class _Interrupted(BaseException):
    """Ends a lane from within; Hypothesis lets it pass."""


def describe(kernel: str, device: str) -> Capabilities:
    """What a kernel declares, asked of a child.

    Raises
    ------
    SubjectError
        If the kernel cannot be imported.
    """
    with start(kernel, device) as child:
        try:
            reply = child.ask({"describe": True})
        except SubjectDied as death:
            raise SubjectError(f"importing {kernel} {death.how}") from None
    if "error" in reply:
        raise SubjectError(reply["error"])
    return capabilities_from_json(reply["capabilities"])


def start(kernel: str, device: str) -> SubjectProcess:
    """A child that runs a kernel; interpreted on the CPU, compiled on a GPU."""
    environment = {
        "OMP_NUM_THREADS": "1",
        "TRITON_DEFAULT_FP_FUSION": "1",
        "TRITON_INTERPRET": "1" if device == "cpu" else "0",
    }
    # By path, not by -m: where the command is typed there may be a folder called bench as well.
    main = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from bench.worker import main; main()"
    command = [sys.executable, "-P", "-c", main, kernel, device]
    return SubjectProcess(command, environment=environment, time_limit_s=TIME_LIMIT_S)


def verdict_of(child: SubjectProcess, check: str, problem: AttentionProblem) -> Verdict:
    """Run one check of the child's kernel on a problem."""
    try:
        reply = child.ask({"check": check, "problem": str(problem)})
    except SubjectDied as death:
        return Verdict(check, Status.CRASHED, (f"the kernel's process {death.how}",))
    if "error" in reply:
        raise SubjectError(reply["error"])
    return Verdict(check, Status(reply["status"]), tuple(reply["findings"]))


def replay(kernel: str, device: str, problem: AttentionProblem) -> list[Verdict]:
    """Every check that applies, on one problem."""
    with start(kernel, device) as child:
        return [
            verdict_of(child, check.name, problem) for check in CHECKS if check.applies(problem)
        ]


def search(plan: Search, *, advance: Callable[[int], None], stop: threading.Event) -> Outcome:
    """Draw problems until one fails or all are done.

    Parameters
    ----------
    plan
        What to search.
    advance
        Called with the number of problems done, as they are.
    stop
        Set it to end the search early; the outcome is then not complete.
    """
    outcome = Outcome(plan.kernel, describe(plan.kernel, plan.device))
    lock = threading.Lock()
    found = threading.Event()
    shares = [
        plan.problems // plan.lanes + (n < plan.problems % plan.lanes) for n in range(plan.lanes)
    ]
    lanes = [
        _Lane(plan, number, share, outcome, lock, advance, stop, found)
        for number, share in enumerate(shares)
        if share
    ]
    with ThreadPoolExecutor(max_workers=len(lanes)) as pool:
        for done in [pool.submit(lane.run) for lane in lanes]:
            done.result()
    outcome.complete = outcome.problems >= plan.problems + len(plan.saved)
    return outcome


@dataclass(slots=True)
class _Lane:
    """One child and the search that feeds it."""

    plan: Search
    number: int
    share: int
    outcome: Outcome
    lock: threading.Lock
    advance: Callable[[int], None]
    stop: threading.Event
    found: threading.Event
    failure: Failure | None = None
    shrinks: int = 0

    def run(self) -> None:
        """Draw this lane's share of the problems."""
        awkward = -(-2 * self.share // 3) if self.plan.lengths else self.share
        with start(self.plan.kernel, self.plan.device) as child:
            try:
                for problem in self.plan.saved if self.number == 0 else ():
                    every = [check.name for check in CHECKS if check.applies(problem)]
                    self._example(child, problem, checks=every)
                self._draw(child, awkward, lengths=None, max_len=150)
                self._draw(
                    child,
                    self.share - awkward,
                    lengths=self.plan.lengths,
                    max_len=self.plan.max_len,
                )
            except (_Interrupted, _WrongKernel):
                # Also when interrupted while shrinking: what is known is a failure all the same.
                with self.lock:
                    self.outcome.failure = self.outcome.failure or self.failure
                if self.failure is not None:
                    self.found.set()

    def _draw(self, child: SubjectProcess, count: int, **limits: Any) -> None:
        if not count:
            return

        @seed(self.plan.seed * 1000 + 2 * self.number + (limits["lengths"] is not None))
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        @given(problem=problems(capabilities=self.outcome.capabilities, **limits))
        def every_problem(problem: AttentionProblem) -> None:
            self._example(child, problem, checks=checks_for(problem))

        every_problem()

    def _example(
        self, child: SubjectProcess, problem: AttentionProblem, *, checks: list[str]
    ) -> None:
        if self.stop.is_set() or (self.found.is_set() and self.failure is None):
            raise _Interrupted
        if self.failure is not None:
            self.shrinks += 1
            if self.shrinks > MAX_SHRINKS:
                raise _WrongKernel  # every candidate "fails" alike: the shrinker gives up at once
        for check in checks:
            verdict = verdict_of(child, check, problem)
            if self.failure is None:
                with self.lock:
                    self.outcome.counts[check, verdict.status] += 1
            if verdict.wrong:
                self._failed(problem, verdict)
        if self.failure is None:
            with self.lock:
                self.outcome.problems += 1
            self.advance(1)

    def _failed(self, problem: AttentionProblem, verdict: Verdict) -> None:
        first = self.failure.first_problem if self.failure else str(problem)
        self.failure = Failure(str(problem), verdict.check, verdict.status, verdict.findings, first)
        raise _WrongKernel


def checks_for(problem: AttentionProblem) -> list[str]:
    """The truth, and one law that the problem can show: the laws take turns by its seed."""
    laws = applicable(problem)
    turn = [laws[problem.seed % len(laws)].name] if laws else []
    return [TRUTH.name, *turn]


def default_lanes() -> int:
    """One child for each core that this process may use, four at most."""
    return min(len(os.sched_getaffinity(0)), 4)
