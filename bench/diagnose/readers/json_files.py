"""Files of JSON: one document, or one on each line. The first one tells what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, Final

from bench.diagnose.observed import Observed
from bench.diagnose.readers import benchmarks, free_lists, prometheus, request_logs, spans
from bench.workloads.json_documents import documents
from bench.workloads.trace_lines import MAX_DOCUMENT_BYTES, lines_of

_FORMATS: Final[tuple[Callable[[Path, Iterator[Any]], Observed | None], ...]] = (
    prometheus.of,
    free_lists.of,
    spans.of,
    benchmarks.of,
    request_logs.of,
)


def read(path: Path) -> Observed | None:
    """What a file of JSON shows. None: it is none, or of no kind that is known."""
    with closing(
        lines_of(str(path), longest=MAX_DOCUMENT_BYTES, what="a document of JSON")
    ) as lines:
        first = next(lines, None)
        if first is None or first.text[0] not in "{[":
            return None
        begun = documents(first, lines)
        if begun is None:
            return None
        head, rest = begun
        for known in _FORMATS:
            if (seen := known(path, chain([head], rest))) is not None:
                return seen
    return None
