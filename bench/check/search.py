"""Searches for a problem that a kernel gets wrong, and makes what it finds small.

Hypothesis draws in this process; the kernel runs in children, one a lane, so a crash or a hang is
a finding like any other and is shrunk like any other. What is drawn depends on the seed, the
capabilities and the stream, not on the lanes and not on what the kernel answers.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hypothesis.errors import Flaky

from bench.check.worker import CHECK_BY_NAME, capabilities_from_json
from bench.search.drawing import StillWrong, draw_each, only_our_constants, still_wrong
from reference.attention.checks import CHECKS, MEMORY, TRUTH, Check, applicable
from reference.attention.contract import Capabilities
from reference.attention.coverage import Coverage
from reference.attention.expected import Expectations, ExpectedFailure
from reference.attention.features import features_of
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems
from reference.attention.verdict import Status, Verdict
from subjects.attention.resolve import python_of
from subjects.loading import SubjectError
from subjects.process import SubjectDied, SubjectProcess
from subjects.starting import start_of

TIME_LIMIT_S: Final = 120.0
"""For one check of one problem: a kernel that takes longer hangs."""

MAX_SHRINKS: Final = 400
"""Attempts at making a failure smaller; each costs one run of the kernel."""

SHRINK_LIMIT_S: Final = 60.0
"""For all those attempts together: each crash costs the start of a child, each hang more."""

GRACE_S: Final = 3.0
"""For the answers that are under way when the search is to end; then their children are killed."""

MAX_AWKWARD_LEN: Final = 150
"""Longest context of a problem whose lengths sit on boundaries, tokens."""


class HarnessError(RuntimeError):
    """What went wrong is ours: it says nothing about the kernel."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A problem that a kernel gets wrong."""

    problem: str
    """The spec; after `shrink` the smallest that was found."""
    check: str
    """Which check failed."""
    status: Status
    """Failed or crashed."""
    findings: tuple[str, ...]
    """What was seen."""
    first_problem: str
    """The spec as it was drawn, before shrinking."""

    def by_chance(self) -> Failure:
        """The same, with a finding more: that it did not show again."""
        note = "the same problem did not fail again: it depends on earlier calls, or on chance"
        return replace(self, findings=(*self.findings, note))


@dataclass(slots=True)
class Outcome:
    """What a search through one kernel's problems gave."""

    kernel: str
    """Name of the subject."""
    capabilities: Capabilities
    """What it declares."""
    asked: int
    """Problems that were to be run: as many as asked for, and those saved."""
    problems: int = 0
    """Problems that were run, each different, and passed, but for failures that are expected. Those
    that the kernel does not support are not among them."""
    counts: Counter[tuple[str, Status]] = field(default_factory=Counter)
    """Verdicts by (check, status)."""
    coverage: Coverage = field(default_factory=Coverage)
    """The same by feature of the problem."""
    unseen: dict[str, str] = field(default_factory=dict)
    """Why a check could see nothing of the kernel, by check: the first reason that was given."""
    expectations: Expectations = field(default_factory=Expectations)
    """The failures that are expected, and what came of them."""
    failure: Failure | None = None
    """What it got wrong, or None."""
    complete: bool = False
    """Whether the search came to its end: all problems that were asked for were run, or all that
    there are where the kernel's capabilities leave fewer."""

    @property
    def wrong(self) -> bool:
        """Whether the kernel failed a check."""
        return self.failure is not None


@dataclass(frozen=True, slots=True)
class Replay:
    """What every check said of one problem."""

    problem: AttentionProblem
    verdicts: list[Verdict]
    """In the order of `CHECKS`."""
    moved: dict[str, dict[str, int]] | None
    """Bytes of each tensor, as `watching.bytes_moved` gives them; None unless every access was seen
    and legal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How to search."""

    kernel: str
    """Name of the subject."""
    device: str
    """`cpu` or `cuda`."""
    problems: int
    """How many to draw. Two thirds have awkward lengths, one third those of `lengths`."""
    lengths: Sequence[tuple[int, int]]
    """(prompt tokens, output tokens) of the stream's requests."""
    max_len: int
    """Longest context of a problem with the stream's lengths, tokens."""
    lanes: int
    """Children that run at once."""
    seed: int
    """The same seed draws the same problems."""
    time_limit_s: float = TIME_LIMIT_S
    """Seconds for one check of one problem."""
    saved: tuple[AttentionProblem, ...] = ()
    """Problems to run first: those that this kernel got wrong before."""
    expected: tuple[ExpectedFailure, ...] = ()
    """Failures that do not end the search; those of other kernels are left alone."""
    capabilities: Capabilities | None = None
    """What the kernel declares; None to ask it."""
    python: str | None = None
    """Interpreter to run the kernel with; None for the one that it needs."""


