"""One check of one kernel, in this process: draws problems that show it and shrinks what fails.

`bench.check.search` does this for all checks at once, with the kernel in processes of its own. Here
a crash of the kernel is a crash of the process: it is for test files, where a kernel is a function
that is at hand.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from hypothesis.errors import Flaky

from bench.check.search import MAX_AWKWARD_LEN, MAX_SHRINKS, SHRINK_LIMIT_S, Failure
from bench.search.drawing import StillWrong, draw_each, only_our_constants, still_wrong
from reference.attention.checks import Check, Watch, run_check
from reference.attention.contract import AttentionKernel, capabilities_of
from reference.attention.expected import Expectations
from reference.attention.features import witnesses
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems
from reference.attention.verdict import Status, Verdict

PROBLEMS: Final = 50
"""Drawn for each check of each kernel, unless more or fewer are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What to try."""

    kernel: AttentionKernel
    """The kernel."""
    check: Check
    """The check. Every problem can show it."""
    problems: int = PROBLEMS
    """How many to draw, besides the first, which is the smallest usual one."""
    seed: int = 0
    """The same seed draws the same problems."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    watch: Watch | None = None
    """Who can watch the kernel's accesses."""


@dataclass(slots=True)
class TrialOutcome:
    """What came of it."""

    counts: Counter[Status] = field(default_factory=Counter)
    """Verdicts by status, those of smaller problems not among them."""
    unseen: Counter[str] = field(default_factory=Counter)
    """Why the check saw nothing, by problems of which it saw nothing."""
    failure: Failure | None = None
    """What failed unexpectedly, made small; or None."""


def run_trial(trial: Trial, expectations: Expectations) -> TrialOutcome:
    """Run a check on problems within the kernel's capabilities until one fails or all are done.

    Failures that are expected are counted, in `expectations` too, and the search goes on.

    Raises TypeError if what the kernel declares is no `Capabilities`.
    """
    return _Trying(trial, expectations).run()


class _Trying:
    def __init__(self, trial: Trial, expectations: Expectations) -> None:
        self._trial = trial
        self._expectations = expectations
        self._outcome = TrialOutcome()
        self._first: Failure | None = None
        self._shrinks = 0
        self._deadline = 0.0

    def run(self) -> TrialOutcome:
        trial, outcome = self._trial, self._outcome
        able = capabilities_of(trial.kernel)
        simplest = next(filter(trial.check.applies, witnesses(able)), None)
        if simplest is None:
            return outcome
        strategy = problems(capabilities=able, max_len=MAX_AWKWARD_LEN).filter(trial.check.applies)
        seen = {str(simplest)}
        try:
            with only_our_constants():
                draw_each(
                    strategy,
                    count=trial.problems,
                    seed_of_draw=trial.seed,
                    seen=seen,
                    example=self._example,
                )
            # Last: what fails on it mostly fails on what is drawn, and is then made smaller.
            self._example(simplest)
        except StillWrong:
            pass
        except Flaky:
            assert outcome.failure is not None
            outcome.failure = outcome.failure.by_chance()
        return outcome

    def _example(self, problem: AttentionProblem) -> None:
        """Return, or raise StillWrong."""
        if self._first is not None:
            self._smaller(problem)
            return
        verdict = self._expectations.judge(problem, self._verdict(problem))
        self._outcome.counts[verdict.status] += 1
        if verdict.status is Status.NOT_RUN:
            self._outcome.unseen["; ".join(verdict.findings)] += 1
        if verdict.wrong:
            spec = str(problem)
            self._first = Failure(spec, verdict.check, verdict.status, verdict.findings, spec)
            self._outcome.failure = self._first
            self._deadline = time.monotonic() + SHRINK_LIMIT_S
            still_wrong()

    def _smaller(self, problem: AttentionProblem) -> None:
        """The same for a candidate of shrinking: nothing is counted any more."""
        assert self._outcome.failure is not None
        assert self._first is not None
        if self._shrinks >= MAX_SHRINKS or time.monotonic() > self._deadline:
            still_wrong()  # every candidate is, so the shrinker runs out of ideas at once
        if self._expectations.cover(self._trial.check.name, problem):
            return  # that it fails is known: it is another failure that is made smaller
        self._shrinks += 1
        verdict = self._verdict(problem)
        if verdict.wrong:
            self._outcome.failure = Failure(
                str(problem),
                verdict.check,
                verdict.status,
                verdict.findings,
                self._first.problem,
            )
            still_wrong()

    def _verdict(self, problem: AttentionProblem) -> Verdict:
        trial = self._trial
        return run_check(trial.check, trial.kernel, problem, device=trial.device, watch=trial.watch)
