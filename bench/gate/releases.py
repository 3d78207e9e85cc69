"""Releases against each other: chains of ratios, and shares of what the device can copy.

Two absolute times compare only under one key: device, driver, CUDA, torch, triton and timer. What
compares across keys are ratios that were measured side by side, in one run of the gate, and the
share of the measured copy bandwidth that a benchmark reaches.

A chain takes every release against one fixed anchor; the step from one release to the next is the
quotient of two such ratios, or is measured by itself. Every link of a chain is from one machine:
a product of ratios of two machines is a ratio of nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Final, Literal

from bench.gate.asv import BYTE_COUNTERS, Side
from bench.gate.record import ContestantRecord, Estimate, GateRecord, Verdict
from bench.machine.record import StrictRecord
from reference.errors import BadInput

Pairs = Literal["anchor", "chain", "both"]
"""Which releases are measured side by side: each with the anchor, each with the one before it."""

SCHEMA_VERSION: Final = 1


class NamedRun(StrictRecord):
    """A run of the gate, and the releases that its sides were."""

    base: str
    head: str
    record: GateRecord


class Link(StrictRecord):
    """One benchmark, two releases, measured side by side."""

    base: str
    head: str
    """Names of the releases."""
    estimate: Estimate
    """Head's time divided by base's."""
    verdict: Verdict | None
    """The gate's; None where the gate's base was `head`, so that it judged the other way round."""


class Cell(StrictRecord):
    """One benchmark in one release."""

    release: str
    """Its name."""
    to_anchor: Link | None
    to_previous: Link | None
    """Ratios that were measured side by side; None where they were not."""
    step: float | None
    """Ratio to the release before it: `to_previous`, or the quotient of two ratios to the anchor.
    """
    seconds: float | None
    """Of one call, median over the launches; None where the anchor was measured under another key
    or the release was not timed."""
    copy_share: float | None
    """Bytes that a call moves, over the time, over the measured copy bandwidth; None where one of
    the three was not measured. 0.5 is half of what a copy reaches."""


class Row(StrictRecord):
    """One benchmark in every release, in their order."""

    benchmark: str
    cells: list[Cell]


class Release(StrictRecord):
    """One release: its name, commit and key."""

    name: str
    commit: str | None
    key: list[str]
    """Device, driver, CUDA, torch, triton, timer."""
    same_key: bool
    """Whether it is the anchor's, so that seconds may be read side by side."""


class ChainRecord(StrictRecord):
    """Releases in their order, and the runs of the gate that it comes from."""

    schema_version: int = SCHEMA_VERSION
    anchor: str
    releases: list[Release]
    rows: list[Row]
    runs: list[NamedRun]
    exit_code: int
    """The worst of the runs': see `worst`."""


def plan_pairs(names: Sequence[str], anchor: str, pairs: Pairs) -> list[tuple[str, str]]:
    """Pairs of (base, head) to measure, each once."""
    if len(names) < 2:
        raise BadInput(f"{', '.join(names) or 'nothing'}: name at least two to compare")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"{', '.join(twice)}: named twice; name each once")
    if anchor not in names:
        raise BadInput(f"--anchor {anchor}: it is none of {', '.join(names)}")
    to_anchor = [(anchor, name) for name in names if name != anchor]
    steps = list(itertools.pairwise(names))
    wanted = {"anchor": to_anchor, "chain": steps, "both": [*to_anchor, *steps]}[pairs]
    once: dict[frozenset[str], tuple[str, str]] = {}
    for pair in wanted:
        once.setdefault(frozenset(pair), pair)  # whichever way round
    return list(once.values())


def chain(runs: Sequence[NamedRun], names: Sequence[str], anchor: str) -> ChainRecord:
    """Put runs together: each release, in order, is compared with the anchor."""
    _refuse_machines(runs)
    sides = {name: _the_one(name, runs) for name in names}
    key_of = {
        name: list(side.environment.key) if side and side.environment else []
        for name, side in sides.items()
    }
    same = {name: bool(key) and key == key_of.get(anchor) for name, key in key_of.items()}
    keys = dict.fromkeys(each.key for run in runs for each in run.record.benchmarks if each.timed)
    return ChainRecord(
        anchor=anchor,
        releases=[
            Release(name=name, commit=side and side.commit, key=key_of[name], same_key=same[name])
            for name, side in sides.items()
        ],
        rows=[Row(benchmark=key, cells=_cells(key, runs, names, anchor, same)) for key in keys],
        runs=list(runs),
        exit_code=worst(run.record.exit_code for run in runs),
    )


