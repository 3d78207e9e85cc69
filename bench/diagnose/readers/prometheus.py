"""Answers of Prometheus' `query_range`: one, several on lines of their own, or a list of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.diagnose.observed import Observed
from bench.diagnose.samples import Samples, source_of
from bench.workloads.json_documents import Document
from bench.workloads.trace_lines import shown
from reference.errors import BadInput

_ASK: Final = (
    "ask /api/v1/query_range with start, end and step, for each metric by its own name, such as "
    'query={__name__=~"vllm:.*"}'
)


def of(path: Path, documents: Iterator[Document]) -> Observed | None:
    """What the answers show. None: the first document is no answer of Prometheus.

    Raises BadInput: an answer is of another kind, or none has a metric's name.
    """
    samples = Samples()
    times: set[float] = set()
    failed: set[float] = set()
    named = nameless = 0
    for number, document in enumerate(documents):
        results = _results(document)
        if results is None:
            if number == 0:
                return None
            raise document.line.error(
                found=shown(document.content), expected="an answer of query_range"
            )
        for result in results:
            labels, values = _series(document, result)
            name = labels.get("__name__", "")
            if not name:
                nameless += 1
                continue
            named += 1
            if name == "up":
                failed |= {moment for moment, value in values if value == 0}
                continue
            try:
                place = samples.place(name, labels)
            except ValueError:
                raise document.line.error(
                    found=f"the labels {shown(dict(labels))}", expected="a bucket with a bound"
                ) from None
            if place is not None:
                times |= {moment for moment, _ in values}
                for moment, value in values:
                    if not math.isnan(value):
                        place.add(moment, value)
    if nameless and not named:
        raise BadInput(
            f"{path}: none of {nameless} series has a name, as after rate() or sum(); {_ASK}"
        )
    source = source_of(path, "prometheus", times)
    left = (f"{path}: {nameless} series without a name are left out",) if nameless else ()
    return replace(samples.observed(source), failed_s=np.array(sorted(failed)), notes=left)


def _results(document: Document) -> list[Any] | None:
    """All series of an answer, or of a list of answers. None: it is none."""
    content = document.content
    if isinstance(content, list) and content:
        parts = [_results(document._replace(content=each)) for each in content]
        return None if None in parts else [each for part in parts for each in part or ()]
    if not isinstance(content, Mapping):
        return None
    if content.get("status") == "error":
        raise document.line.error(
            found=f"an error of Prometheus: {shown(content.get('error'))}",
            expected="an answer of query_range",
        )
    data = content.get("data", content)
    if not isinstance(data, Mapping) or "resultType" not in data:
        return None
    results = data.get("result")
    if data["resultType"] != "matrix" or not isinstance(results, list):
        raise BadInput(
            f"{document.line.path}: an answer of type {shown(data['resultType'])}, which is one "
            f"moment; {_ASK}"
        )
    return results


def _series(document: Document, result: Any) -> tuple[Mapping[str, str], list[tuple[float, float]]]:
    try:
        labels = {str(name): str(value) for name, value in result["metric"].items()}
        values = [(float(moment), float(value)) for moment, value in result.get("values", ())]
        if not all(math.isfinite(moment) for moment, _ in values):
            raise ValueError("no time")
    except (TypeError, ValueError, KeyError, AttributeError):
        raise document.line.error(
            found=shown(result), expected="a series with metric and values of [time, value]"
        ) from None
    return labels, values
