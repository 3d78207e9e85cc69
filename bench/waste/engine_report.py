"""`pagedbench waste --server` in the terminal: an engine's scheduler, ours, and the differences."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.command.tables import table
from bench.command.words import percent, seconds
from bench.waste.engine import BesideRecord, BesideRow, Part, Side
from bench.waste.policies import policy_name

_Figure = tuple[str, Callable[[Side], float | None], Callable[[float], str]]


def _plain(value: float) -> str:
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _time(name: str, share: str) -> Callable[[Side], float | None]:
    def of(side: Side) -> float | None:
        found = getattr(side.service, name)
        return None if found is None else getattr(found, f"{share}_ns") / 1e9

    return of


FIGURES: tuple[_Figure, ...] = (
    ("requests/s", lambda side: side.requests_per_s, _plain),
    *(
        (f"{words} {share}", _time(name, share), seconds)
        for name, words in (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "end to end"))
        for share in ("p50", "p90", "p99")
    ),
    ("steps", lambda side: side.steps, _plain),
    ("running, mean", lambda side: side.running, _plain),
    ("running, peak", lambda side: side.peak_running, _plain),
    ("waiting, mean", lambda side: side.waiting, _plain),
    ("blocks in use", lambda side: side.blocks, _share),
    ("preemptions", lambda side: side.preemptions, _plain),
    ("prefix hits", lambda side: side.hit_rate, _share),
)


_LEVELS: tuple[Callable[[Part], str], ...] = (
    lambda part: f"{part.running:.1f}",
    lambda part: f"{part.waiting:.1f}",
    lambda part: f"{part.blocks:.0%}",
    lambda part: f"{part.preemptions:,}",
    lambda part: f"{part.hit_tokens:,}",
)
"""What is shown of each tenth, in the order of the columns."""


def show_beside(record: BesideRecord, console: Console) -> None:
    """Print a record."""
    for stream in record.streams:
        rows = [row for row in record.rows if row.stream == stream.label]
        for row in rows:
            title = f"{stream.label}: {stream.requests - row.refused:,} requests, "
            title += f"{policy_name(row.policy)}{' + groups' if row.grouped else ''}, "
            title += f"{record.slots:,} slots"
            if row.refused:
                title += f"; {row.refused:,} that can never fit left out"
            console.print(Text(title, style="bold"))
            console.print(_figures(row, record.engine))
            if len(rows) == 1:
                console.print(_through_time(row, record.engine))
            console.print()
        if (tau := record.tau(stream.label)) is not None:
            console.print(
                Text(
                    f"Both rank the {len(rows)} policies by requests a second: Kendall's tau "
                    f"{tau:.2f} (1: the same order)."
                )
            )
    if not record.complete:
        console.print(Text("incomplete: interrupted", style="bold yellow"))
    console.print(Text(f"clock of both: {record.clock}"))
    console.print(
        Text(
            f"{record.engine}: its own scheduler and cache manager, unmodified, with an executor "
            f"that computes nothing. Private code: another release may differ.",
            style="dim",
        )
    )


def _figures(row: BesideRow, engine: str) -> Table:
    made = table("", [engine, "pagedbench", "difference"])
    for name, of, written in FIGURES:
        theirs, ours = of(row.engine), of(row.ours)
        if theirs is None or ours is None or not (theirs or ours):
            continue
        made.add_row(
            name, written(theirs), written(ours), percent(ours / theirs) if theirs else "-"
        )
    return made


def _through_time(row: BesideRow, engine: str) -> Table:
    made = table("until", ["running", "waiting", "blocks", "preempted", "hit tokens"])
    for both in zip(row.engine.parts, row.ours.parts, strict=False):
        if not (there := [part for part in both if part is not None]):
            continue
        made.add_row(
            seconds(there[0].until_s),
            *(
                " / ".join("-" if part is None else written(part) for part in both)
                for written in _LEVELS
            ),
        )
    made.caption = Text(f"{engine} / pagedbench: means of each tenth, and totals up to its end.")
    made.caption_justify = "left"
    return made
