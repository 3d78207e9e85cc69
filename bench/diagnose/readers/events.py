"""Block events, a batch on each line, as `pagedbench record` or an engine writes them.

Token ids are digested as they are read (`bench.diagnose.digests`).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from bench.diagnose.digests import Digests
from bench.diagnose.observed import CLEARED, REMOVED, STORED, Events, Observed, Source
from bench.workloads.block_events import batch_of
from bench.workloads.trace_lines import MAX_DOCUMENT_BYTES, Line, lines_of, shown

_KINDS: Final = {"BlockStored": STORED, "BlockRemoved": REMOVED, "AllBlocksCleared": CLEARED}
_DEVICE: Final = frozenset({"GPU", None})
"""Where a block of the engine's own cache lies, on any device; others are of tiers behind it."""
_STARTS: Final = re.compile(r'\{(?=.*"ts")(?=.*"events")|\[ *\d+(\.\d+)?(e\+?\d+)?, *\[')


class _Row(NamedTuple):
    time_s: float
    kind: int
    block: int
    parent: int
    content: int
    extra: int
    engine: str


def read(path: Path) -> Observed | None:
    """Events. None: the first line has none."""
    rows: list[_Row] = []
    sizes: set[int] = set()
    digests = Digests()
    lost = 0
    for line in lines_of(str(path), longest=MAX_DOCUMENT_BYTES, what=_EXPECTED):
        if not rows and not _STARTS.match(line.text):
            return None
        raw, moment, events, engine = _batch(line)
        lost += int(raw.get("lost", 0)) if isinstance(raw, dict) else 0
        for each in events:
            try:
                event = digests.event(each)
            except ValueError as broken:
                raise line.error(found=f"{shown(each)} ({broken})", expected=_EXPECTED) from None
            if event.get("medium") in _DEVICE:
                sizes |= {event["block_size"]} if "block_size" in event else set()
                rows += _rows(event, moment, engine)
    if not rows:
        return None
    columns: list[Any] = list(zip(*rows, strict=True))
    kinds = (np.float64, np.int8, np.uint64, np.uint64, np.uint64, np.uint64, np.str_)
    filled = {
        name: np.array(column, dtype=kind)
        for name, column, kind in zip(_Row._fields, columns, kinds, strict=True)
    }
    seen = Events(**filled)
    start, end = float(seen.time_s.min()), float(seen.time_s.max())
    return Observed(
        events=seen,
        config={"block_size": float(sizes.pop())} if len(sizes) == 1 else {},
        sources=(Source(str(path), "events", start, end, len(seen)),),
        notes=(f"{path}: {lost} batches of events never arrived",) if lost else (),
    )


_EXPECTED: Final = "a batch of block events: their time (ts), and events with type and block_hashes"


def _batch(line: Line) -> tuple[object, float, list[object], str]:
    try:
        raw = json.loads(line.text)
        moment, events, rank = batch_of(raw)
    except (ValueError, RecursionError):
        raise line.error(found=shown(line.text), expected=_EXPECTED) from None
    instance = raw.get("instance") if isinstance(raw, dict) else None
    return raw, moment, events, "/".join(str(each) for each in (instance, rank) if each is not None)


def _rows(event: dict[str, Any], moment: float, engine: str) -> Iterator[_Row]:
    """A row for each block; each is the parent of the next one."""
    parent = _key(event.get("parent_block_hash"))
    hashes = event.get("block_hashes", [None])
    contents = event.get("content") or [None] * len(hashes)
    extras = event.get("extra_keys") or [None] * len(hashes)
    for block, content, extra in zip(hashes, contents, extras, strict=False):
        key = _key(block)
        kind = _KINDS[event["type"]]
        yield _Row(moment, kind, key, parent, _key(content), _key(extra), engine)
        parent = key


def _key(value: object) -> int:
    """A number for a hash, digest or key; 0 for none."""
    if value is None or value == []:
        return 0
    if isinstance(value, int):
        return value % 2**64
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        return int(text, 16) % 2**64
    except ValueError:
        return zlib.crc32(text.encode()) or 1
