"""Samples with a time of their own: OpenMetrics, and what promtool dumps of a database.

`promtool tsdb dump` puts the name among the labels and milliseconds at the end; `dump-openmetrics`
and a federation of servers write the name first, and seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Final

from bench.diagnose.observed import Observed
from bench.diagnose.readers.scrapes import KNOWN, placed
from bench.diagnose.samples import Place, Samples, source_of
from bench.workloads.trace_lines import Line, lines_of, shown

_SAMPLE: Final = re.compile(
    r"(?P<name>[a-zA-Z_:][\w:]*)?(?P<labels>\{.*\})?\s+(?P<value>[-+\w.]+)\s+(?P<time>\d+(?:\.\d+)?)"
    r"(?:\s+#.*)?"
)
_NAME: Final = re.compile(r'__name__="([a-zA-Z_:][\w:]*)"(?:, ?)?')
_MILLISECONDS: Final = 10**11
"""Times from here on are no seconds: as such they would lie after the year 5000."""


def read(path: Path) -> Observed | None:
    """Samples with times. None: the first sample has none."""
    with closing(lines_of(str(path))) as lines:
        head: list[Line] = []
        for line in lines:
            head.append(line)
            if line.text[0] != "#":
                break
            if len(head) > 50 or line.text.startswith("# scrape"):
                return None
        if not head or not _SAMPLE.fullmatch(head[-1].text):
            return None
        return _gathered(path, chain(head, lines))


def _gathered(path: Path, lines: Iterator[Line]) -> Observed:
    samples = Samples()
    places: dict[str, Place | None] = {}
    times: set[float] = set()
    for line in lines:
        if line.text[0] == "#":
            continue
        sample = _SAMPLE.fullmatch(line.text)
        if sample is None:
            raise line.error(found=shown(line.text), expected="a metric, its value and its time")
        series = f"{sample['name'] or ''}{sample['labels'] or ''}"
        if series not in places:
            places[series] = _place(line, series, samples)
        place = places[series]
        if place is None:
            continue
        moment = float(sample["time"])
        moment = moment / 1000 if moment >= _MILLISECONDS else moment
        try:
            value = float(sample["value"])
        except ValueError:
            raise line.error(found=shown(line.text), expected="a number as its value") from None
        times.add(moment)
        if not math.isnan(value):
            place.add(moment, value)
    return samples.observed(source_of(path, "samples", times))


def _place(line: Line, series: str, samples: Samples) -> Place | None:
    if series.startswith("{") and (name := _NAME.search(series)):
        series = name[1] + series[: name.start()] + series[name.end() :].lstrip(", ")
    if not series.startswith(KNOWN):
        return None
    return placed(line._replace(text=f"{series} 0"), samples)
