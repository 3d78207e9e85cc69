"""Scrapes in files of their own, whose time is in the file's name or is the file's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from bench.diagnose.observed import Observed, merge
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
    folder = str(Path(single[0].sources[0].path).parent)
    others = [part for part in parts if not _is_single(part)]
    timed = any(source.interval_s is not None for part in others for source in part.sources)
    if timed:
        return [*others, *(Observed(config=part.config) for part in single)]
    times = np.array(sorted(part.sources[0].start_s for part in single))
    gaps = np.diff(times)
    if len(gaps) and gaps.min() == 0:
        raise BadInput(
            f"{folder}: several scrapes have the time {times[int(gaps.argmin())]:.0f}; name each "
            f"file after its own, as in metrics@1796044005.prom"
        )
    source = (
        single[0]
        .sources[0]
        ._replace(
            path=folder if len(single) > 1 else single[0].sources[0].path,
            start_s=float(times[0]),
            end_s=float(times[-1]),
            items=len(times),
            interval_s=float(np.median(gaps)) if len(gaps) else None,
        )
    )
    return [*others, replace(merge(single), sources=(source,))]


def _is_single(part: Observed) -> bool:
    return len(part.sources) == 1 and part.sources[0].format == SINGLE
