"""What follows from releases in their order: since when a finding shows, what a step added."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from bench.fuzz.record import Trace
from bench.gate.engines.record import Counted, Located, Release
from subjects.allocators.bytecodes import ADAPTER


@dataclass(frozen=True, slots=True)
class Step:
    """From one release to the next, with or without prefix caching."""

    before: Release
    after: Release
    prefix_caching: bool
    added: float
    """Bytecodes for each operation; negative where it became less."""
    by_function: tuple[tuple[str, float], ...]
    """Functions and what each added, the largest change first."""


def by_allocator(releases: Iterable[Release]) -> dict[str, list[Release]]:
    """Releases of each allocator, in their order."""
    found: dict[str, list[Release]] = defaultdict(list)
    for each in releases:
        found[each.allocator].append(each)
    return dict(found)


def known_traces(releases: Iterable[Release]) -> dict[str, dict[str, list[tuple[Release, Trace]]]]:
    """By allocator and check: the releases whose campaigns found it, and the programs."""
    found: dict[str, dict[str, list[tuple[Release, Trace]]]] = {}
    for each in releases:
        for trace in each.fuzzed.traces if each.fuzzed is not None else ():
            checks = found.setdefault(each.allocator, {})
            checks.setdefault(trace.check, []).append((each, trace))
    return found


def locate(releases: Sequence[Release]) -> list[Located]:
    """Each finding of each allocator, and the releases that have it."""
    found = known_traces(releases)
    located = []
    for allocator, mine in by_allocator(releases).items():
        for check in found.get(allocator, {}):
            spans, gone_in, missing = placed([(each.name, each.shows.get(check)) for each in mine])
            located.append(
                Located(
                    allocator=allocator,
                    check=check,
                    spans=spans,
                    gone_in=gone_in,
                    missing=missing,
                    trace=None,
                    replay=None,
                )
            )
    return located


def placed(
    shown: Sequence[tuple[str, bool | None]],
) -> tuple[list[tuple[str, str]], str | None, list[str]]:
    """Of releases in their order, that show something or not, or of which it is not known: first
    and last of each run that shows it, the one in which it is gone, those that are not known.
    """
    known = [(name, shows) for name, shows in shown if shows is not None]
    spans = [
        [name for name, _ in run]
        for shows, run in groupby(known, key=lambda each: each[1])
        if shows
    ]
    last = [name for name, _ in known].index(spans[-1][-1]) if spans else -1
    return (
        [(names[0], names[-1]) for names in spans],
        known[last + 1][0] if spans and last + 1 < len(known) else None,
        [name for name, shows in shown if shows is None],
    )


def became_wrong(releases: Sequence[Release]) -> list[tuple[Release, str]]:
    """Releases with a finding that the release before them had not."""
    return [
        (after, check)
        for mine in by_allocator(releases).values()
        for before, after in pairwise(mine)
        for check, shows in after.shows.items()
        if shows and before.shows.get(check) is False
    ]


def steps(releases: Sequence[Release]) -> list[Step]:
    """What each release added to the bytecodes of the one before it, the largest step first."""
    found = [
        step
        for mine in by_allocator(releases).values()
        for before, after in pairwise(mine)
        for caching in (False, True)
        if (step := _step(before, after, caching=caching)) is not None
    ]
    return sorted(found, key=lambda step: -abs(step.added))


def _step(before: Release, after: Release, *, caching: bool) -> Step | None:
    old, new = (each.bytecodes_with(caching=caching) for each in (before, after))
    if old is None or new is None:
        return None
    was, now = _per_operation(old), _per_operation(new)
    changes = {name: now.get(name, 0.0) - was.get(name, 0.0) for name in was.keys() | now.keys()}
    ordered = sorted(changes.items(), key=lambda change: (-abs(change[1]), change[0]))
    return Step(
        before=before,
        after=after,
        prefix_caching=caching,
        added=sum(changes.values()),
        by_function=tuple((name, by) for name, by in ordered if round(by, 1)),
    )


def _per_operation(counted: Counted) -> dict[str, float]:
    return {
        name: count / counted.operations
        for name, count in counted.bytecodes.items()
        if name != ADAPTER
    }
