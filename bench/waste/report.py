"""`pagedbench waste` in the terminal: a table for each stream, and what it comes to in a sentence.

Everything fits 80 columns. Shares are of all slots of the pool, over the loaded steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import mean
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.command.tables import MarkdownPage, table
from bench.command.words import one_line
from bench.waste.capacity import capacity_words
from bench.waste.drawings import margin
from bench.waste.group_report import group_lines, groups_table
from bench.waste.policies import policy_words
from bench.waste.record import WasteRecord, WasteRow
from bench.waste.service_report import (
    clock_line,
    drawings_table,
    latency_table,
    quota_lines,
    slo_words,
    tenant_tables,
)
from bench.waste.tier_report import tier_lines, tiers_line
from bench.waste.whatif import NOTHING, compare, served_alike
from bench.waste.whatif_report import show_whatif
from bench.workloads.record import ServedStream
from paged.accounting import Counters

CLASSES: Final = {
    "token": ("token", "holds a token that is read"),
    "reserve": ("reserve", "empty, will be filled"),
    "internal": ("intern", "empty, asked for, never filled"),
    "roundup": ("round", "empty, beyond what was asked for"),
    "free_frag": ("frag", "free in pieces that are too small"),
    "free_short": ("short", "free, and too little for the next request"),
    "free_idle": ("idle", "free, and nobody waits for it"),
    "cached_idle": ("cached", "kept for a prefix, read by nobody"),
}
"""Head of the column and meaning of each class of `paged.accounting`."""

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


_Column = tuple[str, Callable[[WasteRow], float], str, str]
"""Head, value of a row, how it is written, and what it is."""


def show(record: WasteRecord, console: Console) -> None:
    """Print a record."""
    for stream in record.streams:
        rows = record.rows_of(stream.label)
        console.print(Text(_stream_title(stream, record), style="bold"))
        if not rows:
            console.print(Text("nothing was run", style="yellow"))
        elif record.base is None:
            console.print(memory_table(rows))
            if (grouped := groups_table(rows, record)) is not None:
                console.print(grouped)
            for made in service_tables(rows, console):
                console.print(made)
            if (waited := latency_table(rows)) is not None:
                console.print(waited)
            for made in tenant_tables(rows, stream):
                console.print(made)
            # Of a policy that is served twice, the second is drawn again.
            names = {row.policy: row.typed for row in rows}
            if (drawn := drawings_table(names, stream, record)) is not None:
                console.print(drawn)
            for line in reading(rows, record):
                console.print(Text(line))
        else:
            show_whatif(compare(record, stream.label), record, console)
            base = [row for row in rows if row.policy == record.base]
            if (grouped := groups_table(base, record)) is not None:
                console.print(grouped)
        console.print()
    _show_end(record, console)


def markdown_of(record: WasteRecord) -> str:
    """What `show` prints, as markdown."""
    page = MarkdownPage()
    show(record, page)
    return page.text()


def memory_table(rows: list[WasteRow]) -> Table:
    """Where the slots are, in per cent of the pool, and how many requests run in them."""
    used = [name for name in CLASSES if any(getattr(row.judged, name) for row in rows)]
    made = _table([*(CLASSES[name][0] for name in used), "batch", "peak"])
    for row in rows:
        shares = row.shares
        made.add_row(
            _policy_cell(row),
            *(_per_cent(shares[name], judged=getattr(row.judged, name)) for name in used),
            f"{row.mean_batch:,.2f}",
            f"{row.peak_requests:,}",
        )
    said = "; ".join(": ".join(CLASSES[name]) for name in used)
    made.caption = Text(
        f"% of the slots, over the loaded steps. {said}. batch: requests that run at once, mean "
        f"and peak."
    )
    made.caption_justify = "left"
    return made


def service_tables(rows: list[WasteRow], console: Console) -> list[Table]:
    """What the memory does: requests completed, and what is done twice or waited for.

    One table, or two where the console is too narrow for it.
    """
    timed = any(row.requests_per_s for row in rows)
    steps = ("done/1k", lambda row: row.completed_per_1000_steps, ",.1f", "done in 1,000 steps")
    rates: list[_Column] = [
        ("req/s", lambda row: row.requests_per_s or 0.0, ",.3g", "requests completed a second"),
        ("tok/s", lambda row: row.tokens_per_s or 0.0, ",.0f", "output tokens a second"),
        ("good/s", lambda row: row.goodput_per_s or 0.0, ",.3g", "requests that met the SLO"),
        ("span s", _makespan_s, ",.5g", "seconds from the first arrival to the last token"),
    ]
    columns: list[_Column] = [
        *(rates if timed else [steps]),
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
    columns = [
        column
        for column in columns
        if any(column[1](row) or (column[0] == "hits" and _looks_up(row)) for row in rows)
    ]
    first = [column for column in columns if column in rates or column is steps]
    whole = _service_table(rows, columns, waits=True)
    wide = console.options.update(max_width=1000)
    if console.measure(whole, options=wide).maximum <= console.width:
        return [whole]
    return [
        _service_table(rows, first, waits=False),
        _service_table(rows, columns[len(first) :], waits=True),
    ]


def _service_table(rows: list[WasteRow], columns: list[_Column], *, waits: bool) -> Table:
    made = _table(head for head, *_ in columns)
    if waits:
        made.add_column("waits for")
    for row in rows:
        cells = [
            format(of(row), style) if of(row) or (head == "hits" and _looks_up(row)) else "-"
            for head, of, style, _ in columns
        ]
        made.add_row(_policy_cell(row), *cells, *([_waits(row)] if waits else []))
    said = "; ".join(meaning for head, _, _, meaning in columns)
    if waits:
        said += "; waits for: why the head of the queue does, share of the steps"
    made.caption, made.caption_justify = Text(f"{said}."), "left"
    return made


def reading(rows: list[WasteRow], record: WasteRecord) -> list[str]:
    """Say what the tables come to."""
    apart = [*group_lines(rows, record), *tier_lines(rows, record)]
    rows = [row for row in rows if not row.tiers and not row.groups]
    lines = [_comparison(rows, record)] if len(rows) > 1 else []
    lines += [
        f"{policy_words(row.policy)}: {row.total.refused:,} of {row.total.arrived:,} requests were "
        f"refused, being longer than the pool or than max-model-len."
        for row in rows
        if row.total.refused
    ]
    lines += [said for row in rows if (said := _limited(row) or _nothing_found(row))]
    stream = next(each for each in record.streams if each.label == rows[0].stream) if rows else None
    if stream is not None and stream.tenants:
        lines += quota_lines(rows, stream)
    unloaded = [policy_words(row.policy) for row in rows if not row.loaded.steps]
    if unloaded:
        lines.append(
            f"{'; '.join(unloaded)}: never loaded after the warm-up; judged by the whole run."
        )
    return lines + apart


def _comparison(rows: list[WasteRow], record: WasteRecord) -> str:
    if not all(served_alike(row, rows[0]) for row in rows):
        return (
            "These policies did not serve the same requests, so none is called better: make room "
            "for the longest request, or cut it off with :max_len=N behind the stream."
        )
    idle = max(rows, key=lambda row: _nobody_waits(row.judged))
    share = _nobody_waits(idle.judged)
    if share > IDLE_POOL:
        # Tokens held then follow the load, whatever the policy.
        best, worst = max(rows, key=_filled), min(rows, key=_filled)
        most, fewest = f"{_filled(best):.1%}", f"{_filled(worst):.1%}"
        said = (
            f"The load does not fill the pool: {share:.0%} of it is idle under "
            f"{policy_words(idle.policy)}. Of the slots that it allocates, "
        )
        if most == fewest:
            return f"{said}each policy fills {most}."
        return (
            f"{said}{policy_words(best.policy)}, fills {most}; "
            f"{policy_words(worst.policy)}, {fewest}."
        )
    if not (least := min(row.judged.token_fraction for row in rows)):
        empty = next(row for row in rows if not row.judged.token_fraction)
        return f"{policy_words(empty.policy)}, holds nothing at all."
    if all(row.requests_per_s for row in rows):
        best, worst = max(rows, key=_rate), min(rows, key=_rate)
        ratio = _rate(best) / _rate(worst)
        error = NOTHING if record.clock is None else record.clock.error
        if ratio <= 1 + error:
            return (
                f"All complete the same requests a second within {100 * error:.2g}%, which is what "
                f"the clock cannot tell apart."
            )
        if unsure := _drawings_differ(best, worst, record):
            return unsure
        said = (
            f"{policy_words(best.policy)}, completes {ratio:.3g}x the requests a second that "
            f"{policy_words(worst.policy)}, completes in the same pool"
        )
        return said + _more_held(best, worst, record.pool.gibibytes) + "."
    best = max(rows, key=lambda row: row.judged.token_fraction)
    worst = min(rows, key=lambda row: row.judged.token_fraction)
    more = (best.judged.token_fraction - least) * record.pool.gibibytes
    if (ratio := best.judged.token_fraction / least) <= 1 + NOTHING:
        return f"All hold the same tokens within {NOTHING:.1%}."
    return (
        f"{policy_words(best.policy)}, holds {ratio:.3g}x the tokens "
        f"that {policy_words(worst.policy)}, holds in the same pool: {more:.2f} GiB more."
    )


def _drawings_differ(best: WasteRow, worst: WasteRow, record: WasteRecord) -> str:
    """Say that one policy is the faster on some drawings of the stream only; or nothing."""
    gains = [
        _rate(rows[best.policy]) / _rate(rows[worst.policy]) - 1
        for rows in record.drawings_of(best.stream).values()
        if best.policy in rows and worst.policy in rows and _rate(rows[worst.policy])
        if not (rows[best.policy].groups or rows[worst.policy].groups)
    ]
    if not gains or (middle := mean(gains)) > (half := margin(gains)):
        return ""
    return (
        f"{policy_words(best.policy)}, completes {middle:+.1%} requests a second against "
        f"{policy_words(worst.policy)}, in the mean of {len(gains)} drawings, but between "
        f"{middle - half:+.1%} and {middle + half:+.1%}: it cannot be told from nothing."
    )


def _more_held(best: WasteRow, worst: WasteRow, gibibytes: float) -> str:
    """Say that more tokens are held, where each stands for one that is read."""
    if any(row.sharing > 1 or getattr(row.policy, "sliding_window", None) for row in (best, worst)):
        return ""
    held, less = best.judged.token_fraction, worst.judged.token_fraction
    if held <= less:
        return ""
    return f", and holds {held / less:.1f}x the tokens: {(held - less) * gibibytes:.2f} GiB more"


def _nobody_waits(judged: Counters) -> float:
    """Share of the pool that is free although nobody is kept waiting by a limit of the policy."""
    limited = judged.waiting_limit + judged.waiting_budget
    if limited > IDLE_POOL * judged.steps:
        return 0.0
    return judged.share(judged.free_idle)


def _limited(row: WasteRow) -> str:
    """Say that a limit of the policy, and not the load, leaves the pool idle; or nothing."""
    judged = row.judged
    name, steps = max(
        (("max-running", judged.waiting_limit), ("budget", judged.waiting_budget)),
        key=lambda each: each[1],
    )
    idle = judged.share(judged.free_idle)
    if idle <= IDLE_POOL or steps <= IDLE_POOL * judged.steps:
        return ""
    return (
        f"{policy_words(row.policy)}: {name} keeps {idle:.0%} of the pool idle; somebody waits for "
        f"it in {steps / judged.steps:.0%} of the steps."
    )


def _looks_up(row: WasteRow) -> bool:
    return row.judged.queried_tokens > 0


def _nothing_found(row: WasteRow) -> str:
    """Say why a prefix cache finds nothing; or nothing."""
    total, size = row.total, getattr(row.policy, "block_size", 1)
    if not total.queried_tokens or total.hit_tokens:
        return ""
    why = f"no two prompts share a whole block of {size:,} tokens, which is what is kept"
    # Who was preempted looks for its own blocks when it comes back.
    if total.ghost_hits and not total.preemptions:
        why = f"{total.ghost_hits:,} blocks were evicted before they were asked for again"
    return (
        f"{policy_words(row.policy)}: 0 % of {total.queried_tokens:,} prompt tokens found: {why}."
    )


def _rate(row: WasteRow) -> float:
    return row.requests_per_s or 0.0


def _makespan_s(row: WasteRow) -> float:
    return 0.0 if row.service is None else row.service.makespan_ns / 1e9


def _filled(row: WasteRow) -> float:
    judged = row.judged
    return judged.token / judged.allocated if judged.allocated else 0.0


def _policy_cell(row: WasteRow) -> Text:
    # Wrapped between options, not within one.
    return Text(row.typed.replace(",", ", "))


def _stream_title(stream: ServedStream, record: WasteRecord) -> str:
    arrive = "a backlog" if record.clients is None else f"{record.clients:,} at a time"
    arrive = "timed" if stream.timed else arrive
    title = (
        f"{stream.label}: {stream.requests:,} requests, {arrive}; mean prompt "
        f"{stream.mean_prompt_tokens:,.0f}, output {stream.mean_output_tokens:,.0f}, longest "
        f"{stream.longest_request:,} tokens; pool of {record.pool.slots:,} slots, "
        f"{record.pool.gibibytes:.4g} GiB"
    )
    if stream.without_output:
        title += f"; {stream.without_output:,} without output left out"
    if stream.too_long:
        title += f"; {stream.too_long:,} longer than max_len left out"
    if stream.ignored:
        title += f"; not read: {one_line(', '.join(stream.ignored), limit=60)}"
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
    done = sum(not row.inferred for row in record.rows)
    said = Text(f"{done} of {record.asked} simulations in {record.elapsed_s:.1f} s")
    if not record.complete:
        said = Text("incomplete: ", style="bold yellow").append(said)
    if record.rows:
        console.print(Text(clock_line(record)))
    if record.tiers:
        console.print(Text(tiers_line(record.tiers)))
    if record.capacity is not None:
        console.print(Text(capacity_words(record.capacity)))
    if good := slo_words(record):
        console.print(Text(f"good: {good}"))
    console.print(said.append(f", pagedbench {machine.pagedbench}, {machine.cpu}", style="dim"))


def _table(figures: Iterable[str]) -> Table:
    made = table("policy", figures, name_width=20, collapse_padding=True)
    made.columns[0].min_width = 16
    return made
