"""Sources of requests: read or drawn in chunks, as often as asked, in bounded memory.

A source is a recipe, small enough to be sent to another process; the requests come into being chunk
by chunk in `chunks()`, which starts anew with every call. Where a `RequestStream` is at hand, it is
a source itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.workloads.prefix import PrefixBlocks
from bench.workloads.stream import RequestStream

MAX_REQUESTS: Final = 10**8
"""Most requests of a stream. At the simulator's 10,000 a second they take three hours."""


class StreamSource(Protocol):
    """Where requests come from."""

    @property
    def name(self) -> str:
        """Short name, for tables."""
        ...

    @property
    def source(self) -> str:
        """Where the lengths come from, and what was done to them."""
        ...

    @property
    def num_requests(self) -> int | None:
        """Requests in all; None where only reading would tell."""
        ...

    @property
    def timed(self) -> bool:
        """Whether the requests carry arrival times."""
        ...

    def chunks(self) -> Iterator[RequestStream]:
        """Yield the requests from the first on, `CHUNK_REQUESTS` at most at a time.

        Arrival times go on from chunk to chunk, and never fall. The chunks agree in what they know:
        all of them have times, prefix blocks of one size and tenants, or none has.
        """
        ...


def check_draw(*, num_requests: int = 1, seed: int = 0, rate_per_s: float | None = None) -> None:
    """Raise ValueError where a source cannot be drawn with these numbers."""
    if not 1 <= num_requests <= MAX_REQUESTS:
        raise ValueError(f"num_requests is {num_requests}; draw 1 to {MAX_REQUESTS:,}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; use 0 or more")
    if rate_per_s is not None and not 0 < rate_per_s < np.inf:
        raise ValueError(f"rate_per_s is {rate_per_s}; use a finite rate above 0")


