"""Files of JSON: one document, or one on each line, and the requests inside them.

A benchmark's result holds its requests as columns, a workload of AIBrix several to a moment, a log
of answers their lengths inside `usage`: `requests_in` makes one flat record of each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from bench.workloads.trace_lines import MAX_DOCUMENT_BYTES, Line, shown


class Document(NamedTuple):
    """A document, and where it begins."""

    line: Line
    content: Any


def documents(first: Line, lines: Iterator[Line]) -> tuple[Document, Iterator[Document]] | None:
    """The first document, and those after it. None: it is no JSON."""
    try:
        return Document(first, json.loads(first.text)), map(_document, lines)
    except (ValueError, RecursionError):
        pass
    text, size = [first.text], len(first.text)
    for line in lines:
        text.append(line.text)
        size += len(line.text)
        if size > MAX_DOCUMENT_BYTES:
            break
    try:
        found = list(_in_a_row("\n".join(text)))
    except (ValueError, RecursionError) as broken:
        if not _LOOKS.match(first.text):
            return None  # a log, say
        raise first.error(
            found=f"JSON that breaks or ends too early ({broken})",
            expected=f"whole documents of at most {MAX_DOCUMENT_BYTES >> 20} MiB",
        ) from None
    return Document(first, found[0]), (Document(first, each) for each in found[1:])


_LOOKS: Final = re.compile(r'[{\[]\s*(["{\[]|\Z)')


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


def flat(content: Any) -> Iterator[dict[str, Any]]:
    """Each request of a document, what lies inside `usage` and the like beside the rest."""
    if isinstance(content, list):
        for each in content:
            yield from flat(each)
    elif isinstance(content, Mapping):
        yield _beside(content)


def _beside(content: Mapping[str, Any], *, depth: int = 0) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    outer: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            inner = (_beside(value, depth=depth + 1) if depth < _DEPTH else {}) | inner
        elif not isinstance(value, list):
            outer[str(name)] = value
    return inner | outer


_DEPTH: Final = 4
"""What lies deeper in a log of requests says nothing of lengths and times."""


def requests_in(document: Document) -> Iterator[dict[str, Any]]:
    """A flat record of each request in a document."""
    content = document.content
    if isinstance(content, list):
        for each in content:
            yield from requests_in(document._replace(content=each))
    elif isinstance(content, Mapping) and isinstance(content.get("input_lens"), list):
        yield from _of_benchmark(document.line, content)
    elif isinstance(content, Mapping) and isinstance(content.get("requests"), list):
        yield from _of_moment(content)
    elif isinstance(content, Mapping) and isinstance(content.get("conversations"), list):
        raise document.line.error(
            found="conversations as text",
            expected="lengths in tokens: count them with the model's tokenizer, and write a row of "
            "prompt_tokens,output_tokens for each turn",
        )
    else:
        yield from flat(content)


def _of_benchmark(line: Line, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Requests of `vllm bench serve --save-detailed` or SGLang's `--output-details`.

    Their starts are of a clock that begins anywhere, and in some releases missing.
    """
    lengths = {"input_len": result["input_lens"], "output_len": result.get("output_lens")}
    starts = result.get("start_times")
    if isinstance(starts, list) and starts:
        lengths["start_time"] = starts
    for name, values in lengths.items():
        if not isinstance(values, list) or len(values) != len(result["input_lens"]):
            raise line.error(
                found=f"{len(result['input_lens'])} input_lens and another number of {name}s",
                expected="one for each request; save the details of the benchmark",
            )
    for values in zip(*lengths.values(), strict=True):
        yield dict(zip(lengths, values, strict=True))


def _of_moment(moment: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Requests that AIBrix sends at one moment, which is in milliseconds."""
    for request in flat(moment["requests"]):
        yield {"timestamp_ms": moment.get("timestamp")} | request


def unfolded(first: Line, lines: Iterator[Line]) -> Iterator[Line]:
    """The lines of a file of JSON, or where it has not one flat request on each, one for each."""
    begun = documents(first, lines)
    if begun is None:
        yield first
        return
    head, rest = begun
    yield from _lines(head)
    for document in rest:
        yield from _lines(document)


def _lines(document: Document) -> Iterator[Line]:
    for request in requests_in(document):
        yield document.line._replace(text=json.dumps(request))


def is_flat(first: Line) -> bool:
    """Whether a first line is a request as it stands, as every line of most traces."""
    try:
        content = json.loads(first.text)
    except (ValueError, RecursionError):
        return False
    held = content.items() if isinstance(content, dict) else ()
    return isinstance(content, dict) and not any(
        isinstance(value, dict) or (isinstance(value, list) and name in _HOLD)
        for name, value in held
    )


_HOLD: Final = frozenset({"input_lens", "requests", "conversations", "events"})
