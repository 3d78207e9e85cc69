"""Failures that are known and are to stay for now: each with its reason, each watched.

An expected failure does not make a kernel wrong. It covers what it names, and nothing that fails
beside it. One that no longer fails, or that no problem of a long run met, is told: a list of
waivers that nobody prunes hides the next bug.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from itertools import chain
from typing import Final

from reference.attention.catalogue import CHECKS
from reference.attention.contract import KINDS, everything
from reference.attention.coverage import can_show
from reference.attention.features import feature, features_of
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict, parts_of

_CHECKS: Final = {check.name: check for check in CHECKS}
_URL = re.compile(r"https?://\S+\.\S+")
_LINE = re.compile(r"[^\s:(/]+:\d+(?!\d)")
_MIN_WORDS: Final = 3
"""Of a reason in words: `todo` and `known bug` tell a later reader nothing."""
LONG_RUN: Final = 1000
"""Problems drawn for a kernel from which on an expected failure that none of them met is told: a
law that takes turns sees about one in ten of them, and three features meet in one in a hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedFailure:
    """A check that a kernel is known to fail.

    Raises ValueError: if the kernel is empty, the check or a feature is unknown, the line or the
    message cannot be looked for, or the reason is neither a URL nor a sentence.
    """

    kernel: str
    """Its name as for `--kernel`, or the function's name alone."""
    check: str
    """Name of the check."""
    reason: str
    """A URL, or a sentence that says why."""
    when: tuple[str, ...] = ()
    """Names of features; problems that have all of them are expected to fail, and no others. Every
    problem, if there are none."""
    line: str = ""
    """`FILE:LINE`: only findings that name this line of a source are expected. Any, if empty."""
    message: str = ""
    """Only findings in which this is found, text or a regular expression. Any, if empty."""

    def __post_init__(self) -> None:
        if not self.kernel.strip():
            raise ValueError(f"kernel={self.kernel!r}: name the kernel that fails")
        if self.check not in _CHECKS:
            raise ValueError(f"check={self.check!r} is no check; use one of {', '.join(_CHECKS)}")
        if isinstance(self.when, str):
            raise ValueError(f"when={self.when!r}: features are a list, such as [{self.when!r}]")
        object.__setattr__(self, "when", tuple(self.when))
        features = [feature(name) for name in self.when]
        check = _CHECKS[self.check]
        if not any(can_show(check, everything(kind), *features) for kind in KINDS):
            raise ValueError(
                f"when={list(self.when)}: no problem has all of these and can show "
                f"{self.check}; leave some out"
            )
        if self.line and not _LINE.fullmatch(self.line):
            raise ValueError(f"line={self.line!r}: write FILE:LINE, as my_kernel.py:12")
        try:
            re.compile(self.message)
        except re.error as error:
            raise ValueError(
                f"message={self.message!r} is no regular expression: {error}; put a backslash "
                f"before what is meant as it stands"
            ) from None
        url = _URL.fullmatch(self.reason.strip())
        if url is None and len(self.reason.split()) < _MIN_WORDS:
            raise ValueError(
                f"reason={self.reason!r} for {self}: give the URL of a report, or a sentence that "
                f"says why it fails"
            )

    def __str__(self) -> str:
        narrowed = f" [{' '.join(self.when)}]" if self.when else ""
        named = " ".join(filter(None, (self.line, self.message and repr(self.message))))
        return f"{self.kernel} {self.check}{narrowed}" + (f" {named}" if named else "")

    def is_of(self, kernel: str) -> bool:
        """Whether it is about a kernel of this name."""
        return self.kernel in {kernel, kernel.rpartition(":")[2]}

    def covers(self, check: str, problem: AttentionProblem) -> bool:
        """Whether a problem is expected to fail a check."""
        return check == self.check and features_of(problem).issuperset(self.when)

    def names(self, findings: tuple[str, ...]) -> bool:
        """Whether findings about one thing are among those that are expected."""
        at = not self.line or any(self.line in _LINE.findall(each) for each in findings)
        return at and any(
            self.message in each or re.search(self.message, each) for each in findings
        )


