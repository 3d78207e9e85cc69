"""One check of one kernel in this process: draws problems that show it, and makes what fails small.

`bench.check.search` does it for all checks at once, with the kernel in children. Here a crash of
the kernel is a crash of the process: it is for test files, where a kernel is a function that is at
hand.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from hypothesis import Phase

from bench.check.findings import told_apart
from bench.check.minimise import shrunk
from bench.check.record import Failure
from bench.check.search import MAX_AWKWARD_LEN
from bench.search.drawing import draw_each, only_our_constants
from bench.search.lanes import Enough
from reference.attention.catalogue import Check
from reference.attention.checks import Watch, run_check
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
    """Run a check on problems within the kernel's capabilities until one fails or all are done."""
    outcome = TrialOutcome()
    able = capabilities_of(trial.kernel)
    simplest = next(filter(trial.check.applies, witnesses(able)), None)
    if simplest is None:
        return outcome
    found: list[Failure] = []

    def example(problem: AttentionProblem) -> None:
        verdict = expectations.judge(problem, _verdict(trial, problem))
        outcome.counts[verdict.status] += 1
        if verdict.status is Status.NOT_RUN:
            outcome.unseen["; ".join(verdict.findings)] += 1
        found.extend(Failure.of(problem, part) for part in told_apart(verdict))
        if found:
            raise Enough

    def look(problem: AttentionProblem) -> list[Failure]:
        verdict = expectations.unexpected(problem, _verdict(trial, problem))
        return [Failure.of(problem, part) for part in told_apart(verdict)]

    def asked(problem: AttentionProblem) -> bool:
        shows = trial.check.applies(problem) and able.refusal(problem) is None
        # That what is expected fails is known: it is another failure that is made smaller.
        return shows and not expectations.cover(trial.check.name, problem)

    strategy = problems(capabilities=able, max_len=MAX_AWKWARD_LEN).filter(trial.check.applies)
    with suppress(Enough), only_our_constants():
        draw_each(
            strategy,
            count=trial.problems,
            seed_of_draw=trial.seed,
            seen={str(simplest)},
            example=example,
            phases=[Phase.generate],
        )
        # Last: what fails on it mostly fails on what is drawn, and is then made smaller.
        example(simplest)
    if found:
        outcome.failure = shrunk(found[0], look, asked=asked)
    return outcome


def _verdict(trial: Trial, problem: AttentionProblem) -> Verdict:
    return run_check(trial.check, trial.kernel, problem, device=trial.device, watch=trial.watch)
