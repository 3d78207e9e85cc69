"""One engine's window: the samples while it had work, and what counters and histograms gained.

Counters start anew with their process: a value below the one before is a gain since zero. A series
that appears within the window (a label's first use) gained from zero, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np

from bench.diagnose.observed import Events, Floats, Observed, Requests, Series


class Gain(NamedTuple):
    """What a histogram gained."""

    samples: float
    total: float
    """Sum of the samples; nan where it is not given."""
    bounds: Floats
    upto: Floats
    """Samples up to each bound."""

    @property
    def mean(self) -> float:
        """Mean of the samples; nan: there are none."""
        return self.total / self.samples if self.samples > 0 else math.nan

    def quantile(self, share: float) -> tuple[float, float]:
        """The bucket that holds a quantile: more than its bounds is not known."""
        if self.samples <= 0 or not len(self.upto):
            return math.nan, math.nan
        at = min(int(np.searchsorted(self.upto, share * self.upto[-1])), len(self.bounds) - 1)
        lower = float(self.bounds[at - 1]) if at else 0.0
        upper = float(self.bounds[at])
        return lower, upper if math.isfinite(upper) else 2 * lower

    def middle(self, share: float) -> float:
        """The quantile if samples lie evenly in its bucket."""
        lower, upper = self.quantile(share)
        if math.isnan(lower):
            return math.nan
        at = min(int(np.searchsorted(self.upto, share * self.upto[-1])), len(self.bounds) - 1)
        below = float(self.upto[at - 1]) if at else 0.0
        inside = float(self.upto[at]) - below
        return lower + (upper - lower) * ((share * self.upto[-1] - below) / inside if inside else 1)


@dataclass(frozen=True)
class Window:
    """What was seen of one engine while it had work."""

    observed: Observed
    engine: str
    start_s: float
    end_s: float

    def series(self, name: str, **labels: str) -> list[Series]:
        """Series of this engine, and of the server that it is a part of."""
        wanted = set(labels.items())
        found = [
            each
            for each in self.observed.named(name)
            if belongs(each.engine, self.engine) and wanted <= set(each.labels)
        ]
        own = [each for each in found if each.engine == self.engine]
        return own or found

    @cached_property
    def times_s(self) -> Floats:
        """Moments of the samples in the window, the first where its gains begin."""
        found = self.series("running") or self.series("usage") or self.series("waiting")
        times = found[0].times_s if found else np.empty(0)
        return times[(times >= self.start_s) & (times <= self.end_s)]

    @property
    def alone(self) -> bool:
        """Whether no other engine is seen."""
        return len({each.engine for each in self.observed.named("running")}) < 2

    @property
    def samples(self) -> int:
        """How many they are."""
        return len(self.times_s)

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return max(self.end_s - self.start_s, 0.0)

    def gauge(self, name: str, **labels: str) -> Floats | None:
        """Values at `times_s`, the last known before each; labels not named are added up."""
        found = self.series(name, **labels)
        if not found or not self.samples:
            return None
        return _sum([_at(each.times_s, each.values, self.times_s) for each in found])

    def gains(self, name: str, **labels: str) -> Floats | None:
        """What a counter, or a histogram's count, gained between each two of `times_s`."""
        found = self.series(name, **labels)
        if not found or self.samples < 2:
            return None
        return _sum([self._steps(each, each.values) for each in found])

    def gained(self, name: str, **labels: str) -> float | None:
        """The same over the whole window."""
        steps = self.gains(name, **labels)
        return None if steps is None else float(steps.sum())

    def sums(self, name: str) -> Floats | None:
        """What the sum of a histogram gained between each two of `times_s`."""
        found = [each for each in self.series(name) if each.sums is not None]
        if not found or self.samples < 2:
            return None
        return _sum([self._steps(e, e.sums) for e in found if e.sums is not None])

    def histogram(self, name: str, start: int = 0, end: int | None = None) -> Gain | None:
        """What a histogram gained, from one sample of `times_s` to another."""
        counts = self.gains(name)
        if counts is None:
            return None
        chosen = slice(start, end)
        sums = self.sums(name)
        total = math.nan if sums is None else float(sums[chosen].sum())
        bounds, each = self.buckets(name)
        upto = np.cumsum(each[chosen].sum(axis=0))
        return Gain(float(counts[chosen].sum()), total, bounds, upto)

    def buckets(self, name: str) -> tuple[Floats, Floats]:
        """Upper bounds of a histogram's buckets [b], and what each gained between samples [n, b].

        Nothing of either where it has none, or several series of it disagree on them.
        """
        found = self.series(name)
        every = [each.bounds for each in found if each.bounds is not None]
        if not every or any(not np.array_equal(each, every[0]) for each in every):
            return np.empty(0), np.empty((max(self.samples - 1, 0), 0))
        upto = [
            _sum([self._steps(e, e.buckets[:, at]) for e in found if e.buckets is not None])
            for at in range(len(every[0]))
        ]
        return every[0], np.diff(np.stack(upto, axis=1), axis=1, prepend=0)

    def _steps(self, series: Series, values: Floats) -> Floats:
        raw = np.diff(values)
        # A reset shows in the count; the part of a histogram goes with it.
        reset = np.diff(series.values) < 0
        raw = np.where(reset | np.isnan(raw), values[1:], raw)
        total = np.concatenate([[0.0], np.nancumsum(raw)])
        late = series.times_s[0] > self.observed_from_s + 1e-6
        before = -values[0] if late else 0.0
        return np.diff(_at(series.times_s, total, self.times_s, before=before))

    @cached_property
    def observed_from_s(self) -> float:
        """When anything of this engine was seen first."""
        return min(
            (
                float(each.times_s[0])
                for each in self.observed.series
                if len(each.times_s) and belongs(each.engine, self.engine)
            ),
            default=math.inf,
        )

    @cached_property
    def resets_s(self) -> list[float]:
        """Moments at which counters had begun anew."""
        found: set[float] = set()
        for each in self.observed.series:
            if belongs(each.engine, self.engine) and each.kind != "gauge":
                found.update(each.times_s[1:][np.diff(each.values) < 0].tolist())
        return sorted(found)

    @cached_property
    def events(self) -> Events | None:
        """Block events of this engine in the whole recording: what is stored again needs a past."""
        return _own(self.observed.events, self.engine)

    @cached_property
    def requests(self) -> Requests | None:
        """Requests of this engine, where the log tells engines apart."""
        return _own(self.observed.requests, self.engine)