class ExpectedState(StrEnum):
    """What came of an expected failure."""

    FAILED = "failed as expected"
    STALE = "no longer fails"
    UNMET = "no problem met it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Met(ExpectedFailure):
    """An expected failure, and what came of the problems that it covers."""

    problems: int = 0
    failed: int = 0
    """Problems that it covers and that were run, and those of them that failed as it says."""
    finding: str = ""
    problem: str = ""
    """What the first that failed showed, and its spec; empty if none did."""
    state: ExpectedState = ExpectedState.UNMET
    """What came of it."""
    said: str = ""
    """All of this in a sentence, and what is to be done about it."""

    def __post_init__(self) -> None:
        # It is made of an expected failure, or read from a record: nothing is to be refused here.
        if self.said:
            return
        name = str(self)
        if self.failed:
            failed = f"fails {self.failed} of {self.problems} problems, as expected: {self.reason}"
            state, said = ExpectedState.FAILED, f"{name} {failed}"
        elif self.problems:
            passed = f"passed on {self.problems} of {self.problems} problems"
            said = f"{name} no longer fails: {passed}; remove it, or narrow it down"
            state = ExpectedState.STALE
        else:
            said = f"{name} met no problem: draw more problems, or remove it"
            state = ExpectedState.UNMET
        object.__setattr__(self, "state", state)
        object.__setattr__(self, "said", said)

    def after(self, problem: AttentionProblem, verdict: Verdict) -> Met:
        """The same after a verdict on a problem that it covers."""
        parts = parts_of(verdict.findings) if verdict.wrong else []
        seen = [each for part in parts if self.names(part) for each in part]
        first = seen and not self.finding
        return replace(
            self,
            problems=self.problems + 1,
            failed=self.failed + bool(seen),
            finding="; ".join(seen) if first else self.finding,
            problem=str(problem) if first else self.problem,
            said="",
        )


@dataclass(slots=True)
class Expectations:
    """The expected failures of one kernel in one run."""

    met: list[Met] = field(default_factory=list)
    """What came of each."""

    @classmethod
    def of(cls, expected: Iterable[ExpectedFailure], kernel: str) -> Expectations:
        """Those of a list that are about a kernel."""
        return cls(
            [
                Met(**{each.name: getattr(one, each.name) for each in fields(ExpectedFailure)})
                for one in expected
                if one.is_of(kernel)
            ]
        )

    def cover(self, check: str, problem: AttentionProblem) -> bool:
        """Whether a problem is expected to fail a check, whatever it shows."""
        return any(met.covers(check, problem) and not (met.line or met.message) for met in self.met)

    def unexpected(self, problem: AttentionProblem, verdict: Verdict) -> Verdict:
        """What of a verdict is not expected; or that all of it is."""
        covering = [met for met in self.met if met.covers(verdict.check, problem)]
        if not covering or not verdict.wrong:
            return verdict
        parts = parts_of(verdict.findings)
        rest = [part for part in parts if not any(met.names(part) for met in covering)]
        if rest:
            return verdict if rest == parts else replace(verdict, findings=tuple(chain(*rest)))
        return Verdict(verdict.check, Status.EXPECTED, verdict.findings)

    def judge(self, problem: AttentionProblem, verdict: Verdict) -> Verdict:
        """What of a verdict is not expected; counts what it meets."""
        if verdict.status not in (Status.NOT_RUN, Status.NOT_SUPPORTED):
            self.met = [
                met.after(problem, verdict) if met.covers(verdict.check, problem) else met
                for met in self.met
            ]
        return self.unexpected(problem, verdict)


def strangers(expected: Sequence[ExpectedFailure], kernels: Sequence[str]) -> list[ExpectedFailure]:
    """Those that are about none of the kernels of a run."""
    return [one for one in expected if not any(one.is_of(kernel) for kernel in kernels)]
