"""A request stream: who arrives when, with how long a prompt, and how many tokens come out.

Lengths are all that a cache and an attention kernel see of a workload, so a stream holds lengths
and no text. It is a few numpy columns, one row a request, checked once at construction and
read-only from then on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.workloads.prefix import PrefixBlocks, checked_column

MAX_TOKENS: Final = 2**30 - 1
"""Most tokens of a prompt, and of an output: their sum then fits the int32 of `seq_lens`."""

CHUNK_REQUESTS: Final = 16_384
"""Most requests of a chunk, where a stream is handed on in chunks."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RequestStream:
    """Requests in order of arrival.

    The columns may be given as anything that numpy makes integers (times: numbers) of; they are
    copied and made read-only. Two streams are equal only where they are the same object.
    """

    name: str
    """Short name, for tables."""
    source: str
    """Where the lengths come from: a path, or a citation."""
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    """int64 [n], tokens, 0 to `MAX_TOKENS`."""
    arrival_s: NDArray[np.float64] | None = None
    """float64 [n], seconds since the stream began, never decreasing; None where unknown."""
    prefix: PrefixBlocks | None = None
    """Prefix blocks of each prompt; None where unknown."""
    tenant: NDArray[np.int64] | None = None
    """int64 [n], whose request it is, as an index into `tenant_names`; None where there is one
    tenant."""
    tenant_names: tuple[str, ...] = ()
    """Names of all tenants, also of those without a request in this stream."""

    def __post_init__(self) -> None:
        prompt = checked_column(self.prompt_tokens, "prompt_tokens", largest=MAX_TOKENS)
        output = checked_column(self.output_tokens, "output_tokens", largest=MAX_TOKENS)
        if prompt.size == 0:
            raise ValueError(f"stream {self.name!r} has no request; a stream has at least one")
        if prompt.size != output.size:
            raise ValueError(
                f"stream {self.name!r} has {prompt.size} prompt lengths and {output.size} output "
                f"lengths; give one of each for every request"
            )
        object.__setattr__(self, "prompt_tokens", prompt)
        object.__setattr__(self, "output_tokens", output)
        if self.arrival_s is not None:
            object.__setattr__(self, "arrival_s", _arrivals(self.arrival_s, requests=prompt.size))
        if self.prefix is not None:
            _check_prefix(self.prefix, prompt)
        if self.tenant is not None:
            if not self.tenant_names:
                raise ValueError("tenant is given without tenant_names; name each tenant")
            tenant = checked_column(self.tenant, "tenant", largest=len(self.tenant_names) - 1)
            if tenant.size != prompt.size:
                raise ValueError(
                    f"tenant has {tenant.size} entries; give one for each of the {prompt.size} "
                    f"requests, or None"
                )
            object.__setattr__(self, "tenant", tenant)
        elif self.tenant_names:
            raise ValueError(
                f"tenant_names are {self.tenant_names}, and tenant is None; give both or neither"
            )

    def __len__(self) -> int:
        return int(self.prompt_tokens.size)

    @property
    def num_requests(self) -> int:
        """Requests in the stream, as a source states them."""
        return len(self)

    @property
    def timed(self) -> bool:
        """Whether arrival times are known."""
        return self.arrival_s is not None

    def chunks(self) -> Iterator[RequestStream]:
        """Yield the stream in runs of at most `CHUNK_REQUESTS` requests, in order."""
        if len(self) <= CHUNK_REQUESTS:
            yield self
            return
        for start in range(0, len(self), CHUNK_REQUESTS):
            yield self.between(start, start + CHUNK_REQUESTS)

    def __repr__(self) -> str:
        return f"RequestStream({self.name!r}, {len(self)} requests, source={self.source!r})"

    @property
    def final_tokens(self) -> NDArray[np.int64]:
        """Tokens of each request when it ends: prompt plus output, int64 [n]."""
        return self.prompt_tokens + self.output_tokens

    def head(self, n: int) -> RequestStream:
        """Take the first `n` requests, or all where there are fewer."""
        if n < 1:
            raise ValueError(f"head({n}): a stream has at least one request; ask for 1 or more")
        return self if n >= len(self) else self.between(0, n)

    def between(self, start: int, stop: int) -> RequestStream:
        """Take the requests from `start` to before `stop`, which may lie beyond the end."""
        if not 0 <= start < min(stop, len(self)):
            raise ValueError(
                f"between({start}, {stop}) leaves no request of {len(self)}; start below both, "
                f"from 0 on"
            )
        return self.take(np.arange(start, min(stop, len(self))))

    def take(self, requests: NDArray[np.int64]) -> RequestStream:
        """Keep the requests of these indices, int64 [m], in their order."""
        return RequestStream(
            name=self.name,
            source=self.source,
            prompt_tokens=self.prompt_tokens[requests],
            output_tokens=self.output_tokens[requests],
            arrival_s=None if self.arrival_s is None else self.arrival_s[requests],
            prefix=None if self.prefix is None else self.prefix.take(requests),
            tenant=None if self.tenant is None else self.tenant[requests],
            tenant_names=self.tenant_names,
        )


def _arrivals(values: Any, *, requests: int) -> NDArray[np.float64]:
    """Copy to a read-only float64 vector of finite times that never decrease."""
    times = np.array(values, dtype=np.float64)
    if times.shape != (requests,):
        raise ValueError(
            f"arrival_s has shape {list(times.shape)}; give one time for each of the {requests} "
            f"requests, or None"
        )
    if (wrong := np.flatnonzero(~(np.isfinite(times) & (times >= 0)))).size:
        raise ValueError(
            f"arrival_s[{wrong[0]}] is {times[wrong[0]]}; give finite seconds from 0 on"
        )
    if (falls := np.flatnonzero(np.diff(times) < 0)).size:
        raise ValueError(
            f"arrival_s falls from {times[falls[0]]} to {times[falls[0] + 1]} after request "
            f"{falls[0]}; sort the requests by arrival"
        )
    times.setflags(write=False)
    return times


def _check_prefix(prefix: PrefixBlocks, prompt: NDArray[np.int64]) -> None:
    if len(prefix) != prompt.size:
        raise ValueError(
            f"prefix blocks cover {len(prefix)} requests of {prompt.size}; give ids, or an empty "
            f"run of them, for each"
        )
    room = -(-prompt // prefix.tokens_per_block)
    if (wrong := np.flatnonzero(np.diff(prefix.offsets) > room)).size:
        raise ValueError(
            f"request {wrong[0]} has {len(prefix.of(int(wrong[0])))} prefix blocks of "
            f"{prefix.tokens_per_block} tokens, but a prompt of {prompt[wrong[0]]} tokens has room "
            f"for {room[wrong[0]]}"
        )
