"""The store of gate records: what this machine measured, and what came from others.

A record is a claim that someone will compare with. It is taken in only if it can be read whole, in
the schema that this version writes, if it says on what it was measured, and if its verdicts follow
from its own launches.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from bench.gate.record import SCHEMA_VERSION, GateRecord
from bench.machine.environment import GateEnvironment
from reference.errors import BadInput
from reference.reading import read_whole

STORE: Final = Path(".pagedbench") / "gate"
"""Where records are kept unless told otherwise."""

TIMERS: Final = frozenset({"process_time", "cuda_event"})
"""Timers that this version knows how to read."""

_PROSE: Final = frozenset({"reason", "note", "dropped"})
"""Fields that may hold another program's words, in lines."""

_UNSEEN: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_UNSAID: Final = frozenset({"", "unknown", "not installed"})


def read_record(path: Path) -> GateRecord:
    """Read and validate one record."""
    text = read_whole(path, what="a record")
    if not text.strip():
        raise BadInput(f"{path} is empty; `pagedbench gate --json FILE` writes records")
    _check_schema(path, text)
    try:
        record = GateRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadInput(
            f"{path}: {where}: {first['msg']} ({error.error_count()} such); it is no record that "
            f"`pagedbench gate --json` of schema {SCHEMA_VERSION} wrote"
        ) from None
    for side, contestant in (("base", record.base), ("head", record.head)):
        if contestant.environment is None:
            raise BadInput(
                f"{path}: {side} does not say what it ran on (the run ended as "
                f"{record.verdict!r}); import a run that measured something"
            )
        check_key(contestant.environment, f"{path}: {side}")
    for complaint in _complaints(record):
        raise BadInput(f"{path}: {complaint}; no run of the gate writes that: measure again")
    return record


def _complaints(record: GateRecord) -> Iterator[str]:
    if _moment(record.started_at) is None:
        yield f"started_at is {_shown(record.started_at)}, no date as in 2026-01-31T12:00:00+00:00"
    for side in (record.base, record.head):
        if side.commit is not None and not re.fullmatch(
            r"[0-9a-f]{40}([0-9a-f]{24})?", side.commit
        ):
            yield f"commit is {_shown(side.commit)}, no hash of git"
        if side.committed_at is not None and _moment(side.committed_at) is None:
            yield f"committed_at is {_shown(side.committed_at)}, no date"
    for where, value in _leaves(record.model_dump(), ""):
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{where} is {value}"
        if where.endswith("_s") and isinstance(value, float | int) and value < 0:
            yield f"{where} is {value} seconds"
        if (
            isinstance(value, str)
            and where.rpartition(".")[2] not in _PROSE
            and _UNSEEN.search(value)
        ):
            yield f"{where} is {_shown(value)}, with characters that cannot be seen"
    for benchmark in record.benchmarks:
        for sample in benchmark.samples:
            if min(sample.base_s, sample.head_s, sample.base_wall_s, sample.head_wall_s) <= 0:
                yield f"{benchmark.key}: launch {sample.launch} took no time"
    keys = [benchmark.key for benchmark in record.benchmarks]
    for key in keys:
        if keys.count(key) > 1:
            yield f"{key} stands {keys.count(key)} times"


def _leaves(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{where}.name".lstrip("."), name
            yield from _leaves(value, f"{where}.{name}".lstrip("."))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _leaves(value, where)
    else:
        yield where, node


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if "T" in text else None
    except ValueError:
        return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]} ...")


def check_key(where: GateEnvironment, what: str) -> None:
    """Raise BadInput where a key is not known well enough to compare anything by it."""
    for name in ("device", "torch", "triton", "timer", "python"):
        if getattr(where, name).strip().lower() in _UNSAID:
            raise BadInput(
                f"{what}: its {name} is {getattr(where, name)!r}; without it no result can be put "
                f"beside another"
            )
    if where.timer not in TIMERS:
        raise BadInput(
            f"{what}: it was timed by {where.timer!r}, and this version knows "
            f"{', '.join(sorted(TIMERS))}; import it with the version that wrote it"
        )
    if where.timer == "cuda_event" and None in {where.driver, where.cuda}:
        raise BadInput(
            f"{what}: it was timed on a GPU and says driver {where.driver}, CUDA {where.cuda}; "
            f"both are part of its key"
        )


def import_record(path: Path, store: Path) -> Path:
    """Take the record of a file into the store, and return where it lies now."""
    from bench.gate.verdict import judge

    record = read_record(path)
    try:
        judged = judge(record)
    except (ValueError, ArithmeticError, LookupError) as error:
        raise BadInput(f"{path}: no verdict follows from it: {error}; measure again") from None
    both = zip(record.benchmarks, judged.benchmarks, strict=True)
    other = [each.key for each, again in both if each.verdict != again.verdict]
    if other:
        raise BadInput(
            f"{path}: its launches do not give its verdict on {other[0]} ({len(other)} such); it "
            f"was changed, or is of a version that judges otherwise: run it again"
        )
    if (judged.verdict, judged.exit_code) != (record.verdict, record.exit_code):
        raise BadInput(
            f"{path}: it says {record.verdict!r} (exit code {record.exit_code}), and its own "
            f"launches give {judged.verdict!r} ({judged.exit_code}); it was changed, or is of a "
            f"version that judges otherwise: run it again"
        )
    return store_record(record, store)


def store_record(record: GateRecord, store: Path) -> Path:
    """Write a record into the store. The same record twice is one file."""
    text = record.model_dump_json(indent=2) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    began = re.sub(r"[^0-9T]", "", record.started_at[:19])
    sides = "-".join(
        (re.sub(r"[^A-Za-z0-9]+", "", side.commit or side.name) or "tree")[:8]
        for side in (record.base, record.head)
    )
    path = store / f"{began}-{sides}-{digest}.json"
    try:
        store.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}; choose another store") from None
    return path


def _check_schema(path: Path, text: bytes) -> None:
    """Say of another version that it is one, before saying what is wrong with its fields."""
    found = re.search(rb'"schema_version"\s*:\s*(-?\d{1,18})(?!\d)', text)
    if found is None:
        raise BadInput(
            f"{path}: it has no schema_version; `pagedbench gate --json FILE` writes records"
        )
    if int(found[1]) != SCHEMA_VERSION:
        raise BadInput(
            f"{path}: it has schema {int(found[1])}, and this version reads {SCHEMA_VERSION}; "
            f"import it with the version that wrote it, or measure again"
        )
