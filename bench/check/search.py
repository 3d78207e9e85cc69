"""All checks at once of one kernel in children: draws problems, and makes what fails small.

`bench.check.trial` does it for one check in this process, with a kernel that is at hand. Here a
crash or a hang is a finding like any other and is shrunk like any other. Hypothesis draws in this
process: what it draws depends on the seed, the capabilities and the stream, not on the lanes and
not on what the kernel answers.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from pydantic import ValidationError

from bench.check.children import CAPABILITIES, CHECK_BY_NAME, JudgeProcess, kernel_process
from bench.check.findings import Found, told_apart
from bench.check.minimise import shrunk
from bench.check.record import Drawing, Failure, KernelRecord, replay_command
from bench.search.drawing import draw_each, only_our_constants
from bench.search.lanes import Enough, HarnessError, Lane, run_lanes
from bench.search.nursery import DESCRIPTOR, nursery_of
from reference.attention.catalogue import CHECKS, FREE_SLOTS, MEMORY, TRUTH, Check, applicable
from reference.attention.contract import Capabilities
from reference.attention.coverage import Coverage
from reference.attention.expected import Expectations, ExpectedFailure
from reference.attention.features import features_of
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems
from reference.attention.verdict import Status, Verdict
from subjects.attention.resolve import python_of
from subjects.loading import SubjectError
from subjects.process import START_LIMIT_S, SubjectDied, SubjectProcess
from subjects.starting import start_of

TIME_LIMIT_S: Final = 120.0
"""For one check of one problem: a kernel that takes longer hangs."""

JUDGING_LIMIT_S: Final = 120.0
"""For the judge's own part of a check."""

MAX_AWKWARD_LEN: Final = 150
"""Longest context of a problem whose lengths sit on boundaries, tokens."""

FINDINGS: Final = 5
"""Different ones that are made smaller and shown; others are counted."""

AFTERWARDS_S: Final = 60.0
"""How long a search goes on with each seed once it has so many kinds as are to be shown."""

MAX_CRASHES: Final = 10
MAX_HANGS: Final = 2
"""After so many a search ends: each costs the start of a process, or the time limit."""

MAX_QUOTED: Final = 200
"""Characters of an answer that is none."""