def worst(codes: Iterable[int]) -> int:
    """One exit code for several runs: interrupted, harness failed, outputs, worse, undecided."""
    found = set(codes)
    return next((code for code in (130, 4, 5, 1, 3) if code in found), max(found, default=4))


def share_of_copy(run: GateRecord, benchmark: str, side: Side) -> float | None:
    """Share of the measured copy bandwidth that a benchmark reaches; None if not measured."""
    contestant = run.base if side == "base" else run.head
    where = contestant.environment
    seconds = _seconds(run, benchmark, side)
    counters = {
        each.name: getattr(each, side) for each in run.counters if each.benchmark == benchmark
    }
    moved = next((counters[name] for name in BYTE_COUNTERS if counters.get(name)), None)
    if where is None or not where.copy_gbs or seconds is None or moved is None:
        return None
    share: float = moved / seconds / (where.copy_gbs * 1e9)
    return share


def _cells(
    key: str, runs: Sequence[NamedRun], names: Sequence[str], anchor: str, same: dict[str, bool]
) -> list[Cell]:
    cells: list[Cell] = []
    before: str | None = None
    ratios: dict[str | None, float] = {anchor: 1.0}
    for name in names:
        to_anchor = None if name == anchor else _link(key, runs, anchor, name)
        if to_anchor is not None:
            ratios[name] = to_anchor.estimate.ratio
        to_previous = None if before is None else _link(key, runs, before, name)
        cells.append(
            Cell(
                release=name,
                to_anchor=to_anchor,
                to_previous=to_previous,
                step=_step(to_previous, ratios.get(before), ratios.get(name)),
                seconds=_measured(_seconds, key, runs, name) if same[name] else None,
                copy_share=_measured(share_of_copy, key, runs, name),
            )
        )
        before = name
    return cells


def _step(measured: Link | None, before: float | None, now: float | None) -> float | None:
    if measured is not None:
        return measured.estimate.ratio
    return None if before is None or now is None else now / before


def _link(key: str, runs: Sequence[NamedRun], base: str, head: str) -> Link | None:
    """A measured ratio of the two, turned round where they were measured the other way."""
    for run in runs:
        found = run.record.benchmark(key)
        if found is None or found.estimate is None:
            continue
        if (run.base, run.head) == (base, head):
            return Link(base=base, head=head, estimate=found.estimate, verdict=found.verdict)
        if (run.base, run.head) == (head, base):
            ratio, low, high = found.estimate.ratio, found.estimate.low, found.estimate.high
            turned = Estimate(ratio=1 / ratio, low=high and 1 / high, high=low and 1 / low)
            return Link(base=base, head=head, estimate=turned, verdict=None)
    return None


def _seconds(run: GateRecord, benchmark: str, side: Side) -> float | None:
    found = run.benchmark(benchmark)
    if found is None or not found.samples:
        return None
    seconds: float = median(getattr(sample, f"{side}_s") for sample in found.samples)
    return seconds


def _sides(runs: Sequence[NamedRun], name: str) -> list[tuple[GateRecord, Side]]:
    found: list[tuple[GateRecord, Side]] = []
    for run in runs:
        found += [(run.record, "base")] if run.base == name else []
        found += [(run.record, "head")] if run.head == name else []
    return found


def _measured(
    measure: Callable[[GateRecord, str, Side], float | None],
    key: str,
    runs: Sequence[NamedRun],
    name: str,
) -> float | None:
    found = (measure(run, key, side) for run, side in _sides(runs, name))
    return next((each for each in found if each is not None), None)


def _refuse_machines(runs: Sequence[NamedRun]) -> None:
    sides = [side.environment for run in runs for side in (run.record.base, run.record.head)]
    # What a machine is, whatever runs on it: a chain may cross versions, never machines.
    machines = {(s.device, s.cpu, str(s.cores), s.timer) for s in sides if s is not None}
    if len(machines) > 1:
        said = "; ".join(", ".join(each) for each in sorted(machines))
        raise BadInput(
            f"runs of {len(machines)} machines ({said}): a chain of ratios needs one. Make a chain "
            f"on each, and put them side by side with --record"
        )


def _the_one(name: str, runs: Sequence[NamedRun]) -> ContestantRecord | None:
    """The release of a name, if it is the same wherever it was measured."""
    sides = [run.base if side == "base" else run.head for run, side in _sides(runs, name)]
    stood = [side for side in sides if side.environment is not None]
    known = {(side.commit, side.environment.key) for side in stood if side.environment}
    if len(known) > 1:
        raise BadInput(
            f"{name} is not the same release in every run: "
            + "; ".join(
                f"commit {commit}, {', '.join(key)}" for commit, key in sorted(known, key=str)
            )
        )
    return next(iter(stood or sides), None)
