"""One way of asking for both searches: kernels in children, and one check in this process.

A kernel here is what it answers: a status and findings for a check and a problem. The children are
Python functions of this process.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.check import search as in_children
from bench.check import trial as in_process
from bench.check.children import CAPABILITIES, CHECK_BY_NAME
from bench.check.record import Failure, KernelRecord
from bench.check.search import SearchPlan, search, shrink
from bench.check.trial import Trial, run_trial
from helpers.wrong_kernels import SHORT
from reference.attention.contract import Capabilities
from reference.attention.expected import Expectations, ExpectedFailure
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict
from subjects.process import SubjectDied

PASSED = {"status": "passed", "findings": []}
FAILED = {"status": "failed", "findings": ["off"]}
LENGTHS = [(100, 10), (300, 60)]

Reply = Callable[[str, AttentionProblem], dict | None]


def too_long(check: str, problem: AttentionProblem) -> dict:
    long = problem.max_seq_len > SHORT
    return {"status": "failed", "findings": [f"saw {problem}"]} if long else PASSED


def wrong_in_e5m2(check: str, problem: AttentionProblem) -> dict:
    wrong = check == "truth" and problem.kv_dtype == "e5m2"
    return {"status": "failed", "findings": [f"saw {problem}"]} if wrong else PASSED


def expects(
    check: str = "truth", *when: str, kernel: str = "k.py:f", **named: str
) -> ExpectedFailure:
    url = "https://example.org/issues/12"
    return ExpectedFailure(kernel=kernel, check=check, when=when, reason=url, **named)


@dataclass
class Kernel:
    """Answers in place of a child, and remembers what it was asked. None hangs."""

    reply: Reply = lambda check, problem: PASSED
    capabilities: Capabilities = field(default_factory=Capabilities)
    asked: list[tuple[str, str]] = field(default_factory=list)
    started: int = 0

    def start(self, *_: object, **__: object) -> "Child":
        self.started += 1
        return Child(self)

    def specs(self) -> list[str]:
        return list(dict.fromkeys(spec for _, spec in self.asked))

    def answer(self, check: str, spec: str) -> dict | None:
        self.asked.append((check, spec))
        return self.reply(check, AttentionProblem.parse(spec))


@dataclass
class Child:
    kernel: Kernel
    killed: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None: ...

    def introduce(self) -> dict:
        return {"capabilities": CAPABILITIES.dump_python(self.kernel.capabilities, mode="json")}

    def ask(self, question: dict) -> dict:
        if "moved" in question or "drawn" in question:
            return {}
        answer = self.kernel.answer(question["check"], question["problem"])
        if answer is None:
            self.killed.wait()
            raise SubjectDied("was killed", timed_out=False)
        return answer

    def kill(self) -> None:
        self.killed.set()

    def close(self) -> None: ...


def plan(**changes: object) -> SearchPlan:
    usual = {
        "kernel": "k.py:f",
        "device": "cpu",
        "capabilities": Capabilities(),
        "problems": 30,
        "lengths": LENGTHS,
        "max_len": 256,
        "lanes": 1,
        "seed": 0,
    }
    return SearchPlan(**{**usual, **changes})


def run(stop: threading.Event | None = None, **changes: object) -> KernelRecord:
    stop = stop or threading.Event()
    return search(plan(**changes), advance=lambda _: None, stopped=stop.is_set)


@dataclass
class Result:
    """What came of a scenario, whoever ran it."""

    small: Failure | None
    counts: dict[Status, int]


class Way:
    """Runs a scenario; `kernel` remembers what was asked."""

    def __init__(self, monkeypatch) -> None:
        self.kernel = Kernel()
        self.patch(monkeypatch)

    def run(
        self,
        check: str,
        reply: Reply,
        *,
        problems: int = 60,
        expected: Sequence[ExpectedFailure] = (),
    ) -> Result:
        self.kernel.reply = lambda asked, of: reply(asked, of) if asked == check else PASSED
        return self.result(check, problems, tuple(expected))


class InChildren(Way):
    """All checks, in children: the search, then shrinking."""

    def patch(self, monkeypatch) -> None:
        monkeypatch.setattr(in_children, "start", self.kernel.start)

    def result(self, check: str, problems: int, expected: tuple[ExpectedFailure, ...]) -> Result:
        options = {"problems": problems, "expected": expected}
        record = run(**options)
        small = record.failure and shrink(plan(**options), record.failure)
        return Result(small, record.checks.get(check, {}))


class InProcess(Way):
    """One check, in this process."""

    def patch(self, monkeypatch) -> None:
        def run_check(check, kernel, problem, **_):
            said = self.kernel.answer(check.name, str(problem))
            return Verdict(check.name, Status(said["status"]), tuple(said["findings"]))

        monkeypatch.setattr(in_process, "run_check", run_check)

    def result(self, check: str, problems: int, expected: tuple[ExpectedFailure, ...]) -> Result:
        trial = Trial(kernel=lambda _: None, check=CHECK_BY_NAME[check], problems=problems)
        outcome = run_trial(trial, Expectations.of(expected, "k.py:f"))
        return Result(outcome.failure, outcome.counts)
