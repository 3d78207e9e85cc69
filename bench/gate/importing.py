"""The store of gate records: what this machine measured, and what came from others.

A record is a claim that someone will compare with. It is taken in only if it can be read whole, in
the schema that this version writes, if it says on what it was measured, and if its verdicts follow
from its own launches.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from bench.gate.record import SCHEMA_VERSION, GateRecord
from bench.machine.environment import GateEnvironment
from reference.errors import BadInput

STORE: Final = Path(".pagedbench") / "gate"
"""Where records are kept unless told otherwise."""

TIMERS: Final = frozenset({"process_time", "cuda_event"})
"""Timers that this version knows how to read."""

_UNSAID: Final = frozenset({"", "unknown", "not installed"})


class ImportRefused(BadInput):
    """A file is not taken in; the message has the file, the reason and the remedy."""


def read_record(path: Path) -> GateRecord:
    """Read and validate one record.

    Raises ImportRefused where the file cannot be read, is no record of this schema, or does not say
    on what device, versions and timer it was measured.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ImportRefused(f"{path}: {error.strerror or error}; name a record's file") from None
    _check_schema(path, text)
    try:
        record = GateRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ImportRefused(
            f"{path}: {where}: {first['msg']} ({error.error_count()} such); it is no record that "
            f"`pagedbench gate --json` of schema {SCHEMA_VERSION} wrote"
        ) from None
    for side, contestant in (("base", record.base), ("head", record.head)):
        if contestant.environment is None:
            raise ImportRefused(
                f"{path}: {side} does not say what it ran on (the run ended as "
                f"{record.verdict!r}); import a run that measured something"
            )
        check_key(contestant.environment, f"{path}: {side}")
    return record


def check_key(where: GateEnvironment, what: str) -> None:
    """Raise ImportRefused where a key is not known well enough to compare anything by it."""
    for name in ("device", "torch", "triton", "timer", "python"):
        if getattr(where, name).strip().lower() in _UNSAID:
            raise ImportRefused(
                f"{what}: its {name} is {getattr(where, name)!r}; without it no result can be put "
                f"beside another"
            )
    if where.timer not in TIMERS:
        raise ImportRefused(
            f"{what}: it was timed by {where.timer!r}, and this version knows "
            f"{', '.join(sorted(TIMERS))}; import it with the version that wrote it"
        )
    if where.timer == "cuda_event" and None in {where.driver, where.cuda}:
        raise ImportRefused(
            f"{what}: it was timed on a GPU and says driver {where.driver}, CUDA {where.cuda}; "
            f"both are part of its key"
        )


def import_record(path: Path, store: Path) -> Path:
    """Take the record of a file into the store, and return where it lies now.

    Raises ImportRefused: as `read_record`, and where the verdicts are not those that its launches
    give.
    """
    from bench.gate.verdict import judge

    record = read_record(path)
    judged = judge(record)
    said, found = ([(b.key, b.verdict) for b in each.benchmarks] for each in (record, judged))
    other = [
        key for (key, verdict), (_, again) in zip(said, found, strict=True) if verdict != again
    ]
    if other:
        raise ImportRefused(
            f"{path}: its launches do not give its verdict on {other[0]} ({len(other)} such); it "
            f"was changed, or is of a version that judges otherwise: run it again"
        )
    if (judged.verdict, judged.exit_code) != (record.verdict, record.exit_code):
        raise ImportRefused(
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
        (side.commit or re.sub(r"[^A-Za-z0-9]+", "", side.name) or "tree")[:8]
        for side in (record.base, record.head)
    )
    store.mkdir(parents=True, exist_ok=True)
    path = store / f"{began}-{sides}-{digest}.json"
    path.write_text(text, encoding="utf-8")
    return path


def stored_records(store: Path) -> Iterator[tuple[Path, GateRecord]]:
    """Records of the store, oldest first.

    Raises ImportRefused: of a file that does not belong there.
    """
    for path in sorted(store.glob("*.json")):
        yield path, read_record(path)


def _check_schema(path: Path, text: bytes) -> None:
    """Say of another version that it is one, before saying what is wrong with its fields."""
    found = re.search(rb'"schema_version"\s*:\s*(-?\d+)', text)
    if found is None:
        raise ImportRefused(
            f"{path}: it has no schema_version; `pagedbench gate --json FILE` writes records"
        )
    if int(found[1]) != SCHEMA_VERSION:
        raise ImportRefused(
            f"{path}: it has schema {int(found[1])}, and this version reads {SCHEMA_VERSION}; "
            f"import it with the version that wrote it, or measure again"
        )
