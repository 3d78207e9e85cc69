"""Logs of vLLM and SGLang: what is running and waiting, usage, throughput, refusals, arguments.

Lines of the engines have a time without a year, or without a zone: both are taken from what lies
beside the log, a recording's marks or scrapes, else from the file's own time and UTC.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Generator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import numpy as np

from bench.diagnose.log_lines import Said, parse
from bench.diagnose.observed import Fact, Kind, Observed, Series, Source, Value
from bench.workloads.trace_lines import TraceError, lines_of

_MARK: Final = re.compile(r"# (recorded|scrape) (\d+(?:\.\d+)?)(?: ([+-]\d{4}))?")
_ENOUGH_LINES: Final = 20_000
"""Without a line of an engine among so many the file is no log of one."""

_LOOKS: Final = re.compile(
    r"\b(?:INFO|WARNING|ERROR|DEBUG)\b|\[\d{4}-\d\d-\d\d|Prefill batch|Decode batch|Avg prompt thr"
)
_TAKEN_AT_ONCE: Final = 1.5
"""Of the usual time between two figures: what a throughput is taken to have lasted at most."""

_LONGEST: Final = 2**24
"""Bytes of a line: the older releases print whole prompts."""
_STOPPING_S: Final = 60.0
_SAID_EVERY: Final = 50.0
"""Preemptions after which the older vLLM prints a line."""

_TOTALS: Final = {
    "prompt_throughput": "prompt_tokens",
    "generation_throughput": "generation_tokens",
}


def read(path: Path) -> Observed | None:
    """A log. None: no line of it is an engine's."""
    reading = _Reading(path)
    with closing(_lines(path)) as lines:
        for number, text in lines:
            if (mark := _MARK.match(text)) and mark[1] == "recorded":
                reading.clock = _Clock(float(mark[2]), mark[3] or "+0000")
            elif (said := parse(text)) is not None:
                reading.take(number, said)
            elif number > _ENOUGH_LINES and not reading.found:
                return None
    return reading.observed() if reading.found else None


def _lines(path: Path) -> Generator[tuple[int, str]]:
    """Lines with their numbers. A log may be cut anywhere, and holds whatever was printed."""
    looked = 0
    try:
        for line in lines_of(str(path), longest=_LONGEST, what="lines of a log"):
            if not looked:
                if line.text[0] in "{[" and not _LOOKS.search(line.text):
                    return
                looked = 1
            yield line.number, line.text
    except TraceError:
        if not looked:
            return
        raise


class _Clock:
    """Turns stamps into Unix times. What they leave out is near to what is known."""

    def __init__(self, near_s: float, zone: str) -> None:
        sign = -1 if zone[0] == "-" else 1
        self._zone = timezone(sign * timedelta(hours=int(zone[1:3]), minutes=int(zone[3:5])))
        self._near = datetime.fromtimestamp(near_s, self._zone)

    def time_s(self, stamp: str) -> float:
        """Unix time of a stamp; nan where it is none."""
        text = stamp.replace(",", ".")
        years = (
            [""]
            if len(text) > 4 and text[4] == "-"
            else [f"{self._near.year + n}-" for n in (-1, 0, 1)]
        )
        moments = []
        for year in years:
            try:
                moment = datetime.fromisoformat(_six_digits(year + text))
            except ValueError:
                continue
            moments.append(moment if moment.tzinfo else moment.replace(tzinfo=self._zone))
        if not moments:
            return math.nan
        return min(moments, key=lambda each: abs(each - self._near)).timestamp()


def _six_digits(stamp: str) -> str:
    """A stamp whose fraction of a second Python reads: clusters write nanoseconds."""
    return re.sub(r"(\.\d{6})\d+", r"\1", stamp)