def arrivals_after(last_s: float | None, gaps_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Times of requests with these gaps, the first behind `last_s`; None begins at 0."""
    # Added as a gap, what was before makes the sum that of one long draw.
    first_s = 0.0 if last_s is None else last_s + gaps_s[0]
    return np.cumsum(np.concatenate(([first_s], gaps_s[1:])))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapped(ABC):
    """A source made of another one: what it does not change is as there."""

    of: StreamSource
    """The source that is read."""

    @property
    def name(self) -> str:
        """The name of the source that is read."""
        return self.of.name

    @property
    def source(self) -> str:
        """What is read, and what is done to it."""
        return f"{self.of.source}; {self.change}"

    @property
    @abstractmethod
    def change(self) -> str:
        """What is done to it, in words."""

    @property
    def num_requests(self) -> int | None:
        """As many as the source has that is read."""
        return self.of.num_requests

    @property
    def timed(self) -> bool:
        """Whether the source that is read has times."""
        return self.of.timed

    @abstractmethod
    def chunks(self) -> Iterator[RequestStream]:
        """Yield the requests, as `StreamSource.chunks` does."""


def head(source: StreamSource, n: int) -> StreamSource:
    """Take the first `n` requests, or all where there are fewer. Raises ValueError if n < 1."""
    return _Head(of=source, n=n)


def fitting(source: StreamSource, max_model_len: int) -> FilteredSource:
    """Drop the requests that end with more than `max_model_len` tokens.

    Reading it raises ValueError where none is left. Raises ValueError if max_model_len < 1.
    """
    if max_model_len < 1:
        raise ValueError(f"max_model_len is {max_model_len}; use 1 or more")
    return FilteredSource(of=source, max_tokens=max_model_len)


def generating(source: StreamSource) -> FilteredSource:
    """Drop the requests without output: calls that failed, which traces hold, hold no memory.

    `dropped()` counts them. Reading it raises ValueError where none is left.
    """
    return FilteredSource(of=source, min_output=1)


def saturated(source: StreamSource) -> StreamSource:
    """Drop the arrival times: a backlog from the start, the next request always at hand."""
    return _Saturated(of=source) if source.timed else source


def repeat(source: StreamSource, times: int) -> StreamSource:
    """Read a source several times over, one mean gap between the rounds."""
    return _Repeated(of=source, times=times)


def read_all(source: StreamSource) -> RequestStream:
    """Read a source into one stream. Its memory is that of all requests."""
    return concatenated(list(source.chunks()), name=source.name, source=source.source)


def first(chunks: Iterable[RequestStream], count: int) -> Iterator[RequestStream]:
    """Yield the first `count` requests, and read no further."""
    for chunk in chunks:
        yield chunk.head(count)
        count -= len(chunk)
        if count <= 0:
            return


def concatenated(chunks: list[RequestStream], *, name: str, source: str) -> RequestStream:
    """Join chunks of one source, or of sources that agree in what they know, end to end."""
    arrivals = [chunk.arrival_s for chunk in chunks if chunk.arrival_s is not None]
    prefixes = [chunk.prefix for chunk in chunks if chunk.prefix is not None]
    tenants = [chunk.tenant for chunk in chunks if chunk.tenant is not None]
    for column in (arrivals, prefixes, tenants):
        if len(column) not in (0, len(chunks)):
            raise ValueError(
                f"chunks of {name!r} disagree: some have times, prefix blocks or tenants, some "
                f"have not; join chunks of one source"
            )
    return RequestStream(
        name=name,
        source=source,
        prompt_tokens=np.concatenate([chunk.prompt_tokens for chunk in chunks]),
        output_tokens=np.concatenate([chunk.output_tokens for chunk in chunks]),
        arrival_s=np.concatenate(arrivals) if arrivals else None,
        prefix=_joined(prefixes) if prefixes else None,
        tenant=np.concatenate(tenants) if tenants else None,
        tenant_names=chunks[-1].tenant_names,
    )


def _joined(prefixes: list[PrefixBlocks]) -> PrefixBlocks:
    sizes = sorted({prefix.tokens_per_block for prefix in prefixes})
    if len(sizes) > 1:
        raise ValueError(
            f"prefix blocks of {sizes} tokens cannot be joined; bring them to one size with "
            f"PrefixBlocks.refined"
        )
    counts = np.concatenate([np.diff(prefix.offsets) for prefix in prefixes])
    return PrefixBlocks(
        ids=np.concatenate([prefix.ids for prefix in prefixes]),
        offsets=np.concatenate(([0], np.cumsum(counts))),
        tokens_per_block=sizes[0],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head(Wrapped):
    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"head of {self.n}: a stream has at least one request; ask for more")

    @property
    def change(self) -> str:
        return f"first {self.n} requests"

    @property
    def num_requests(self) -> int | None:
        known = self.of.num_requests
        return None if known is None else min(self.n, known)

    def chunks(self) -> Iterator[RequestStream]:
        return first(self.of.chunks(), self.n)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilteredSource(Wrapped):
    """A source without the requests that are too long, or that have too little output."""

    max_tokens: int | None = None
    """Most tokens, prompt and output, that a request may end with; None for any."""
    min_output: int = 0
    """Fewest output tokens that a request must have."""

    @property
    def change(self) -> str:
        """What is kept, in words."""
        parts = [] if self.max_tokens is None else [f"at most {self.max_tokens} tokens"]
        if self.min_output:
            parts.append(f"{self.min_output} output token or more")
        return ", ".join(parts) or "any length"

    @property
    def num_requests(self) -> int | None:
        """None: only reading tells."""
        return None

    def chunks(self) -> Iterator[RequestStream]:
        """Yield what is kept; a chunk of which nothing is kept is left out."""
        empty = True
        for chunk in self.of.chunks():
            kept = self._kept(chunk)
            if kept.any():
                empty = False
                yield chunk if kept.all() else chunk.take(np.flatnonzero(kept))
        if empty:
            raise ValueError(
                f"no request of {self.name!r} is left with {self.change}; loosen the condition "
                f"or use another source"
            )

    def dropped(self) -> int:
        """Count the requests that are left out. Reads the source once."""
        return sum(int(np.count_nonzero(~self._kept(chunk))) for chunk in self.of.chunks())

    def _kept(self, chunk: RequestStream) -> NDArray[np.bool_]:
        kept = chunk.output_tokens >= self.min_output
        if self.max_tokens is not None:
            kept &= chunk.final_tokens <= self.max_tokens
        return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saturated(Wrapped):
    @property
    def change(self) -> str:
        return "without times"

    @property
    def timed(self) -> bool:
        return False

    def chunks(self) -> Iterator[RequestStream]:
        for chunk in self.of.chunks():
            yield replace(chunk, arrival_s=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repeated(Wrapped):
    times: int

    def __post_init__(self) -> None:
        if not 1 <= self.times * (self.of.num_requests or 1) <= MAX_REQUESTS:
            raise ValueError(
                f"repeat {self.times} times: use 1 or more, for {MAX_REQUESTS:,} requests at most"
            )

    @property
    def change(self) -> str:
        return f"{self.times} times over"

    @property
    def num_requests(self) -> int | None:
        known = self.of.num_requests
        return None if known is None else known * self.times

    def chunks(self) -> Iterator[RequestStream]:
        begin_s = 0.0
        for _ in range(self.times):
            requests, first_s, last_s = 0, None, 0.0
            for chunk in self.of.chunks():
                requests += len(chunk)
                if chunk.arrival_s is None:
                    yield chunk
                    continue
                first_s = float(chunk.arrival_s[0]) if first_s is None else first_s
                last_s = float(chunk.arrival_s[-1])
                yield replace(chunk, arrival_s=chunk.arrival_s + begin_s)
            if first_s is not None:
                span_s = last_s - first_s
                begin_s += span_s + (span_s / (requests - 1) if requests > 1 else 0.0)
