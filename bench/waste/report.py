"""`pagedbench waste` in the terminal: a table for each stream, and what it comes to in a sentence.

Everything fits 80 columns. Shares are of all slots of the pool, over the loaded steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.waste.contiguous import ContiguousPolicy
from bench.waste.figures.figure import Component, Figure
from bench.waste.policies import parse_policy
from bench.waste.record import WasteRecord, WasteRow
from bench.waste.whatif import CRITERION, NOTHING, Effect, WhatIf, compare
from bench.workloads.record import ServedStream

CLASS_NAMES: Final = {
    "token": "token",
    "reserve": "reserve",
    "internal": "intern",
    "roundup": "round",
    "free_frag": "frag",
    "free_short": "short",
    "free_idle": "idle",
    "cached_idle": "cached",
}
"""Heads of the columns; the classes are those of `paged.accounting`."""

MEANINGS: Final = {
    "token": "holds a token that is read",
    "reserve": "empty, will be filled",
    "internal": "empty, asked for, never filled",
    "roundup": "empty, beyond what was asked for",
    "free_frag": "free in pieces that are too small",
    "free_short": "free, and too little for the next request",
    "free_idle": "free, and nobody waits for it",
    "cached_idle": "kept for a prefix, read by nobody",
}

UNLOADED: Final = 0.01
"""Share of the steps with somebody waiting for memory, below which the load is what is small."""

IDLE_POOL: Final = 0.05
"""Share of the pool that is free with nobody waiting, from which on the pool counts as idle."""

WAITS: Final = {
    "waiting_short": "memory",
    "waiting_watermark": "watermark",
    "waiting_frag": "a hole",
    "waiting_limit": "max-running",
    "waiting_budget": "budget",
}
"""What the head of the queue waits for."""


def show(record: WasteRecord, console: Console) -> None:
    """Print a record."""
    for stream in record.streams:
        rows = record.rows_of(stream.label)
        console.print(Text(_stream_title(stream, record), style="bold"))
        if not rows:
            console.print(Text("nothing was run", style="yellow"))
        elif record.base is None:
            console.print(memory_table(rows))
            console.print(service_table(rows))
            for line in reading(rows, record):
                console.print(Text(line))
        else:
            _show_whatif(compare(record, stream.label), record, console)
        console.print()
    _show_end(record, console)


def memory_table(rows: list[WasteRow]) -> Table:
    """Where the slots are, in per cent of the pool, and how many requests run in them."""
    used = [name for name in CLASS_NAMES if any(getattr(row.judged, name) for row in rows)]
    table = _table("policy")
    for name in used:
        table.add_column(CLASS_NAMES[name], justify="right", no_wrap=True)
    table.add_column("batch", justify="right", no_wrap=True)
    table.add_column("peak", justify="right", no_wrap=True)
    for row in rows:
        shares = row.shares
        table.add_row(
            _policy_cell(row),
            *(_per_cent(shares[name], judged=getattr(row.judged, name)) for name in used),
            f"{row.mean_batch:,.2f}",
            f"{row.peak_requests:,}",
        )
    said = "; ".join(f"{CLASS_NAMES[name]}: {MEANINGS[name]}" for name in used)
    table.caption = Text(
        f"% of the slots, over the loaded steps. {said}. batch: requests that run at once, mean "
        f"and peak."
    )
    table.caption_justify = "left"
    return table


def service_table(rows: list[WasteRow]) -> Table:
    """What the memory does: requests completed, and what is done twice or waited for."""
    columns: list[tuple[str, Callable[[WasteRow], float], str, str]] = [
        ("done/1k", lambda row: row.completed_per_1000_steps, ",.1f", "completed in 1,000 steps"),
        ("preempt", lambda row: row.preemptions_per_request, ".3f", "preemptions a request"),
        (
            "recomp",
            lambda row: row.recomputed_per_generated,
            ".3f",
            "recomputed per generated token",
        ),
        ("hits", lambda row: row.hit_rate, ".1%", "prompt tokens found in the prefix cache"),
        ("sharing", lambda row: row.sharing - 1, ".2f", "logical tokens per physical, above 1"),
        ("refused", lambda row: row.total.refused, ",", "requests that can never fit"),
    ]
    columns = [column for column in columns if any(column[1](row) for row in rows)]
    table = _table("policy")
    for head, *_ in columns:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("waits for")
    for row in rows:
        cells = [format(of(row), style) if of(row) else "-" for _, of, style, _ in columns]
        table.add_row(_policy_cell(row), *cells, _waits(row))
    said = "; ".join(meaning for head, _, _, meaning in columns)
    table.caption = Text(f"{said}; waits for: why the head of the queue does, share of the steps.")
    table.caption_justify = "left"
    return table


def reading(rows: list[WasteRow], record: WasteRecord) -> list[str]:
    """Say what the tables come to."""
    lines = [_comparison(rows, record)] if len(rows) > 1 else []
    lines += [
        f"{policy_words(row.policy)}: {row.total.refused:,} of {row.total.arrived:,} requests were "
        f"refused, being longer than the pool or than max-model-len."
        for row in rows
        if row.total.refused
    ]
    unloaded = [policy_words(row.policy) for row in rows if not row.loaded.steps]
    if unloaded:
        lines.append(
            f"{'; '.join(unloaded)}: never loaded after the warm-up; judged by the whole run."
        )
    return lines


def _comparison(rows: list[WasteRow], record: WasteRecord) -> str:
    idle = max(rows, key=lambda row: row.shares["free_idle"])
    if idle.shares["free_idle"] > IDLE_POOL:
        # Tokens held then follow the load, whatever the policy.
        best, worst = max(rows, key=_filled), min(rows, key=_filled)
        return (
            f"The load does not fill the pool: {idle.shares['free_idle']:.0%} of it is idle under "
            f"{policy_words(idle.policy)}. Of the slots that it allocates, "
            f"{policy_words(best.policy)}, fills {_filled(best):.1%}; "
            f"{policy_words(worst.policy)}, {_filled(worst):.1%}."
        )
    best = max(rows, key=lambda row: row.judged.token_fraction)
    worst = min(rows, key=lambda row: row.judged.token_fraction)
    if not (least := worst.judged.token_fraction):
        return f"{policy_words(worst.policy)}, holds nothing at all."
    ratio = best.judged.token_fraction / least
    more = (best.judged.token_fraction - least) * record.pool.gibibytes
    return (
        f"{policy_words(best.policy)}, holds {ratio:.1f}x the tokens that "
        f"{policy_words(worst.policy)}, holds in the same pool: {more:.2f} GiB more."
    )


def _filled(row: WasteRow) -> float:
    judged = row.judged
    return judged.token / judged.allocated if judged.allocated else 0.0


def policy_name(spec: str) -> str:
    """A policy as it is typed, less what the stream says."""
    head, _, tail = spec.partition(":")
    options = [part for part in tail.split(",") if part and not part.startswith("max-model-len=")]
    return f"{head}:{','.join(options)}" if options else head


def _policy_cell(row: WasteRow) -> Text:
    # Wrapped between options, not within one.
    return Text(policy_name(row.policy).replace(",", ", "))


def policy_words(spec: str) -> str:
    """A policy in words."""
    policy = parse_policy(spec)
    if isinstance(policy, ContiguousPolicy):
        words = f"{policy.reservation} reservation, {policy.arena}"
        taken = ("max-model-len=",)
    else:
        words = f"paged, block {policy.block_size}"
        taken = ("block=",)
    options = spec.partition(":")[2].split(",")
    return ", ".join([words, *(option for option in options if not option.startswith(taken))])


def _stream_title(stream: ServedStream, record: WasteRecord) -> str:
    arrive = "timed" if stream.timed else "a backlog"
    title = (
        f"{stream.label}: {stream.requests:,} requests, {arrive}; mean prompt "
        f"{stream.mean_prompt_tokens:,.0f}, output {stream.mean_output_tokens:,.0f}, longest "
        f"{stream.longest_request:,} tokens; pool of {record.pool.slots:,} slots, "
        f"{record.pool.gibibytes:.4g} GiB"
    )
    if stream.without_output:
        title += f"; {stream.without_output:,} without output left out"
    return title


def _waits(row: WasteRow) -> str:
    judged = row.judged
    waits = [
        f"{name} {getattr(judged, field) / judged.steps:.0%}"
        for field, name in WAITS.items()
        if getattr(judged, field)
    ]
    return ", ".join(waits) or "-"


def _per_cent(share: float, *, judged: int) -> str:
    # A class that is empty and one that is nearly so are told apart.
    return f"{100 * share:.1f}" if judged else "-"


def _show_end(record: WasteRecord, console: Console) -> None:
    machine = record.machine
    said = Text(f"{len(record.rows)} of {record.asked} simulations in {record.elapsed_s:.1f} s")
    if not record.complete:
        said = Text("incomplete: ", style="bold yellow").append(said)
    console.print(said.append(f", pagedbench {machine.pagedbench}, {machine.cpu}", style="dim"))


# -- what if ---------------------------------------------------------------------------------------


def _show_whatif(whatif: WhatIf | None, record: WasteRecord, console: Console) -> None:
    if whatif is None:
        console.print(Text("the base was not run: nothing to hold against", style="yellow"))
        return
    base = whatif.base
    console.print(
        Text(
            f"base: {policy_words(base.policy)}; {100 * base.judged.token_fraction:.1f} % of the "
            f"slots hold tokens"
        )
    )
    console.print(whatif_table(whatif, record.pool.gibibytes))
    for line in whatif_reading(whatif, record.pool.gibibytes):
        console.print(Text(line))


def whatif_table(whatif: WhatIf, gibibytes: float) -> Table:
    """Every variation against the base, option by option."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("change", no_wrap=True)
    heads = ("token pts", "GiB", "batch", "done/1k", "preempt", "recomp", "saved")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    base = whatif.base
    table.add_row(
        "base",
        f"{100 * base.judged.token_fraction:.1f}",
        f"{base.judged.token_fraction * gibibytes:.2f}",
        f"{base.mean_batch:.2f}",
        f"{base.completed_per_1000_steps:.1f}",
        *(_count(value) for value in _work(base)),
        style="bold",
    )
    group = ""
    for effect in whatif.effects:
        if effect.group != group:
            group = effect.group
            table.add_section()
        table.add_row(
            Text(f"{effect.group} {effect.label}"),
            f"{100 * effect.token_share:+.1f}",
            f"{effect.token_share * gibibytes:+.2f}",
            f"{effect.batch:+.2f}",
            f"{effect.completed:+.1f}",
            *(_count(value) for value in _work(effect.row)),
            style="green" if effect is whatif.best else None,
        )
    table.caption = Text(
        "token pts, GiB, batch, done/1k (requests completed in 1,000 steps): against the base. "
        "preempt, recomp (tokens computed again), saved (prompt tokens found in the prefix cache): "
        "in the loaded steps. Blocks below 8 are not tried where they are shared: too slow."
    )
    table.caption_justify = "left"
    return table


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
        f"same steps, {best.token_share * gibibytes:+.2f} GiB of tokens ({CRITERION}).",
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


