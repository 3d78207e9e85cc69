"""Readers of public request traces: Azure LLM 2023, ShareGPT lengths and Mooncake.

Plain files and gzip alike, told apart by their first bytes; the format is told by the first line.
A file that is not what it should be raises `TraceError`, which names the line, what stood there and
what was expected. Blank lines are passed over; no other row is ever skipped or repaired.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from bench.workloads.stream import MAX_TOKENS, PrefixBlocks, RequestStream

MOONCAKE_PREFIX_TOKENS: Final = 512
"""Tokens that one `hash_ids` entry of a Mooncake trace stands for."""

_GZIP_MAGIC: Final = b"\x1f\x8b"


class TraceError(ValueError):
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


def read_trace(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the word that callers look for
    limit: int | None = None,
) -> RequestStream:
    """Read a trace as a stream, every row a request.

    Parameters
    ----------
    path
        File, plain or gzip.
    format
        `azure`, `sharegpt` or `mooncake`; None goes by the first line.
    limit
        Most requests to read; what lies behind them is not looked at.

    Returns
    -------
    RequestStream
        With `arrival_s` from the first request on (azure, to the microsecond; mooncake, to the
        millisecond), and with 512-token prefix blocks (mooncake).

    Raises
    ------
    TraceError
        Where the file is not a trace.
    ValueError
        For an unknown `format`, or a limit below 1.
    OSError
        Where the file cannot be opened.
    """
    return _read(path, format_name=format, limit=limit)


def first_turns(path: str | os.PathLike[str], *, limit: int | None = None) -> RequestStream:
    """Read the first turn of every conversation of a ShareGPT-lengths file.

    The rows of such a file are turns, and each turn's prompt holds the conversation so far. There
    are no conversation ids: a conversation is taken to start where the prompt is shorter than the
    previous turn's prompt and output together. Parameters and errors as for `read_trace`.
    """
    return _read(path, format_name="sharegpt", limit=limit, keep=_is_first_turn)


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


@dataclass(frozen=True, slots=True)
class _Format:
    """How one kind of trace is told and read. `parse` gets the first line and those after it."""

    columns: tuple[str, ...]
    parse: Callable[[_Line, Iterator[_Line]], Iterator[_Request]]


def _read(
    path: str | os.PathLike[str],
    *,
    format_name: str | None,
    limit: int | None,
    keep: Callable[[_Request | None, _Request], bool] | None = None,
) -> RequestStream:
    if format_name is not None and format_name not in _FORMATS:
        raise ValueError(
            f"trace format {format_name!r} is unknown; use one of {', '.join(_FORMATS)}"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; read at least 1 request, or None for all")
    with closing(_lines(os.fspath(path))) as lines:
        first = next(lines, None)
        if first is None:
            raise TraceError(os.fspath(path), 1, "an empty file", _known_formats())
        chosen = _FORMATS[format_name or _detect(first)]
        requests = chosen.parse(first, lines)
        if keep is not None:
            requests = _filtered(requests, keep)
        rows = list(islice(requests, limit))
    if not rows:
        raise first.error(found="a header and nothing after it", expected="at least one request")
    return _to_stream(Path(path), rows)


def _filtered(
    requests: Iterator[_Request], keep: Callable[[_Request | None, _Request], bool]
) -> Iterator[_Request]:
    previous = None
    for request in requests:
        if keep(previous, request):
            yield request
        previous = request


def _is_first_turn(previous: _Request | None, turn: _Request) -> bool:
    return previous is None or turn.prompt < previous.prompt + previous.output


def _to_stream(path: Path, rows: list[_Request]) -> RequestStream:
    arrivals = [row.arrival_s for row in rows if row.arrival_s is not None]
    ids = [row.prefix_ids for row in rows if row.prefix_ids is not None]
    prefix = PrefixBlocks(
        ids=np.fromiter(chain.from_iterable(ids), dtype=np.int64),
        offsets=np.fromiter(accumulate(map(len, ids), initial=0), dtype=np.int64),
        tokens_per_block=MOONCAKE_PREFIX_TOKENS,
    )
    return RequestStream(
        name=path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl"),
        source=str(path),
        prompt_tokens=np.array([row.prompt for row in rows], dtype=np.int64),
        output_tokens=np.array([row.output for row in rows], dtype=np.int64),
        arrival_s=np.array(arrivals) if arrivals else None,
        prefix=prefix if ids else None,
    )


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
        return "mooncake"
    header = _cells(first)
    for name in ("azure", "sharegpt"):
        if not set(header).isdisjoint(_FORMATS[name].columns):
            return name
    raise first.error(found=f"the first line {_shown(first.text)}", expected=_known_formats())


def _known_formats() -> str:
    azure, sharegpt, mooncake = (", ".join(known.columns) for known in _FORMATS.values())
    return (
        f"a header with {azure} (azure), a header with {sharegpt} (sharegpt), or a JSON object "
        f"with {mooncake} on every line (mooncake)"
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
    columns = _FORMATS["sharegpt"].columns
    for line, cells in _rows(header, lines, columns):
        prompt, output, total = map(_tokens, (line,) * len(columns), columns, cells)
        if prompt + output != total:
            raise line.error(
                found=f"num_total_tokens = {total}",
                expected=f"{prompt + output}, the prefill's {prompt} and the decode's {output}",
            )
        yield _Request(prompt, output)


def _mooncake(first: _Line, lines: Iterator[_Line]) -> Iterator[_Request]:
    start_ms = None
    last_s = 0.0
    for line in chain([first], lines):
        time_ms, prompt, output, ids = _mooncake_fields(line)
        start_ms = time_ms if start_ms is None else start_ms
        arrival_s = (time_ms - start_ms) / 1000
        _check_order(line, time_ms, last_s, arrival_s)
        last_s = arrival_s
        yield _Request(prompt, output, arrival_s, ids)


def _mooncake_fields(line: _Line) -> tuple[int, int, int, list[int]]:
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
    time_ms, prompt, output, ids = (record[column] for column in columns)
    if type(time_ms) is not int or not 0 <= time_ms < 2**63:
        raise line.error(
            found=f"timestamp = {_shown(time_ms)}",
            expected="a whole number of milliseconds from 0, within int64",
        )
    prompt = _checked_tokens(line, "input_length", prompt)
    _check_prefix_ids(line, ids, prompt)
    return time_ms, prompt, _checked_tokens(line, "output_length", output), ids


def _check_prefix_ids(line: _Line, ids: Any, prompt: int) -> None:
    if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
        raise line.error(found=f"hash_ids = {_shown(ids)}", expected="a list of integers")
    if ids and not 0 <= min(ids) <= max(ids) < 2**63:
        raise line.error(
            found=f"hash_ids from {min(ids)} to {max(ids)}", expected="ids from 0 that fit int64"
        )
    if len(ids) != (blocks := -(-prompt // MOONCAKE_PREFIX_TOKENS)):
        raise line.error(
            found=f"{len(ids)} hash_ids",
            expected=f"{blocks}, one for each {MOONCAKE_PREFIX_TOKENS} tokens of the {prompt}",
        )


_FORMATS: Final = {
    "azure": _Format(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure),
    # The files have a fourth column, pd_ratio; it follows from these and is not read.
    "sharegpt": _Format(("num_prefill_tokens", "num_decode_tokens", "num_total_tokens"), _sharegpt),
    "mooncake": _Format(("timestamp", "input_length", "output_length", "hash_ids"), _mooncake),
}
