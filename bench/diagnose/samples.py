"""Samples of metrics, gathered into series by canonical name and engine.

For every reader whose format has samples: name, labels, time, value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.diagnose.aliases import CONFIGURED, INFO, Alias, find
from bench.diagnose.observed import Observed, Series, Source, Value

_ENGINE_LABELS: Final = ("instance", "pod", "engine", "engine_idx", "dp_rank")
_Key = tuple[Alias, str, tuple[tuple[str, str], ...]]


class Place:
    """Where the samples of one series go."""

    __slots__ = ("points",)

    def __init__(self) -> None:
        self.points: dict[float, float] = {}
        """Time to value. Lines that differ only in labels not kept here are added up."""

    def add(self, time_s: float, value: float) -> None:
        """Take a sample."""
        self.points[time_s] = self.points.get(time_s, 0.0) + value


class Samples:
    """Gathers samples; `observed` is what they come to."""

    def __init__(self) -> None:
        self.config: dict[str, Value] = {}
        self._series: dict[_Key, dict[str, Place]] = {}

    def place(self, sample: str, labels: Mapping[str, str]) -> Place | None:
        """Where the samples of this name and these labels go. None: they are not used here.

        Raises ValueError: the bound of a bucket is no number.
        """
        if info := INFO.get(sample):
            self.config["engine"] = sample.partition(":")[0]
            said = {new: _value(labels[old]) for old, new in info.items() if old in labels}
            self.config |= {name: value for name, value in said.items() if value != "None"}
            return None
        if (found := find(sample)) is None:
            return None
        if labels.get("tp_rank", "0") != "0":
            return None  # every rank of a tensor-parallel engine says the same
        if sample != "http_requests_total":
            self.config.setdefault("engine", found.engine)
        alias = found.alias
        engine = "/".join(labels[name] for name in _ENGINE_LABELS if labels.get(name))
        kept = ((alias.label, labels[alias.label]),) if labels.get(alias.label) else ()
        places = self._series.setdefault((alias, engine, kept), {})
        part = labels.get("le", "") if found.part == "bucket" else found.part
        if found.part == "bucket":
            float(part)
        return places.setdefault(part, Place())

    def observed(self, source: Source) -> Observed:
        """All series."""
        config = dict(self.config)
        series = [built for key, places in self._series.items() if (built := _built(key, places))]
        for each in series:
            if each.name in CONFIGURED and len(each.values):
                config.setdefault(each.name, float(each.values[-1]))
        return Observed(series=tuple(series), config=config, sources=(source,))


def _value(text: str) -> Value:
    if text in {"True", "False"}:
        return text == "True"
    try:
        return float(text)
    except ValueError:
        return text


def _built(key: _Key, places: dict[str, Place]) -> Series | None:
    alias, engine, labels = key
    common: dict[str, Any] = {
        "name": alias.name,
        "kind": alias.kind,
        "engine": engine,
        "labels": labels,
    }
    if alias.kind != "histogram":
        points = places[""].points
        times = np.array(sorted(points))
        values = np.array([points[t] for t in times.tolist()]) * alias.scale
        return Series(times_s=times, values=values, **common)
    bounds = sorted((math.inf if le == "+Inf" else float(le), le) for le in places if _bound(le))
    count = places["count"].points if "count" in places else None
    if count is None and bounds and bounds[-1][0] == math.inf:
        count = places[bounds[-1][1]].points
    if count is None:
        return None
    times = np.array(sorted(count))
    moments = times.tolist()

    def column(part: str) -> list[float]:
        points = places[part].points
        return [points.get(t, math.nan) for t in moments]

    return Series(
        times_s=times,
        values=np.array([count[t] for t in moments]),
        bounds=np.array([bound for bound, _ in bounds]) * alias.scale if bounds else None,
        buckets=np.array([column(le) for _, le in bounds]).T if bounds else None,
        sums=np.array(column("sum")) * alias.scale if "sum" in places else None,
        **common,
    )


def _bound(text: str) -> bool:
    return text not in {"", "count", "sum"}


def source_of(path: Path, what: str, times_s: Iterable[float]) -> Source:
    """What a file of samples is, with the median time between them."""
    moments = np.array(sorted(times_s))
    return Source(
        path=str(path),
        format=what,
        start_s=float(moments[0]) if len(moments) else math.nan,
        end_s=float(moments[-1]) if len(moments) else math.nan,
        items=len(moments),
        interval_s=float(np.median(np.diff(moments))) if len(moments) > 1 else None,
    )