def describe(kernel: str, device: str, *, python: str | None = None) -> Capabilities:
    """What a kernel declares, asked of a child.

    Raises SubjectError if the kernel cannot be imported.
    """
    with start(kernel, device, python=python) as child:
        try:
            said = child.introduce()
        except SubjectDied as death:
            raise SubjectError(f"importing {kernel}: the process {death.how}") from None
    if "error" in said:
        raise SubjectError(said["error"])
    return capabilities_from_json(said["capabilities"])


def start(
    kernel: str, device: str, *, time_limit_s: float = TIME_LIMIT_S, python: str | None = None
) -> SubjectProcess:
    """A child that runs a kernel; interpreted on the CPU, compiled on a GPU.

    It runs in `python`, else in the interpreter that a built-in kernel needs, else in this one.

    Raises SubjectError if that interpreter's environment has not been built.
    """
    environment = {
        "OMP_NUM_THREADS": "1",
        "TRITON_DEFAULT_FP_FUSION": "1",
        "TRITON_INTERPRET": "1" if device == "cpu" else "0",
    }
    # Unbuffered: what a kernel printed before it crashed is part of the finding.
    python = python or python_of(kernel) or sys.executable
    command = [python, "-u", "-P", "-c", start_of("bench.check.worker") + "ours.main()"]
    command += [kernel, device]
    return SubjectProcess(command, environment=environment, time_limit_s=time_limit_s)


def verdict_of(child: SubjectProcess, check: str, problem: AttentionProblem) -> Verdict:
    """Run one check of the child's kernel on a problem; a child that dies is a verdict too."""
    try:
        return _asked(child, check, problem)
    except SubjectDied as death:
        return _crashed(check, death)


def replay(
    kernel: str,
    device: str,
    problem: AttentionProblem,
    *,
    time_limit_s: float = TIME_LIMIT_S,
    python: str | None = None,
) -> Replay:
    """Every check that applies, on one problem; none more once the kernel has hung."""
    verdicts: list[Verdict] = []
    moved = None
    with start(kernel, device, time_limit_s=time_limit_s, python=python) as child:
        for check in CHECKS:
            if not check.applies(problem):
                continue
            try:
                verdicts.append(_asked(child, check.name, problem))
            except SubjectDied as death:
                verdicts.append(_crashed(check.name, death))
                if death.timed_out:
                    break
        if any(v.check == MEMORY.name and v.status is Status.PASSED for v in verdicts):
            moved = child.ask({"moved": str(problem)})["moved"]
    return Replay(problem, verdicts, moved)


def search(plan: Search, *, advance: Callable[[int], None], stop: threading.Event) -> Outcome:
    """Run problems until one fails or all are done. What fails is as it was drawn; see `shrink`.

    Parameters
    ----------
    plan
        What to search.
    advance
        Called with the number of problems done, as they are.
    stop
        Set it to end the search early; the outcome is then not complete.

    Raises SubjectError if the kernel cannot be imported, or supports none of the problems. Raises
    HarnessError if a child fails for a reason that is not the kernel's.
    """
    capabilities = plan.capabilities or describe(plan.kernel, plan.device, python=plan.python)
    outcome = Outcome(
        plan.kernel,
        capabilities,
        asked=plan.problems + len(plan.saved),
        expectations=Expectations.of(plan.expected, plan.kernel),
    )
    job = _Job(plan, outcome, advance, stop)
    lanes = [_Lane(job) for _ in range(min(plan.lanes, outcome.asked))]

    def abandon() -> None:
        job.end()
        for lane in lanes:
            lane.abandon()

    with ThreadPoolExecutor(max_workers=len(lanes) + 1) as pool:
        work = [pool.submit(job.draw), *(pool.submit(lane.run) for lane in lanes)]
        _finish(work, over=job.over, abandon=abandon)
    outcome.complete = job.all_drawn and job.done == job.drawn and outcome.failure is None
    if outcome.complete and not outcome.problems:
        raise SubjectError(
            f"{plan.kernel} supports none of the {job.drawn} problems that were drawn for its "
            f"capabilities: nothing was checked; correct what it declares"
        )
    return outcome


def shrink(
    plan: Search,
    outcome: Outcome,
    *,
    advance: Callable[[int], None] = lambda _: None,
    stop: threading.Event,
) -> Failure:
    """Draw a search's problems again up to the one that failed, and make that one smaller.

    Only the check that failed is run, and no problem that is expected to fail it: what is found is
    the same bug. Ends after `MAX_SHRINKS` runs of the kernel, `SHRINK_LIMIT_S` or when `stop` is
    set, with the smallest failure so far.
    """
    assert outcome.failure is not None
    with (
        start(
            plan.kernel, plan.device, time_limit_s=plan.time_limit_s, python=plan.python
        ) as child,
        ThreadPoolExecutor(max_workers=1) as pool,
    ):
        shrinking = _Shrinking(child, outcome, advance, stop)
        work = pool.submit(shrinking.run, plan, outcome.capabilities)
        _finish([work], over=stop.is_set, abandon=child.kill)
    if shrinking.by_chance:
        return shrinking.failure.by_chance()
    return shrinking.failure


