"""A stream of requests, as a record describes it."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from bench.workloads.source import StreamSource
from bench.workloads.stream import RequestStream


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
    for part in source.chunks():
        generates = part.output_tokens > 0
        requests += int(np.count_nonzero(generates))
        without += int(np.count_nonzero(~generates))
        prompt += int(part.prompt_tokens[generates].sum())
        output += int(part.output_tokens.sum())
        longest = max(longest, int(part.final_tokens[generates].max(initial=0)))
        prefixes = prefixes or part.prefix is not None
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
        without_output=without,
    )
