"""A stream of requests, as a record describes it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import BaseModel, ConfigDict

from bench.workloads.source import FilteredSource, StreamSource
from bench.workloads.stream import RequestStream
from bench.workloads.traces import TraceSource


class StreamRecord(BaseModel):
    """What the records of all commands say of a stream."""

    model_config = ConfigDict(frozen=True)

    source: str
    """Where the requests come from."""
    requests: int
    """How many they are."""
    mean_prompt_tokens: float
    mean_output_tokens: float


class NamedStream(StreamRecord):
    """A stream whose lengths were used."""

    name: str


class ServedStream(StreamRecord):
    """A stream that was served; of its requests those that generate something."""

    label: str
    """Name by which the rows refer to it; no two streams have the same."""
    longest_request: int
    """Tokens of prompt and output together."""
    timed: bool
    """Whether they arrive at times of their own; otherwise the next one always waits."""
    prefixes: bool
    """Whether it is known which prompts begin alike."""
    without_output: int
    """Requests of the trace that generate nothing, and were left out."""
    too_long: int = 0
    """Requests that `max_len` left out."""
    ignored: list[str] = []
    """Columns of the trace that are not read."""
    tenants: list[str] = []
    """Whose the requests are, by number; none where nobody says."""


def stream_record(stream: RequestStream) -> NamedStream:
    """Describe a stream that is at hand, every request counted."""
    return NamedStream(
        name=stream.name,
        source=stream.source,
        requests=len(stream),
        mean_prompt_tokens=float(stream.prompt_tokens.mean()),
        mean_output_tokens=float(stream.output_tokens.mean()),
    )


def served_stream(source: StreamSource, *, label: str) -> ServedStream:
    """Read a stream once and describe it, requests without output apart."""
    requests = without = prompt = output = longest = 0
    prefixes = False
    tenants: tuple[str, ...] = ()
    for part in source.chunks():
        generates = part.output_tokens > 0
        requests += int(np.count_nonzero(generates))
        without += int(np.count_nonzero(~generates))
        prompt += int(part.prompt_tokens[generates].sum())
        output += int(part.output_tokens.sum())
        longest = max(longest, int(part.final_tokens[generates].max(initial=0)))
        prefixes = prefixes or part.prefix is not None
        tenants = part.tenant_names
    dropped = _dropped(source)
    if not requests:
        raise ValueError(
            f"{label}: no request generates a token, so none is ever in the cache; choose a "
            f"stream with outputs"
        )
    return ServedStream(
        label=label,
        source=source.source,
        requests=requests,
        mean_prompt_tokens=prompt / requests,
        mean_output_tokens=output / requests,
        longest_request=longest,
        timed=source.timed,
        prefixes=prefixes,
        without_output=without + dropped["without"],
        too_long=dropped["long"],
        ignored=_ignored(source),
        tenants=list(tenants),
    )


def _chain(source: StreamSource) -> Iterator[StreamSource]:
    """A source, and those that it is made of one after the other."""
    inner: StreamSource | None = source
    while inner is not None:
        yield inner
        inner = getattr(inner, "of", None)


def _dropped(source: StreamSource) -> dict[str, int]:
    """Requests that the filters of a source leave out, by why."""
    dropped = {"without": 0, "long": 0}
    for each in _chain(source):
        if isinstance(each, FilteredSource):
            why = "long" if each.max_tokens is not None else "without"
            dropped[why] += each.dropped()
    return dropped


def _ignored(source: StreamSource) -> list[str]:
    return [
        name for each in _chain(source) if isinstance(each, TraceSource) for name in each.ignored()
    ]
