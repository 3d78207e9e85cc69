"""What a search has found: failures told apart by check, source line and kind.

Two failures of one kind are still told apart where the smaller one needs something, a window say,
that the other problem does not have: it is then another fault that looks alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import Final

from bench.check.record import Failure
from reference.attention.catalogue import FREE_SLOTS
from reference.attention.features import features_of
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import BLOCK_SIZES, HEAD_DIMS
from reference.attention.verdict import Verdict, parts_of

MOST_OF_A_KIND: Final = 20
"""Failures of one kind that are kept before any is made smaller; more count with the first."""

_PLACE = re.compile(r"\(at (\S+:\d+)\)$")
_LINE = re.compile(r"^(.*? in \S+:\d+),")

FLOAT8: Final = "float8"
"""A need: a cache of either type, or of a codec."""

_GIVEN: Final = ("codec=", "dtype=", "inputs=", "heads=", "kv_dtype=", "head_dim=", "block_size=")
_NO_NEED: Final = frozenset({"decode", "lse", "mixed", "chunked", "short_query"})
"""What the smallest problems have, whether it matters or not; and kinds of prefill."""


def kind_of(findings: Sequence[str]) -> str:
    """What the first finding is about, without the numbers of its problem: which fault in which
    line, which exception, which answer.
    """
    first = findings[0] if findings else ""
    if FREE_SLOTS in first:
        return f"NaN {FREE_SLOTS}"
    if first.startswith("raised "):
        place = _PLACE.search(first)
        return first.split(":")[0] + (f" at {place[1]}" if place else "")
    if line := _LINE.match(first):
        return line[1]
    words = re.split(r"[\[(:\d]", first, maxsplit=1)[0].strip()
    return f"{words} is nan" if "] is nan," in first else words


def same_kind(first: Failure, other: Failure) -> bool:
    """Whether two failures are of one check, one source line and one kind."""
    return _kind(first) == _kind(other)


def _kind(failure: Failure) -> tuple[str, str, str]:
    kind = kind_of(failure.findings)
    # What lies in free slots reaches the answer whichever check noticed.
    return "" if FREE_SLOTS in kind else failure.check, failure.status, kind


def _needs(failure: Failure) -> frozenset[str]:
    """What its problem has that a smaller one might lack: variants, places, sizes, rows.

    None, where a line of a source or its cause says already what it is.
    """
    first = failure.findings[0] if failure.findings else ""
    if _PLACE.search(first) or _LINE.match(first) or FREE_SLOTS in first:
        return frozenset()
    return _needs_of(failure.problem)


@lru_cache(maxsize=1024)
def _needs_of(spec: str) -> frozenset[str]:
    problem = AttentionProblem.parse(spec)
    shown = {name for name in features_of(problem) if not name.startswith(_GIVEN)}
    larger = {f"head_dim>{size}" for size in HEAD_DIMS if 64 <= size < problem.head_dim}
    larger |= {f"block_size>{size}" for size in BLOCK_SIZES if 16 <= size < problem.block_size}
    cache = {FLOAT8} if problem.quantised or problem.codec else set()
    return frozenset(shown | larger | cache) - _NO_NEED


def _alike(known: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two needs are of one fault.

    No shrink takes float8 away: it was no need where the same shows without it. What shows in far
    pools, say, of a prefill and of several decodes needs neither.
    """
    both = known & other
    return known - {FLOAT8} == other or bool(both and known ^ other <= {FLOAT8, "prefill"})


def told_apart(verdict: Verdict) -> list[Verdict]:
    """A verdict for each thing that a wrong verdict is about: each line of a source, and what comes
    of slots that nobody owns, is one; what else was seen at once comes of one fault, as a rule.
    """
    if not verdict.wrong:
        return []
    own: list[tuple[str, ...]] = []
    rest: list[tuple[str, ...]] = []
    for part in parts_of(verdict.findings):
        alone = _LINE.match(part[0]) or FREE_SLOTS in part[0]
        (own if alone else rest).append(part)
    parts = [*own, tuple(chain(*rest))] if rest or not own else own
    return [replace(verdict, findings=part) for part in parts]


@dataclass(slots=True)
class Found:
    """Failures that were found, none twice."""

    failures: list[Failure] = field(default_factory=list)
    """In the order in which they were found."""

    def explain(self, failure: Failure) -> bool:
        """Count a failure that is of a known one's kind and has all that the known one needs.

        What was cut short while it was made smaller may need less than its problem has.
        """
        needs = _needs(failure)
        for at, known in enumerate(self.failures):
            if same_kind(known, failure) and (known.cut_short or _needs(known) <= needs):
                self._count(at, known, failure)
                return True
        return False

    def add(self, failure: Failure) -> bool:
        """Keep a failure, if it may be one that was not found yet; whether it is one more."""
        if self.explain(failure):
            return False
        for at, known in enumerate(self.failures):
            if same_kind(known, failure) and _alike(_needs(known), _needs(failure)):
                self._count(at, failure, known)
                return False
        alike = [at for at, known in enumerate(self.failures) if same_kind(known, failure)]
        if len(alike) >= MOST_OF_A_KIND:
            self._count(alike[0], self.failures[alike[0]], failure)
            return False
        self.failures.append(failure)
        return True

    def _count(self, at: int, kept: Failure, other: Failure) -> None:
        self.failures[at] = kept.model_copy(update={"seen": kept.seen + other.seen})

    @property
    def kinds(self) -> int:
        """How many kinds they are of."""
        return len({_kind(each) for each in self.failures})


def plainest_first(failures: Sequence[Failure]) -> list[Failure]:
    """One of each kind, then the others kind by kind: those with a plain cache before those with
    one in float8, which would stay.
    """
    kinds = list(dict.fromkeys(map(_kind, failures)))
    ordered = sorted(failures, key=lambda each: (kinds.index(_kind(each)), FLOAT8 in _needs(each)))
    first = {_kind(each): at for at, each in reversed(list(enumerate(ordered)))}
    return [
        *(ordered[at] for at in sorted(first.values())),
        *(each for at, each in enumerate(ordered) if at not in first.values()),
    ]


def named(failure: Failure) -> str:
    """A failure's check and kind, as it is called where it is only counted."""
    return f"{failure.check}: {kind_of(failure.findings) or failure.status}"
