"""`pagedbench waste --whatif` in the terminal: each variation against the base, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.command.tables import table
from bench.command.words import seconds
from bench.waste.policies import policy_words
from bench.waste.reasons import reason
from bench.waste.record import WasteRecord, WasteRow
from bench.waste.whatif import Effect, WhatIf

UNLOADED: Final = 0.01
"""Share of the steps with somebody waiting for memory, below which the load is what is small."""


def show_whatif(whatif: WhatIf | None, record: WasteRecord, console: Console) -> None:
    """Print every variation of a stream against the base."""
    if whatif is None:
        console.print(Text("the base was not run: nothing to hold against", style="yellow"))
        return
    held = 100 * whatif.base.judged.token_fraction
    words = policy_words(whatif.base.policy)
    console.print(Text(f"base: {words}; {held:.1f} % of the slots hold tokens"))
    console.print(whatif_table(whatif))
    for line in whatif_reading(whatif, record):
        console.print(Text(line))


def whatif_table(whatif: WhatIf) -> Table:
    """Every variation against the base, option by option."""
    unit, base = whatif.unit, whatif.base
    waited = base.service is not None
    late = {name: _p90(base, name) for name in ("ttft", "tpot") if waited}
    late = {name: value for name, value in late.items() if value}
    held = len(late) < 2  # there is no room for everything
    heads = (
        unit.head,
        "gain",
        *(f"{name.upper()}\np90" for name in late),
        *(["token\npts"] if held else []),
        "batch",
        "preempt",
        "recomp",
        "saved",
    )
    made = table("change", heads, collapse_padding=True)
    made.columns[0].min_width = 16
    made.add_row(
        "base",
        format(unit.of(base) or 0.0, unit.style),
        "",
        *(seconds(value) for value in late.values()),
        *([f"{100 * base.judged.token_fraction:.1f}"] if held else []),
        f"{base.mean_batch:.2f}",
        *_work(base),
        style="bold",
    )
    group = ""
    for effect in whatif.effects:
        if effect.group != group:
            group = effect.group
            made.add_section()
        made.add_row(
            Text(f"{effect.group} {effect.label}"),
            format(effect.value, unit.style),
            f"{effect.gain:+.1%}" if effect.alike else "other",
            *(seconds(_p90(effect.row, name)) for name in late),
            *([f"{100 * effect.token_share:+.1f}"] if held else []),
            f"{effect.batch:+.2f}",
            *_work(effect.row),
            style="green" if effect is whatif.best else None,
        )
    said = f"{unit.head}: {unit.words}. {'token pts, ' * held}batch: against the base. "
    if not all(effect.alike for effect in whatif.effects):
        said += "other: it did not serve the same requests, and is not ranked. "
    made.caption = Text(
        f"{said}preempt, recomp (tokens computed again), saved (prompt tokens found in the prefix "
        f"cache): in the loaded steps. Blocks below 8 are not tried where they are shared: too "
        f"slow."
    )
    made.caption_justify = "left"
    return made


def _p90(row: WasteRow, name: str) -> float:
    found = None if row.service is None else getattr(row.service, name)
    return 0.0 if found is None else found.p90_ns / 1e9


def whatif_reading(whatif: WhatIf, record: WasteRecord) -> list[str]:
    """Say which change gives back most, why, and what it costs."""
    best, unit, base = whatif.best, whatif.unit, whatif.base
    if best is None:
        lines = [
            f"Keep it: nothing that was tried gives back more than {whatif.error:.1%} of the "
            f"{unit.words}, below which it cannot be told from nothing."
        ]
        judged = base.judged
        waiting = (judged.waiting_short + judged.waiting_watermark) / max(1, judged.steps)
        if waiting < UNLOADED:
            lines.append(
                f"Somebody waited for memory in {waiting:.1%} of the steps: at this load the pool "
                f"is large enough. A stream with :saturated behind it asks what it could carry."
            )
        return lines
    lines = [f"{best.group} {best.label} gives back most: {best.gain:+.1%} {unit.words}."]
    if unit.head in ("req/s", "good/s"):
        lines.append(f"Why: {reason(best.row, base, record.time)}.")
    near = _as_good(whatif, best)
    if near:
        lines.append(f"As good, within {whatif.error:.1%}: {near}.")
    cost = _costs(best, base)
    lines.append(f"It costs {cost}." if cost else "It costs nothing that is counted here.")
    if best.group == "block size":
        lines.append(
            "What a block size costs the kernel is not counted here: smaller blocks make longer "
            "block tables and more, shorter reads."
        )
    return lines


def _as_good(whatif: WhatIf, best: Effect) -> str:
    """Changes that cannot be told from the best one."""
    return ", ".join(
        f"{effect.group} {effect.label}"
        for effect in whatif.effects
        if effect is not best
        and effect.alike
        and effect.gain > whatif.error
        and effect.value >= best.value * (1 - whatif.error)
    )


def _costs(best: Effect, base: WasteRow) -> str:
    rows = best.row.judged, base.judged
    costs = []
    if best.row.preemptions_per_request > base.preemptions_per_request:
        costs.append(
            f"preemptions, {best.row.preemptions_per_request:.3f} instead of "
            f"{base.preemptions_per_request:.3f} a request"
        )
    if best.row.recomputed_per_generated > base.recomputed_per_generated:
        costs.append(
            f"tokens computed again, {best.row.recomputed_per_generated:.3f} instead of "
            f"{base.recomputed_per_generated:.3f} for each generated"
        )
    more, less = (judged.swapped_out / max(1, judged.admitted) for judged in rows)
    if more > less:
        costs.append(f"blocks swapped out, {more:.2f} instead of {less:.2f} a request")
    return "; ".join(costs)


def _work(row: WasteRow) -> Iterable[str]:
    judged = row.judged
    return map(_count, (judged.preemptions, judged.recomputed_tokens, judged.hit_tokens))


def _count(value: int) -> str:
    if not value:
        return "-"
    for unit, size, least in (("G", 10**9, 10**9), ("M", 10**6, 10**6), ("k", 10**3, 10**4)):
        if value >= least:
            return f"{value / size:.1f}{unit}"
    return f"{value:,}"
