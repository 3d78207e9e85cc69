"""Several tenants in one stream, and system prompts that requests share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.workloads.source import StreamSource, concatenated, saturated
from bench.workloads.stream import CHUNK_REQUESTS, PrefixBlocks, RequestStream, ragged

SYSTEM_PREFIX_TOKENS: Final = 16
"""Tokens of a prefix block before which a system prompt was set, where the source has none."""

# So that chunks take a few dozen MB at most.
_BLOCKS_AT_ONCE: Final = 2**20

# Beside the seed, so that what is drawn here is independent of lengths drawn with the same seed.
_TENANTS, _PROMPTS = 0x74656E, 0x737973


def mix(
    sources: Sequence[StreamSource],
    *,
    shares: Sequence[float] | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> StreamSource:
    """Mix the requests of several tenants, one source each.

    With shares, the tenant of each request is drawn by them; times are dropped, for a share says
    how many requests there are, and times would say it again (`arriving` gives the mix new ones).
    The mix ends when a tenant whose turn it is has no request left, so that the shares hold to the
    end. Without shares, all sources must have times, and the requests are merged by them, to the
    last one of every source.

    A request's `tenant` is the index of its source. Prefix blocks of different tenants never have
    the same id; those of different size are cut to the largest size that divides all.

    Parameters
    ----------
    sources
        One for each tenant.
    shares
        Share of each tenant in the requests; in any unit, each above 0. None merges by time.
    seed
        Seed of the draws, 0 or more.
    names
        Names of the tenants; None takes the sources'.

    Raises ValueError: for fewer than two sources, other numbers of shares or names than of sources,
    a share that is not above 0, sources without times where there are no shares, or a negative
    seed.
    """
    if len(sources) < 2:
        raise ValueError(f"a mix of {len(sources)} sources; give two or more")
    tenants = tuple(source.name for source in sources) if names is None else tuple(names)
    if len(tenants) != len(sources):
        raise ValueError(f"{len(tenants)} names of {len(sources)} sources; name each")
    if seed < 0:
        raise ValueError(f"seed is {seed}; use 0 or more")
    if shares is None:
        if untimed := [source.name for source in sources if not source.timed]:
            raise ValueError(
                f"{', '.join(untimed)} cannot be merged by time, having none; give shares, or give "
                f"each source a rate"
            )
        return _Merge(of=tuple(sources), tenant_names=tenants)
    if len(shares) != len(sources):
        raise ValueError(f"{len(shares)} shares of {len(sources)} sources; give one for each")
    if wrong := [share for share in shares if not 0 < share < np.inf]:
        raise ValueError(f"share {wrong[0]}; give finite shares above 0")
    return _Shares(
        of=tuple(map(saturated, sources)),
        tenant_names=tenants,
        shares=tuple(float(share) for share in shares),
        seed=seed,
    )


def with_system_prompt(
    source: StreamSource, tokens: int, *, prompts: int = 1, seed: int = 0
) -> StreamSource:
    """Set a system prompt before every prompt, so that requests share a prefix.

    The prompts become longer by `tokens`. Each request gets one of the system prompts, drawn
    evenly. Behind it, prefix blocks of the source are kept, apart for each system prompt; where the
    source has none, every request is made of blocks of its own.

    Parameters
    ----------
    source
        The requests.
    tokens
        Tokens of a system prompt. A multiple of the source's `tokens_per_block`; any number where
        it has no prefix blocks, with multiples of `SYSTEM_PREFIX_TOKENS` the quickest.
    prompts
        System prompts that there are.
    seed
        Seed of the draws, 0 or more.

    Raises ValueError: for tokens, prompts or a seed out of range; when read, for tokens that do not
    fill whole prefix blocks of the source.
    """
    return _SystemPrompt(of=source, tokens=tokens, prompts=prompts, seed=seed)


class _Reader:
    """Takes requests from a source in any number."""

    def __init__(self, source: StreamSource) -> None:
        self._chunks = source.chunks()
        self._held: RequestStream | None = next(self._chunks, None)

    @property
    def held(self) -> RequestStream | None:
        """The next requests, as they were read; None at the end."""
        return self._held

    def take(self, count: int) -> list[RequestStream]:
        """Take the next `count` requests, or as many as there are."""
        taken = []
        while count and self._held is not None:
            part = self._held.head(count)
            taken.append(part)
            count -= len(part)
            if len(part) < len(self._held):
                self._held = self._held.between(len(part), len(self._held))
            else:
                self._held = next(self._chunks, None)
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mix:
    """What the two kinds of mix have in common."""

    of: tuple[StreamSource, ...]
    tenant_names: tuple[str, ...]

    @property
    def name(self) -> str:
        return "+".join(self.tenant_names)

    def _readers(self) -> tuple[list[_Reader], int, int]:
        """Open the sources.

        Also return the common size of their prefix blocks, 0 for none, and how many requests to mix
        at a time: fewer where blocks are cut, for each is then many.
        """
        readers = [_Reader(source) for source in self.of]
        prefixes = [reader.held.prefix for reader in readers if reader.held is not None]
        sizes = [prefix.tokens_per_block for prefix in prefixes if prefix is not None]
        if not sizes:
            return readers, 0, CHUNK_REQUESTS
        common = gcd(*sizes)
        return readers, common, max(1, CHUNK_REQUESTS * common // max(sizes))

    def _own(self, part: RequestStream, tenant: int, tokens_per_block: int) -> RequestStream:
        """Give the requests to a tenant, with prefix ids that no other tenant has."""
        prefix = None
        if tokens_per_block:
            prefix = _numbered_apart(
                _prefix_of(part, tokens_per_block), tenant, apart=len(self.of), what="tenants"
            )
        return replace(
            part,
            prefix=prefix,
            tenant=np.full(len(part), tenant),
            tenant_names=self.tenant_names,
        )

    def _ordered(self, parts: list[RequestStream], order: NDArray[np.int64]) -> RequestStream:
        # Times fall where one tenant's requests follow another's, so they are joined apart.
        times = [part.arrival_s for part in parts if part.arrival_s is not None]
        joined = concatenated(
            [replace(part, arrival_s=None) for part in parts], name=self.name, source="parts"
        ).take(order)
        return replace(joined, arrival_s=np.concatenate(times)[order] if times else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shares(_Mix):
    shares: tuple[float, ...]
    seed: int

    @property
    def source(self) -> str:
        parts = (
            f"{share / sum(self.shares):.3g} of {source.source}"
            for share, source in zip(self.shares, self.of, strict=True)
        )
        return f"mixed with seed {self.seed}: {' + '.join(parts)}"

    @property
    def num_requests(self) -> int | None:
        return None

    @property
    def timed(self) -> bool:
        return False

    def chunks(self) -> Iterator[RequestStream]:
        readers, tokens_per_block, at_once = self._readers()
        draw = np.random.Generator(np.random.PCG64([self.seed, _TENANTS]))
        levels = np.cumsum(self.shares) / sum(self.shares)
        levels[-1] = 1.0
        while True:
            tenants = np.searchsorted(levels, draw.random(at_once), side="right")
            taken = [
                reader.take(int(np.count_nonzero(tenants == tenant)))
                for tenant, reader in enumerate(readers)
            ]
            ends = [at_once]
            for tenant, parts in enumerate(taken):
                turns = np.flatnonzero(tenants == tenant)
                ends += turns[sum(map(len, parts)) :][:1].tolist()
            tenants = tenants[: min(ends)]
            if not tenants.size:
                return
            parts = []
            for tenant, (counted, of_tenant) in enumerate(
                zip(np.bincount(tenants, minlength=len(self.of)).tolist(), taken, strict=True)
            ):
                parts += [
                    self._own(part, tenant, tokens_per_block) for part in _first(of_tenant, counted)
                ]
            # The parts hold tenant after tenant; this undoes a stable sort by tenant.
            order = np.empty(tenants.size, dtype=np.int64)
            order[np.argsort(tenants, kind="stable")] = np.arange(tenants.size)
            yield self._ordered(parts, order)
            if min(ends) < at_once:
                return


@dataclass(frozen=True, slots=True, kw_only=True)
class _Merge(_Mix):
    @property
    def source(self) -> str:
        return f"merged by time: {' + '.join(source.source for source in self.of)}"

    @property
    def num_requests(self) -> int | None:
        counts = [source.num_requests for source in self.of]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def timed(self) -> bool:
        return True

    def chunks(self) -> Iterator[RequestStream]:
        readers, tokens_per_block, at_once = self._readers()
        while held := [_times(reader.held) for reader in readers if reader.held is not None]:
            # Up to here every source has been read: what comes later cannot come before it.
            horizon_s = min(times[:at_once][-1] for times in held)
            parts = []
            for tenant, reader in enumerate(readers):
                if reader.held is not None:
                    due = int(np.searchsorted(_times(reader.held), horizon_s, side="right"))
                    parts += [
                        self._own(part, tenant, tokens_per_block) for part in reader.take(due)
                    ]
            order = np.argsort(np.concatenate([_times(part) for part in parts]), kind="stable")
            yield from self._ordered(parts, order).chunks()


@dataclass(frozen=True, slots=True, kw_only=True)
class _SystemPrompt:
    of: StreamSource
    tokens: int
    prompts: int
    seed: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"a system prompt of {self.tokens} tokens; use 1 or more")
        if self.prompts < 1:
            raise ValueError(f"{self.prompts} system prompts; use 1 or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; use 0 or more")

    @property
    def name(self) -> str:
        return self.of.name

    @property
    def source(self) -> str:
        prompts = (
            "a system prompt" if self.prompts == 1 else f"one of {self.prompts} system prompts"
        )
        return f"{self.of.source}; behind {prompts} of {self.tokens} tokens"

    @property
    def num_requests(self) -> int | None:
        return self.of.num_requests

    @property
    def timed(self) -> bool:
        return self.of.timed

    def chunks(self) -> Iterator[RequestStream]:
        draw = np.random.Generator(np.random.PCG64([self.seed, _PROMPTS]))
        next_own = 0
        for chunk in self._pieces():
            which = (draw.random(len(chunk)) * self.prompts).astype(np.int64)
            if chunk.prefix is None:
                size = gcd(self.tokens, SYSTEM_PREFIX_TOKENS)
                counts = -(-chunk.prompt_tokens // size)
                _, _, offsets = ragged(counts)
                own = np.arange(next_own, next_own + int(offsets[-1]))
                next_own += own.size
            else:
                size = chunk.prefix.tokens_per_block
                counts, own = np.diff(chunk.prefix.offsets), chunk.prefix.ids
                if self.tokens % size:
                    raise ValueError(
                        f"a system prompt of {self.tokens} tokens before prefix blocks of {size}: "
                        f"use a multiple of {size} tokens, or a source without prefix blocks"
                    )
            yield replace(
                chunk,
                prompt_tokens=chunk.prompt_tokens + self.tokens,
                prefix=self._prefix(which, counts, own, size),
            )

    def _pieces(self) -> Iterator[RequestStream]:
        """Yield the requests, fewer at a time where each will have many prefix blocks."""
        for chunk in self.of.chunks():
            size = gcd(self.tokens, SYSTEM_PREFIX_TOKENS)
            if chunk.prefix is not None:
                size = chunk.prefix.tokens_per_block
            longest = (int(chunk.prompt_tokens.max()) + self.tokens) // size + 1
            at_once = max(1, _BLOCKS_AT_ONCE // longest)
            for start in range(0, len(chunk), at_once):
                yield chunk.between(start, start + at_once)

    def _prefix(
        self,
        which: NDArray[np.int64],
        counts: NDArray[np.int64],
        own: NDArray[np.int64],
        size: int,
    ) -> PrefixBlocks:
        """Join blocks of system prompts `which` and the requests' own, `counts` each."""
        blocks = self.tokens // size
        request, index, offsets = ragged(counts + blocks)
        # System prompts take the first ids. The same text behind another one is another prefix.
        first_own = blocks * self.prompts
        behind = PrefixBlocks(
            ids=own, offsets=np.concatenate(([0], np.cumsum(counts))), tokens_per_block=size
        )
        apart = _numbered_apart(
            behind, np.repeat(which, counts), apart=self.prompts, what="system prompts"
        )
        ids = np.empty(request.size, dtype=np.int64)
        system = index < blocks
        ids[system] = which[request[system]] * blocks + index[system]
        ids[~system] = apart.ids + first_own
        return PrefixBlocks(ids=ids, offsets=offsets, tokens_per_block=size)