class Turns:
    """Chooses the checks of each problem: memory, the truth, and one law that it can show.

    The laws take turns: first where they were not shown with most of the problem's features, then
    the one that was shown least. Depends on the problems before, not on what the kernel answered.
    """

    def __init__(self) -> None:
        self._shown: Counter[str] = Counter()
        self._cells: set[tuple[str, str]] = set()

    def checks_for(self, problem: AttentionProblem) -> list[str]:
        """Names of the next problem's checks, in the order in which they are run."""
        features = features_of(problem)

        def need(law: Check) -> tuple[int, int]:
            new = sum((law.name, feature) not in self._cells for feature in features)
            return new, -self._shown[law.name]

        turn = max(applicable(problem), key=need, default=None)
        if turn is None:
            return [MEMORY.name, TRUTH.name]
        self._shown[turn.name] += 1
        self._cells.update((turn.name, feature) for feature in features)
        return [MEMORY.name, TRUTH.name, turn.name]


def default_lanes() -> int:
    """One child for each core that this process may use, four at most."""
    return min(len(os.sched_getaffinity(0)), 4)


def _finish(
    work: Sequence[Future[None]], *, over: Callable[[], bool], abandon: Callable[[], None]
) -> None:
    """Wait for work to end; abandon it if it does not although it should."""
    pending = set(work)
    over_since = None
    try:
        while pending:
            done, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            if over():
                over_since = over_since or time.monotonic()
                if time.monotonic() - over_since > GRACE_S:
                    abandon()
    except BaseException:
        abandon()
        raise


class _Enough(BaseException):
    """Ends a draw from within; Hypothesis lets it pass."""


