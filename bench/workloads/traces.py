"""Readers of public request traces: Azure, ShareGPT lengths, Mooncake, BurstGPT, Qwen-Bailian.

Plain files and gzip alike, told apart by their first bytes; the format is told by the first line.
Rows are read when they are asked for, in chunks. A file that is not what it should be raises
`TraceError`, which names the line, what stood there and what was expected. Blank lines are passed
over; no other row is ever skipped or repaired.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from bench.workloads.source import read_all
from bench.workloads.stream import CHUNK_REQUESTS, MAX_TOKENS, PrefixBlocks, RequestStream
from reference.errors import BadInput

MOONCAKE_PREFIX_TOKENS: Final = 512
"""Tokens that one `hash_ids` entry of a Mooncake trace stands for."""

QWEN_PREFIX_TOKENS: Final = 16
"""Tokens that one `hash_ids` entry of a Qwen-Bailian trace stands for."""

MAX_SECONDS: Final = 2**33
"""Latest time in a column of seconds; in nanoseconds it fits int64."""

_GZIP_MAGIC: Final = b"\x1f\x8b"


class TraceError(BadInput):
    """A trace that cannot be read.

    Attributes
    ----------
    path
        The file.
    line
        Line number, counted from 1.
    found, expected
        What was read there, and what a trace has there.
    """

    def __init__(self, path: str, line: int, found: str, expected: str) -> None:
        # The four go to args as they are, so that the error survives pickling between processes.
        super().__init__(path, line, found, expected)
        self.path = path
        self.line = line
        self.found = found
        self.expected = expected

    def __str__(self) -> str:
        """One sentence with all four."""
        return f"{self.path}, line {self.line}: read {self.found}; expected {self.expected}"


@dataclass(frozen=True, slots=True)
class TraceSource:
    """A trace file, read anew each time, every row a request.

    Raises ValueError: for an unknown `format` or `turns`, first turns of another format, or a limit
    below 1.
    """

    path: str | os.PathLike[str]
    """File, plain or gzip."""
    format: str | None = field(default=None, kw_only=True)
    """`azure`, `sharegpt`, `mooncake`, `burstgpt` or `qwen`; None goes by the first line."""
    limit: int | None = field(default=None, kw_only=True)
    """Most requests to read; what lies behind them is not looked at."""
    turns: str = field(default="all", kw_only=True)
    """`all`, or `first`: of a ShareGPT-lengths file, the first turn of every conversation. Its rows
    are turns, and each turn's prompt holds the conversation so far. There are no conversation ids:
    a conversation is taken to start where the prompt is shorter than the previous turn's prompt and
    output together."""

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in _FORMATS:
            raise ValueError(
                f"trace format {self.format!r} is unknown; use one of {', '.join(_FORMATS)}"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; read at least 1 request, or None for all")
        if self.turns not in ("all", "first"):
            raise ValueError(f"turns are {self.turns!r}; use all or first")
        if self.turns == "first":
            if self.format not in (None, "sharegpt"):
                raise ValueError(
                    f"first turns of a trace in format {self.format!r}; only sharegpt has turns"
                )
            object.__setattr__(self, "format", "sharegpt")

    @property
    def name(self) -> str:
        """The file's name without its endings."""
        file = Path(self.path).name
        return file.removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl")

    @property
    def source(self) -> str:
        """The path, and what is read of it."""
        turns = "; first turns" if self.turns == "first" else ""
        return f"{os.fspath(self.path)}{turns}"

    @property
    def num_requests(self) -> int | None:
        """None: only reading tells."""
        return None

    @property
    def timed(self) -> bool:
        """Whether the format has times. Opens the file, and raises as `chunks` does."""
        with closing(_lines(os.fspath(self.path))) as lines:
            first, chosen = self._begin(lines)
            return chosen.timed(first)

    def chunks(self) -> Iterator[RequestStream]:
        """Yield the rows, `CHUNK_REQUESTS` at a time.

        `arrival_s` counts from the first request on: to the microsecond (azure), the millisecond
        (mooncake) or as finely as the file says. Prefix blocks have 512 tokens (mooncake) or 16
        (qwen).

        Raises TraceError where the file is not a trace, when reading reaches that line. Raises
        OSError where the file cannot be opened.
        """
        with closing(_lines(os.fspath(self.path))) as lines:
            first, chosen = self._begin(lines)
            requests = chosen.parse(first, lines)
            if self.turns == "first":
                requests = _first_turns(requests)
            requests = islice(requests, self.limit)
            rows = list(islice(requests, CHUNK_REQUESTS))
            if not rows:
                raise first.error(
                    found="a header and nothing after it", expected="at least one request"
                )
            while rows:
                yield self._stream(rows, chosen.tokens_per_block)
                rows = list(islice(requests, CHUNK_REQUESTS))

    def _begin(self, lines: Iterator[_Line]) -> tuple[_Line, _Format]:
        first = next(lines, None)
        if first is None:
            raise TraceError(os.fspath(self.path), 1, "an empty file", _known_formats())
        return first, _FORMATS[self.format or _detect(first)]

    def _stream(self, rows: list[_Request], tokens_per_block: int | None) -> RequestStream:
        prompts, outputs, arrivals, ids = zip(*rows, strict=True)
        prefix = None
        if tokens_per_block is not None:
            prefix = PrefixBlocks(
                ids=np.fromiter(chain.from_iterable(ids), dtype=np.int64),
                offsets=np.fromiter(accumulate(map(len, ids), initial=0), dtype=np.int64),
                tokens_per_block=tokens_per_block,
            )
        return RequestStream(
            name=self.name,
            source=self.source,
            prompt_tokens=np.array(prompts, dtype=np.int64),
            output_tokens=np.array(outputs, dtype=np.int64),
            arrival_s=None if arrivals[0] is None else np.array(arrivals),
            prefix=prefix,
        )


