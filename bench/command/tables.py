"""What the reports print with: lines as they are, and tables without frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO
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


class MarkdownPage(Console):
    """A console that keeps what is printed, as markdown."""

    def __init__(self) -> None:
        super().__init__(file=StringIO(), width=10_000)
        self.parts: list[str] = []

    def print(self, *objects: Any, **_: Any) -> None:
        """Keep tables as tables, and all else as paragraphs."""
        for each in objects:
            if isinstance(each, Table):
                about = [each.title, each.caption]
                title, caption = (_cell(text) if text else "" for text in about)
                self.parts += [part for part in (title, _as_markdown(each), caption) if part]
            elif text := str(each).strip():
                self.parts.append(text)

    def text(self) -> str:
        """The page."""
        return "\n\n".join(self.parts) + "\n"


def _as_markdown(made: Table) -> str:
    columns = made.columns
    rule = ["---" if column.justify != "right" else "---:" for column in columns]
    heads = [_cell(column.header) for column in columns]
    rows = [map(_cell, row) for row in zip(*(column.cells for column in columns), strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def _cell(content: object) -> str:
    return str(content).replace("|", "\\|").replace("\n", " ")


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
