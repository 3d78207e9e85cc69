"""Traces whose columns have other names: told by what others call them, or mapped by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final

from bench.workloads.trace_lines import Line, cells_of, shown

ALIASES: Final = {
    "prompt": (
        "prompt_tokens input_length input_tokens input_toks input_len prompt_len prompt_length "
        "context_tokens num_prefill_tokens request_tokens prompt num_prompt_tokens prompt_size"
    ),
    "output": (
        "output_tokens output_length output_toks output_len completion_tokens generated_tokens "
        "num_decode_tokens response_tokens output num_output_tokens token_size"
    ),
    "time": (
        "arrived_at arrival_time arrival arrival_s arrival_timestamp received_at request_time "
        "timestamp ts time start_time started_at created created_at"
    ),
    "tenant": "tenant tenant_id tenant_name user_id client_id customer customer_id",
}
"""What a column may be called, whatever its letters' size and what stands between its words. Of
several times and tenants the one that stands first here is meant."""

_IN_MS: Final = "time_ms timestamp_ms arrival_ms arrival_time_ms arrived_at_ms start_time_ms"

ROLES: Final = (*ALIASES, "time_ms", "session")
"""What --columns maps; `time_ms` is a time in milliseconds. A session is never guessed: it says
that each prompt begins with its last prompt and output."""

_WHOLE: Final = re.compile(r"[0-9]{1,10}(?:\.0*)?")


def plain(name: str) -> str:
    """A column's name without capitals and what stands between its words."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


_RANKS: Final = {
    plain(alias): (rank, role)
    for role, aliases in {**ALIASES, "time_ms": _IN_MS}.items()
    for rank, alias in enumerate(aliases.split())
}


def roles_of(names: list[str], given: Mapping[str, str] | None) -> dict[str, str] | None:
    """Column by role; None where prompt or output has none, or two could be meant.

    What is `given` is all that is read where it has the lengths; else others are known by name.
    """
    found: dict[str, str] = {}
    if given is not None:
        found = {role: column for role, column in given.items() if column in names}
        if len(found) < len(given):
            return None
        if {"prompt", "output"} <= set(found):
            return found
    known = sorted(_RANKS[plain(name)] + (name,) for name in names if plain(name) in _RANKS)
    for _, role, name in known:
        if role == "time" and "time_ms" in (given or ()):
            continue
        if role in ("prompt", "output") and found.get(role, name) != name:
            return None
        found.setdefault(role, name)
    return found if {"prompt", "output"} <= set(found) else None


def names_of(first: Line) -> list[str]:
    """Names of the columns that a first line has."""
    if not first.text.startswith("{"):
        return cells_of(first)
    try:
        record = json.loads(first.text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(record, dict):
        return []
    # A log may hold the prompt itself beside its length.
    return [name for name, value in record.items() if not _is_text(name, value)]


def _is_text(name: str, value: Any) -> bool:
    _, role = _RANKS.get(plain(name), (0, ""))
    return isinstance(value, str) and role in ("prompt", "output") and whole(value) is None


def records(first: Line, lines: Iterator[Line]) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Yield each row of a trace by column, JSON objects or cells under a header."""
    if first.text.startswith("{"):
        for line in chain([first], lines):
            try:
                record = json.loads(line.text)
            except (ValueError, RecursionError) as broken:
                raise line.error(
                    found=f"{shown(line.text)} ({broken})", expected="one JSON object on the line"
                ) from broken
            if not isinstance(record, dict):
                raise line.error(found=shown(line.text), expected="one JSON object on the line")
            yield line, record
        return
    names = cells_of(first)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise first.error(
            found=f"the column {repeated[0]} twice", expected="each column once; rename one of them"
        )
    for line in lines:
        cells = cells_of(line)
        if len(cells) != len(names):
            raise line.error(
                found=f"{len(cells)} columns in {shown(line.text)}",
                expected=f"the header's {len(names)}",
            )
        yield line, dict(zip(names, cells, strict=True))


def whole(value: Any) -> int | None:
    """A whole number that is written as one, or as 374.0; None for anything else."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and _WHOLE.fullmatch(value):
        return int(value.partition(".")[0])
    return None


def moment_s(value: Any) -> float | None:
    """A time in seconds, from a number or a date; None for anything else."""
    if type(value) in (int, float):
        return float(value)
    if not isinstance(value, str) or not value.isascii():
        return None
    try:
        return float(value)
    except ValueError:
        pass
    try:
        date = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def unix_s(number: float) -> float:
    """Seconds of a time that may be in milli-, micro- or nanoseconds, as its size tells."""
    for factor in (1e9, 1e6, 1e3):
        if number >= 1e8 * factor:
            return number / factor
    return number
