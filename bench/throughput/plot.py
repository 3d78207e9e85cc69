"""The roofline of `pagedbench throughput`: what was reached of what the device does at best.

Abscissa: floating-point operations for each byte of keys and values. Below the slope memory is the
limit, right of its end the matrix units are. Both roofs are those of the same run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.command.options import check_chart
from bench.machine.roof import RoofRecord
from bench.throughput.record import TIMED, PointRecord, ThroughputRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours; a marker for each subject as well, for those who see no colours.
LOOKS: Final = (
    ("#0072b2", "o"),
    ("#d55e00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#e69f00", "v"),
    ("#56b4e9", "P"),
    ("#000000", "X"),
)

PANELS: Final = (("uniform batches", False), ("ragged batches", True))


def draw(record: ThroughputRecord, file: Path) -> None:
    """Draw the roofline to a file."""
    check_chart(file)
    figure_of(record).savefig(file, dpi=160)


def figure_of(record: ThroughputRecord) -> Figure:
    """The points of a record, uniform and ragged batches apart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(
        dict.fromkeys(
            each.name for point in record.points for each in point.subjects if each.status == TIMED
        )
    )
    looks = {name: LOOKS[index % len(LOOKS)] for index, name in enumerate(names)}
    panels = [(title, [p for p in record.points if p.ragged is ragged]) for title, ragged in PANELS]
    panels = [panel for panel in panels if panel[1]] or [("no point was timed", [])]
    figure = Figure(figsize=(6.5 * len(panels), 5.2))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    where = record.environment
    figure.suptitle(
        f"{where.device}, torch {where.torch}, triton {where.triton}", x=0.01, ha="left"
    )
    shared = None
    for place, (title, points) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1, sharex=shared, sharey=shared)
        shared = shared or axes
        axes.set_title(title, loc="left", fontsize=10)
        _points(axes, points, looks)
        if record.roof is not None:
            _roofs(axes, record.roof, record.points)
        axes.set_xlabel("FLOP for each byte of keys and values")
        axes.set_ylabel("GB/s of keys and values")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def _points(axes: Axes, points: list[PointRecord], looks: dict[str, tuple[str, str]]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_minor_formatter(_between)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    for name, (colour, marker) in looks.items():
        found = [
            (point.intensity, each.gigabytes_per_s)
            for point in points
            for each in point.subjects
            if each.name == name and each.gigabytes_per_s is not None
        ]
        if found:
            axes.scatter(
                [x for x, _ in found],
                [y for _, y in found],
                color=colour,
                marker=marker,
                s=42,
                alpha=0.85,
                label=name,
                zorder=3,
            )


def _roofs(axes: Axes, roof: RoofRecord, points: list[PointRecord]) -> None:
    intensities = [point.intensity for point in points]
    ridge = roof.matrix_teraflops_per_s * 1e3 / roof.copy_gigabytes_per_s
    low, high = min([*intensities, ridge]) / 2, max([*intensities, ridge]) * 4
    # In GB/s the memory's roof is level, and the matrix units' falls with the intensity.
    at = [low, ridge, high]
    over = [roof.copy_gigabytes_per_s, roof.copy_gigabytes_per_s]
    over.append(roof.matrix_teraflops_per_s * 1e3 / high)
    axes.plot(at, over, color="#444444", linewidth=1.4, zorder=2)
    axes.annotate(
        f"copy {roof.copy_gigabytes_per_s:,.0f} GB/s",
        (low, roof.copy_gigabytes_per_s),
        textcoords="offset points",
        xytext=(2, 4),
        fontsize=8,
    )
    middle = (ridge * high) ** 0.5
    axes.annotate(
        f"dense {roof.matrix_dtype} {roof.matrix_teraflops_per_s:,.3g} TFLOP/s",
        (middle, roof.matrix_teraflops_per_s * 1e3 / middle),
        textcoords="offset points",
        xytext=(6, 4),
        fontsize=8,
    )


def _between(value: float, _: float) -> str:
    """Label 2 and 5 between powers of ten: a panel may hold no power at all."""
    return f"{value:,g}" if f"{value:e}"[0] in "25" else ""