def read_trace(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the word that callers look for
    limit: int | None = None,
) -> RequestStream:
    """Read a whole trace into one stream. Parameters and errors as for `TraceSource`."""
    return read_all(TraceSource(path, format=format, limit=limit))


def first_turns(path: str | os.PathLike[str], *, limit: int | None = None) -> RequestStream:
    """Read the first turns of a ShareGPT-lengths file. Parameters and errors as `TraceSource`."""
    return read_all(TraceSource(path, limit=limit, turns="first"))


class _Line(NamedTuple):
    """A line of a file, and where it stands."""

    path: str
    number: int
    text: str

    def error(self, *, found: str, expected: str) -> TraceError:
        return TraceError(self.path, self.number, found, expected)


class _Request(NamedTuple):
    """One row of any trace."""

    prompt: int
    output: int
    arrival_s: float | None = None
    prefix_ids: list[int] | None = None


def _always(first: _Line) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class _Format:
    """How one kind of trace is told and read.

    `parse` gets the first line and those after it, `timed` the first line.
    """

    columns: tuple[str, ...]
    parse: Callable[[_Line, Iterator[_Line]], Iterator[_Request]]
    timed: Callable[[_Line], bool] = _always
    tokens_per_block: int | None = None


def _first_turns(requests: Iterator[_Request]) -> Iterator[_Request]:
    held = math.inf
    for request in requests:
        if request.prompt < held:
            yield request
        held = request.prompt + request.output


# Lines -----------------------------------------------------------------------------------------


def _lines(path: str) -> Generator[_Line]:
    """Yield the lines that are not blank, and turn what breaks a file into a `TraceError`."""
    number = 0
    with open(path, "rb") as raw:
        packed = raw.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC)
        with gzip.GzipFile(fileobj=raw) if packed else raw as content:
            try:
                for number, line in enumerate(content, start=1):
                    # Spreadsheets put a byte-order mark before the first column's name.
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    if text:
                        yield _Line(path, number, text)
            except (EOFError, zlib.error, gzip.BadGzipFile) as broken:
                raise TraceError(
                    path, number + 1, f"broken gzip data ({broken})", "a complete gzip file"
                ) from broken
            except UnicodeDecodeError as broken:
                raise TraceError(
                    path, number, f"bytes that are not UTF-8 ({broken.reason})", "a text file"
                ) from broken


def _detect(first: _Line) -> str:
    """Name the format by its first line; one known column is enough to tell a header."""
    if first.text.startswith("{"):
        return "qwen" if _QWEN_KEY in first.text else "mooncake"
    header = _cells(first)
    for name in ("azure", "sharegpt", "burstgpt"):
        if not set(header).isdisjoint(_FORMATS[name].columns):
            return name
    raise first.error(found=f"the first line {_shown(first.text)}", expected=_known_formats())


def _known_formats() -> str:
    columns = {name: ", ".join(known.columns) for name, known in _FORMATS.items()}
    headers = " or ".join(f"{columns[name]} ({name})" for name in ("azure", "sharegpt", "burstgpt"))
    return (
        f"a header with {headers}, or on every line a JSON object with {columns['mooncake']} "
        f"(mooncake), and {_QWEN_KEY} beside them (qwen)"
    )


def _cells(line: _Line) -> list[str]:
    return [cell.strip() for cell in line.text.split(",")]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-12:]}"


