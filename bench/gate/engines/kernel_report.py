"""`pagedbench compare --kernel`: in the terminal, and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from string import ascii_uppercase
from typing import Final

from rich.console import Console
from rich.text import Text

from bench.command.tables import CLOSE, say, table
from bench.command.words import one_line
from bench.gate.engines.kernel_record import Code, KernelRelease, KernelsRecord
from bench.gate.engines.markdown import rows_of
from bench.gate.engines.words import NOT_MEASURED, short, span, where
from bench.gate.report.markdown import cell, plain

FIGURES: Final = ("regs", "spills", "instructions", "/key")
"""Of one launch; the last is instructions of the main loop for one KV token."""


def show(record: KernelsRecord, console: Console) -> None:
    """Print a record."""
    verdicts = table("release", ("problems",), padding=CLOSE)
    verdicts.add_column("verdict")
    for each in record.releases:
        verdicts.add_row(Text(one_line(short(each.name))), _problems(each), Text(_verdict(each)))
    console.print(verdicts)
    for title, rows in _launches(record):
        code = table("release", ("launch", *FIGURES), padding=CLOSE)
        for name, launch, *figures in rows:
            code.add_row(*(Text(one_line(each)) for each in (short(name), launch)), *figures)
        say(console, title, "bold")
        console.print(code)
    for found in record.located:
        say(console, one_line(where(found)), "red")
        say(console, f"  replay: {found.replay}")
    for line in _troubles(record):
        say(console, line, "yellow")
    for line in _conditions(record):
        say(console, line)


def page(record: KernelsRecord) -> str:
    """The whole record, as markdown."""
    parts = []
    grid = _Grid.of(record.releases)
    problems = [found.check.partition(" at ")[2] for found in record.located]
    letters = dict(zip(problems, ascii_uppercase, strict=False))
    for kernel in dict.fromkeys(each.kernel for each in record.releases):
        parts += [f"## {cell(kernel)}"]
        mine = [each for each in record.releases if each.kernel == kernel]
        if grid is None:
            heads = ["release", "problems", "verdict"]
            rows = [[short(each.name), _problems(each), _verdict(each)] for each in mine]
        else:
            heads = ["release", *grid.columns]
            rows = grid.rows({each.name: [("", _letters(each, letters))] for each in mine})
            rows = [[first, *cells] for first, _, *cells in rows]
        parts += [rows_of([*map(cell, heads)], [[*map(cell, row)] for row in rows])]
    parts += ["## Since when and until when"]
    parts += [] if record.located else ["No release was found wrong."]
    for problem, found in zip(problems, record.located, strict=True):
        letter = f"{letters[problem]}: " if grid is not None else ""
        parts += [f"**{letter}{cell(where(found))}**", f"    {one_line(found.replay or '')}"]
    parts += ["## Machine code"]
    if grid is not None:
        parts += [
            f"In each cell: {', '.join(FIGURES)}; the last is the main loop's, for a KV token."
        ]
    for title, launches in _launches(record):
        heads = ["release", "launch", *FIGURES]
        rows = [[short(name), *figures] for name, *figures in launches]
        if grid is not None:
            heads = ["release", "launch", *grid.columns]
            rows = grid.rows(
                {
                    name: [(launch, ", ".join(figures)) for _, launch, *figures in run]
                    for name, run in groupby(launches, key=lambda each: each[0])
                }
            )
        lines = [[*map(cell, row)] for row in rows]
        parts += [f"### {cell(title)}", rows_of([*map(cell, heads)], lines)]
    parts += [plain(line) for line in _troubles(record)]
    parts += ["## Conditions", "\n".join(f"- {cell(line)}" for line in _conditions(record))]
    return "\n\n".join(parts) + "\n"


class _Grid:
    """Releases of a kernel, each with several other requirements: rows, and columns."""

    def __init__(self, names: Sequence[str]) -> None:
        parted = [name.partition(",")[::2] for name in names]
        self._firsts = list(dict.fromkeys(first for first, _ in parted))
        self._rests = list(dict.fromkeys(rest for _, rest in parted))
        self.columns = [short(rest) for rest in self._rests]

    @classmethod
    def of(cls, releases: Sequence[KernelRelease]) -> _Grid | None:
        """None where there is but one row, or one column, or one of them has no other."""
        names = [each.name for each in releases]
        grid = cls(names)
        few = min(len(grid._firsts), len(grid._rests)) < 2
        return None if few or "" in grid._rests else grid

    def rows(self, found: dict[str, list[tuple[str, str]]]) -> list[list[str]]:
        """By release: pairs of a label and a figure. Neighbours with the same are one row."""
        cells: list[tuple[str, list[list[str]]]] = []
        for first in self._firsts:
            mine = [dict(found.get(f"{first},{rest}", ())) for rest in self._rests]
            labels = dict.fromkeys(label for each in mine for label in each)
            lines = [[label, *(each.get(label, NOT_MEASURED) for each in mine)] for label in labels]
            cells.append((first, lines))
        return [
            [span([first for first, _ in run]), *line]
            for lines, run in ((lines, list(run)) for lines, run in groupby(cells, lambda c: c[1]))
            for line in lines
        ]


def _letters(release: KernelRelease, letters: dict[str, str]) -> str:
    """A verdict, by the letters of problems."""
    if release.checked is None:
        return NOT_MEASURED
    wrong = [letter for problem, letter in letters.items() if release.wrong_at.get(problem)]
    rest = [letter for problem, letter in letters.items() if problem not in release.wrong_at]
    said = f"wrong: {', '.join(wrong)}" if wrong else "right"
    return said + (f"; {', '.join(rest)} {NOT_MEASURED}" if rest else "")


def _problems(release: KernelRelease) -> str:
    return NOT_MEASURED if release.checked is None else f"{release.checked.problems:,}"


def _verdict(release: KernelRelease) -> str:
    if release.checked is None:
        return NOT_MEASURED
    wrong = release.checked.wrong
    others = [problem for problem, shows in release.wrong_at.items() if shows]
    if wrong is None:
        return "right" if not others else f"wrong at {'; '.join(others)}"
    return f"{wrong.check}: {'; '.join(others)}"


def _launches(record: KernelsRecord) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """By target and problem: the figures of each launch of each release."""
    titles = dict.fromkeys(
        (release.kernel, code.target, code.problem)
        for release in record.releases
        for code in _code(release)
    )
    for kernel, target, problem in titles:
        rows = []
        for release in record.releases:
            if release.kernel == kernel:
                mine = [c for c in _code(release) if (c.target, c.problem) == (target, problem)]
                empty = [("-", *(NOT_MEASURED for _ in FIGURES))]
                rows += [(release.name, *row) for row in [*map(_figures, mine)] or empty]
        yield f"{kernel} at {problem}, {target}", rows


def _code(release: KernelRelease) -> list[Code]:
    return release.compiled.code if release.compiled is not None else []


def _figures(code: Code) -> tuple[str, ...]:
    """A launch in a table."""
    per_key = code.instructions_per_key
    return (
        code.kernel,
        str(code.registers),
        str(code.spills),
        f"{code.instructions:,}",
        "-" if per_key is None else f"{per_key:.1f}",
    )


def _troubles(record: KernelsRecord) -> Iterator[str]:
    for each in record.releases:
        for step, why in each.trouble.items():
            yield one_line(f"{each.name}: {step} did not come to its end: {why}")
        for what, why in each.compiled.failures.items() if each.compiled is not None else ():
            yield one_line(f"{each.name}: does not compile for {what}: {why}")


def _conditions(record: KernelsRecord) -> list[str]:
    """What was done, on what."""
    asked = record.settings
    how = "Triton interpreted on a CPU" if asked.device == "cpu" else "on a GPU"
    tools = dict.fromkeys(
        f"triton {each.compiled.triton} ({', '.join(each.compiled.toolchains.values())})"
        for each in record.releases
        if each.compiled is not None
    )
    return [
        f"verdict: of {asked.problems:,} drawn problems at most, seed {asked.seed}, {how}; the "
        f"first that is wrong ends it, and is run in every other release of the kernel",
        f"machine code: compiled for {', '.join(asked.targets)} without a GPU; {', '.join(tools)}",
        f"Python {record.python}, torch {record.torch} where no other is named, pagedbench "
        f"{record.pagedbench}, {record.measured_on}",
    ]