def _first(parts: list[RequestStream], count: int) -> Iterator[RequestStream]:
    """Yield the first `count` requests of the parts."""
    for part in parts:
        if count <= 0:
            return
        yield part.head(count)
        count -= len(part)


def _times(stream: RequestStream) -> NDArray[np.float64]:
    if stream.arrival_s is None:
        raise ValueError(f"requests of {stream.name!r} have no times; a source that is timed has")
    return stream.arrival_s


def _prefix_of(stream: RequestStream, tokens_per_block: int) -> PrefixBlocks:
    if stream.prefix is None:
        none = np.zeros(len(stream) + 1, dtype=np.int64)
        return PrefixBlocks(ids=none[:0], offsets=none, tokens_per_block=tokens_per_block)
    if stream.prefix.tokens_per_block == tokens_per_block:
        return stream.prefix
    return stream.prefix.refined(tokens_per_block, stream.prompt_tokens)


def _numbered_apart(
    prefix: PrefixBlocks, owner: int | NDArray[np.int64], *, apart: int, what: str
) -> PrefixBlocks:
    """Number ids so that owners, counted from 0 to `apart`, have none in common."""
    if apart == 1:
        return prefix
    if prefix.ids.size and (top := int(prefix.ids.max())) > np.iinfo(np.int64).max // apart - apart:
        raise ValueError(
            f"prefix id {top} for each of {apart} {what} does not fit int64; number the ids of the "
            f"trace from 0 on"
        )
    return replace(prefix, ids=prefix.ids * apart + owner)
