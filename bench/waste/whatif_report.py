"""`pagedbench waste --whatif` in the terminal: each variation against the base, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.command.tables import table
from bench.waste.policies import policy_words
from bench.waste.record import WasteRecord, WasteRow
from bench.waste.whatif import CRITERION, NOTHING, Effect, WhatIf

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
    console.print(whatif_table(whatif, record.pool.gibibytes))
    for line in whatif_reading(whatif, record.pool.gibibytes):
        console.print(Text(line))


def whatif_table(whatif: WhatIf, gibibytes: float) -> Table:
    """Every variation against the base, option by option."""
    heads = ("token pts", "GiB", "batch", "done/1k", "preempt", "recomp", "saved")
    made = table("change", heads, collapse_padding=True)
    base = whatif.base
    made.add_row(
        "base",
        f"{100 * base.judged.token_fraction:.1f}",
        f"{base.judged.token_fraction * gibibytes:.2f}",
        f"{base.mean_batch:.2f}",
        f"{base.completed_per_1000_steps:.1f}",
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
            f"{100 * effect.token_share:+.1f}",
            f"{effect.token_share * gibibytes:+.2f}",
            f"{effect.batch:+.2f}",
            f"{effect.completed:+.1f}",
            *_work(effect.row),
            style="green" if effect is whatif.best else None,
        )
    made.caption = Text(
        "token pts, GiB, batch, done/1k (requests completed in 1,000 steps): against the base. "
        "preempt, recomp (tokens computed again), saved (prompt tokens found in the prefix cache): "
        "in the loaded steps. Blocks below 8 are not tried where they are shared: too slow."
    )
    made.caption_justify = "left"
    return made


def whatif_reading(whatif: WhatIf, gibibytes: float) -> list[str]:
    """Say which change gives back most, and what it costs."""
    best = whatif.best
    if best is None:
        lines = [
            f"Nothing that was tried gives back more than {NOTHING:.1%}: keep the policy as it is "
            f"({CRITERION})."
        ]
        base = whatif.base.judged
        waiting = (base.waiting_short + base.waiting_watermark) / max(1, base.steps)
        if waiting < UNLOADED:
            lines.append(
                f"Somebody waited for memory in {waiting:.1%} of the steps: at this load the pool "
                f"is large enough. A stream with :saturated behind it asks what it could carry."
            )
        return lines
    lines = [
        f"{best.group} {best.label} gives back most: {best.gain:+.1%} requests completed in the "
        f"same steps, {best.token_share * gibibytes:+.2f} GiB of tokens ({CRITERION})."
    ]
    cost = _costs(best, whatif.base)
    lines.append(f"It costs {cost}." if cost else "It costs nothing that is counted here.")
    if best.group == "block size":
        lines.append(
            "What a block size costs the kernel is not counted here: smaller blocks make longer "
            "block tables and more, shorter reads."
        )
    return lines


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
