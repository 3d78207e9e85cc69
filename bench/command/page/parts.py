"""What a page is made of. All text in it is data: the template escapes it.

A job says what its record comes to as a `Sheet`; how it looks is `assets/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any, ClassVar, Final, Literal

from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from bench.command.words import printable

Tone = Literal["", "good", "bad", "unsure", "dim"]
"""How a verdict, a cell or a line is marked: by a sign and a colour."""

TONES: Final[tuple[tuple[str, Tone], ...]] = (
    ("red", "bad"),
    ("green", "good"),
    ("yellow", "unsure"),
    ("dim", "dim"),
)

WIDTH: Final = 110
"""Columns of the terminal's report on a page."""

MAX_CELLS: Final = 20_000
"""Cells of one table that a page shows; the record has all."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A field of a table."""

    text: str
    tone: Tone = ""
    hint: str = ""
    """Said on pointing at it; never the only place where it is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows below a head; the first column names the row."""

    kind: ClassVar = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    dense: bool = False
    """A map: many small cells, and heads that stand upright."""
    left_out: int = 0
    """Rows that are not shown."""

    @classmethod
    def of(
        cls,
        caption: str,
        head: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        dense: bool = False,
    ) -> Table:
        """A table of anything that has words."""
        made = [
            [each if isinstance(each, Cell) else Cell(str(each)) for each in row] for row in rows
        ]
        most = max(1, MAX_CELLS // max(1, len(head)))
        return cls(
            caption=caption,
            head=head,
            rows=made[:most],
            dense=dense,
            left_out=max(0, len(made) - most),
        )

    @classmethod
    def like(cls, table: RichTable, caption: str = "") -> Table:
        """A table of the terminal's report."""
        columns = [[_cell(each) for each in column.cells] for column in table.columns]
        said = [table.title, table.caption]
        return cls.of(
            caption or " ".join(_text(each).plain for each in said if each),
            [_text(column.header).plain.replace("\n", " ") for column in table.columns],
            list(zip(*columns, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class Lines:
    """Sentences, one below the other."""

    kind: ClassVar = "lines"
    lines: Sequence[str]
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing of `bench.command.page.pictures`, and what it shows."""

    kind: ClassVar = "picture"
    svg: str
    """Made here, with every name in it escaped."""
    caption: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """Something to run, with a button that copies it."""

    kind: ClassVar = "command"
    text: str
    says: str = ""


@dataclass(frozen=True, slots=True)
class Verbatim:
    """Text as it is, such as a report of the terminal."""

    kind: ClassVar = "verbatim"
    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a pool in one picture of a film, or of a sequence in a problem."""

    label: str
    """Its number."""
    state: str
    """`owned`, `shared`, `idle`, `free`, `lost`, or of a problem `seen`, `unseen`."""
    owner: str = ""
    shade: int = 0
    """Which colour, of those that owners have."""
    hint: str = ""
    changed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Blocks in a row, with a name before them."""

    name: str
    blocks: Sequence[Block]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One picture of a film."""

    title: str
    strips: Sequence[Strip]
    lines: Sequence[str] = ()
    wrong: bool = False
    """Whether this is where it goes wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """Pictures that follow each other; without scripts they stand below each other."""

    kind: ClassVar = "film"
    caption: str
    frames: Sequence[Frame]
    legend: Sequence[tuple[str, str]]
    """State and what it means."""
    left_out: int = 0
    """Frames before the first one that is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """A picture of the pool through time to zoom into, and what lies below each of its points."""

    kind: ClassVar = "map"
    svg: str
    caption: str
    data: Mapping[str, Any]
    """See `assets/page.js`: the same as runs, for pointing and for zooming."""


Piece = Table | Lines | Picture | Command | Verbatim | Film | Map


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Pieces below one heading."""

    title: str
    pieces: Sequence[Piece]
    folded: bool = False
    """Whether a reader has to open it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A record on a page: the verdict, what matters, everything."""

    kind: str
    """The command that made it, as `check`."""
    name: str
    """Of what it is."""
    verdict: str
    """In one sentence."""
    tone: Tone
    parts: Sequence[Part]
    """What matters first."""
    facts: Mapping[str, object]
    """Where and how it was made."""
    commands: Sequence[Command] = ()
    """That repeat it."""


def terminal(show: Callable[[Console], object], title: str = "As in the terminal") -> Part:
    """The report that a command prints, as text."""
    console = Console(file=StringIO(), width=WIDTH, color_system=None, legacy_windows=False)
    show(console)
    assert isinstance(console.file, StringIO)
    text = re.sub(r"[ \t]+$", "", printable(console.file.getvalue()), flags=re.MULTILINE)
    return Part(title=title, pieces=[Verbatim(text.strip("\n"))], folded=True)


def plain_sheet(
    kind: str, name: str, given: Mapping[str, Any], show: Callable[[Console], object]
) -> Sheet:
    """What has nothing to draw: the report of the terminal, and the record's own fields."""
    facts = {key: value for key, value in given.items() if isinstance(value, str | int | float)}
    return Sheet(
        kind=kind,
        name=name,
        verdict=name,
        tone="",
        parts=[replace(terminal(show, "What was found"), folded=False)],
        facts=flat("", facts),
    )


def flat(prefix: str, record: Mapping[str, object]) -> dict[str, object]:
    """Fields of an environment that say something."""
    return {
        f"{prefix}{name.replace('_', ' ')}": value
        for name, value in record.items()
        if value not in (None, "", [], {})
    }


def _text(given: object) -> Text:
    return given if isinstance(given, Text) else Text.from_markup(str(given))


def _cell(given: object) -> Cell:
    while isinstance(given, Padding):
        given = given.renderable
    text = _text(given)
    styles = " ".join([str(text.style), *(str(span.style) for span in text.spans)])
    tone: Tone = next((tone for word, tone in TONES if word in styles), "")
    return Cell(printable(text.plain), tone)
