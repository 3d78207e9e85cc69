"""What another block size, a prefix cache or a watermark would give back.

One paged policy is varied, one option at a time, on the same stream and pool. What is compared is
what a server is for: requests completed a second by its clock, or those among them that met an SLO.
Memory that is freed counts as far as requests run in it. What served other requests is not ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from bench.waste.record import Rank, WasteRecord, WasteRow
from paged.errors import BadSize
from paged.policy import PagedPolicy

BLOCK_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SMALLEST_SHARED: Final = 8
"""Smallest block size that is tried where the blocks themselves are simulated, not their number:
the time that takes grows with the number of blocks of a prompt."""

WATERMARKS: Final = (0.0, 0.01, 0.02, 0.05, 0.1)
LOOK_AHEAD: Final = (0, 8)

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
class Variation:
    """A policy that differs from the base in one option."""

    group: str
    """The option."""
    label: str
    """Its value."""
    policy: PagedPolicy


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
    gain: float
    """Difference of that, as a share of the base's."""
    alike: bool
    """Whether the same requests were served; otherwise nothing follows from the rest."""


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
    back more than `error`."""


def variations(base: PagedPolicy, *, prefixes: bool) -> list[Variation]:
    """Vary each option of a policy, the others as they are; no two variations are the same."""
    found: dict[PagedPolicy, Variation] = {}
    for group, label, changes in _changes(prefixes=prefixes):
        try:
            policy = replace(base, **changes)
        except BadSize:
            continue
        shared = policy.prefix_caching or policy.samples > 1
        slow = shared and policy.block_size < SMALLEST_SHARED
        if policy != base and not (slow and group == "block size"):
            found.setdefault(policy, Variation(group=group, label=label, policy=policy))
    return list(found.values())


def _changes(*, prefixes: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for size in BLOCK_SIZES:
        yield "block size", str(size), {"block_size": size}
    if prefixes:
        off = {"prefix_caching": False, "eviction": "lru", "tenant_quotas": ()}
        yield "prefix caching", "off", off
        for eviction in ("lru", "lfu", "fifo"):
            yield "prefix caching", eviction, {"prefix_caching": True, "eviction": eviction}
    for watermark in WATERMARKS:
        yield "watermark", f"{watermark:.0%}", {"watermark": watermark}
    for ahead in LOOK_AHEAD:
        yield "look-ahead", str(ahead), {"look_ahead": ahead}
    for preemption in ("recompute", "swap"):
        yield "preemption", preemption, {"preemption": preemption}


def compare(record: WasteRecord, stream: str) -> WhatIf | None:
    """Hold every row of a stream against the base; None where the base itself was not run."""
    if record.base is None:
        raise ValueError("the record has no base; make it with --whatif")
    rows = {row.policy: row for row in record.rows_of(stream)}
    if (base := rows.get(record.base)) is None:
        return None
    assert isinstance(base.policy, PagedPolicy)
    rank: Rank = record.rank
    if UNITS[rank].of(base) is None:
        rank = "steps"
    unit = UNITS[rank]
    timed = rank in ("requests", "goodput") and record.clock is not None
    error = record.clock.error if timed and record.clock is not None else NOTHING
    effects = tuple(
        _effect(variation, rows[variation.policy], base, unit)
        for variation in variations(base.policy, prefixes=True)
        if variation.policy in rows
    )
    best = max(
        (effect for effect in effects if effect.alike),
        key=lambda effect: (effect.value, effect.token_share),
        default=None,
    )
    if best is not None:
        # Of values of an option that cannot be told apart, the usual one comes first.
        best = next(
            effect
            for effect in effects
            if effect.alike
            and effect.group == best.group
            and effect.value >= best.value * (1 - NOTHING)
            and effect.token_share >= best.token_share - NOTHING
        )
    if best is not None and best.gain <= error:
        best = None
    return WhatIf(base=base, effects=effects, unit=unit, error=error, best=best)


def _effect(variation: Variation, row: WasteRow, base: WasteRow, unit: Unit) -> Effect:
    before, after = unit.of(base) or 0.0, unit.of(row) or 0.0
    return Effect(
        group=variation.group,
        label=variation.label,
        row=row,
        token_share=row.judged.token_fraction - base.judged.token_fraction,
        batch=row.mean_batch - base.mean_batch,
        completed=row.completed_per_1000_steps - base.completed_per_1000_steps,
        value=after,
        gain=(after - before) / before if before else 0.0,
        alike=served_alike(row, base),
    )


def served_alike(one: WasteRow, other: WasteRow) -> bool:
    """Whether two rows of a stream served the same requests, each to the same end."""
    return _served(one) == _served(other)


def _served(row: WasteRow) -> tuple[int, int, int, int]:
    total = row.total
    samples = row.policy.samples if isinstance(row.policy, PagedPolicy) else 1
    return total.arrived, total.refused, total.completed, samples
