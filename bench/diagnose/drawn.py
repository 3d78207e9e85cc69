"""The series of a diagnosis as its record holds them: few enough to be kept, peaks and all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from bench.diagnose.record import Series
from bench.diagnose.statistics import signals

if TYPE_CHECKING:
    from bench.diagnose.run import Examined

POINTS: Final = 8_000
"""Of all series together, about: 200 kB as JSON."""

FEWEST: Final = 40
MOST: Final = 600
"""Points of one series."""


def series_of(examined: Sequence[Examined]) -> list[Series]:
    """A series for each signal of each engine."""
    shown = [(each, signals(each.window)) for each in examined]
    count = sum(len(of) for _, of in shown)
    most = min(MOST, max(FEWEST, POINTS // max(count, 1)))
    found = []
    for each, of in shown:
        for name, values in of.items():
            times = each.window.times_s[-len(values) :]
            at = kept(values, most)
            found.append(
                Series(
                    name=name,
                    engine=each.window.engine,
                    times_s=[round(float(time), 3) for time in times[at]],
                    values=[_short(value) for value in values[at]],
                    changes_s=[c.time_s for c in each.changes if c.series == name],
                )
            )
    return found


def kept(values: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """Indices of at most so many values: of each stretch the least and the greatest."""
    if len(values) <= most:
        return np.arange(len(values))
    at: set[int] = set()
    for part in np.array_split(np.arange(len(values)), most // 2):
        known = part[~np.isnan(values[part])]
        some = known if len(known) else part[:1]
        at |= {int(some[values[some].argmin()]), int(some[values[some].argmax()])}
    return np.array(sorted(at))


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
