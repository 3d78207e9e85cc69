"""Block events, a JSON object on each line: `ts`, `dp_rank` and `events` of the engine's names."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.diagnose.observed import CLEARED, REMOVED, STORED, Events, Observed, Source
from bench.workloads.trace_lines import Line, lines_of, shown

_KINDS: Final = {"BlockStored": STORED, "BlockRemoved": REMOVED, "AllBlocksCleared": CLEARED}


def read(path: Path) -> Observed | None:
    """Events. None: the first line has none."""
    rows: list[tuple[float, int, int, int, int, int, str]] = []
    sizes: set[int] = set()
    for line in lines_of(str(path)):
        if not rows and not (line.text.startswith("{") and '"events"' in line.text):
            return None
        batch = _batch(line)
        moment = float(batch["ts"])
        rank = batch.get("dp_rank", batch.get("attn_dp_rank"))
        engine = "" if rank is None else str(rank)
        for event in batch["events"]:
            kind = _KINDS.get(str(event.get("type")))
            if kind is None or event.get("medium", "GPU") not in {"GPU", "CPU", None}:
                continue
            if "block_size" in event:
                sizes.add(int(event["block_size"]))
            parent = _key(event.get("parent_block_hash"))
            hashes = event.get("block_hashes", [None])
            contents = event.get("content") or [None] * len(hashes)
            extras = event.get("extra_keys") or [None] * len(hashes)
            salt = event.get("cache_salt") or event.get("lora_name")
            for block, content, extra in zip(hashes, contents, extras, strict=False):
                key = _key(block)
                rows.append((moment, kind, key, parent, _key(content), _key(extra or salt), engine))
                parent = key
    if not rows:
        return None
    columns: list[Any] = list(zip(*rows, strict=True))
    events = Events(
        time_s=np.array(columns[0], dtype=np.float64),
        kind=np.array(columns[1], dtype=np.int8),
        block=np.array(columns[2], dtype=np.uint64),
        parent=np.array(columns[3], dtype=np.uint64),
        content=np.array(columns[4], dtype=np.uint64),
        extra=np.array(columns[5], dtype=np.uint64),
        engine=np.array(columns[6], dtype=np.str_),
    )
    times = events.time_s
    source = Source(str(path), "events", float(times.min()), float(times.max()), len(events))
    config = {"block_size": float(sizes.pop())} if len(sizes) == 1 else {}
    return Observed(events=events, config=config, sources=(source,))


def _batch(line: Line) -> dict[str, Any]:
    try:
        batch = json.loads(line.text)
        float(batch["ts"])
        if all(isinstance(event, dict) for event in batch["events"]):
            return dict(batch)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise line.error(found=shown(line.text), expected="a JSON object with ts and events")


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
