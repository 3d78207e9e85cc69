"""`pagedbench waste --whatif` in the terminal: each variation against the base, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.command.tables import table
from bench.command.words import plural, seconds
from bench.waste.changes import MOST_QUOTAS, PAIR, QUOTA_REQUESTS
from bench.waste.policies import policy_words
from bench.waste.reasons import reason
from bench.waste.record import WasteRecord, WasteRow
from bench.waste.service_report import drawings_table, tenants_words
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
    names = {whatif.base.policy: "base"}
    if whatif.best is not None:
        names[whatif.best.row.policy] = whatif.best.variation.words
    stream = next(each for each in record.streams if each.label == whatif.base.stream)
    if (drawn := drawings_table(names, stream, record)) is not None:
        console.print(drawn)
    for line in whatif_reading(whatif, record):
        console.print(Text(line))


def whatif_table(whatif: WhatIf) -> Table:
    """Every variation against the base, option by option."""
    unit, base = whatif.unit, whatif.base
    waited = base.service is not None
    late = {name: _p90(base, name) for name in ("ttft", "tpot") if waited}
    late = {name: value for name, value in late.items() if value}
    run = [effect for effect in whatif.effects if not effect.row.inferred]
    drawings = max((effect.drawings for effect in run), default=1)
    # There is no room for everything.
    held, again = not late, len(late) < 2
    batch = again or drawings == 1
    heads = (
        unit.head,
        "gain",
        *([f"mean of\n{drawings} drawings"] if drawings > 1 else []),
        *(f"{name.upper()}\np90" for name in late),
        *(["token\npts"] if held else []),
        *(["batch"] if batch else []),
        "preempt",
        *(["recomp"] if again else []),
        "saved",
    )
    made = table("change", heads, collapse_padding=True)
    made.columns[0].min_width = 16
    run = [effect for effect in whatif.effects if not effect.row.inferred]
    made.add_row(
        "base",
        format(unit.of(base) or 0.0, unit.style),
        "",
        *([""] if drawings > 1 else []),
        *(seconds(value) for value in late.values()),
        *([f"{100 * base.judged.token_fraction:.1f}"] if held else []),
        *([f"{base.mean_batch:.2f}"] if batch else []),
        *_work(base, again=again),
        style="bold",
    )
    group = ""
    for effect in run:
        if effect.group != group:
            group = effect.group
            made.add_section()
        made.add_row(
            Text(effect.variation.words),
            format(effect.value, unit.style),
            f"{effect.first_gain:+.1%}" if effect.alike else "other",
            *([_gain(effect) if effect.drawings > 1 else ""] if drawings > 1 else []),
            *(seconds(_p90(effect.row, name)) for name in late),
            *([f"{100 * effect.token_share:+.1f}"] if held else []),
            *([f"{effect.batch:+.2f}"] if batch else []),
            *_work(effect.row, again=again),
            style="green" if effect is whatif.best else None,
        )
    against = "token pts, batch: against the base. " if held else "batch: against the base. "
    said = f"{unit.head}: {unit.words}. {against if batch else ''}"
    if not all(effect.alike for effect in whatif.effects):
        said += "other: it did not serve the same requests, and is not ranked. "
    if drawings > 1:
        said += "±: 95 % interval, in points; all else is of the first drawing. "
    made.caption = Text(
        f"{said}preempt, {'recomp (tokens computed again), ' * again}saved (prompt tokens found in "
        f"the prefix cache): in the loaded steps. Blocks below 8 are not tried where they are "
        f"shared: too slow."
    )
    made.caption_justify = "left"
    return made


def _p90(row: WasteRow, name: str) -> float:
    found = None if row.service is None else getattr(row.service, name)
    return 0.0 if found is None else found.p90_ns / 1e9


def whatif_reading(whatif: WhatIf, record: WasteRecord) -> list[str]:
    """Say which change gives back most, why, and what it costs."""
    best, unit, base = whatif.best, whatif.unit, whatif.base
    lines: list[str] = []
    end = [searched(whatif, record)] if record.runs is not None else []
    if best is None:
        lines.append(
            f"Keep it: nothing that was tried gives back more than {whatif.error:.1%} of the "
            f"{unit.words}, below which it cannot be told from nothing."
        )
        lines += [
            f"{effect.variation.words}: {effect.gain:+.1%} in the mean of {effect.drawings} "
            f"drawings, but between {effect.gain - effect.margin:+.1%} and "
            f"{effect.gain + effect.margin:+.1%}: it cannot be told from nothing."
            for effect in whatif.effects
            if effect.alike and whatif.error < effect.gain <= effect.margin
        ]
        judged = base.judged
        waiting = (judged.waiting_short + judged.waiting_watermark) / max(1, judged.steps)
        if waiting < UNLOADED:
            lines.append(
                f"Somebody waited for memory in {waiting:.1%} of the steps: at this load the pool "
                f"is large enough. A stream with :saturated behind it asks what it could carry."
            )
        return lines + end
    within = ""
    if best.drawings > 1:
        within = f", {best.gain - best.margin:+.1%} to {best.gain + best.margin:+.1%}"
        within += f" over {best.drawings} drawings"
    lines.append(f"{best.variation.words} gives back most: {best.gain:+.1%} {unit.words}{within}.")
    if best.group == PAIR:
        alone = [
            f"{effect.variation.words} {_gain(effect)}"
            for effect in whatif.effects
            if effect.group != PAIR and effect.variation.changes.items() <= _changed(best)
        ]
        lines.append(f"Alone: {'; '.join(alone)}.")
    if unit.head in ("req/s", "good/s"):
        lines.append(f"Why: {reason(best.row, base, record.time)}.")
    stream = next(each for each in record.streams if each.label == base.stream)
    if stream.tenants and base.service is not None:
        lines.append(f"By tenant: {tenants_words(best.row, base, stream)}.")
    near = _as_good(whatif, best)
    if near:
        lines.append(f"As good, within {whatif.error:.1%}: {near}.")
    cost = _costs(best, base)
    lines.append(f"It costs {cost}." if cost else "It costs nothing that is counted here.")
    if "block_size" in best.variation.changes:
        lines.append(
            "What a block size costs the kernel is not counted here: smaller blocks make longer "
            "block tables and more, shorter reads."
        )
    return lines + end


def searched(whatif: WhatIf, record: WasteRecord) -> str:
    """Say how many runs the search took, of what, and what could be left out."""
    rows = [row for row in record.rows if row.stream == whatif.base.stream and not row.inferred]
    effects = [effect for effect in whatif.effects if not effect.row.inferred]
    both = sum(effect.group == PAIR for effect in effects)
    again = sum(row.drawing > 0 for row in rows)
    said = f"Searched: {plural(len(effects) - both, 'single change')}"
    said += f", {plural(both, 'pair')} of the best" * bool(both)
    if again:
        drawings = max(row.drawing for row in rows) + 1
        said += f", {plural(again, 'run')} on {drawings - 1} more drawings"
    said += f"; {len(rows)} of at most {plural(record.runs or 0, 'run')}."
    same = [effect.variation.words for effect in whatif.effects if effect.row.inferred]
    if same:
        said += f" Not run, as they cannot matter here: {', '.join(same)}."
    if not record.time.swap_ns_per_token:
        said += " Not tried: swapping, of which the clock says nothing; see --clock swap=."
    if whatif.base.groups:
        said += (
            " Not tried with tables for each group of layers: prefix caching and swapping; "
            "--bytes-per-token in place of --model has none."
        )
    stream = next(each for each in record.streams if each.label == whatif.base.stream)
    tenants = len(stream.tenants) if stream.prefixes else 0
    if tenants > MOST_QUOTAS or (tenants > 1 and stream.requests > QUOTA_REQUESTS):
        said += (
            f" Not tried: quotas, which take too long for more than {MOST_QUOTAS} tenants or "
            f"{QUOTA_REQUESTS:,} requests."
        )
    return said


def _changed(effect: Effect) -> Set[tuple[str, Any]]:
    return effect.variation.changes.items()


def _as_good(whatif: WhatIf, best: Effect) -> str:
    """Changes that cannot be told from the best one."""
    return ", ".join(
        effect.variation.words
        for effect in whatif.effects
        if effect is not best
        and effect.alike
        and effect.drawings == best.drawings
        and effect.gain > whatif.error
        and 1 + effect.gain >= (1 + best.gain) * (1 - whatif.error)
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


def _gain(effect: Effect) -> str:
    said = f"{effect.gain:+.1%}"
    return said if effect.drawings == 1 else f"{said} ±{100 * effect.margin:.1f}"


def _work(row: WasteRow, *, again: bool) -> Iterable[str]:
    judged = row.judged
    recomputed = [judged.recomputed_tokens] if again else []
    return map(_count, (judged.preemptions, *recomputed, judged.hit_tokens))


def _count(value: int) -> str:
    if not value:
        return "-"
    for unit, size, least in (("G", 10**9, 10**9), ("M", 10**6, 10**6), ("k", 10**3, 10**4)):
        if value >= least:
            return f"{value / size:.1f}{unit}"
    return f"{value:,}"
