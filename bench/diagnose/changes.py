"""Where the level of a series changes: circular binary segmentation (Olshen and others, 2004)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from bench.diagnose.observed import Floats

LEAST: Final = 3
"""Samples of a level."""

CLEAR: Final = 5.5
"""Standard errors between two levels that make a change. The best of all places is taken: among 100
samples, noise alone reaches 4.5."""

MOST: Final = 400
"""Samples that are looked at; of more, means of as many as it takes."""


class Change(NamedTuple):
    """A change of a series' level."""

    series: str
    time_s: float
    before: float
    after: float
    strength: float
    """Standard errors by which the stretch that it begins or ends differs."""

    @property
    def ratio(self) -> float:
        """The level after, in levels before."""
        return self.after / self.before if self.before else math.inf


def changes_in(
    series: str, times_s: Floats, values: Floats, *, clear: float = CLEAR
) -> list[Change]:
    """Changes of a series' level, in order."""
    known = np.isfinite(values)
    times_s, values = times_s[known], values[known]
    if len(values) < 2 * LEAST:
        return []
    if len(values) > MOST:
        every = -(-len(values) // MOST)
        starts = np.arange(0, len(values), every)
        values = np.add.reduceat(values, starts) / np.diff([*starts, len(values)])
        times_s = times_s[starts]
    edges = _edges(values, clear)
    places = [0, *edges, len(values)]
    means = [float(values[a:b].mean()) for a, b in pairwise(places)]
    return [
        Change(series, float(times_s[at]), before, after, edges[at])
        for at, before, after in zip(edges, means, means[1:], strict=False)
    ]


def _edges(values: Floats, clear: float) -> dict[int, float]:
    """Where levels begin, and how clear it is: the clearest stretch, then inside and beside it."""
    n = len(values)
    if n < 2 * LEAST:
        return {}  # of a level that was found
    total = np.concatenate([[0.0], np.cumsum(values - values.mean())])
    sums = total[None, :] - total[:, None]  # of each stretch from i to j
    length = np.arange(n + 1)[None, :] - np.arange(n + 1)[:, None]
    allowed = (length >= LEAST) & (n - length >= LEAST)
    starts, ends = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
    allowed &= ((starts == 0) | (starts >= LEAST)) & ((ends == n) | (n - ends >= LEAST))
    if not allowed.any():
        return {}
    weight = np.where(allowed, length * (n - length) / n, np.inf)
    gained = sums**2 / weight
    start, end = divmod(int(np.argmax(gained)), n + 1)
    rest = max(float(((values - values.mean()) ** 2).sum() - gained[start, end]), 0.0)
    # A level that never moves by a hair has no noise, and a hair is no change.
    spread = math.sqrt(rest / max(n - 3, 1)) + 1e-3 * float(np.abs(values).max()) + 1e-12
    strength = math.sqrt(gained[start, end]) / spread
    if strength < clear:
        return {}
    found = {at: strength for at in (start, end) if 0 < at < n}
    for one, two in zip([0, *sorted(found)], [*sorted(found), n], strict=True):
        inner = _edges(values[one:two], clear)
        found |= {one + at: each for at, each in inner.items()}
    return dict(sorted(found.items()))
