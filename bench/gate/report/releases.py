"""`pagedbench compare` in the terminal: each release against the anchor, and machine by machine."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean
from typing import Final

from rich.console import Console
from rich.text import Text

from bench.command.tables import CLOSE, say, table
from bench.command.words import one_line, percent, seconds
from bench.gate.record import GateRecord
from bench.gate.releases import Cell, ChainRecord, share_of_copy
from bench.gate.report.words import bounds, contestant, environments

_STYLES: Final = {"fail": "red", "inconclusive": "yellow"}


def show_chain(record: ChainRecord, console: Console) -> None:
    """Print a chain: a table for each release but the anchor."""
    for place, release in enumerate(record.releases):
        if release.name == record.anchor:
            continue
        title = f"{release.name} against {record.anchor}"
        say(console, one_line(title), style="bold")
        heads = ("anchor", "95 % bounds", "step", "one call", "of copy", "verdict")
        rows = table("benchmark", heads, padding=CLOSE)
        ratios = []
        for row in record.rows:
            cell = row.cells[place]
            if cell.to_anchor is not None:
                ratios.append(cell.to_anchor.estimate.ratio)
            rows.add_row(Text(one_line(row.benchmark)), *_cells(cell))
        console.print(rows)
        if ratios:
            mean = percent(geometric_mean(ratios))
            console.print(Text(f"geometric mean over {len(ratios)}: {mean}"))
        if not release.same_key:
            words = (
                "measured under another key than the anchor: ratios compare, seconds do not "
                f"({', '.join(release.key)})"
            )
            say(console, words if release.key else "it was not measured")
        console.print()
    for run in record.runs:
        words = f"{run.head} against {run.base}: {run.record.verdict}: {run.record.reason}"
        style = _STYLES.get(run.record.verdict, "red" if run.record.exit_code else "green")
        say(console, one_line(words), style=style)


def show_machines(records: Sequence[GateRecord], console: Console) -> None:
    """Print records of several machines: the ratio on each, and the share of its own copy."""
    for number, record in enumerate(records, start=1):
        said = f"{number}: {contestant(record.head)} against {contestant(record.base)}"
        console.print(Text(one_line(f"{said}; {'; '.join(environments(record))}")), soft_wrap=True)
    numbers = [str(number) for number in range(1, len(records) + 1)]
    rows = table("head against base, and share of copy", numbers, padding=CLOSE)
    keys = dict.fromkeys(each.key for record in records for each in record.benchmarks if each.timed)
    for key in keys:
        rows.add_row(Text(one_line(key)), *(_on_machine(record, key) for record in records))
    console.print(rows)
    console.print(
        Text(
            "each ratio was measured side by side on its machine; times of different machines are "
            "not compared"
        )
    )


def _cells(cell: Cell) -> list[str | Text]:
    link = cell.to_anchor
    judged = link or cell.to_previous
    verdict = (judged and judged.verdict) or "-"
    return [
        "-" if link is None else percent(link.estimate.ratio),
        "-" if link is None else bounds(link.estimate),
        "-" if cell.step is None else percent(cell.step),
        "-" if cell.seconds is None else seconds(cell.seconds),
        "-" if cell.copy_share is None else f"{100 * cell.copy_share:.0f} %",
        Text(verdict, style=_STYLES.get(verdict, "")),
    ]


def _on_machine(record: GateRecord, key: str) -> str:
    found = record.benchmark(key)
    if found is None or found.estimate is None:
        return "-"
    share = share_of_copy(record, key, "head")
    said = percent(found.estimate.ratio)
    return said if share is None else f"{said}, {100 * share:.0f} %"