# Formats ---------------------------------------------------------------------------------------


def _rows(
    header: _Line, lines: Iterator[_Line], columns: tuple[str, ...]
) -> Iterator[tuple[_Line, list[str]]]:
    """Yield the cells of `columns`, in that order, of each line after the header."""
    names = _cells(header)
    if missing := [column for column in columns if column not in names]:
        raise header.error(
            found=f"a header without {', '.join(missing)}: {_shown(header.text)}",
            expected=f"the columns {', '.join(columns)}, in any order",
        )
    places = [names.index(column) for column in columns]
    for line in lines:
        cells = _cells(line)
        if len(cells) != len(names):
            raise line.error(
                found=f"{len(cells)} columns in {_shown(line.text)}",
                expected=f"the header's {len(names)}",
            )
        yield line, [cells[place] for place in places]


def _tokens(line: _Line, column: str, text: str) -> int:
    # isdecimal alone lets other scripts' digits pass; the length keeps int() off absurd strings.
    plain = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_TOKENS))
    if plain and (tokens := int(text)) <= MAX_TOKENS:
        return tokens
    raise _not_tokens(line, column, text)


def _checked_tokens(line: _Line, column: str, value: Any) -> int:
    if type(value) is int and 0 <= value <= MAX_TOKENS:
        return value
    raise _not_tokens(line, column, value)


def _not_tokens(line: _Line, column: str, value: object) -> TraceError:
    return line.error(
        found=f"{column} = {_shown(value)}",
        expected=f"a whole number of tokens from 0 to {MAX_TOKENS}",
    )


def _azure(header: _Line, lines: Iterator[_Line]) -> Iterator[_Request]:
    columns = _FORMATS["azure"].columns
    start = None
    last_s = 0.0
    for line, (stamp, prompt, output) in _rows(header, lines, columns):
        moment = _moment(line, stamp)
        start = start or moment
        arrival_s = (moment - start).total_seconds()
        _check_order(line, stamp, last_s, arrival_s)
        last_s = arrival_s
        yield _Request(
            _tokens(line, "ContextTokens", prompt),
            _tokens(line, "GeneratedTokens", output),
            arrival_s,
        )


