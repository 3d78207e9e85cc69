"""Files of JSON: one document, or one on each line. The first one tells what they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.diagnose.observed import Observed
from bench.diagnose.readers import benchmarks, free_lists, prometheus, request_logs, spans
from bench.workloads.trace_lines import Line, lines_of, shown

LONGEST: Final = 2**25
"""Bytes of one document: an hour at 15 s of five hundred series has 5 MB."""


_LOOKS: Final = re.compile(r'[{\[]\s*(["{\[]|\Z)')


class Document(NamedTuple):
    """A document, and where it begins."""

    line: Line
    content: Any


_FORMATS: Final[tuple[Callable[[Path, Iterator[Any]], Observed | None], ...]] = (
    prometheus.of,
    free_lists.of,
    spans.of,
    benchmarks.of,
    request_logs.of,
)


def read(path: Path) -> Observed | None:
    """What a file of JSON shows. None: it is none, or of no kind that is known."""
    with closing(lines_of(str(path), longest=LONGEST, what="a document of JSON")) as lines:
        first = next(lines, None)
        if first is None or first.text[0] not in "{[":
            return None
        begun = _begun(first, lines)
        if begun is None:
            return None
        head, rest = begun
        for known in _FORMATS:
            if (seen := known(path, chain([head], rest))) is not None:
                return seen
    return None


def _begun(first: Line, lines: Iterator[Line]) -> tuple[Document, Iterator[Document]] | None:
    """The first document, and those after it. None: it is no JSON."""
    try:
        return Document(first, json.loads(first.text)), map(_document, lines)
    except (ValueError, RecursionError):
        pass
    text, size = [first.text], len(first.text)
    for line in lines:
        text.append(line.text)
        size += len(line.text)
        if size > LONGEST:
            break
    try:
        documents = list(_in_a_row("\n".join(text)))
    except (ValueError, RecursionError) as broken:
        if not _LOOKS.match(first.text):
            return None  # a log, say
        raise first.error(
            found=f"JSON that breaks or ends too early ({broken})",
            expected=f"whole documents of at most {LONGEST >> 20} MiB",
        ) from None
    return Document(first, documents[0]), (Document(first, each) for each in documents[1:])


def _in_a_row(text: str) -> Iterator[Any]:
    """Documents that follow each other over several lines, as exporters to a terminal write."""
    decoder = json.JSONDecoder()
    at = 0
    while at < len(text):
        content, end = decoder.raw_decode(text, at)
        yield content
        at = end + len(text[end:]) - len(text[end:].lstrip())


def _document(line: Line) -> Document:
    try:
        return Document(line, json.loads(line.text))
    except (ValueError, RecursionError):
        raise line.error(found=shown(line.text), expected="a document of JSON") from None
