"""The lines of a trace, plain or gzip, and how one that is wrong is named."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Generator
from typing import Final, NamedTuple

from reference.errors import BadInput

_GZIP_MAGIC: Final = b"\x1f\x8b"

MAX_LINE_BYTES: Final = 2**20
"""Longest line that is read. A request of a million tokens with an id for each 16 of them takes
half of it; without a bound a file that is no trace is read until memory ends."""

MAX_DOCUMENT_BYTES: Final = 2**25
"""Longest line, and most bytes of all lines of a document, in a file of JSON: a benchmark's result
has every request on one line, with its text, and an hour of scrapes has 5 MB."""

MAX_EXPANSION: Final = 200
"""Bytes that gzip data may unpack to, for each of its own, once `FREE_BYTES` are unpacked.
Published traces reach 15; a file made to fill memory or time reaches 1,000."""

MAX_BLANK_LINES: Final = 10**6
"""Blank lines in a row: a second's worth, and more than anybody leaves."""

FREE_BYTES: Final = 2**26
"""A small trace of equal rows may pack as well as it likes."""


class TraceError(BadInput):
    """A trace that cannot be read: file, line from 1 on, what was read, what a trace has there."""

    def __init__(self, path: str, line: int, found: str, expected: str) -> None:
        # The four go to args as they are, so that the error survives pickling between processes.
        super().__init__(path, line, found, expected)
        self.path = path
        self.line = line
        self.found = found
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: read {self.found}; expected {self.expected}"


class Line(NamedTuple):
    """A line of a file, and where it stands."""

    path: str
    number: int
    text: str
    separator: str = ","
    """What stands between the cells of the file's first line."""

    def error(self, *, found: str, expected: str) -> TraceError:
        """Make the error that names this line."""
        return TraceError(self.path, self.number, found, expected)


def lines_of(
    path: str,
    *,
    longest: int = MAX_LINE_BYTES,
    what: str = "a request on each line of a trace",
) -> Generator[Line]:
    """Yield the lines that are not blank, and turn what breaks a file into a `TraceError`."""
    number = last = 0
    separator = ""
    with open(path, "rb") as raw:
        packed = raw.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC)
        with gzip.GzipFile(fileobj=raw) if packed else raw as content:
            try:
                if content.peek(64)[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
                    longest = max(longest, MAX_DOCUMENT_BYTES)
                lines = iter(lambda: content.readline(longest + 1), b"")
                for number, line in enumerate(lines, start=1):
                    fault = ""
                    if len(line) > longest:
                        fault = f"more than {longest:,} bytes without an end of line"
                    elif packed and FREE_BYTES < content.tell() > MAX_EXPANSION * raw.tell():
                        fault = f"gzip data that unpacks to over {MAX_EXPANSION} times its size"
                    elif number - last > MAX_BLANK_LINES:
                        fault = f"over {MAX_BLANK_LINES:,} blank lines"
                    if fault:
                        raise TraceError(path, number, fault, what)
                    # Spreadsheets put a byte-order mark before the first column's name.
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    if text:
                        last = number
                        separator = separator or _separator(text)
                        yield Line(path, number, text, separator)
            except (EOFError, zlib.error, gzip.BadGzipFile) as broken:
                raise TraceError(
                    path, number + 1, f"broken gzip data ({broken})", "a complete gzip file"
                ) from broken
            except UnicodeDecodeError as broken:
                raise TraceError(
                    path, number, f"bytes that are not UTF-8 ({broken.reason})", "a text file"
                ) from broken


def cells_of(line: Line) -> list[str]:
    """Split a line at its separators, but for those between quotes."""
    cells = line.text.split(line.separator)
    if '"' in line.text:
        try:
            cells = next(csv.reader([line.text], delimiter=line.separator, strict=True))
        except csv.Error as broken:
            raise line.error(
                found=f"{shown(line.text)} ({broken})", expected="cells, with quotes in pairs"
            ) from None
    return [cell.strip() for cell in cells]


def _separator(header: str) -> str:
    """A comma, or of a header without one what else spreadsheets put between cells."""
    return next((mark for mark in ",\t;|" if mark in header), ",")


def shown(value: object) -> str:
    """Show what was read, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-12:]}"
