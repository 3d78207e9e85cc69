"""Several tenants in one stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.workloads.prefix import PrefixBlocks
from bench.workloads.source import StreamSource, check_draw, concatenated, first, saturated
from bench.workloads.stream import CHUNK_REQUESTS, RequestStream

# Beside the seed, so that what is drawn here is independent of lengths drawn with the same seed.
_TENANTS: Final = 0x74656E


def mix(
    sources: Sequence[StreamSource],
    *,
    shares: Sequence[float] | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> StreamSource:
    """Mix the requests of several tenants, one source each.

    With shares, in any unit, the tenant of each request is drawn by them; times are dropped, for a
    share says how many requests there are, and times would say it again (`arriving` gives the mix
    new ones). The mix ends when a tenant whose turn it is has no request left, so that the shares
    hold to the end. Without shares, all sources must have times, and the requests are merged by
    them, to the last one of every source.

    A request's `tenant` is the index of its source; tenants are called as their sources, or as
    `names` says. Prefix blocks of different tenants never have the same id; those of different size
    are cut to the largest size that divides all.

    Raises ValueError: for fewer than two sources, other numbers of shares or names than of sources,
    a share that is not above 0, sources without times where there are no shares, or a negative
    seed.
    """
    if len(sources) < 2:
        raise ValueError(f"a mix of {len(sources)} sources; give two or more")
    tenants = tuple(source.name for source in sources) if names is None else tuple(names)
    if len(tenants) != len(sources):
        raise ValueError(f"{len(tenants)} names of {len(sources)} sources; name each")
    check_draw(seed=seed)
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


class _Reader:
    def __init__(self, source: StreamSource) -> None:
        self._chunks = source.chunks()
        self.held: RequestStream | None = next(self._chunks, None)
        """The next requests, as they were read; None at the end."""

    def take(self, count: int) -> list[RequestStream]:
        taken = []
        while count and self.held is not None:
            part = self.held.head(count)
            taken.append(part)
            count -= len(part)
            if len(part) < len(self.held):
                self.held = self.held.between(len(part), len(self.held))
            else:
                self.held = next(self._chunks, None)
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mix:
    of: tuple[StreamSource, ...]
    tenant_names: tuple[str, ...]

    @property
    def name(self) -> str:
        return "+".join(self.tenant_names)

    def _readers(self) -> tuple[list[_Reader], int, int]:
        """Open the sources; also the size of their prefix blocks, and requests to mix at a time."""
        readers = [_Reader(source) for source in self.of]
        prefixes = [reader.held.prefix for reader in readers if reader.held is not None]
        sizes = [prefix.tokens_per_block for prefix in prefixes if prefix is not None]
        if not sizes:
            return readers, 0, CHUNK_REQUESTS
        common = gcd(*sizes)
        return readers, common, max(1, CHUNK_REQUESTS * common // max(sizes))

    def _own(self, part: RequestStream, tenant: int, tokens_per_block: int) -> RequestStream:
        """Give the requests to a tenant, with prefix ids that no other tenant has."""
        own = replace(part, tenant=np.full(len(part), tenant), tenant_names=self.tenant_names)
        if not tokens_per_block:
            return own
        prefix = _prefix_of(part, tokens_per_block)
        return replace(own, prefix=prefix.apart(tenant, owners=len(self.of), what="tenants"))

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
            counts = np.bincount(tenants, minlength=len(self.of)).tolist()
            parts = [
                self._own(part, tenant, tokens_per_block)
                for tenant, count in enumerate(counts)
                if count
                for part in first(taken[tenant], count)
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
