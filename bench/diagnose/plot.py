"""The series of a diagnosis as a picture: when they change, and what decides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.diagnose.record import Diagnosis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def draw(found: Diagnosis, file: Path) -> None:
    """Draw the series to a file."""
    figure_of(found).savefig(file, dpi=150)


def figure_of(found: Diagnosis) -> Figure:
    """A row for each series, a line for each engine; and the evidence of causes that were found."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(each.name for each in found.series))
    engines = list(dict.fromkeys(each.engine for each in found.series))
    start = min((each.times_s[0] for each in found.series if each.times_s), default=0.0)
    figure = Figure(figsize=(9, 1.1 * max(len(names), 1) + 0.6), layout="constrained")
    axes = figure.subplots(max(len(names), 1), sharex=True, squeeze=False)[:, 0]
    rows = dict(zip(names, axes, strict=False))
    for each in found.series:
        axis, colour = rows[each.name], COLOURS[engines.index(each.engine) % len(COLOURS)]
        values = np.array(each.values, np.float64)
        label = each.engine or "engine"
        axis.plot(np.array(each.times_s) - start, values, color=colour, linewidth=1, label=label)
        for change_s in each.changes_s:
            axis.axvline(change_s - start, color=colour, linestyle=":", linewidth=1)
    for name, axis in rows.items():
        for cause in found.causes:
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
    if len(engines) > 1:
        axes[0].legend(fontsize=7, ncols=4)
    return figure
