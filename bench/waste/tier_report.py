"""Tiers behind the pool, in the terminal: what they are, and whether they are worth it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.command.words import seconds
from bench.waste.record import WasteRecord, WasteRow
from bench.waste.simulate import without_tiers
from bench.waste.whatif import UNITS
from paged.tiers import Tier


def tiers_line(tiers: Sequence[Tier]) -> str:
    """Say what is behind the pool, and what of its copies is charged."""
    said = "; ".join(
        f"{tier.name}, {tier.slots:,} tokens, {tier.load_ps_per_token / 1e6:.3g} us to load one, "
        + ("" if not tier.overlap else f"of which {tier.overlap:.0%} of a step is hidden, ")
        + f"{tier.store_ps_per_token / 1e6:.3g} us to store one"
        for tier in tiers
    )
    return f"behind the pool: {said}. Loads make a step longer, stores run beside the steps."


def tier_lines(rows: Sequence[WasteRow], record: WasteRecord) -> Iterator[str]:
    """Say of each policy whether the tiers are worth it."""
    plain = {row.policy: row for row in rows if not row.tiers}
    for row in rows:
        if row.tiers and (without := without_tiers(row.policy)) in plain:
            yield _worth(row, plain[without], record)


def _worth(row: WasteRow, plain: WasteRow, record: WasteRecord) -> str:
    names = " and ".join(tier.name for tier in row.tiers)
    found = ""
    if queried := row.total.queried_tokens:
        more = row.total.hit_tokens - plain.total.hit_tokens
        found = f"{more:,} prompt tokens more are found of {queried:,}; "
    moved = ", ".join(
        f"{use.name} loaded {use.loaded_tokens:,} tokens in {seconds(use.load_ns / 1e9)} and "
        f"stored {use.stored_tokens:,} in {seconds(use.store_ns / 1e9)}"
        for use in row.tiers
    )
    unit = UNITS["requests" if record.rank == "steps" else record.rank]
    before, after = unit.of(plain) or 0.0, unit.of(row) or 0.0
    error = 0.0 if record.clock is None else record.clock.error
    gain = after / before - 1 if before else 0.0
    said = (
        f"{row.typed}: {found}{moved}. {unit.words.capitalize()}: {before:{unit.style}} without, "
        f"{after:{unit.style}} with ({gain:+.1%}){_ttft(row, plain)}. "
    )
    if gain > error:
        return said + f"It is worth it: behind the pool, {names} pays."
    if gain < -error:
        return said + "It is not worth it: the copies cost more than they save."
    return said + f"It is not worth it: less than {error:.0%}, which the clock cannot tell."


def _ttft(row: WasteRow, plain: WasteRow) -> str:
    was, now = (None if each.service is None else each.service.ttft for each in (plain, row))
    if was is None or now is None:
        return ""
    return f"; TTFT p50 {seconds(was.p50_ns / 1e9)} and {seconds(now.p50_ns / 1e9)}"
