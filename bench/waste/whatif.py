"""What another block size, a prefix cache or a watermark would give back.

One paged policy is varied, one option at a time and then two, on the same stream and pool. What is
compared is what a server is for: requests completed a second by its clock, or those among them that
met an SLO. Memory that is freed counts as far as requests run in it. What served other requests is
not ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.waste.changes import PAIR, Variation, pairs, variations
from bench.waste.drawings import margin
from bench.waste.policies import Policy
from bench.waste.record import Rank, WasteRecord, WasteRow
from paged.policy import PagedPolicy

NOTHING: Final = 0.005
"""Gain in completed requests or tokens held, as a share, up to which a change is not called one.
The simulation repeats exactly, and all variations see the same requests; between seeds of
`sharegpt-fit` the figure itself differs by 0.8 % (standard deviation of eight). Where time counts,
the clock's own error takes its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What changes are ranked by."""

    head: str
    """Head of its column."""
    words: str
    """What it is."""
    of: Callable[[WasteRow], float | None]
    """Its value in a row."""
    style: str
    """How it is written."""


UNITS: Final[dict[Rank, Unit]] = {
    "steps": Unit(
        head="done/1k",
        words="requests completed in 1,000 loaded steps",
        of=lambda row: row.completed_per_1000_steps,
        style=",.1f",
    ),
    "requests": Unit(
        head="req/s",
        words="requests completed a second",
        of=lambda row: row.requests_per_s,
        style=",.3g",
    ),
    "goodput": Unit(
        head="good/s",
        words="requests a second that met the SLO",
        of=lambda row: row.goodput_per_s,
        style=",.3g",
    ),
    "slots": Unit(
        head="held %",
        words="share of the slots that holds tokens",
        of=lambda row: 100 * row.judged.token_fraction,
        style=",.1f",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a variation comes to, against the base; differences are variation minus base."""

    group: str
    label: str
    """As in `Variation`."""
    row: WasteRow
    token_share: float
    """Share of the pool that holds tokens in use, difference, -1 to 1."""
    batch: float
    """Mean number of running requests, difference."""
    completed: float
    """Requests completed in 1,000 steps, difference."""
    value: float
    """What changes are ranked by, in its unit; of the variation itself."""
    first_gain: float
    """Difference of that, as a share of the base's."""
    gain: float
    """The mean of that over the drawings of the stream."""
    drawings: int
    """How many they are, each served by both."""
    margin: float
    """Half of the interval that the mean of endless drawings is in, 95 times in 100; 0 of one."""
    alike: bool
    """Whether the same requests were served; otherwise nothing follows from the rest."""
    variation: Variation

    def sure(self, error: float) -> bool:
        """Whether it gains more than nothing, as far as the model and the drawings can tell."""
        return self.alike and self.gain > error and self.gain > self.margin


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """Every variation on one stream."""

    base: WasteRow
    effects: tuple[Effect, ...]
    """Of the variations that were run, by option."""
    unit: Unit
    """What they are ranked by."""
    error: float
    """Gain, as a share, up to which a change is not called one."""
    best: Effect | None
    """The one that gives back most of those that served the same requests; None where none gives
    back more than `error`, and more than drawings of the stream differ by."""


def compare(record: WasteRecord, stream: str) -> WhatIf | None:
    """Hold every row of a stream against the base; None where the base itself was not run."""
    if record.base is None:
        raise ValueError("the record has no base; make it with --whatif")
    drawings = record.drawings_of(stream)
    rows = drawings[0]
    if (base := rows.get(record.base)) is None:
        return None
    assert isinstance(base.policy, PagedPolicy)
    rank: Rank = record.rank
    if UNITS[rank].of(base) is None:
        rank = "steps"
    unit = UNITS[rank]
    timed = rank in ("requests", "goodput") and record.clock is not None
    error = record.clock.error if timed and record.clock is not None else NOTHING
    tenants = next(len(each.tenants) for each in record.streams if each.label == stream)
    singles = variations(base.policy, prefixes=True, slots=record.pool.slots, tenants=tenants)
    effects = tuple(
        _effect(variation, drawings, base, unit)
        for variation in [*singles, *pairs(base.policy, singles)]
        if variation.policy in rows
    )
    return WhatIf(
        base=base,
        effects=effects,
        unit=unit,
        error=error,
        best=_best(effects, error),
    )


def best_of_each(effects: Sequence[Effect]) -> list[Effect]:
    """The best value of each option, best option first; of values that cannot be told apart, the
    usual one, which comes first.
    """
    found: list[Effect] = []
    for best in sorted(
        (effect for effect in effects if effect.alike and effect.group != PAIR),
        key=lambda effect: (-effect.gain, -effect.token_share),
    ):
        if all(effect.group != best.group for effect in found):
            found.append(next(e for e in effects if e.group == best.group and _as_good(e, best)))
    return found


def _as_good(effect: Effect, best: Effect) -> bool:
    return (
        effect.alike
        and 1 + effect.gain >= (1 + best.gain) * (1 - NOTHING)
        and effect.token_share >= best.token_share - NOTHING
    )


def _best(effects: Sequence[Effect], error: float) -> Effect | None:
    """The one to recommend: two changes only where they gain more than the better one alone."""
    # What was served on one drawing is not held against what was served on many.
    most = max((effect.drawings for effect in effects), default=1)
    sure = [effect for effect in effects if effect.drawings == most and effect.sure(error)]
    if not sure:
        return None
    both = max(sure, key=lambda effect: (effect.gain, effect.token_share))
    singles = best_of_each(sure)
    if singles and 1 + both.gain <= (1 + singles[0].gain) * (1 + error):
        return singles[0]
    return both


def _effect(
    variation: Variation,
    drawings: Mapping[int, Mapping[Policy, WasteRow]],
    base: WasteRow,
    unit: Unit,
) -> Effect:
    row = drawings[0][variation.policy]
    gains = [
        _gain(unit.of(rows[variation.policy]) or 0.0, unit.of(rows[base.policy]) or 0.0)
        for rows in drawings.values()
        if variation.policy in rows and base.policy in rows
    ]
    return Effect(
        group=variation.group,
        label=variation.label,
        variation=variation,
        row=row,
        token_share=row.judged.token_fraction - base.judged.token_fraction,
        batch=row.mean_batch - base.mean_batch,
        completed=row.completed_per_1000_steps - base.completed_per_1000_steps,
        value=unit.of(row) or 0.0,
        first_gain=gains[0],
        gain=sum(gains) / len(gains),
        drawings=len(gains),
        margin=margin(gains),
        alike=all(
            served_alike(rows[variation.policy], rows[base.policy])
            for rows in drawings.values()
            if variation.policy in rows and base.policy in rows
        ),
    )


def _gain(after: float, before: float) -> float:
    return (after - before) / before if before else 0.0


def served_alike(one: WasteRow, other: WasteRow) -> bool:
    """Whether two rows of a stream served the same requests, each to the same end."""
    return _served(one) == _served(other)


def _served(row: WasteRow) -> tuple[int, int, int, int]:
    total = row.total
    samples = row.policy.samples if isinstance(row.policy, PagedPolicy) else 1
    return total.arrived, total.refused, total.completed, samples
