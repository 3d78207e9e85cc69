"""Releases as a chart: bytecodes for each operation, and the rate beside the anchor's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.command.options import check_chart
from bench.gate.engines.history import by_allocator
from bench.gate.engines.record import EnginesRecord, Release
from bench.gate.engines.words import Heat, raced, short, version

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS: Final = ((False, "#0072b2", "o", "caching off"), (True, "#d55e00", "s", "caching on"))
"""Okabe and Ito's colours, and markers for those who see none."""


def draw(record: EnginesRecord, file: Path) -> None:
    """Draw the releases into a file."""
    check_chart(file)
    figure_of(record).savefig(file, dpi=160)


def figure_of(record: EnginesRecord) -> Figure:
    """A column of two panels for each allocator that has several releases."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    allocators = {
        name: releases
        for name, releases in by_allocator(record.releases).items()
        if len(releases) > 1
    } or by_allocator(record.releases)
    widths = [max(len(releases), 3) for releases in allocators.values()]
    figure = Figure(figsize=(2.0 + 0.42 * sum(widths), 6.4))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(2, len(allocators), squeeze=False, sharex="col", width_ratios=widths)
    for (name, releases), (above, below) in zip(allocators.items(), panels.T, strict=True):
        above.set_title(name, loc="left", fontsize=10)
        _bytecodes(above, releases)
        _rates(below, releases, record.anchor)
        below.set_xticks(range(len(releases)), [version(each.name) for each in releases])
        below.tick_params(axis="x", labelrotation=90, labelsize=8)
    panels[0, 0].set_ylabel("bytecodes for each operation")
    panels[1, 0].set_ylabel(f"ops per CPU-second,\nof {short(record.anchor)}'s")
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _bytecodes(axes: Axes, releases: Sequence[Release]) -> None:
    for caching, colour, marker, label in LOOKS:
        counted = [each.bytecodes_with(caching=caching) for each in releases]
        found = [
            (place, each.per_operation)
            for place, each in enumerate(counted)
            if each is not None and each.per_operation is not None
        ]
        xs, ys = [x for x, _ in found], [y for _, y in found]
        axes.plot(xs, ys, color=colour, marker=marker, markersize=4, label=label)
    wrong = [place for place, each in enumerate(releases) if any(each.shows.values())]
    for place in wrong:
        axes.axvspan(place - 0.5, place + 0.5, color="#dddddd", zorder=0, linewidth=0)
    if wrong:
        words = "grey: something was found"
        axes.annotate(words, (0.02, 0.96), xycoords="axes fraction", fontsize=8, va="top")
    axes.set_ylim(bottom=0)


def _rates(axes: Axes, releases: Sequence[Release], anchor: str) -> None:
    for caching, colour, marker, _ in LOOKS:
        found = [
            (place, interval)
            for place, each in enumerate(releases)
            if (race := raced(each, Heat("mixed", caching))) is not None
            and (interval := race.ratio) is not None
        ]
        for place, interval in found:
            if interval.low is not None and interval.high is not None:
                axes.plot([place, place], [interval.low, interval.high], color=colour)
        axes.plot(
            [place for place, _ in found],
            [interval.median for _, interval in found],
            color=colour,
            marker=marker,
            markersize=4,
            linestyle="none",
        )
    axes.axhline(1, color="#444444", linewidth=0.8)
    axes.set_xlim(-0.5, len(releases) - 0.5)
    axes.set_ylim(bottom=0)