_Rows = TypeVar("_Rows", Events, Requests)


def _own(rows: _Rows | None, engine: str) -> _Rows | None:
    if rows is None or not len(rows):
        return None
    mine = np.array([belongs(name, engine) or name == rank(engine) for name in rows.engine])
    return rows.rows(mine) if mine.any() else None


def _sum(parts: list[Floats]) -> Floats:
    return np.asarray(np.sum(parts, axis=0))


def belongs(label: str, engine: str) -> bool:
    """Whether what has this label is of an engine: it, or the server that it is a part of."""
    return label in {"", engine} or engine.startswith(f"{label}/")


def rank(engine: str) -> str:
    """The last part of an engine's label: its rank in its server."""
    return engine.rpartition("/")[2]


def _at(times: Floats, values: Floats, moments: Floats, *, before: float | None = None) -> Floats:
    """The last value at or before each moment; before the first it is `before`, or the first."""
    place = np.searchsorted(times, moments + 1e-6, side="right") - 1
    found: Floats = values[np.maximum(place, 0)]
    return found if before is None else np.where(place < 0, before, found)


def windows(observed: Observed) -> list[Window]:
    """The window of each engine that is seen to have requests; idle ends are cut."""
    engines = sorted({each.engine for each in observed.series if each.name in _OF_ENGINES})
    engines = engines or observed.engines[:1] or [""]
    return [_window(observed, engine) for engine in engines]


_OF_ENGINES = frozenset({"running", "usage", "waiting"})


def _window(observed: Observed, engine: str) -> Window:
    whole = Window(observed, engine, -math.inf, math.inf)
    times = whole.times_s
    if not len(times):
        every = [each.times_s for each in whole.observed.series if len(each.times_s)]
        times = np.unique(np.concatenate(every)) if every else np.zeros(1)
        return Window(observed, engine, float(times[0]), float(times[-1]))
    running, waiting = whole.gauge("running"), whole.gauge("waiting")
    busy = np.zeros(len(times), dtype=bool)
    for gauge in (running, waiting):
        busy |= False if gauge is None else gauge > 0
    for name in ("generation_tokens", "prompt_tokens", "ttft_s", "finished"):
        if (steps := whole.gains(name)) is not None:
            busy[1:] |= steps > 0
    at = np.flatnonzero(busy)
    if not len(at):
        return Window(observed, engine, float(times[0]), float(times[-1]))
    first = max(int(at[0]) - 1, 0)
    return Window(observed, engine, float(times[first]), float(times[at[-1]]))
