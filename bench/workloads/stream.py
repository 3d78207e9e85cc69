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

MAX_TOKENS: Final = 2**30 - 1
"""Most tokens of a prompt, and of an output: their sum then fits the int32 of `seq_lens`."""

CHUNK_REQUESTS: Final = 16_384
"""Most requests of a chunk, where a stream is handed on in chunks."""

_MAX_ID: Final = int(np.iinfo(np.int64).max)


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
    """What a stream looks like at a glance."""

    requests: int
    """Requests in the stream."""
    duration_s: float | None
    """Seconds from the first arrival to the last; None where the stream has no times."""
    rate_per_s: float | None
    """Gaps between arrivals, divided by `duration_s`; None where that says nothing."""
    prompt: LengthSummary
    output: LengthSummary
    """The two lengths, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixBlocks:
    """Which prefix blocks each prompt is made of: a ragged array of block ids.

    Equal ids mean equal tokens in the block and in everything before it, so two requests share a
    prefix as far as their ids agree. Two records are equal only where they are the same object.
    """

    ids: NDArray[np.int64]
    """int64 [total], the ids of all requests, end to end."""
    offsets: NDArray[np.int64]
    """int64 [n + 1]; request r owns `ids[offsets[r] : offsets[r + 1]]`."""
    tokens_per_block: int
    """Tokens that one id stands for; the last id of a request may stand for fewer."""

    def __post_init__(self) -> None:
        if self.tokens_per_block < 1:
            raise ValueError(
                f"tokens_per_block is {self.tokens_per_block}; a block holds at least 1 token"
            )
        ids = _column(self.ids, "prefix ids", largest=_MAX_ID)
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
        return self.take(np.flatnonzero(mask))

    def take(self, requests: NDArray[np.int64]) -> PrefixBlocks:
        """Keep the requests of these indices, int64 [m], in their order."""
        counts = np.diff(self.offsets)[requests]
        request, index, offsets = ragged(counts)
        return PrefixBlocks(
            ids=self.ids[self.offsets[requests][request] + index],
            offsets=offsets,
            tokens_per_block=self.tokens_per_block,
        )

    def keys(self, request: int, block_size: int, prompt_tokens: int) -> NDArray[np.int64]:
        """Cache keys of one request: equal where a cache may share the block, and only there.

        One key for each block that the prompt fills, so none for the part of a block at its end,
        and none from the block on in which the request's ids end, should they end early: nothing
        is known to share it. Where `block_size` is `tokens_per_block`, a key is the id.

        Parameters
        ----------
        request
            Index of the request.
        block_size
            Tokens of a block of the cache, 1 or more; any number, also one that `tokens_per_block`
            is no multiple of.
        prompt_tokens
            The request's prompt, in tokens.

        Returns
        -------
        int64 [blocks]
            In the order of the prompt.

        Raises IndexError: for an unknown request. Raises ValueError: for a block size below 1, or
        ids so large that keys do not fit int64.
        """
        ids = self.of(request)
        self._check_keys(ids, block_size)
        blocks = min(prompt_tokens, ids.size * self.tokens_per_block) // block_size
        if self.tokens_per_block % block_size == 0:  # the same, and many times as fast
            per_id = self._keys_per_id(block_size)
            return (ids[:, None] * per_id + np.arange(per_id)).ravel()[:blocks]
        first = np.broadcast_to(self.offsets[request], blocks)
        return self._key(first, np.arange(blocks), block_size)

    def full_blocks(self, block_size: int, prompt_tokens: NDArray[np.int64]) -> PrefixBlocks:
        """Return the `keys` of every request at once, for prompts of these lengths, int64 [n].

        The result's ids are the keys, its `tokens_per_block` is `block_size`. Raises ValueError as
        `keys` does.
        """
        self._check_keys(self.ids, block_size)
        counts = (
            np.minimum(prompt_tokens, np.diff(self.offsets) * self.tokens_per_block) // block_size
        )
        request, index, offsets = ragged(counts)
        return PrefixBlocks(
            ids=self._key(self.offsets[:-1][request], index, block_size),
            offsets=offsets,
            tokens_per_block=block_size,
        )

    def refined(self, tokens_per_block: int, prompt_tokens: NDArray[np.int64]) -> PrefixBlocks:
        """Say the same in blocks of fewer tokens, for prompts of these lengths, int64 [n].

        Raises ValueError where `tokens_per_block` does not divide this record's, or where ids
        would no longer fit int64.
        """
        if tokens_per_block < 1 or self.tokens_per_block % tokens_per_block:
            raise ValueError(
                f"prefix blocks of {self.tokens_per_block} tokens cannot be cut into blocks of "
                f"{tokens_per_block}; use a divisor of {self.tokens_per_block}"
            )
        self._check_keys(self.ids, tokens_per_block)
        counts = np.minimum(
            -(-prompt_tokens // tokens_per_block),
            np.diff(self.offsets) * (self.tokens_per_block // tokens_per_block),
        )
        request, index, offsets = ragged(counts)
        return PrefixBlocks(
            ids=self._key(self.offsets[:-1][request], index, tokens_per_block),
            offsets=offsets,
            tokens_per_block=tokens_per_block,
        )

    def _key(
        self, first: NDArray[np.int64], block: NDArray[np.int64], block_size: int
    ) -> NDArray[np.int64]:
        """Keys of blocks, counted within requests whose ids begin at `first`.

        A block is known by the id that its last token falls in: that id stands for all before it,
        too. Several blocks may end in one id's tokens, `per_id` at most, and since those ends lie
        `block_size` apart, dividing by it tells them from each other.
        """
        per_id = self._keys_per_id(block_size)
        keys: NDArray[np.int64]
        last_token = (block + 1) * block_size - 1
        if per_id == 1:
            keys = self.ids[first + last_token // self.tokens_per_block]
        else:
            index, offset = np.divmod(last_token, self.tokens_per_block)
            keys = self.ids[first + index] * per_id + offset // block_size
        return keys

    def _keys_per_id(self, block_size: int) -> int:
        return -(-self.tokens_per_block // block_size)

    def _check_keys(self, ids: NDArray[np.int64], block_size: int) -> None:
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; a block holds at least 1 token")
        per_id = self._keys_per_id(block_size)
        if per_id > 1 and ids.size and (top := int(ids.max())) > _MAX_ID // per_id - 1:
            raise ValueError(
                f"prefix id {top} times {per_id} blocks of {block_size} tokens does not fit int64; "
                f"number the ids from 0 on, or use blocks of {self.tokens_per_block} tokens or more"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RequestStream:
    """Requests in order of arrival.

    The columns may be given as anything that numpy makes integers (times: numbers) of; they are
    copied and made read-only. Two streams are equal only where they are the same object.

    Raises ValueError: for columns that are empty, ragged, of the wrong type or out of range. The
    message names the first request at fault.
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
        if self.tenant is not None:
            if not self.tenant_names:
                raise ValueError("tenant is given without tenant_names; name each tenant")
            tenant = _column(self.tenant, "tenant", largest=len(self.tenant_names) - 1)
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
        """Requests in the stream."""
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
        return self if n >= len(self) else self.between(0, n)

    def between(self, start: int, stop: int) -> RequestStream:
        """Take the requests from `start` up to and without `stop`; `stop` may lie beyond the end.

        Raises ValueError where that leaves none.
        """
        if not 0 <= start < min(stop, len(self)):
            raise ValueError(
                f"between({start}, {stop}) leaves no request of {len(self)}; start below both, "
                f"from 0 on"
            )
        return self.take(np.arange(start, min(stop, len(self))))

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
        return self.take(np.flatnonzero(mask))

    def take(self, requests: NDArray[np.int64]) -> RequestStream:
        """Keep the requests of these indices, int64 [m], in their order.

        Raises ValueError where that is none, or where arrival times would fall.
        """
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


def ragged(
    counts: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Number the entries of a ragged array whose rows have these counts, int64 [n].

    Returns the row of each entry and its place in the row, both int64 [total], and the offsets of
    the rows, int64 [n + 1].
    """
    offsets = np.zeros(counts.size + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    row = np.repeat(np.arange(counts.size), counts)
    return row, np.arange(row.size) - offsets[:-1][row], offsets


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