Task = tuple[AttentionProblem, list[str], int | None]
"""A problem, the checks that are to be run on it, and the seed that drew it."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What every check said of one problem."""

    problem: AttentionProblem
    verdicts: list[Verdict]
    """In the order of `CHECKS`."""
    moved: dict[str, dict[str, int]] | None
    """Bytes of each tensor, as `watching.bytes_moved` gives them; None unless every access was seen
    and legal."""
    complete: bool = True
    """Whether it came to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedOfAll:
    """What is the same for all kernels of a run."""

    device: str
    """`cpu` or `cuda`."""
    problems: int
    """How many to draw with each seed. A tenth has tight tables and small blocks and comes first;
    two thirds have awkward lengths in all, one third those of the stream."""
    max_len: int
    """Longest context of a problem with the stream's lengths, tokens."""
    lanes: int
    """Children that run one kernel at once."""
    seed: int
    """The same seed draws the same problems."""
    last_seed: int | None = None
    """Of a campaign, which draws with all from the first to this one."""
    time_limit_s: float = TIME_LIMIT_S
    """Seconds for one check of one problem."""
    expected: tuple[ExpectedFailure, ...] = ()
    """Failures that do not end the search; those of other kernels are left alone."""
    python: str | None = None
    """Interpreter to run the kernels with; None for the one that each needs."""
    findings: int = FINDINGS
    """Different ones to make smaller and show, of each kernel; others are counted."""
    ray: bool = False
    """Whether judges run on the Ray cluster that this process is connected to."""

    @property
    def seeds(self) -> range:
        """Those to draw with, one after the other."""
        return range(self.seed, (self.seed if self.last_seed is None else self.last_seed) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan(AskedOfAll):
    """What to search, and how."""

    kernel: str
    """Name of the subject."""
    capabilities: Capabilities
    """What the kernel declares."""
    lengths: Sequence[tuple[int, int]]
    """(prompt tokens, output tokens) of the stream's requests."""
    saved: tuple[AttentionProblem, ...] = ()
    """Problems to run first: those that this kernel got wrong before."""

    @property
    def asked(self) -> int:
        """Problems that are to be run."""
        return self.problems * len(self.seeds) + len(self.saved)

    def start(self) -> SubjectProcess:
        """A child that runs the kernel."""
        if self.ray:
            from bench.check.cluster import JudgeOnRay

            return JudgeOnRay(replace(self, ray=False))
        return start(
            self.kernel,
            self.device,
            time_limit_s=self.time_limit_s,
            python=self.python,
            declared=self.capabilities,
        )

    def failures(
        self, problem: AttentionProblem, verdict: Verdict, *, seed: int | None = None
    ) -> list[Failure]:
        """What is kept of a verdict that the kernel is to blame for."""
        replay = replay_command(self.kernel, self.device, str(problem), python=self.python)
        return [Failure.of(problem, part, replay=replay, seed=seed) for part in told_apart(verdict)]


def describe(
    kernel: str,
    device: str,
    *,
    python: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Capabilities | None:
    """What a kernel declares, asked of a child; None where it was `stopped` before it said so."""
    declared: list[Capabilities] = []

    def ask(lane: Lane) -> None:
        declared.append(
            lane.ask(
                lambda: start(kernel, device, python=python, judged=False),
                lambda child: _declared(child, kernel),
            )
        )

    run_lanes(1, ask, over=stopped)
    return declared[0] if declared else None


def _declared(child: SubjectProcess, kernel: str) -> Capabilities:
    try:
        said = child.introduce()
    except SubjectDied as death:
        raise SubjectError(f"importing {kernel}: the process {death.how}") from None
    if "error" in said:
        raise SubjectError(said["error"])
    try:
        return CAPABILITIES.validate_python(said.get("capabilities"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SubjectError(f"{kernel} declares no capabilities: {where}: {first['msg']}") from None


def start(
    kernel: str,
    device: str,
    *,
    time_limit_s: float = TIME_LIMIT_S,
    python: str | None = None,
    judged: bool = True,
    declared: Capabilities | None = None,
) -> SubjectProcess:
    """A child that judges a kernel, which runs in a child of that one; or that child by itself.

    Kernels are interpreted on the CPU and compiled on a GPU. What it `declared` it has to stand by.
    """
    environment = {
        "OMP_NUM_THREADS": "1",
        "TRITON_DEFAULT_FP_FUSION": "1",
        "TRITON_INTERPRET": "1" if device == "cpu" else "0",
    }
    python = python or python_of(kernel) or sys.executable
    nursery = nursery_of("bench.check.subject", environment)
    if not judged:
        return kernel_process(
            kernel, device, python=python, environment=environment, nursery=nursery
        )
    command = [sys.executable, "-u", "-P", "-c", start_of("bench.check.worker") + "ours.main()"]
    command += [kernel, device, python, str(time_limit_s)]
    if declared is not None:
        command.append(CAPABILITIES.dump_json(declared, warnings=False).decode())
    # The judge minds the kernel's time, and starts it again where it died.
    limit_s = time_limit_s + 2 * START_LIMIT_S + JUDGING_LIMIT_S
    if nursery is None:
        return JudgeProcess(command, environment=environment, time_limit_s=limit_s)
    handed = {DESCRIPTOR: str(nursery.descriptor)}
    return JudgeProcess(
        command,
        environment={**environment, **handed},
        time_limit_s=limit_s,
        pass_fds=[nursery.descriptor],
        popen=nursery.popen,
    )


def verdict_of(child: SubjectProcess, check: str, problem: AttentionProblem) -> Verdict:
    """Run one check on a problem; a child that dies is a verdict, what is ours a HarnessError."""
    try:
        return _asked(child, check, problem)
    except SubjectDied as death:
        return _crashed(check, death.how)


def replay(
    kernel: str,
    device: str,
    problem: AttentionProblem,
    *,
    time_limit_s: float = TIME_LIMIT_S,
    python: str | None = None,
) -> Replay:
    """Every check that applies, on one problem, until the kernel hangs or KeyboardInterrupt."""
    verdicts: list[Verdict] = []
    moved = None
    try:
        with start(kernel, device, time_limit_s=time_limit_s, python=python) as child:
            for check in CHECKS:
                if not check.applies(problem):
                    continue
                try:
                    verdicts.append(_asked(child, check.name, problem))
                except SubjectDied as death:
                    verdicts.append(_crashed(check.name, death.how))
                    if death.timed_out:
                        break
            if any(v.check == MEMORY.name and v.status is Status.PASSED for v in verdicts):
                try:
                    moved = child.ask({"moved": str(problem)}).get("moved")
                except SubjectDied as death:
                    verdicts.append(_crashed(MEMORY.name, death.how))
    except KeyboardInterrupt:
        return Replay(problem, verdicts, moved, complete=False)
    return Replay(problem, verdicts, moved)


def search(
    plan: SearchPlan, *, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> KernelRecord:
    """Run problems until all are done, or it is `stopped`, dies too often, or has found enough and
    had its time for more.
    """
    loop = _Loop(plan, advance, stopped)
    run_lanes(
        min(plan.lanes, plan.asked), loop.work, over=loop.over, end=loop.end, beside=loop.draw
    )
    record = loop.record()
    if record.complete and not record.problems:
        raise SubjectError(
            f"{plan.kernel} supports none of the {loop.drawn} problems that were drawn for its "
            f"capabilities: nothing was checked; correct what it declares"
        )
    return record


def shrink(
    plan: SearchPlan,
    failure: Failure,
    *,
    advance: Callable[[int], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Failure:
    """As `minimise.shrunk`, with the kernel in a child.

    No problem is run that is expected to fail the check, or that the kernel declines.
    """
    check = CHECK_BY_NAME[failure.check]
    known = Expectations.of(plan.expected, plan.kernel)
    smaller, notes = [failure], []

    def asked(problem: AttentionProblem) -> bool:
        able = check.applies(problem) and plan.capabilities.refusal(problem) is None
        return able and not known.cover(check.name, problem)

    def work(lane: Lane) -> None:
        def look(problem: AttentionProblem) -> list[Failure]:
            try:
                ask = partial(verdict_of, check=check.name, problem=problem)
                verdict = lane.ask(plan.start, ask)
            except Exception as error:
                notes.append(f"it could not be made smaller: {error}")
                raise Enough from error
            advance(1)
            return plan.failures(problem, known.unexpected(problem, verdict))

        smaller.append(shrunk(failure, look, asked=asked, stopped=stopped))
        # What crashes has no rows, and need not do it again.
        if smaller[-1].status is Status.FAILED and not stopped():
            smaller.append(lane.ask(plan.start, partial(_drawn, smaller[-1])))

    run_lanes(1, work, over=stopped)
    return smaller[-1].model_copy(update={"findings": (*smaller[-1].findings, *notes)})


def _drawn(failure: Failure, child: SubjectProcess) -> Failure:
    """With what a page shows of it, where the kernel can still be asked."""
    try:
        said = child.ask({"drawn": failure.problem, "findings": failure.findings}).get("drawn")
    except (SubjectDied, HarnessError):
        return failure
    drawing = None if said is None else Drawing.model_validate(said)
    return failure.model_copy(update={"drawing": drawing})


class Turns:
    """Chooses the checks of each problem: memory, the truth, and one law that it can show.

    The laws that concern a kernel take turns: first where they were not shown with most of the
    problem's features, then the one that was shown least.
    """

    def __init__(self, able: Capabilities) -> None:
        self._able = able
        self._shown: Counter[str] = Counter()
        self._cells: set[tuple[str, str]] = set()

    def checks_for(self, problem: AttentionProblem) -> list[str]:
        """Names of the next problem's checks, in the order in which they are run."""
        features = features_of(problem)

        def need(law: Check) -> tuple[int, int]:
            new = sum((law.name, feature) not in self._cells for feature in features)
            return new, -self._shown[law.name]

        turn = max(applicable(problem, self._able), key=need, default=None)
        if turn is None:
            return [MEMORY.name, TRUTH.name]
        self._shown[turn.name] += 1
        self._cells.update((turn.name, feature) for feature in features)
        return [MEMORY.name, TRUTH.name, turn.name]


class _Loop:
    """What the lanes of one search share: the problems to run, and what came of them."""

    def __init__(
        self, plan: SearchPlan, advance: Callable[[int], None], stopped: Callable[[], bool]
    ) -> None:
        self.drawn = 0
        self._plan = plan
        self._advance = advance
        self._stopped = stopped
        self._ended = threading.Event()
        self._lock = threading.Lock()
        # Short: drawing keeps ahead of the lanes by this much.
        self._waiting: queue.Queue[Task | None] = queue.Queue(maxsize=2 * plan.lanes)
        self._all_drawn = False
        self._done = self._supported = 0
        self._counts: Counter[tuple[str, Status]] = Counter()
        self._coverage = Coverage()
        self._unseen: dict[str, str] = {}
        self._expectations = Expectations.of(plan.expected, plan.kernel)
        self._found = Found()
        self._crashes: Counter[bool] = Counter()
        self._enough_at: float | None = None

    def over(self) -> bool:
        return self._stopped() or self._ended.is_set()

    def end(self) -> None:
        self._ended.set()

    def draw(self) -> None:
        """Put the problems where the lanes find them, those that were saved first."""
        able = self._plan.capabilities
        turns = Turns(able)
        try:
            for problem in self._plan.saved:
                laws = [law.name for law in applicable(problem, able)]
                self._put((problem, [MEMORY.name, TRUTH.name, *laws], None))
            for seed in self._plan.seeds:
                _draw(self._plan, seed, partial(self._put_drawn, turns, seed))
            self._all_drawn = True
            self._put(None)
        except Enough:
            pass

    def _put_drawn(self, turns: Turns, seed: int, problem: AttentionProblem) -> None:
        self._put((problem, turns.checks_for(problem), seed))

    def work(self, lane: Lane) -> None:
        while (task := self._take()) is not None:
            self._run(lane, *task)

    def record(self) -> KernelRecord:
        checks: dict[str, dict[str, int]] = {}
        for (check, status), count in sorted(self._counts.items()):
            checks.setdefault(check, {})[status.value] = count
        plan = self._plan
        return KernelRecord(
            name=plan.kernel,
            asked=plan.asked,
            problems=self._supported,
            checks=checks,
            # What a check saw of one problem it can see: of the others it had nothing to look at.
            unseen={
                check: why
                for check, why in self._unseen.items()
                if checks[check].keys() <= {Status.NOT_RUN, Status.NOT_SUPPORTED}
            },
            expected=self._expectations.met,
            coverage=self._coverage.matrix(plan.capabilities),
            pairs=self._coverage.pairs(plan.capabilities),
            complete=self._all_drawn and self._done == self.drawn,
            failures=self._found.failures,
        )

    def _take(self) -> Task | None:
        while not self.over():
            try:
                task = self._waiting.get(timeout=0.1)
            except queue.Empty:
                continue
            if task is None:
                self._waiting.put(None)  # for the next lane
            return task
        return None

    def _put(self, task: Task | None) -> None:
        while not self.over():
            try:
                self._waiting.put(task, timeout=0.1)
            except queue.Full:
                continue
            self.drawn += task is not None
            return
        raise Enough

    def _run(
        self, lane: Lane, problem: AttentionProblem, checks: list[str], seed: int | None
    ) -> None:
        seen = False
        for check in checks:
            began = time.monotonic()
            verdict = lane.ask(self._plan.start, partial(verdict_of, check=check, problem=problem))
            with self._lock:
                verdict = self._saw(problem, verdict)
                seen = seen or verdict.status not in (Status.NOT_RUN, Status.NOT_SUPPORTED)
                failures = self._plan.failures(problem, verdict, seed=seed)
                hung = time.monotonic() - began > self._plan.time_limit_s
                self._keep(failures, verdict, hung=hung)
            if _spoils_the_rest(verdict):
                break
        with self._lock:
            self._done += 1
            self._supported += seen
        self._advance(1)

    def _keep(self, failures: list[Failure], verdict: Verdict, *, hung: bool) -> None:
        """Remember what is new of a verdict; the search ends where no more is to be had of it."""
        for failure in failures:
            self._found.add(failure)
        self._crashes[hung] += verdict.status is Status.CRASHED
        if self._enough_at is None and self._found.kinds >= self._plan.findings:
            self._enough_at = time.monotonic()
        late = self._enough_at is not None and (
            time.monotonic() - self._enough_at >= AFTERWARDS_S * len(self._plan.seeds)
        )
        if late or self._crashes[False] >= MAX_CRASHES or self._crashes[True] >= MAX_HANGS:
            self.end()

    def _saw(self, problem: AttentionProblem, verdict: Verdict) -> Verdict:
        """Count a verdict; the same, or that it failed as expected."""
        verdict = self._expectations.judge(problem, verdict)
        self._counts[verdict.check, verdict.status] += 1
        self._coverage.add(problem, verdict)
        if verdict.status is Status.NOT_RUN:
            self._unseen.setdefault(verdict.check, "; ".join(verdict.findings))
        return verdict


def _spoils_the_rest(verdict: Verdict) -> bool:
    """Whether what further checks say of a problem would come of this: of a wrong answer, a law's
    failure does. What lies in free slots spoils no law.
    """
    return verdict.status is Status.CRASHED or (
        verdict.wrong
        and verdict.check != MEMORY.name
        and any(FREE_SLOTS not in part.findings[0] for part in told_apart(verdict))
    )


def drawn(plan: SearchPlan, seed: int) -> list[AttentionProblem]:
    """All problems of a seed, in the order in which they are run."""
    problems_of_seed: list[AttentionProblem] = []
    _draw(plan, seed, problems_of_seed.append)
    return problems_of_seed


def _draw(plan: SearchPlan, seed: int, example: Callable[[AttentionProblem], None]) -> None:
    """Call `example` with each problem of a seed, always the same and in the same order."""
    awkward = -(-2 * plan.problems // 3) if plan.lengths else plan.problems
    tight = plan.problems // 10
    seen: set[str] = set()
    # Long contexts cost the most: two at once are enough for what two can do to each other.
    streams = {"lengths": plan.lengths, "max_len": plan.max_len, "max_seqs": 2}
    shares: list[tuple[int, Hashable, dict[str, Any]]] = [
        (tight, f"tight {seed}", {"max_len": MAX_AWKWARD_LEN, "tight": True}),
        (awkward - tight, 2 * seed, {"max_len": MAX_AWKWARD_LEN, "extremes": True}),
        (plan.problems - awkward, 2 * seed + 1, streams),
    ]
    with only_our_constants():
        for count, seed_of_draw, limits in shares:
            if count:
                draw_each(
                    problems(capabilities=plan.capabilities, **limits),
                    count=count,
                    seed_of_draw=seed_of_draw,
                    seen=seen,
                    example=example,
                )


def _asked(child: SubjectProcess, check: str, problem: AttentionProblem) -> Verdict:
    reply = child.ask({"check": check, "problem": str(problem)})
    if "error" in reply:
        raise SubjectError(reply["error"])
    if "harness" in reply:
        raise HarnessError(f"{check} on {problem}:\n{reply['harness']}")
    try:
        verdict = Verdict(check, Status(reply["status"]), tuple(map(str, reply["findings"])))
    except (KeyError, TypeError, ValueError):
        child.close()
        quoted = str(reply)[:MAX_QUOTED]
        return _crashed(check, f"broke the protocol: {quoted} is no verdict")
    return verdict


def _crashed(check: str, how: str) -> Verdict:
    return Verdict(check, Status.CRASHED, (f"the kernel's process {how}",))
