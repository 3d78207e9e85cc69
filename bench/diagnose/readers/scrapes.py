"""Scrapes of /metrics: one, or many in a file, each after `# scrape <unix time>`.

Only lines of metrics that are known here are parsed, and the labels of a series once: the parser
of the client library takes ten times as long over a line as over all the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from bench.diagnose.aliases import ALIASES, INFO
from bench.diagnose.observed import Observed
from bench.diagnose.samples import Place, Samples, source_of
from bench.diagnose.single_scrapes import SINGLE
from bench.workloads.trace_lines import Line, lines_of, shown

_MARK: Final = re.compile(r"# scrape (\d+(?:\.\d+)?)(?:\s+(FAILED)\b.*)?\Z")
_TIME: Final = re.compile(r"@(\d{9,10}(?:\.\d+)?)")
"""The time of a scrape that is a file of its own, in the file's name; else the file's is taken."""
_SAMPLE: Final = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{.*\})?\s+\S+")
KNOWN: Final = tuple(
    sorted({name for table in ALIASES.values() for name in table} | set(INFO), key=len)
)


def read(path: Path) -> Observed | None:
    """Scrapes. None: the file does not begin like one."""
    lines = lines_of(str(path))
    head: list[Line] = []
    for line in lines:
        head.append(line)
        if _MARK.match(line.text) or (line.text[0] != "#" and _SAMPLE.match(line.text)):
            break
        if line.text[0] != "#" or len(head) > 20:
            return None
    else:
        return None
    first = head[-1].text
    ours = _MARK.match(first) or first.startswith(KNOWN)
    if not (ours or any("# TYPE" in each.text for each in head)):
        return None
    named = _TIME.search(path.name)
    moment = float(named[1]) if named else os.path.getmtime(path)
    samples = Samples()
    places: dict[str, Place | None] = {}
    times: list[float] = []
    before: set[float] = set()
    taken: set[Place] = set()
    failed: list[float] = []
    for line in chain(head, lines):
        text = line.text
        if text[0] == "#":
            if text.startswith("# scrape"):
                before.update(times[-1:])
                taken.clear()
                moment = _moment(line, failed)
                if not failed or failed[-1] != moment:
                    times.append(moment)
            continue
        if not text.startswith(KNOWN):
            continue
        if not times:
            times.append(moment)
        series, _, number = text.rpartition(" ")
        try:
            place = places[series]
        except KeyError:
            place = places[series] = placed(line, samples)
        if place is not None:
            if moment in before:
                if moment in place.points and place not in taken:
                    raise line.error(
                        found=f"a second scrape at {moment:.3f} with the same metrics",
                        expected="one for each time, and a file of its own for each server",
                    )
                taken.add(place)
            try:
                place.add(moment, float(number))
            except ValueError:
                raise line.error(found=shown(text), expected="a metric and its value") from None
    what = "scrapes" if _MARK.match(head[-1].text) else SINGLE
    source = source_of(path, what, times)
    return replace(samples.observed(source), failed_s=np.array(failed))


def _moment(line: Line, failed: list[float]) -> float:
    if (mark := _MARK.match(line.text)) is None:
        raise line.error(
            found=shown(line.text), expected="# scrape <unix time>, or FAILED after it"
        )
    if mark[2]:
        failed.append(float(mark[1]))
    return float(mark[1])


def placed(line: Line, samples: Samples) -> Place | None:
    """Where a series seen for the first time goes. Raises TraceError: the line is malformed."""
    try:
        return samples.place(*_named(line.text.rpartition(" ")[0]))
    except Exception:  # whatever the library stumbles over: it promises no kind of error
        raise line.error(found=shown(line.text), expected="a line of Prometheus' format") from None


@lru_cache(2**15)
def _named(series: str) -> tuple[str, Mapping[str, str]]:
    """Name and labels, as the client library reads them; scrapes in files of their own repeat."""
    from prometheus_client.parser import text_string_to_metric_families

    (family,) = text_string_to_metric_families(f"{series} 0\n")
    (sample,) = family.samples
    return sample.name, sample.labels
