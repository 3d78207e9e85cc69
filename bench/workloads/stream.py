"""A request stream: who arrives when, with how long a prompt, and how many tokens come out.

Lengths are all that a cache and an attention kernel see of a workload, so a stream holds lengths
and no text. It is a few numpy columns, one row a request, checked once at construction and
read-only from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_TOKENS: Final = 2**30 - 1
"""Most tokens of a prompt, and of an output: their sum then fits the int32 of `seq_lens`."""


@dataclass(frozen=True, slots=True)
class LengthSummary:
    """Mean and quantiles of a column of lengths, in tokens.

    The quantiles interpolate linearly between the two nearest requests, as numpy does by default.
    """

    mean: float
    p50: float
    p90: float
    p99: float
    max: int


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """What a stream looks like at a glance.

    Attributes
    ----------
    requests
        Requests in the stream.
    duration_s
        Seconds from the first arrival to the last; None where the stream has no times.
    rate_per_s
        Gaps between arrivals, divided by `duration_s`; None where that says nothing.
    prompt, output
        The two lengths, in tokens.
    """

    requests: int
    duration_s: float | None
    rate_per_s: float | None
    prompt: LengthSummary
    output: LengthSummary


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixBlocks:
    """Which prefix blocks each prompt is made of: a ragged array of block ids.

    Equal ids mean equal tokens in the block and in everything before it, so two requests share a
    prefix as far as their ids agree. Two records are equal only where they are the same object.

    Attributes
    ----------
    ids
        int64 [total], the ids of all requests, end to end.
    offsets
        int64 [n + 1]; request r owns `ids[offsets[r] : offsets[r + 1]]`.
    tokens_per_block
        Tokens that one id stands for; the last id of a request may stand for fewer.
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    tokens_per_block: int

    def __post_init__(self) -> None:
        if self.tokens_per_block < 1:
            raise ValueError(
                f"tokens_per_block is {self.tokens_per_block}; a block holds at least 1 token"
            )
        ids = _column(self.ids, "prefix ids", largest=np.iinfo(np.int64).max)
        offsets = _column(self.offsets, "prefix offsets", largest=ids.size)
        if offsets.size == 0 or offsets[0] != 0 or offsets[-1] != ids.size:
            raise ValueError(
                f"prefix offsets {offsets.tolist()[:1]} ... {offsets.tolist()[-1:]} do not cover "
                f"the {ids.size} ids; they run from 0 to the number of ids"
            )
        if (falls := np.flatnonzero(np.diff(offsets) < 0)).size:
            raise ValueError(f"prefix offsets fall after entry {falls[0]}; they must not decrease")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "offsets", offsets)

    def __len__(self) -> int:
        """Requests that the record covers."""
        return int(self.offsets.size) - 1

    def of(self, request: int) -> NDArray[np.int64]:
        """Block ids of one request, int64 [blocks]. Raises IndexError for an unknown request."""
        if not 0 <= request < len(self):
            raise IndexError(f"request {request} of {len(self)}; they count from 0")
        return self.ids[self.offsets[request] : self.offsets[request + 1]]

    def select(self, mask: NDArray[np.bool_]) -> PrefixBlocks:
        """Keep the requests where `mask`, bool [n], is set."""
        counts = np.diff(self.offsets)
        return PrefixBlocks(
            ids=self.ids[np.repeat(mask, counts)],
            offsets=np.concatenate(([0], np.cumsum(counts[mask]))),
            tokens_per_block=self.tokens_per_block,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RequestStream:
    """Requests in order of arrival.

    The columns may be given as anything that numpy makes integers (times: numbers) of; they are
    copied and made read-only. Two streams are equal only where they are the same object.

    Attributes
    ----------
    name
        Short name, for tables.
    source
        Where the lengths come from: a path, or a citation.
    prompt_tokens, output_tokens
        int64 [n], tokens, 0 to `MAX_TOKENS`.
    arrival_s
        float64 [n], seconds since the stream began, never decreasing; None where unknown.
    prefix
        Prefix blocks of each prompt; None where unknown.

    Raises
    ------
    ValueError
        For columns that are empty, ragged, of the wrong type or out of range. The message names the
        first request at fault.
    """

    name: str
    source: str
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    arrival_s: NDArray[np.float64] | None = None
    prefix: PrefixBlocks | None = None

    def __post_init__(self) -> None:
        prompt = _column(self.prompt_tokens, "prompt_tokens", largest=MAX_TOKENS)
        output = _column(self.output_tokens, "output_tokens", largest=MAX_TOKENS)
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

    def __len__(self) -> int:
        """Requests in the stream."""
        return int(self.prompt_tokens.size)

    def __repr__(self) -> str:
        """One line, without the columns."""
        return f"RequestStream({self.name!r}, {len(self)} requests, source={self.source!r})"

    @property
    def final_tokens(self) -> NDArray[np.int64]:
        """Tokens of each request when it ends: prompt plus output, int64 [n]."""
        return self.prompt_tokens + self.output_tokens

    def head(self, n: int) -> RequestStream:
        """Take the first `n` requests, or all where there are fewer. Raises ValueError if n < 1."""
        if n < 1:
            raise ValueError(f"head({n}): a stream has at least one request; ask for 1 or more")
        return self.select(np.arange(len(self)) < n)

    def fitting(self, max_model_len: int) -> RequestStream:
        """Drop the requests that end with more than `max_model_len` tokens.

        Raises ValueError where none is left.
        """
        if not (mask := self.final_tokens <= max_model_len).any():
            raise ValueError(
                f"no request of {self.name!r} fits max_model_len {max_model_len}; the shortest "
                f"ends with {self.final_tokens.min()} tokens"
            )
        return self.select(mask)

    def select(self, mask: NDArray[np.bool_]) -> RequestStream:
        """Keep the requests where `mask`, bool [n], is set.

        Raises ValueError for a mask of another shape or dtype, or one that keeps nothing.
        """
        if mask.dtype != np.bool_ or mask.shape != self.prompt_tokens.shape:
            raise ValueError(
                f"mask is {mask.dtype} {list(mask.shape)}; this stream needs bool [{len(self)}]"
            )
        return RequestStream(
            name=self.name,
            source=self.source,
            prompt_tokens=self.prompt_tokens[mask],
            output_tokens=self.output_tokens[mask],
            arrival_s=None if self.arrival_s is None else self.arrival_s[mask],
            prefix=None if self.prefix is None else self.prefix.select(mask),
        )

    def describe(self) -> StreamSummary:
        """Summarise lengths and arrivals."""
        duration_s = None if self.arrival_s is None else float(np.ptp(self.arrival_s))
        return StreamSummary(
            requests=len(self),
            duration_s=duration_s,
            rate_per_s=(len(self) - 1) / duration_s if duration_s else None,
            prompt=_summarise(self.prompt_tokens),
            output=_summarise(self.output_tokens),
        )


def _summarise(lengths: NDArray[np.int64]) -> LengthSummary:
    p50, p90, p99 = np.quantile(lengths, (0.5, 0.9, 0.99)).tolist()
    return LengthSummary(float(lengths.mean()), p50, p90, p99, int(lengths.max()))


def _column(values: Any, name: str, *, largest: int) -> NDArray[np.int64]:
    """Copy to a read-only int64 vector with entries from 0 to `largest`."""
    given = np.asarray(values)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} is {given.dtype} {list(given.shape)}; it must be one dimension of integers"
        )
    if (wrong := np.flatnonzero((given < 0) | (given > largest))).size:
        raise ValueError(
            f"{name}[{wrong[0]}] is {given[wrong[0]]}; entries must be from 0 to {largest}"
        )
    column = given.astype(np.int64)
    column.setflags(write=False)
    return column


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