class _Reading:
    """What the lines so far come to."""

    def __init__(self, path: Path) -> None:
        self.clock = _Clock(_near_s(path), "+0000")
        self.found = 0
        self._path = path
        self._time_s = math.nan
        self._config: dict[str, Value] = {}
        self._facts: list[Fact] = []
        self._figures: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        self._totals: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
        self._times: list[float] = []
        self._preempted_before: dict[str, float] = {}

    def take(self, number: int, said: Said) -> None:
        """Take what a line says."""
        self.found += 1
        if said.stamp:
            time_s = self.clock.time_s(said.stamp)
            if not math.isnan(time_s):
                self._time_s = time_s
                self._times.append(time_s)
        now = self._time_s
        if said.software:
            self._config.setdefault("engine", said.software)
        self._config |= said.config
        where = f"{self._path}:{number}"
        for name, value in said.facts.items():
            if name in {"preempted", "retracted"}:
                self._preempted(said, name, value, now)
                count = value if name == "retracted" else 1.0
                self._facts.append(Fact("preempted", now, count, where, said.engine))
            elif name != "died" or not self._stopping(now):
                self._facts.append(Fact(name, now, value, where, said.engine))
        if math.isnan(now):
            return
        for name, value in said.figures.items():
            if name in {"new_tokens", "cached_tokens", "new_sequences"}:
                continue
            other = said.figures.get("swa_usage", 0.0) if name == "usage" else 0.0
            self._figures[name, said.engine].append((now, max(value, other)))
        if "new_tokens" in said.figures:
            cached = said.figures.get("cached_tokens", 0.0)
            asked = said.figures["new_tokens"] + cached
            self._add("prefix_queries", said.engine, now, asked)
            self._add("prefix_hits", said.engine, now, cached)
        if "new_sequences" in said.figures:
            self._add("admitted", said.engine, now, said.figures["new_sequences"])
        if said.status:
            self._add("http", said.engine, now, 1.0, status=said.status)

    def _stopping(self, now: float) -> bool:
        """Whether it was told to stop: its parts then end one after the other, with errors."""
        return any(
            fact.name == "stopped" and now - fact.time_s < _STOPPING_S for fact in self._facts
        )

    def _preempted(self, said: Said, name: str, value: float, now: float) -> None:
        more = value
        if name == "preempted":
            # Of every fiftieth, how many it has been since the start, of which the log may have
            # none: the first that it has stands for fifty.
            before = self._preempted_before.get(said.engine, 0.0)
            more = value - before if 0 < before <= value else min(value, _SAID_EVERY)
            self._preempted_before[said.engine] = value
        if not math.isnan(now):
            self._add("preemptions", said.engine, now, more)

    def _add(self, name: str, engine: str, now: float, more: float, *, status: str = "") -> None:
        points = self._totals[name, engine, status]
        points.append((now, (points[-1][1] if points else 0.0) + more))

    def observed(self) -> Observed:
        """All of it."""
        series = []
        for (name, engine), points in self._figures.items():
            series.append(_series(self._path, name, "gauge", engine, points))
            if total := _TOTALS.get(name):
                series.append(_series(self._path, total, "counter", engine, _summed(points)))
        for (name, engine, status), points in self._totals.items():
            labels = (("status", status),) if status else ()
            series.append(_series(self._path, name, "counter", engine, points, labels))
        times = self._times or [math.nan]
        source = Source(str(self._path), "log", min(times), max(times), self.found)
        return Observed(
            series=tuple(series),
            config=self._config,
            facts=tuple(self._facts),
            sources=(source,),
        )


def _series(
    path: Path,
    name: str,
    kind: Kind,
    engine: str,
    points: list[tuple[float, float]],
    labels: tuple[tuple[str, str], ...] = (),
) -> Series:
    ordered = dict(sorted(points))  # of one moment the last
    return Series(
        name=name,
        kind=kind,
        engine=engine,
        labels=labels,
        times_s=np.array(list(ordered)),
        values=np.array(list(ordered.values())),
        origin="log",
    )


def _summed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Tokens since the first line, of a throughput that each line gives for the time before it."""
    ordered = dict(sorted(points))
    times = np.array(list(ordered))
    if len(times) < 2:
        return [(float(times[0]), 0.0)]
    gaps = np.diff(times)
    usual = float(np.median(gaps))
    lasted = np.minimum([usual, *gaps], _TAKEN_AT_ONCE * usual)  # nothing is printed while idle
    tokens = np.cumsum(np.array(list(ordered.values())) * lasted)
    return [(float(times[0]) - usual, 0.0), *zip(times.tolist(), tokens.tolist(), strict=True)]


def _near_s(path: Path) -> float:
    """A time near to that of the log: of scrapes in the same folder, else of the file."""
    for beside in sorted(path.parent.glob("*.prom*"))[:4]:
        try:
            with closing(lines_of(str(beside))) as lines:
                first = next(lines, None)
        except (OSError, TraceError):
            continue
        if first is not None and (mark := _MARK.match(first.text)):
            return float(mark[2])
    return os.path.getmtime(path)