def _work(row: WasteRow) -> tuple[int, int, int]:
    judged = row.judged
    return judged.preemptions, judged.recomputed_tokens, judged.hit_tokens


def _count(value: int) -> str:
    if not value:
        return "-"
    for unit, size, least in (("G", 10**9, 10**9), ("M", 10**6, 10**6), ("k", 10**3, 10**4)):
        if value >= least:
            return f"{value / size:.1f}{unit}"
    return f"{value:,}"


# -- published figures -----------------------------------------------------------------------------


def show_figure(figure: Figure, console: Console) -> None:
    """Print a published figure beside what was measured, component by component."""
    console.print(Text(f"{figure.name}: {figure.title}", style="bold"))
    console.print(Text(figure.source))
    console.print(Text(figure.setup, style="dim"))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("", overflow="fold", ratio=1)
    for head, width in (("published", 9), ("measured", 8), ("off by", 7), ("has to be", 16)):
        table.add_column(head, justify="right", no_wrap=True, min_width=width)
    table.add_column("", min_width=6)
    bars: dict[str, list[Component]] = {}
    for component in figure.components:
        bars.setdefault(component.bar, []).append(component)
    for bar, components in bars.items():
        if len(components) == 1:
            _add_component(table, components[0], f"{bar}: {_component_name(components[0])}")
        else:
            table.add_row(Text(bar, style="bold"))
            for component in components:
                _add_component(table, component, f"  {_component_name(component)}")
        table.add_section()
    console.print(table)
    for note in figure.notes:
        console.print(Text(f"- {note}"))
    judged = [component for component in figure.components if component.judged]
    met = sum(component.met for component in judged)
    verdict = Text(
        "met" if figure.met else "missed", style="bold green" if figure.met else "bold red"
    )
    console.print(
        verdict.append(f": {met} of {len(judged)} judged components", style="not bold default")
    )


def _component_name(component: Component) -> str:
    return f"{component.name}, {component.unit}" if component.unit else component.name


def _add_component(table: Table, component: Component, name: str) -> None:
    published, measured = component.published, component.measured
    low, high = component.lowest, component.highest
    if low is None and high is None:
        allowed, verdict = "", Text("shown", style="dim")
    else:
        allowed = _allowed(low, high)
        verdict = Text("met", style="green") if component.met else Text("missed", style="red")
    table.add_row(
        Text(name),
        "-" if published is None else _figure(published),
        _figure(measured),
        "" if published is None else f"{measured - published:+,.2f}",
        allowed,
        verdict,
    )


def _allowed(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {_figure(high)}" if high is not None else ""
    if high is None:
        return f"at least {_figure(low)}"
    return f"exactly {_figure(low)}" if low == high else f"{_figure(low)} to {_figure(high)}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def _table(first: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True
    )
    table.add_column(first, min_width=16, max_width=20)
    return table