class _Job:
    """What the lanes of one search share: the problems to run, and what came of them."""

    def __init__(
        self,
        plan: Search,
        outcome: Outcome,
        advance: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        self.plan = plan
        self.outcome = outcome
        self.drawn = 0
        self.done = 0
        self.all_drawn = False
        self._advance = advance
        self._stop = stop
        self._ended = threading.Event()
        self._lock = threading.Lock()
        # Short: drawing keeps ahead of the lanes by this much.
        self._waiting: queue.Queue[tuple[AttentionProblem, list[str]] | None] = queue.Queue(
            maxsize=2 * plan.lanes
        )

    def draw(self) -> None:
        """Put the problems where the lanes find them, those that were saved first."""
        turns = Turns()
        try:
            for problem in self.plan.saved:
                self._put((problem, [c.name for c in CHECKS if c.applies(problem)]))
            _draw(
                self.plan,
                self.outcome.capabilities,
                lambda problem: self._put((problem, turns.checks_for(problem))),
            )
            self.all_drawn = True
            self._put(None)
        except _Enough:
            pass

    def take(self) -> tuple[AttentionProblem, list[str]] | None:
        """The next problem and its checks; None when there is none."""
        while not self.over():
            try:
                task = self._waiting.get(timeout=0.1)
            except queue.Empty:
                continue
            if task is None:
                self._waiting.put(None)  # for the next lane
            return task
        return None

    def over(self) -> bool:
        """Whether nothing more is to be run."""
        return self._stop.is_set() or self._ended.is_set()

    def end(self) -> None:
        """Run nothing more."""
        self._ended.set()

    def saw(self, problem: AttentionProblem, verdict: Verdict) -> Verdict:
        """Count a verdict; the same, or that it failed as expected."""
        outcome = self.outcome
        with self._lock:
            verdict = outcome.expectations.judge(problem, verdict)
            outcome.counts[verdict.check, verdict.status] += 1
            outcome.coverage.add(problem, verdict)
            if verdict.status is Status.NOT_RUN:
                outcome.unseen.setdefault(verdict.check, "; ".join(verdict.findings))
        return verdict

    def failed(self, problem: AttentionProblem, verdict: Verdict) -> None:
        """Keep a failure, the first one if two lanes find one at once, and end the search."""
        spec = str(problem)
        failure = Failure(spec, verdict.check, verdict.status, verdict.findings, spec)
        with self._lock:
            self.outcome.failure = self.outcome.failure or failure
        self.end()

    def passed(self, *, supported: bool) -> None:
        """Count a problem that did not fail unexpectedly."""
        with self._lock:
            self.done += 1
            self.outcome.problems += supported
        self._advance(1)

    def _put(self, task: tuple[AttentionProblem, list[str]] | None) -> None:
        while not self.over():
            try:
                self._waiting.put(task, timeout=0.1)
            except queue.Full:
                continue
            self.drawn += task is not None
            return
        raise _Enough


class _Lane:
    """One child, and the problems that it is given."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        plan = job.plan
        self._child = start(
            plan.kernel, plan.device, time_limit_s=plan.time_limit_s, python=plan.python
        )
        self._abandoned = False

    def run(self) -> None:
        """Take problems until there are no more."""
        with self._child:
            while (task := self._job.take()) is not None:
                self._run_one(*task)

    def abandon(self) -> None:
        """End the child, from another thread; what it was asked has no verdict then."""
        self._abandoned = True
        self._child.kill()

    def _run_one(self, problem: AttentionProblem, checks: list[str]) -> None:
        ran = False
        for check in checks:
            verdict = verdict_of(self._child, check, problem)
            if self._abandoned:
                return
            verdict = self._job.saw(problem, verdict)
            if verdict.wrong:
                self._job.failed(problem, verdict)
                return
            ran = ran or verdict.status in (Status.PASSED, Status.EXPECTED)
        self._job.passed(supported=ran)


class _Shrinking:
    """Waits for the problem that failed, then lets Hypothesis try smaller ones."""

    def __init__(
        self,
        child: SubjectProcess,
        outcome: Outcome,
        advance: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        assert outcome.failure is not None
        self.failure = outcome.failure
        self.by_chance = False
        self._expectations = outcome.expectations
        self._child = child
        self._advance = advance
        self._stop = stop
        self._found = False
        self._attempts = 0
        self._deadline = 0.0

    def run(self, plan: Search, capabilities: Capabilities) -> None:
        """Draw the search's problems again, and shrink the one that failed."""
        try:
            _draw(plan, capabilities, self._example)
        except (StillWrong, _Enough):
            pass
        except Flaky:
            self.by_chance = True

    def _example(self, problem: AttentionProblem) -> None:
        """Pass, or raise StillWrong."""
        if self._stop.is_set():
            raise _Enough
        if not self._found and str(problem) != self.failure.problem:
            return
        if not self._found:
            self._found = True
            self._deadline = time.monotonic() + SHRINK_LIMIT_S
        elif self._attempts >= MAX_SHRINKS or time.monotonic() > self._deadline:
            still_wrong()  # every candidate is, so the shrinker runs out of ideas at once
        if not CHECK_BY_NAME[self.failure.check].applies(problem):
            return
        if self._expectations.cover(self.failure.check, problem):
            return
        self._attempts += 1
        verdict = verdict_of(self._child, self.failure.check, problem)
        self._advance(1)
        if self._stop.is_set():
            raise _Enough  # and the verdict may be that the child was ended
        if verdict.wrong:
            first = self.failure.first_problem
            self.failure = Failure(
                str(problem), verdict.check, verdict.status, verdict.findings, first
            )
            still_wrong()
        if self._attempts == 1:
            self.by_chance = True
            raise _Enough


def _draw(
    plan: Search, capabilities: Capabilities, example: Callable[[AttentionProblem], None]
) -> None:
    """Call `example` with each problem of a search, always the same and in the same order."""
    awkward = -(-2 * plan.problems // 3) if plan.lengths else plan.problems
    seen: set[str] = set()
    halves: list[tuple[int, dict[str, Any]]] = [
        (awkward, {"lengths": None, "max_len": MAX_AWKWARD_LEN}),
        (plan.problems - awkward, {"lengths": plan.lengths, "max_len": plan.max_len}),
    ]
    with only_our_constants():
        for number, (count, limits) in enumerate(halves):
            if count:
                strategy = problems(capabilities=capabilities, **limits)
                draw_each(
                    strategy,
                    count=count,
                    seed_of_draw=2 * plan.seed + number,
                    seen=seen,
                    example=example,
                )


def _asked(child: SubjectProcess, check: str, problem: AttentionProblem) -> Verdict:
    said = child.introduce()
    if "error" in said:
        raise SubjectError(said["error"])
    reply = child.ask({"check": check, "problem": str(problem)})
    if "harness" in reply:
        raise HarnessError(f"{check} on {problem}:\n{reply['harness']}")
    if reply.get("spent"):
        child.close()  # nothing runs there any more; the next problem gets a new child
    return Verdict(check, Status(reply["status"]), tuple(reply["findings"]))


def _crashed(check: str, death: SubjectDied) -> Verdict:
    return Verdict(check, Status.CRASHED, (f"the kernel's process {death.how}",))