def _moment(line: _Line, stamp: str) -> datetime:
    try:
        if ":" not in stamp:
            # A bare run of digits is a valid ISO 8601 date, and far more likely a wrong column.
            raise ValueError(stamp)
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        raise line.error(
            found=f"TIMESTAMP = {_shown(stamp)}",
            expected="an ISO 8601 date and time, such as 2023-11-16 18:15:46.6805900",
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _check_order(line: _Line, stamp: object, last_s: float, arrival_s: float) -> None:
    if arrival_s < last_s:
        raise line.error(
            found=f"the time {_shown(stamp)}, {last_s - arrival_s:g} s before the line above",
            expected="requests sorted by time",
        )


def _sharegpt(header: _Line, lines: Iterator[_Line]) -> Iterator[_Request]:
    required = _FORMATS["sharegpt"].columns
    names = _cells(header)
    summed, timed = _TOTAL_COLUMN in names, _has_times(header)
    columns = required + (_TOTAL_COLUMN,) * summed + (_TIME_COLUMN,) * timed
    clock = _Clock(_TIME_COLUMN)
    for line, cells in _rows(header, lines, columns):
        prompt, output = map(_tokens, (line, line), required, cells)
        if summed and (total := _tokens(line, _TOTAL_COLUMN, cells[2])) != prompt + output:
            raise line.error(
                found=f"{_TOTAL_COLUMN} = {total}",
                expected=f"{prompt + output}, the prefill's {prompt} and the decode's {output}",
            )
        yield _Request(prompt, output, clock.elapsed_s(line, cells[-1]) if timed else None)


def _has_times(header: _Line) -> bool:
    return _TIME_COLUMN in _cells(header)


def _burstgpt(header: _Line, lines: Iterator[_Line]) -> Iterator[_Request]:
    columns = _FORMATS["burstgpt"].columns
    clock = _Clock(columns[0])
    for line, (stamp, prompt, output) in _rows(header, lines, columns):
        yield _Request(
            _tokens(line, columns[1], prompt),
            _tokens(line, columns[2], output),
            clock.elapsed_s(line, stamp),
        )


class _Clock:
    """Turns a column of seconds into seconds since the first row."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._start_s: float | None = None
        self._last_s = 0.0

    def elapsed_s(self, line: _Line, text: str) -> float:
        stamp_s = float(text) if _PLAIN_NUMBER.fullmatch(text) else math.inf
        return self.since_start(line, text, stamp_s)

    def since_start(self, line: _Line, shown: object, stamp_s: float) -> float:
        if not 0 <= stamp_s <= MAX_SECONDS:
            raise line.error(
                found=f"{self._column} = {_shown(shown)}",
                expected=f"seconds from 0 to {MAX_SECONDS}",
            )
        if self._start_s is None:
            self._start_s = stamp_s
        arrival_s = float(stamp_s - self._start_s)
        _check_order(line, shown, self._last_s, arrival_s)
        self._last_s = arrival_s
        return arrival_s


def _mooncake(first: _Line, lines: Iterator[_Line]) -> Iterator[_Request]:
    start_ms = None
    last_s = 0.0
    for line in chain([first], lines):
        time_ms, prompt, output, ids = _json_fields(line)
        if type(time_ms) is not int or not 0 <= time_ms < 2**63:
            raise line.error(
                found=f"timestamp = {_shown(time_ms)}",
                expected="a whole number of milliseconds from 0, within int64",
            )
        start_ms = time_ms if start_ms is None else start_ms
        arrival_s = (time_ms - start_ms) / 1000
        _check_order(line, time_ms, last_s, arrival_s)
        last_s = arrival_s
        if len(ids) != (blocks := -(-prompt // MOONCAKE_PREFIX_TOKENS)):
            raise line.error(
                found=f"{len(ids)} hash_ids",
                expected=f"{blocks}, one for each {MOONCAKE_PREFIX_TOKENS} tokens of the {prompt}",
            )
        yield _Request(prompt, output, arrival_s, ids)


def _qwen(first: _Line, lines: Iterator[_Line]) -> Iterator[_Request]:
    clock = _Clock("timestamp")
    for line in chain([first], lines):
        stamp, prompt, output, ids = _json_fields(line)
        stamp_s = stamp if type(stamp) in (int, float) else math.inf
        arrival_s = clock.since_start(line, stamp, stamp_s)
        # Not "exactly": whether the last, unfilled block has an id is not stated for this data set.
        if len(ids) > (blocks := -(-prompt // QWEN_PREFIX_TOKENS)):
            raise line.error(
                found=f"{len(ids)} hash_ids",
                expected=f"{blocks} at most, for {QWEN_PREFIX_TOKENS} tokens each of the {prompt}",
            )
        yield _Request(prompt, output, arrival_s, ids)


def _json_fields(line: _Line) -> tuple[Any, int, int, list[int]]:
    """Return the time, unchecked, the two lengths and the prefix ids."""
    columns = _FORMATS["mooncake"].columns
    try:
        record = json.loads(line.text)
    except (ValueError, RecursionError) as broken:  # ValueError: also an integer of 5,000 digits
        raise line.error(
            found=f"{_shown(line.text)} ({broken})", expected="one JSON object on the line"
        ) from broken
    if not isinstance(record, dict) or not record.keys() >= set(columns):
        raise line.error(
            found=_shown(line.text), expected=f"a JSON object with {', '.join(columns)}"
        )
    stamp, prompt, output, ids = (record[column] for column in columns)
    prompt = _checked_tokens(line, "input_length", prompt)
    _check_prefix_ids(line, ids)
    return stamp, prompt, _checked_tokens(line, "output_length", output), ids


def _check_prefix_ids(line: _Line, ids: Any) -> None:
    if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
        raise line.error(found=f"hash_ids = {_shown(ids)}", expected="a list of integers")
    if ids and not 0 <= min(ids) <= max(ids) < 2**63:
        raise line.error(
            found=f"hash_ids from {min(ids)} to {max(ids)}", expected="ids from 0 that fit int64"
        )


_TIME_COLUMN: Final = "arrived_at"
_TOTAL_COLUMN: Final = "num_total_tokens"
_QWEN_KEY: Final = "chat_id"
# What float() takes beyond this (underscores, nan, other scripts' digits) is not in these files.
_PLAIN_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?")
_JSON_COLUMNS: Final = ("timestamp", "input_length", "output_length", "hash_ids")

_FORMATS: Final = {
    "azure": _Format(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure),
    # Two more columns are optional. The pd_ratio that some files have follows from the lengths.
    "sharegpt": _Format(("num_prefill_tokens", "num_decode_tokens"), _sharegpt, timed=_has_times),
    "mooncake": _Format(_JSON_COLUMNS, _mooncake, tokens_per_block=MOONCAKE_PREFIX_TOKENS),
    "burstgpt": _Format(("Timestamp", "Request tokens", "Response tokens"), _burstgpt),
    "qwen": _Format(_JSON_COLUMNS, _qwen, tokens_per_block=QWEN_PREFIX_TOKENS),
}
