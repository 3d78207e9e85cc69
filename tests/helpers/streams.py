"""Request streams by hand."""

from collections.abc import Sequence
from typing import Any

from bench.workloads.stream import RequestStream


def stream(
    prompt: Sequence[int], output: Sequence[int] | None = None, *, name: str = "s", **others: Any
) -> RequestStream:
    """A stream of these lengths; each request generates one token unless `output` says more."""
    return RequestStream(
        name=name,
        source="a test",
        prompt_tokens=prompt,
        output_tokens=[1] * len(prompt) if output is None else output,
        **others,
    )
