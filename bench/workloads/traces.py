"""Readers of request traces: public ones, and logs, results and block events of engines.

Plain files and gzip alike, told apart by their first bytes; the format is told by the first line.
Rows are read when they are asked for, in chunks. A file that is not what it should be raises
`TraceError`, which names the line, what stood there and what was expected. Blank lines are passed
over; no other row is ever skipped or repaired.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np

from bench.workloads.block_events import block_size_of, first_stored
from bench.workloads.json_documents import is_flat, unfolded
from bench.workloads.prefix import PrefixBlocks
from bench.workloads.source import read_all
from bench.workloads.stream import CHUNK_REQUESTS, RequestStream
from bench.workloads.trace_formats import (
    FORMATS,
    ROWS_ASKED,
    SESSION_PREFIX_TOKENS,
    Format,
    Row,
    by_columns,
    detect,
    has_times,
    ignored_columns,
    known_formats,
    mooncake_block,
)
from bench.workloads.trace_lines import Line, TraceError, lines_of


@dataclass(frozen=True, slots=True)
class TraceSource:
    """A trace file, read anew each time, every row a request.

    Raises ValueError: for an unknown `format` or `turns`, first turns of another format, or a limit
    below 1.
    """

    path: str | os.PathLike[str]
    """File, plain or gzip."""
    format: str | None = field(default=None, kw_only=True)
    """A name of `trace_formats.FORMATS`; None goes by the first line."""
    limit: int | None = field(default=None, kw_only=True)
    """Most requests to read; what lies behind them is not looked at."""
    columns: tuple[tuple[str, str], ...] = field(default=(), kw_only=True)
    """(role, column) of a trace whose columns have other names (`trace_columns.ROLES`)."""
    turns: str = field(default="all", kw_only=True)
    """`all`, or `first`: of a ShareGPT-lengths file, the first turn of every conversation. Its rows
    are turns, and each turn's prompt holds the conversation so far. There are no conversation ids:
    a conversation is taken to start where the prompt is shorter than the previous turn's prompt and
    output together."""

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(
                f"trace format {self.format!r} is unknown; use one of {', '.join(FORMATS)}"
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
        return re.sub(r"\.(csv|tsv|jsonl?)$", "", file.removesuffix(".gz"))

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
        with closing(lines_of(os.fspath(self.path))) as lines:
            first, _, chosen = self._begin(lines)
            return has_times(first, dict(self.columns)) if self.columns else chosen.timed(first)

    def ignored(self) -> list[str]:
        """Columns that are not read, or stand twice. Opens the file; raises as `chunks` does."""
        with closing(lines_of(os.fspath(self.path))) as lines:
            first, _, _ = self._begin(lines)
            return ignored_columns(first, dict(self.columns) or None)

    def chunks(self) -> Iterator[RequestStream]:
        """Yield the rows, `CHUNK_REQUESTS` at a time; arrivals count from the first request on."""
        with closing(lines_of(os.fspath(self.path))) as opened:
            first, lines, chosen = self._begin(opened)
            size = chosen.tokens_per_block
            if self.columns:
                requests = by_columns(first, lines, dict(self.columns))
                size = SESSION_PREFIX_TOKENS if "session" in dict(self.columns) else None
            else:
                if chosen is FORMATS["mooncake"]:
                    asked = min(self.limit or ROWS_ASKED, ROWS_ASKED)
                    size, head = mooncake_block(first, lines, asked=asked)
                    lines = chain(head[1:], lines)
                elif chosen is FORMATS["events"]:
                    size = block_size_of(first)
                requests = chosen.parse(first, lines)
            if self.turns == "first":
                requests = _first_turns(requests)
            requests = islice(requests, self.limit)
            rows = list(islice(requests, CHUNK_REQUESTS))
            tenants: dict[str, int] = {}
            if not rows:
                raise first.error(
                    found="a header and nothing after it", expected="at least one request"
                )
            while rows:
                yield self._stream(rows, size, tenants)
                rows = list(islice(requests, CHUNK_REQUESTS))

    def _begin(self, opened: Iterator[Line]) -> tuple[Line, Iterator[Line], Format]:
        """The first line, those after it, and the format that it tells."""
        first, lines = next(opened, None), opened
        if first is not None and first.text[0] in "{[" and not is_flat(first):
            stored = first_stored(first, opened)
            lines = opened if stored else unfolded(first, opened)
            first = stored or next(lines, None)
        if first is None:
            raise TraceError(os.fspath(self.path), 1, "an empty file", known_formats())
        if self.columns:
            return first, lines, FORMATS["columns"]
        return first, lines, FORMATS[self.format or detect(first)]

    def _stream(
        self, rows: list[Row], tokens_per_block: int | None, tenants: dict[str, int]
    ) -> RequestStream:
        """Make a chunk of rows; `tenants` are numbered as they appear, from chunk to chunk."""
        prompts, outputs, arrivals, ids, owners = zip(*rows, strict=True)
        owned = None
        if owners[0] is not None:
            owned = np.array([tenants.setdefault(owner, len(tenants)) for owner in owners])
        prefix = None
        if tokens_per_block is not None:
            prefix = PrefixBlocks.of_lists(ids, tokens_per_block)
        return RequestStream(
            name=self.name,
            source=self.source,
            prompt_tokens=np.array(prompts, dtype=np.int64),
            output_tokens=np.array(outputs, dtype=np.int64),
            arrival_s=None if arrivals[0] is None else np.array(arrivals),
            prefix=prefix,
            tenant=owned,
            tenant_names=tuple(tenants),
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


def _first_turns(requests: Iterator[Row]) -> Iterator[Row]:
    held = math.inf
    for request in requests:
        if request.prompt < held:
            yield request
        held = request.prompt + request.output
