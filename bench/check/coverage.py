"""The coverage matrix in the terminal: a row for each feature, a column for each check."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import Final

from rich.console import Console
from rich.text import Text

from bench.check.record import CheckRecord, KernelRecord
from reference.attention.catalogue import CHECKS
from reference.attention.coverage import Cell
from reference.attention.verdict import Status

NAME_WIDTH: Final = 16
WIDTH: Final = 80
CELL_WIDTH: Final = 5
"""Columns: with eleven checks a line has 71."""

LEGEND: Final = (
    "N passed  !N failed  ~N failed as expected  ? not run",
    "- not supported  . no problem with it can show the check",
)
_MARKS: Final = {"not run": "?", "not supported": "-", "no problem shows it": "."}
_STYLES: Final = {
    "passed": "green",
    "failed": "bold red",
    "failed as expected": "yellow",
    "not run": "yellow",
    "not supported": "dim",
    "no problem shows it": "dim",
}


def show_coverage(record: CheckRecord, console: Console) -> None:
    """Print the matrix of each kernel."""
    for kernel in record.kernels:
        for line in matrix(kernel):
            console.print(line, soft_wrap=True)
        console.print()


def matrix(kernel: KernelRecord) -> list[Text]:
    """The lines of one kernel's matrix."""
    names = checks_of(kernel)
    lines = [Text(f"{kernel.name}: problems by what they show and by check", style="bold")]
    lines += _header(names)
    for group, rows in groupby(kernel.coverage, key=lambda row: row.group):
        lines.append(Text(group, style="bold"))
        for row in rows:
            line = Text(f"  {_short(row.feature):<{NAME_WIDTH - 2}}")
            for name in names:
                line.append(_cell(row.cells[name]))
            lines.append(line)
    lines += _missed(kernel)
    lines += [Text(f"{check}: not run: {why}", "yellow") for check, why in kernel.unseen.items()]
    return lines + [Text(line, style="dim") for line in LEGEND]


def checks_of(kernel: KernelRecord) -> list[str]:
    """The checks of its matrix: some are there only for kernels that say that they can do more."""
    shown = {name for row in kernel.coverage for name in row.cells}
    return [check.name for check in CHECKS if check.name in shown]


def _missed(kernel: KernelRecord) -> list[Text]:
    """The pairs that never met."""
    if not kernel.pairs.missed:
        return []
    words = f"never at once: {', '.join(kernel.pairs.missed)}"
    return [Text(line, style="yellow") for line in textwrap.wrap(words, WIDTH)]


def _header(names: list[str]) -> list[Text]:
    lines = []
    for number in reversed(range(len(names))):
        end = NAME_WIDTH + CELL_WIDTH * (number + 1)
        bars = f"{'|':>{CELL_WIDTH}}" * (len(names) - number - 1)
        lines.append(Text(f"{names[number]:>{end}}{bars}"))
    return lines


def _cell(cell: Cell) -> Text:
    style = _STYLES[cell.state]
    if cell.state in _MARKS:
        return Text(f"{_MARKS[cell.state]:>{CELL_WIDTH}}", style)
    if cell.state == "passed":
        return Text(f"{cell.counts[Status.PASSED]:>{CELL_WIDTH}}", style)
    mark = "!" if cell.state == "failed" else "~"
    return Text(f"{f'{mark}{cell.failed}':>{CELL_WIDTH}}", style)


def _short(feature: str) -> str:
    """`dtype=bf16` under the heading `query dtype` is `bf16`; a flag keeps its name."""
    return feature.partition("=")[2] or feature
