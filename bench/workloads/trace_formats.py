"""The formats of public request traces: what their rows hold, and how a first line tells them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain, islice
from typing import Any, Final, NamedTuple

from bench.workloads.block_events import block_id, block_size_of, stored_requests
from bench.workloads.stream import CHUNK_REQUESTS, MAX_TOKENS
from bench.workloads.trace_columns import moment_s, names_of, records, roles_of, unix_s, whole
from bench.workloads.trace_lines import Line, TraceError, cells_of, shown

MOONCAKE_PREFIX_TOKENS: Final = 512
"""Tokens that one `hash_ids` entry of a Mooncake trace stands for."""

QWEN_PREFIX_TOKENS: Final = 16
"""Tokens that one `hash_ids` entry of a Qwen-Bailian trace stands for."""

SESSION_PREFIX_TOKENS: Final = 16
"""Tokens of a prefix block where sessions say which prompts begin alike."""

ROWS_ASKED: Final = 1000
"""Rows of a Mooncake trace that say how many tokens its blocks have."""

_ID_BITS: Final = 26
"""Of a block's number in its conversation: a prompt has at most 2^30 tokens."""

MAX_SECONDS: Final = 2**33
"""Latest time in a column of seconds; in nanoseconds it fits int64."""


class Row(NamedTuple):
    """One row of any trace."""

    prompt: int
    output: int
    arrival_s: float | None = None
    prefix_ids: list[int] | None = None
    tenant: str | None = None


def _always(first: Line) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Format:
    """How one kind of trace is told and read, from its first line on."""

    columns: tuple[str, ...]
    parse: Callable[[Line, Iterator[Line]], Iterator[Row]]
    timed: Callable[[Line], bool] = _always
    tokens_per_block: int | None = None
    """None: none has prefix blocks, or each file says."""


def detect(first: Line) -> str:
    """Name the format by its first line; one known column is enough to tell a header."""
    if block_size_of(first) is not None:
        return "events"
    if first.text.startswith("{"):
        if _QWEN_KEY in first.text:
            return "qwen"
        names = names_of(first)
        if set(_JSON_COLUMNS) <= set(names):
            return "mooncake"
        if roles_of(names, None) is not None:
            return "columns"
        raise first.error(found=shown(first.text), expected=known_formats())
    header = cells_of(first)
    for name in ("azure", "sharegpt", "burstgpt"):
        if set(FORMATS[name].columns) <= set(header):
            return name
    if roles_of(header, None) is not None:
        return "columns"
    for name in ("azure", "sharegpt", "burstgpt"):
        if not set(header).isdisjoint(FORMATS[name].columns):
            return name
    raise first.error(found=f"the first line {shown(first.text)}", expected=known_formats())


def known_formats() -> str:
    """Say what a trace has on its first line."""
    columns = {name: ", ".join(known.columns) for name, known in FORMATS.items()}
    headers = " or ".join(f"{columns[name]} ({name})" for name in ("azure", "sharegpt", "burstgpt"))
    return (
        f"a header with {headers}, or on every line a JSON object with {columns['mooncake']} "
        f"(mooncake), and {_QWEN_KEY} beside them (qwen), or the lengths of prompt and output "
        f"under other names, which --columns prompt=..,output=.. tells"
    )


def _rows(
    header: Line, lines: Iterator[Line], columns: tuple[str, ...]
) -> Iterator[tuple[Line, list[str]]]:
    """Yield the cells of `columns`, in that order, of each line after the header."""
    names = cells_of(header)
    if missing := [column for column in columns if column not in names]:
        raise header.error(
            found=f"a header without {', '.join(missing)}: {shown(header.text)}",
            expected=f"the columns {', '.join(columns)}, in any order",
        )
    places = [names.index(column) for column in columns]
    for line in lines:
        cells = cells_of(line)
        if len(cells) != len(names):
            raise line.error(
                found=f"{len(cells)} columns in {shown(line.text)}",
                expected=f"the header's {len(names)}",
            )
        yield line, [cells[place] for place in places]


def _tokens(line: Line, column: str, text: str) -> int:
    return _checked_tokens(line, column, text, whole(text))


def _checked_tokens(line: Line, column: str, said: object, value: Any) -> int:
    if type(value) is int and 0 <= value <= MAX_TOKENS:
        return value
    raise line.error(
        found=f"{column} = {shown(said)}",
        expected=f"a whole number of tokens from 0 to {MAX_TOKENS}",
    )


