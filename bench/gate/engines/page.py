"""Releases of allocators and kernels on a page: as lines, with what was found in which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from rich.console import Console

from bench.command.page.parts import Command, Lines, Part, Picture, Piece, Sheet, plain_sheet
from bench.command.page.pictures import COLOURS, MARKERS, as_svg, new_figure
from bench.command.words import one_line, some_of
from bench.gate.engines.kernel_record import KernelsRecord
from bench.gate.engines.kernel_report import show as show_kernels
from bench.gate.engines.plot import figure_of
from bench.gate.engines.record import EnginesRecord, Located
from bench.gate.engines.report import show as show_engines
from bench.gate.engines.words import short, version, where

MOST: Final = 12
"""Launches that are drawn."""


def engines_sheet(record: EnginesRecord) -> Sheet:
    """Releases of allocators."""
    words = (
        "Bytecodes for each operation, and operations per CPU-second beside the anchor's, from "
        "release to release. Blue circles: caching off; orange squares: on."
    )
    figure = figure_of(record)
    drawn = Picture(as_svg(figure, said=words), words, wide=figure.get_figwidth() > 6)
    return _sheet(record, [drawn], lambda console: show_engines(record, console))


def kernels_sheet(record: KernelsRecord) -> Sheet:
    """Releases of kernels."""
    drawn = [_machine_code(record)] if any(each.compiled for each in record.releases) else []
    return _sheet(record, drawn, lambda console: show_kernels(record, console))


def _sheet(
    record: EnginesRecord | KernelsRecord,
    drawn: Sequence[Picture],
    show: Callable[[Console], object],
) -> Sheet:
    names = some_of([short(each.name) for each in record.releases])
    given = record.model_dump(mode="json", exclude={"releases", "located", "settings"})
    plain = plain_sheet("compare", names, given, show)
    found = list(_found(record.located))
    releases = [Part(title="Releases", pieces=drawn)] if drawn else []
    said = [where(each) for each in record.located]
    verdict = f"{some_of(said)}." if said else "No release was found wrong."
    return replace(
        plain,
        verdict=verdict if record.complete else f"{verdict} It was interrupted.",
        tone="bad" if record.exit_code == 1 else "good" if record.complete else "unsure",
        parts=[*([Part(title="Found", pieces=found)] if found else []), *releases, *plain.parts],
    )


def _found(located: Sequence[Located]) -> Iterator[Piece]:
    for each in located:
        yield Lines([where(each)], "bad")
        if each.replay is not None:
            yield Command(each.replay, "To see it again:")


def _machine_code(record: KernelsRecord) -> Picture:
    """Registers and instructions of each launch, a line through the releases of its kernel."""
    lines: dict[str, list[tuple[int, float, float | None]]] = {}
    for place, release in enumerate(record.releases):
        for code in release.compiled.code if release.compiled is not None else ():
            name = f"{release.kernel}: {code.kernel} at {code.problem}, {code.target}"
            lines.setdefault(name, []).append((place, code.registers, code.instructions_per_key))
    figure = new_figure(7.5, 4.2)
    registers, instructions = figure.subplots(2, 1, sharex=True)
    for number, (name, points) in enumerate(list(lines.items())[:MOST]):
        look: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        registers.plot(
            [at for at, _, _ in points],
            [count for _, count, _ in points],
            label=one_line(name, limit=60),
            **look,
        )
        known = [(at, per_key) for at, _, per_key in points if per_key is not None]
        instructions.plot([at for at, _ in known], [per_key for _, per_key in known], **look)
    for place, release in enumerate(record.releases):
        if (release.checked is not None and release.checked.wrong) or any(
            release.wrong_at.values()
        ):
            registers.axvspan(place - 0.5, place + 0.5, color="#888888", alpha=0.25, linewidth=0)
    registers.set_ylabel("registers")
    instructions.set_ylabel("instructions\nfor a KV token")
    for axes in (registers, instructions):
        axes.set_ylim(bottom=0)
    names = [one_line(version(each.name), limit=20) for each in record.releases]
    instructions.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    words = (
        "Registers of a thread, and instructions of the main loop for a KV token, of each launch "
    )
    words += "from release to release. Grey: the release is wrong."
    return Picture(as_svg(figure, said=words), words, wide=True)
