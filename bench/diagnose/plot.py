"""The series of a diagnosis as a picture, with the moments at which they change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.diagnose.inference import fitted
from bench.diagnose.observed import Observed
from bench.diagnose.record import Diagnosis
from bench.diagnose.run import examine
from bench.diagnose.statistics import signals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def draw(observed: Observed, file: Path) -> None:
    """Draw the series to a file."""
    figure_of(observed).savefig(file, dpi=150)


def figure_of(observed: Observed, found: Diagnosis | None = None) -> Figure:
    """A row for each signal, a line for each engine; and the evidence of causes that were found."""
    from matplotlib.figure import Figure

    examined = examine(observed, fitted())
    shown = [(each, signals(each.window)) for each in examined]
    names = list(dict.fromkeys(name for _, of in shown for name in of))
    start = min(each.window.start_s for each in examined)
    figure = Figure(figsize=(9, 1.1 * max(len(names), 1) + 0.6), layout="constrained")
    axes = figure.subplots(max(len(names), 1), sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, names, strict=False):
        for (each, of), colour in zip(shown, COLOURS * len(shown), strict=False):
            if (values := of.get(name)) is None:
                continue
            times = each.window.times_s - start
            times = times if len(values) == len(times) else times[1:]
            label = each.window.engine or "engine"
            axis.plot(times, values, color=colour, linewidth=1, label=label)
            for change in each.changes:
                if change.series == name:
                    axis.axvline(change.time_s - start, color=colour, linestyle=":", linewidth=1)
        for cause in found.causes if found is not None else ():
            if cause.since_s is not None:
                axis.axvline(cause.since_s - start, color=COLOURS[1], linewidth=1.5)
            for decides in (evidence.figure for evidence in cause.evidence):
                if decides.series == name:
                    span = (decides.start_s - start, decides.end_s - start)
                    axis.axvspan(*span, color=COLOURS[4], alpha=0.2, linewidth=0)
        axis.set_ylabel(name.replace("_", "\n"), rotation=0, ha="right", va="center", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
    axes[-1].set_xlabel("seconds; dotted: the level changes")
    if len(shown) > 1 and names:
        axes[0].legend(fontsize=7, ncols=4)
    return figure