class _Clock:
    """Turns moments of any kind into seconds since the first row, which never fall."""

    def __init__(self, seconds: Callable[[Any], float] = float) -> None:
        self._seconds = seconds
        self._start: Any = None
        self._last_s = 0.0

    def since_start(self, line: Line, stamp: object, moment: Any) -> float:
        """Seconds from the first moment to this one, which stands there as `stamp`."""
        if self._start is None:
            self._start = moment
        arrival_s = self._seconds(moment - self._start)
        if arrival_s < self._last_s:
            raise line.error(
                found=f"the time {shown(stamp)}, {self._last_s - arrival_s:g} s before the line "
                f"above",
                expected="requests sorted by time",
            )
        self._last_s = arrival_s
        return arrival_s


def _timed(
    header: Line,
    lines: Iterator[Line],
    *,
    name: str,
    moment: Callable[[Line, str, str], Any],
    seconds: Callable[[Any], float] = float,
) -> Iterator[Row]:
    clock, columns = _Clock(seconds), FORMATS[name].columns
    for line, (stamp, prompt, output) in _rows(header, lines, columns):
        yield Row(
            _tokens(line, columns[1], prompt),
            _tokens(line, columns[2], output),
            clock.since_start(line, stamp, moment(line, columns[0], stamp)),
        )


