"""What the reports print with: lines as they are, and tables without frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

CLOSE: Final = (0, 1, 0, 0)
"""Padding of tables with many columns."""


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line as it is, however long: it may be there to be copied."""
    console.print(Text(line, style=style), soft_wrap=True)


def table(
    first: str,
    figures: Iterable[str] = (),
    rows: Iterable[Sequence[str | Text]] = (),
    *,
    name_width: int | None = None,
    **how: Any,
) -> Table:
    """A table of names, which fold where they are longer than `name_width`, and their figures."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, **how)
    made.add_column(first, overflow="fold", max_width=name_width)
    for head in figures:
        made.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made
