"""Spans of OpenTelemetry as JSON: an export of OTLP, or a span on each line.

One span is one request where it has the attributes `gen_ai.usage.*` or `gen_ai.latency.*`; the rest
is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.diagnose.observed import Observed
from bench.diagnose.requests import Row, observed
from bench.workloads.json_documents import Document
from bench.workloads.trace_columns import moment_s, unix_s
from bench.workloads.trace_lines import shown

_TRACES = "resourceSpans", "resource_spans"


def of(path: Path, documents: Iterator[Document]) -> Observed | None:
    """The requests that spans describe. None: the first document holds no spans."""
    rows: list[Row] = []
    others = 0
    for number, document in enumerate(documents):
        found = _spans(document.content)
        if found is None:
            if number == 0:
                return None
            raise document.line.error(found=shown(document.content), expected="spans")
        for span, instance in found:
            row = _row(span, instance)
            others += row is None
            rows += [] if row is None else [row]
    left = f"{path}: {others} spans that are no request with gen_ai attributes are left out"
    return observed(path, "spans", rows, [left] if others else [])


def _spans(content: Any) -> list[tuple[Mapping[str, Any], str]] | None:
    """Each span, and the server that it is of. None: there are none."""
    if isinstance(content, list) and content:
        parts = [_spans(each) for each in content]
        return None if None in parts else [span for part in parts for span in part or ()]
    if not isinstance(content, Mapping):
        return None
    resources = next((content[name] for name in _TRACES if name in content), None)
    if resources is None:
        is_span = _moments(content) is not None and isinstance(
            content.get("attributes"), (Mapping, list)
        )
        return [(content, "")] if is_span else None
    found = []
    for resource in _listed(resources):
        if not isinstance(resource, Mapping):
            continue
        about = resource.get("resource")
        named = _attributes(about.get("attributes") if isinstance(about, Mapping) else None)
        instance = str(named.get("service.instance.id", ""))
        for name in ("scopeSpans", "scope_spans", "instrumentationLibrarySpans"):
            for scope in _listed(resource.get(name)):
                spans = _listed(scope.get("spans") if isinstance(scope, Mapping) else None)
                found += [(span, instance) for span in spans if isinstance(span, Mapping)]
    return found


def _listed(said: Any) -> list[Any]:
    return said if isinstance(said, list) else []


def _row(span: Mapping[str, Any], instance: str) -> Row | None:
    attributes = _attributes(span.get("attributes"))
    moments = _moments(span)
    if moments is None or not any(
        name.startswith(("gen_ai.usage.", "gen_ai.latency.")) for name in attributes
    ):
        return None

    def number(*names: str) -> float:
        for name in names:
            try:
                return float(attributes[f"gen_ai.{name}"])
            except (KeyError, TypeError, ValueError):
                continue
        return math.nan

    start_s, end_s = moments
    whole_s = number("latency.e2e")
    reasons = attributes.get("gen_ai.response.finish_reasons", "")
    return Row(
        arrival_s=start_s,
        prompt=number("usage.prompt_tokens", "usage.input_tokens"),
        output=number("usage.completion_tokens", "usage.output_tokens"),
        first_token_s=start_s + number("latency.time_to_first_token"),
        end_s=end_s if math.isnan(whole_s) else start_s + whole_s,
        queue_s=number("latency.time_in_queue"),
        status=",".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons),
        engine=instance,
    )


def _moments(span: Mapping[str, Any]) -> tuple[float, float] | None:
    """Start and end of a span, as Unix times. None: it has none."""
    for start, end in (
        ("startTimeUnixNano", "endTimeUnixNano"),
        ("start_time_unix_nano", "end_time_unix_nano"),
        ("start_time", "end_time"),
    ):
        begun, ended = moment_s(span.get(start)), moment_s(span.get(end))
        if begun is not None:
            return unix_s(begun), math.nan if ended is None else unix_s(ended)
    return None


def _attributes(said: Any) -> dict[str, Any]:
    """Attributes by name, of OTLP's list or of a plain object."""
    if isinstance(said, Mapping):
        return {str(name): value for name, value in said.items()}
    found: dict[str, Any] = {}
    for each in _listed(said):
        if isinstance(each, Mapping) and isinstance(each.get("key"), str):
            found[each["key"]] = _value(each.get("value"))
    return found


def _value(said: Any) -> Any:
    if not isinstance(said, Mapping):
        return said
    if isinstance(several := said.get("arrayValue"), Mapping):
        return [_value(each) for each in _listed(several.get("values"))]
    return next(iter(said.values()), None)