def _moment(line: Line, column: str, stamp: str) -> datetime:
    try:
        if ":" not in stamp:
            # A bare run of digits is a valid ISO 8601 date, and far more likely a wrong column.
            raise ValueError(stamp)
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        raise line.error(
            found=f"{column} = {shown(stamp)}",
            expected="an ISO 8601 date and time, such as 2023-11-16 18:15:46.6805900",
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _sharegpt(header: Line, lines: Iterator[Line]) -> Iterator[Row]:
    required = FORMATS["sharegpt"].columns
    names = cells_of(header)
    summed, timed = _TOTAL_COLUMN in names, _has_times(header)
    columns = required + (_TOTAL_COLUMN,) * summed + (_TIME_COLUMN,) * timed
    clock = _Clock()
    for line, cells in _rows(header, lines, columns):
        prompt, output = map(_tokens, (line, line), required, cells)
        if summed and (total := _tokens(line, _TOTAL_COLUMN, cells[2])) != prompt + output:
            raise line.error(
                found=f"{_TOTAL_COLUMN} = {total}",
                expected=f"{prompt + output}, the prefill's {prompt} and the decode's {output}",
            )
        arrival_s = None
        if timed:
            arrival_s = clock.since_start(line, cells[-1], _seconds(line, _TIME_COLUMN, cells[-1]))
        yield Row(prompt, output, arrival_s)


def _has_times(header: Line) -> bool:
    return _TIME_COLUMN in cells_of(header)


def _seconds(line: Line, column: str, text: str) -> float:
    seconds = float(text) if _PLAIN_NUMBER.fullmatch(text) else math.inf
    return _checked_seconds(line, column, text, seconds)


def _checked_seconds(line: Line, column: str, stamp: object, seconds: float) -> float:
    if not 0 <= seconds <= MAX_SECONDS:
        raise line.error(
            found=f"{column} = {shown(stamp)}", expected=f"seconds from 0 to {MAX_SECONDS}"
        )
    return seconds


def by_columns(
    first: Line, lines: Iterator[Line], given: Mapping[str, str] | None = None
) -> Iterator[Row]:
    """Read a trace by the roles of its columns, told by their names or `given` by hand."""
    names = names_of(first)
    roles = roles_of(names, given)
    if roles is None:
        asked = "prompt and output" if given is None else ", ".join(given.values())
        raise first.error(
            found=f"the columns {shown(', '.join(names))}", expected=f"{asked} among them"
        )
    return _in_order(first.path, _by_roles(first, lines, roles))


def _by_roles(
    first: Line, lines: Iterator[Line], roles: Mapping[str, str]
) -> Iterator[tuple[int, Row]]:
    """Yield the rows with their lines' numbers, as they stand and in seconds of any clock."""
    time = roles.get("time", roles.get("time_ms"))
    in_ms = "time" not in roles
    conversations = _Conversations()
    for number, (line, record) in enumerate(records(first, lines)):
        said = [record.get(roles[role]) for role in ("prompt", "output")]
        if not any(each not in (None, "") for each in said):
            said = [0, 0]  # a call that failed: it generated nothing
        prompt, output = (
            _checked_tokens(line, roles[role], value, whole(value))
            for role, value in zip(("prompt", "output"), said, strict=True)
        )
        arrival_s = None
        if time is not None:
            moment = record.get(time)
            if number == 0:
                in_ms |= type(moment) is int and set(_JSON_COLUMNS[:3]) <= record.keys()
            seconds = moment_s(moment)
            seconds = math.inf if seconds is None else seconds
            seconds = seconds / 1000 if in_ms else unix_s(seconds)
            arrival_s = _checked_seconds(line, time, moment, seconds)
        ids = None
        if "session" in roles:
            ids = conversations.prefix_ids(record.get(roles["session"]), prompt, output)
        tenant = str(record.get(roles["tenant"])) if "tenant" in roles else None
        yield line.number, Row(prompt, output, arrival_s, ids, tenant)


class _Conversations:
    """Prefix blocks of prompts that begin with their session's last prompt and output.

    One that is too short for them begins a conversation of its own, as in `turns=first`.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, int]] = {}
        self._begun = 0

    def prefix_ids(self, session: object, prompt: int, output: int) -> list[int]:
        known, held = self._held.get(str(session), (None, 0))
        if known is None or prompt < held or session in (None, ""):
            known = self._begun
            self._begun += 1
        self._held[str(session)] = known, prompt + output
        first = known << _ID_BITS
        return list(range(first, first + -(-prompt // SESSION_PREFIX_TOKENS)))


def _in_order(path: str, rows: Iterator[tuple[int, Row]]) -> Iterator[Row]:
    """Sort rows by time, as far as a log that is written when requests end has them out of order.

    Times then count from the first of them.
    """
    held: list[tuple[int, Row]] = []
    start_s, last_s = None, -math.inf
    more = True
    while more or held:
        fresh = list(islice(rows, CHUNK_REQUESTS)) if more else []
        more = len(fresh) == CHUNK_REQUESTS
        held += fresh
        if held and held[0][1].arrival_s is None:
            yield from (row for _, row in held)
            held = []
            continue
        held.sort(key=_arrival)
        ready, held = (held[:-CHUNK_REQUESTS], held[-CHUNK_REQUESTS:]) if more else (held, [])
        for number, row in ready:
            arrival_s = row.arrival_s or 0.0
            if arrival_s < last_s:
                raise TraceError(
                    path,
                    number,
                    f"a time {last_s - arrival_s:g} s before that of a row far above it",
                    f"requests that are at most {CHUNK_REQUESTS:,} rows out of order",
                )
            start_s = arrival_s if start_s is None else start_s
            last_s = arrival_s
            yield row._replace(arrival_s=arrival_s - start_s)


def _arrival(numbered: tuple[int, Row]) -> float:
    return numbered[1].arrival_s or 0.0


def has_times(first: Line, given: Mapping[str, str] | None = None) -> bool:
    """Whether a trace that is read by columns has a time among them."""
    roles = roles_of(names_of(first), given) or {}
    return "time" in roles or "time_ms" in roles


def ignored_columns(first: Line, given: Mapping[str, str] | None = None) -> list[str]:
    """Columns of a trace that say nothing of a request's lengths, times and prefixes."""
    names = names_of(first)
    used = set((roles_of(names, given) or {}).values())
    if given is None:
        for known in FORMATS.values():
            used |= set(known.columns)
        used |= {_TIME_COLUMN, _TOTAL_COLUMN, "pd_ratio", "Total tokens"}
    return [name for at, name in enumerate(names) if name not in used or name in names[:at]]


def _mooncake(first: Line, lines: Iterator[Line]) -> Iterator[Row]:
    size, head = mooncake_block(first, lines)
    return _of_mooncake(chain(head, lines), size)


def _of_mooncake(lines: Iterator[Line], size: int) -> Iterator[Row]:
    clock = _Clock(lambda elapsed_ms: elapsed_ms / 1000)
    for line in lines:
        time_ms, prompt, output, ids = _json_fields(line)
        if type(time_ms) is not int or not 0 <= time_ms < 2**63:
            raise line.error(
                found=f"timestamp = {shown(time_ms)}",
                expected="a whole number of milliseconds from 0, within int64",
            )
        arrival_s = clock.since_start(line, time_ms, time_ms)
        if len(ids) != (blocks := -(-prompt // size)):
            raise line.error(
                found=f"{len(ids)} hash_ids",
                expected=f"{blocks}, one for each {size} tokens of the {prompt}",
            )
        yield Row(prompt, output, arrival_s, ids)


def mooncake_block(
    first: Line, lines: Iterator[Line], *, asked: int = ROWS_ASKED
) -> tuple[int, list[Line]]:
    """Tokens of a prefix block, as the lengths say, and the lines that were read for it.

    `n` ids of a prompt of `p` tokens leave the sizes from `p / n` to below `p / (n - 1)`. Of those
    that the rows `asked` leave it is 512, a power of two, a multiple of 16, or the smallest.

    Raises TraceError: the first row leaves none.
    """
    least, most = 1, _LARGEST_PREFIX_BLOCK
    head: list[Line] = []
    for line in chain([first], islice(lines, asked - 1)):
        head.append(line)
        try:
            _, prompt, _, ids = _json_fields(line)
        except TraceError:
            if line is first:
                raise
            break  # read as any other when its turn comes
        if ids:
            low = max(least, -(-prompt // len(ids)))
            high = min(most, (prompt - 1) // (len(ids) - 1) if len(ids) > 1 else most)
            if low > high and line is not first:
                break
            least, most = low, high
        if least > most or len(ids) > prompt or (prompt and not ids):
            raise first.error(
                found=f"{len(ids)} hash_ids",
                expected=f"{-(-prompt // MOONCAKE_PREFIX_TOKENS)}, one for each "
                f"{MOONCAKE_PREFIX_TOKENS} of the {prompt} tokens, or for each of another number "
                f"up to {_LARGEST_PREFIX_BLOCK:,}",
            )
        if least == most:
            break
    wanted = MOONCAKE_PREFIX_TOKENS, *(1 << bits for bits in range(13)), -(-least // 16) * 16
    return next((size for size in wanted if least <= size <= most), least), head


def _qwen(first: Line, lines: Iterator[Line]) -> Iterator[Row]:
    clock = _Clock()
    for line in chain([first], lines):
        stamp, prompt, output, ids = _json_fields(line)
        stamp_s = stamp if type(stamp) in (int, float) else math.inf
        stamp_s = _checked_seconds(line, "timestamp", stamp, stamp_s)
        arrival_s = clock.since_start(line, stamp, stamp_s)
        # Not "exactly": whether the last, unfilled block has an id is not stated for this data set.
        if len(ids) > (blocks := -(-prompt // QWEN_PREFIX_TOKENS)):
            raise line.error(
                found=f"{len(ids)} hash_ids",
                expected=f"{blocks} at most, for {QWEN_PREFIX_TOKENS} tokens each of the {prompt}",
            )
        yield Row(prompt, output, arrival_s, ids)


def _events(first: Line, lines: Iterator[Line]) -> Iterator[Row]:
    size = block_size_of(first) or 1
    clock = _Clock()
    for request in stored_requests(first, lines):
        blocks = len(request.ids) - request.output_blocks
        yield Row(
            _checked_tokens(first, "tokens of a prompt", blocks * size, blocks * size),
            max(1, request.output_blocks * size),
            clock.since_start(first, request.begun_s, request.begun_s),
            request.ids[:blocks],
        )


def _json_fields(line: Line) -> tuple[Any, int, int, list[int]]:
    columns = FORMATS["mooncake"].columns
    try:
        record = json.loads(line.text)
    except (ValueError, RecursionError) as broken:  # ValueError: also an integer of 5,000 digits
        raise line.error(
            found=f"{shown(line.text)} ({broken})", expected="one JSON object on the line"
        ) from broken
    if not isinstance(record, dict) or not record.keys() >= set(columns):
        raise line.error(
            found=shown(line.text), expected=f"a JSON object with {', '.join(columns)}"
        )
    stamp, prompt, output, ids = (record[column] for column in columns)
    prompt = _checked_tokens(line, "input_length", prompt, prompt)
    if isinstance(ids, list) and ids and set(map(type, ids)) == {str}:
        ids = [block_id(each) for each in ids]
    if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
        raise line.error(
            found=f"hash_ids = {shown(ids)}", expected="a list of integers, or one of strings"
        )
    if len(set(ids)) < len(ids):
        raise line.error(
            found=f"hash_ids = {shown(ids)}, a block twice",
            expected="an id for each block and all before it: no prompt has one twice",
        )
    if ids and not 0 <= min(ids) <= max(ids) < 2**63:
        raise line.error(
            found=f"hash_ids from {min(ids)} to {max(ids)}", expected="ids from 0 that fit int64"
        )
    return stamp, prompt, _checked_tokens(line, "output_length", output, output), ids


_LARGEST_PREFIX_BLOCK: Final = 4096
_TIME_COLUMN: Final = "arrived_at"
_TOTAL_COLUMN: Final = "num_total_tokens"
_QWEN_KEY: Final = "chat_id"
# What float() takes beyond this (underscores, nan, other scripts' digits) is not in these files.
_PLAIN_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?")
_JSON_COLUMNS: Final = ("timestamp", "input_length", "output_length", "hash_ids")

FORMATS: Final = {
    "azure": Format(
        ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        partial(_timed, name="azure", moment=_moment, seconds=timedelta.total_seconds),
    ),
    # Two more columns are optional. The pd_ratio that some files have follows from the lengths.
    "sharegpt": Format(("num_prefill_tokens", "num_decode_tokens"), _sharegpt, timed=_has_times),
    "mooncake": Format(_JSON_COLUMNS, _mooncake, tokens_per_block=MOONCAKE_PREFIX_TOKENS),
    "burstgpt": Format(
        ("Timestamp", "Request tokens", "Response tokens"),
        partial(_timed, name="burstgpt", moment=_seconds),
    ),
    "qwen": Format(_JSON_COLUMNS, _qwen, tokens_per_block=QWEN_PREFIX_TOKENS),
    "events": Format(("ts", "events"), _events),
    "columns": Format(("prompt", "output"), by_columns, timed=has_times),
}
