"""What a run has shown of a kernel: verdicts by feature of the problem and by check.

A cell of the matrix is one feature and one check. *Not supported* is what the kernel declares that
it cannot do; *not run* is what it declares that it can do and no problem showed; they are never
taken for each other. What no problem of the contract can show is neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

from reference.attention.catalogue import CHECKS, Check
from reference.attention.contract import Capabilities, everything
from reference.attention.features import Feature, features_for, features_of, witnesses
from reference.attention.pairs import pairs_for, pairs_of
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict


class CellState(StrEnum):
    """What is known of one feature under one check."""

    PASSED = "passed"
    FAILED = "failed"
    EXPECTED = "failed as expected"
    NOT_RUN = "not run"
    NOT_SUPPORTED = "not supported"
    SHOWN_BY_NONE = "no problem shows it"
    """No problem has the feature and can show the check, as decodes and a law about prefill."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One feature under one check."""

    state: CellState
    """What is known."""
    counts: Mapping[Status, int]
    """Verdicts by status, of problems that have the feature."""

    @property
    def failed(self) -> int:
        """Problems that failed, expected or not."""
        return sum(
            self.counts.get(status, 0)
            for status in (Status.FAILED, Status.CRASHED, Status.EXPECTED)
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One feature under every check."""

    feature: str
    """Its name."""
    group: str
    """What it is one of."""
    cells: Mapping[str, Cell]
    """By the check's name, in the order of `CHECKS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCoverage:
    """Pairs of variants that each do something in one problem."""

    asked: int = 0
    """Pairs that the kernel's capabilities allow."""
    met: int = 0
    """Those of them that met in a problem."""
    missed: tuple[str, ...] = ()
    """The others, by name."""


@dataclass(slots=True)
class Coverage:
    """Accumulates verdicts."""

    counts: Counter[tuple[str, str, Status]] = field(default_factory=Counter)
    """Verdicts by (feature, check, status)."""
    met: set[tuple[str, str]] = field(default_factory=set)
    """Pairs of what was active at once, see `pairs`."""

    def add(self, problem: AttentionProblem, verdict: Verdict) -> None:
        """Count a verdict for each feature of its problem."""
        self.counts.update((name, verdict.check, verdict.status) for name in features_of(problem))
        if verdict.status not in (Status.NOT_RUN, Status.NOT_SUPPORTED):
            self.met.update(pairs_of(problem))

    def pairs(self, capabilities: Capabilities) -> PairCoverage:
        """Pairs that were to meet for a kernel of these capabilities, and those that did not."""
        asked = pairs_for(capabilities)
        missed = sorted(" + ".join(pair) for pair in asked - self.met)
        return PairCoverage(asked=len(asked), met=len(asked) - len(missed), missed=tuple(missed))

    def matrix(self, capabilities: Capabilities) -> list[Row]:
        """Every feature under every check, for a kernel of these capabilities."""
        seen = {name for name, _, _ in self.counts}
        checks = [each for each in CHECKS if each.concerns(capabilities)]
        return [
            Row(
                feature.name,
                feature.group,
                {check.name: self._cell(feature, check, capabilities) for check in checks},
            )
            for feature in features_for(capabilities, seen)
        ]

    def _cell(self, feature: Feature, check: Check, capabilities: Capabilities) -> Cell:
        counts = {
            status: count
            for status in Status
            if (count := self.counts[feature.name, check.name, status])
        }
        return Cell(_state(feature, check, capabilities, counts), counts)


def _state(
    feature: Feature, check: Check, capabilities: Capabilities, counts: Mapping[Status, int]
) -> CellState:
    if not feature.supported_by(capabilities):
        return CellState.NOT_SUPPORTED
    if Status.FAILED in counts or Status.CRASHED in counts:
        return CellState.FAILED
    if Status.EXPECTED in counts:
        return CellState.EXPECTED
    if Status.PASSED in counts:
        return CellState.PASSED
    if can_show(check, capabilities, feature):
        return CellState.NOT_RUN
    if can_show(check, everything(capabilities.kind), feature):
        return CellState.NOT_SUPPORTED
    return CellState.SHOWN_BY_NONE


@cache
def can_show(check: Check, capabilities: Capabilities, *features: Feature) -> bool:
    """Whether a problem within capabilities, that has these features, can show a check."""
    return any(check.applies(problem) for problem in witnesses(capabilities, features))
