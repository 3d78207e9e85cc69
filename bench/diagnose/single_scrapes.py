"""Scrapes in files of their own, whose time is in the file's name or is the file's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.diagnose.observed import Observed, merge
from bench.diagnose.samples import source_of
from reference.errors import BadInput

SINGLE: Final = "scrape"
"""Format of a source that is one scrape without a time in it."""


def gathered(parts: Sequence[Observed]) -> list[Observed]:
    """What files show, single scrapes as one source.

    Beside scrapes that say their time, one that does not tells of the configuration only. Raises
    BadInput: two have the same time.
    """
    single = [part for part in parts if _is_single(part)]
    if not single:
        return list(parts)
    first = Path(single[0].sources[0].path)
    others = [part for part in parts if not _is_single(part)]
    timed = any(source.interval_s is not None for part in others for source in part.sources)
    if timed:
        return [*others, *(Observed(config=part.config) for part in single)]
    times = [part.sources[0].start_s for part in single]
    if len(set(times)) < len(times):
        raise BadInput(
            f"{first.parent}: several scrapes have the same time; name each file after its own, as "
            f"in metrics@1796044005.prom"
        )
    source = source_of(first.parent if len(single) > 1 else first, SINGLE, times)
    return [*others, replace(merge(single), sources=(source,))]


def _is_single(part: Observed) -> bool:
    return len(part.sources) == 1 and part.sources[0].format == SINGLE
