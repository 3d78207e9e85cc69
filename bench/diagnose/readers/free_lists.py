"""Free lists of contiguous allocators: what is free, and what did not find a place.

A JSON object for each moment: `slots` of the pool, and either `free`, a list of [start, length], or
`free_bitmap` or `used_bitmap`, a digit for each slot. `wanted` is what the request asked for that
was refused; `time` and `engine` are optional.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.diagnose.observed import FreeMap, Observed, Source
from bench.workloads.json_documents import Document
from bench.workloads.trace_columns import moment_s
from bench.workloads.trace_lines import TraceError, shown

_BITMAPS: Final = {"free_bitmap": 1, "used_bitmap": 0}
"""Which digit is a free slot."""
_AMBIGUOUS: Final = "bitmap"
MAX_SLOTS: Final = 2**40


def of(path: Path, documents: Iterator[Document]) -> Observed | None:
    """Free lists. None: the first document is none."""
    maps: list[FreeMap] = []
    for document in documents:
        content = document.content
        known = isinstance(content, Mapping) and (
            {"free", *_BITMAPS, _AMBIGUOUS} & content.keys() and "slots" in content
        )
        if not known and not maps:
            return None
        if not known:
            raise document.line.error(found=shown(content), expected=_EXPECTED)
        maps.append(_map(document))
    times = [each.time_s for each in maps if not math.isnan(each.time_s)] or [math.nan]
    source = Source(str(path), "free lists", min(times), max(times), len(maps))
    return Observed(free_maps=tuple(maps), sources=(source,))


_EXPECTED: Final = (
    "slots, and free as a list of [start, length], or free_bitmap or used_bitmap with a digit for "
    "each slot"
)


def _map(document: Document) -> FreeMap:
    said = document.content
    slots, wanted = said["slots"], said.get("wanted")
    if type(slots) is not int or not 1 <= slots <= MAX_SLOTS:
        raise _wrong(document, f"slots = {shown(slots)}", "a whole number from 1")
    if wanted is not None and (type(wanted) is not int or not 1 <= wanted <= MAX_SLOTS):
        raise _wrong(document, f"wanted = {shown(wanted)}", "a whole number of slots from 1")
    if "free" in said:
        starts, ends = _runs(document, said["free"], slots)
    else:
        starts, ends = _of_bitmap(document, said, slots)
    moment = moment_s(said.get("time"))
    return FreeMap(
        time_s=math.nan if moment is None else moment,
        slots=slots,
        holes=ends - starts,
        wanted=wanted,
        engine=str(said.get("engine", "")),
    )


def _runs(document: Document, free: Any, slots: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Starts and ends of the holes; runs that touch are one hole."""
    pairs = isinstance(free, list) and all(
        isinstance(run, list) and len(run) == 2 and set(map(type, run)) == {int} for run in free
    )
    if not pairs:
        raise _wrong(document, f"free = {shown(free)}", "a list of [start, length]")
    holes: list[list[int]] = []
    for start, length in sorted(free):
        if length < 0 or start < 0 or start + length > slots:
            raise _wrong(document, f"[{start}, {length}]", f"a run inside the {slots} slots")
        if holes and start < holes[-1][1]:
            raise _wrong(document, f"[{start}, {length}], twice free", "runs that do not overlap")
        if holes and start == holes[-1][1]:
            holes[-1][1] += length
        elif length:
            holes.append([start, start + length])
    whole = np.array(holes, dtype=np.int64).reshape(-1, 2)
    return whole[:, 0], whole[:, 1]


def _of_bitmap(
    document: Document, said: Mapping[str, Any], slots: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    name = next((name for name in _BITMAPS if name in said), None)
    if name is None:
        raise _wrong(document, _AMBIGUOUS, "free_bitmap (1 is free) or used_bitmap (1 is used)")
    digits: Sequence[Any] = said[name]
    if isinstance(digits, str):
        digits = [int(each) if each in "01" else -1 for each in digits]
    if not isinstance(digits, list) or len(digits) != slots or not set(digits) <= {0, 1}:
        raise _wrong(document, f"{name} = {shown(digits)}", f"{slots} digits 0 or 1")
    free = np.array(digits, dtype=np.int8) == _BITMAPS[name]
    edges = np.diff(np.concatenate([[0], free.astype(np.int8), [0]]))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def _wrong(document: Document, found: str, expected: str) -> TraceError:
    return document.line.error(found=found, expected=expected)
