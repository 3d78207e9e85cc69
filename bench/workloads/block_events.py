"""Block events of an engine, and the requests that they tell of.

Two wire forms are known, of vLLM and of SGLang: objects with a `type`, and arrays that begin with
it (vLLM before 0.23, SGLang at first). An event says which blocks were stored behind which, not
whose they are. So a request is taken to begin where blocks are stored behind one that is nobody's
last, or behind somebody's last after a pause; it has the blocks before them, too. What it stores
later several blocks at a time is more of its prompt, a single block is output.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any, Final

from bench.workloads.trace_lines import Line, shown

_STORED_FIELDS: Final = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
)
_POSITIONS: Final = {
    "BlockStored": _STORED_FIELDS,
    "BlockRemoved": ("block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": (),
}
"""Fields of an array, in the order in which releases added them."""


def batch_of(raw: object) -> tuple[float, list[object], int | None]:
    """Take a batch apart: its time, its events, the data-parallel rank where it says one.

    Raises ValueError: it is no batch.
    """
    if isinstance(raw, Mapping):
        rank = raw.get("data_parallel_rank", raw.get("attn_dp_rank", raw.get("dp_rank")))
        parts: list[object] = [raw.get("ts"), raw.get("events"), rank]
    elif isinstance(raw, list) and len(raw) >= 2:
        parts = [*raw[:3], None][:3]
    else:
        raise ValueError("it is no batch of events")
    time_s, events, rank = parts
    if isinstance(time_s, bool) or not isinstance(time_s, int | float):
        raise ValueError("it has no time")
    if not isinstance(events, list):
        raise ValueError("it has no events")
    return float(time_s), events, rank if type(rank) is int else None


def named_event(raw: object) -> dict[str, Any]:
    """Turn an event of either form into one with names. Raises ValueError."""
    named: dict[str, Any] = {}
    if isinstance(raw, Mapping):
        named = dict(raw)
    elif isinstance(raw, list) and raw:
        kind, *values = raw
        fields = _POSITIONS.get(kind, ()) if isinstance(kind, str) else ()
        named = {"type": kind} | dict(zip(fields, values, strict=False))
    if not isinstance(named.get("type"), str) or named["type"] not in _POSITIONS:
        raise ValueError("it is no block event")
    return named


def listed(named: Mapping[str, Any], field: str) -> list[Any]:
    """A field that must be a list. Raises ValueError: it is none."""
    value = named.get(field)
    if not isinstance(value, list):
        raise ValueError(f"its {field} are no list")
    return value


PAUSE_S: Final = 1.0
"""Between two chunks of a prompt lies a step; between two turns, a user."""

_DEVICE: Final = frozenset({"GPU", None})
"""Where a block of the engine's own cache lies; others are of tiers behind it."""


@dataclass(slots=True)
class StoredRequest:
    """A request as its events tell of it."""

    begun_s: float
    last_s: float
    ids: list[int]
    """Of its blocks, those that it found before the first that it stored."""
    output_blocks: int = 0


def first_stored(first: Line, lines: Iterator[Line]) -> Line | None:
    """The first line that stores a block. None: the file has no batches of block events.

    Raises TraceError: it has, and none stores one.
    """
    if not _is_batch(first):
        return None
    for line in chain([first], lines):
        if block_size_of(line) is not None:
            return line
    raise first.error(
        found="block events that store nothing", expected="BlockStored among them, and its size"
    )


def _is_batch(line: Line) -> bool:
    try:
        _, events, _ = batch_of(json.loads(line.text))
        return [named_event(each) for each in events] != []
    except (ValueError, RecursionError):
        return False


def block_size_of(line: Line) -> int | None:
    """Tokens of a block, where a line is a batch of events that stores one. None: it is none."""
    try:
        _, events, _ = batch_of(json.loads(line.text))
        sizes = [named_event(each).get("block_size") for each in events]
    except (ValueError, RecursionError):
        return None
    return next((size for size in sizes if type(size) is int and size > 0), None)


def stored_requests(first: Line, lines: Iterator[Line]) -> list[StoredRequest]:
    """The requests of a file of events, a batch on each line, by time. Raises TraceError."""
    before: dict[int, int | None] = {}
    by_last: dict[int, StoredRequest] = {}
    found: list[StoredRequest] = []
    for line in chain([first], lines):
        try:
            moment, events, _ = batch_of(json.loads(line.text))
            for event in map(named_event, events):
                if event["type"] == "AllBlocksCleared":
                    by_last.clear()
                if event["type"] != "BlockStored" or not _counts(event):
                    continue
                ids = [block_id(each) for each in listed(event, "block_hashes")]
                said = event.get("parent_block_hash")
                parent = None if said is None else block_id(said)
                if not ids:
                    continue
                for place, each in enumerate(ids):
                    before.setdefault(each, ids[place - 1] if place else parent)
                request = None if parent is None else by_last.pop(parent, None)
                if request and len(ids) > 1 and moment - request.last_s > PAUSE_S:
                    request = None
                if request is None:
                    request = StoredRequest(moment, moment, _path(before, ids[-1]))
                    found.append(request)
                else:
                    request.ids += ids
                    request.output_blocks += len(ids) == 1
                request.last_s = moment
                by_last[ids[-1]] = request
        except (ValueError, RecursionError) as broken:
            raise line.error(
                found=f"{shown(line.text)} ({broken})",
                expected="a batch of block events: their time (ts), and events with type and "
                "block_hashes",
            ) from None
    return sorted(found, key=lambda request: request.begun_s)


def _counts(event: Mapping[str, Any]) -> bool:
    """Whether it is of the device, and of the first group of a model that has several."""
    return event.get("medium") in _DEVICE and event.get("group_idx") in (None, 0)


def _path(before: Mapping[int, int | None], last: int) -> list[int]:
    """Blocks from the first to the `last`, of those that any event told of."""
    path: list[int] = []
    seen: set[int] = set()
    at: int | None = last
    while at is not None and at not in seen:
        seen.add(at)
        path.append(at)
        at = before.get(at)
    return path[::-1]


def block_id(name: object) -> int:
    """A number below 2^56 for a block's hash, digest or key."""
    said = name if isinstance(name, str) else json.dumps(name)
    return int.from_bytes(blake2b(said.encode(), digest_size=7).digest())
