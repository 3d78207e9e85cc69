"""What a prefix cache of a given size would have found, request by request.

A stream's prompts are looked up and kept one after the other: no time passes, nothing runs, so the
only question is which blocks are still there. The orders of eviction are those of the allocator
(`paged.eviction`), and beside them is Belady's, which knows the future.

The rules, which published figures of the Mooncake traces depend on:

- A cache of `capacity_tokens` has `capacity_tokens // tokens_per_block` blocks, and a block takes
  one of them however many tokens it holds: the last one of a prompt is kept, too, although it may
  be partly filled. (An allocator keeps full blocks only.)
- A hit is a block that is there when the prompt arrives, and all those before it in the prompt are,
  too. Its tokens count as far as the prompt goes. No token is held back to be computed, as an
  allocator does.
- The hits have been used then. The prompt's blocks are taken in, or used again, one after the
  other, the last one first: a block is of use only as long as those before it are there. Each that
  is taken in pushes out one other once the cache is full, perhaps one of the same prompt. (An
  allocator holds the whole prompt while it runs. Least recently used first, that is the same;
  other orders differ where prompts are nearly as large as the cache.)

Belady's order is the exception to the last rule: of what was there and what the prompt brings it
keeps what is due soonest.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from array import array
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Literal, get_args

from bench.workloads.source import StreamSource
from paged.eviction import FIFO, LFU, LRU, EvictionOrder, GhostList

ReplayOrder = Literal["lru", "fifo", "lfu", "perfect-lfu", "belady"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """Prompt tokens that were looked up, and found."""

    queried_tokens: int = 0
    hit_tokens: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the tokens that was found, 0 to 1; 0 where none was looked up."""
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult(Hits):
    """What became of the requests behind the warm-up, all of it in integers."""

    order: ReplayOrder
    capacity_blocks: int | None
    """As given; None is a cache without end."""
    requests: int
    """Requests that were counted."""
    queried_blocks: int
    hit_blocks: int
    """Blocks likewise."""
    evictions: int
    """Blocks that were given up for others or for a quota; in Belady's order also those of a prompt
    that were not worth keeping in the first place."""
    ghost_hits: int
    """Blocks that were looked up in vain and had been given up within the last `capacity_blocks`
    evictions."""
    unique_blocks: int
    reused_blocks: int
    """Different blocks that were looked up, and those among them that were more than once."""
    tenants: Mapping[int, Hits]
    """Tokens of each tenant's prompts."""

    @property
    def block_hit_rate(self) -> float:
        """Share of the blocks that was found, 0 to 1; 0 where none was looked up."""
        return self.hit_blocks / self.queried_blocks if self.queried_blocks else 0.0


def replay(
    source: StreamSource,
    capacity_tokens: int | None,
    order: ReplayOrder = "lru",
    *,
    quotas: Mapping[int, int] | None = None,
    warmup_requests: int = 0,
) -> ReplayResult:
    """Look up and keep the prompts of a stream, one after the other.

    Memory is that of the different blocks of the stream; Belady's order takes 8 bytes more for each
    reference to a block, and reads the stream twice. A cache of None tokens never gives anything
    up. What goes first is what was used least recently (`lru`), was cached first (`fifo`), had the
    fewest hits since it was cached (`lfu`) or the fewest references ever, also before it was
    evicted (`perfect-lfu`), or will not be needed for the longest time (`belady`; of equals the
    last of a prompt). No order that keeps at most as many blocks from one request to the next finds
    more blocks than the last one (L. A. Belady, IBM Systems Journal 5(2), 1966). `quotas` are most
    blocks by tenant, as in `paged.eviction`; the first `warmup_requests` fill the cache and are not
    counted.
    """
    if order not in get_args(ReplayOrder):
        raise ValueError(f"order {order!r}: choose one of {', '.join(get_args(ReplayOrder))}")
    if warmup_requests < 0:
        raise ValueError(f"warmup_requests = {warmup_requests}: give 0 or more")
    if order == "belady" and quotas:
        raise ValueError("quotas with order 'belady': it has none, leave them out")
    size = tokens_per_block(source)
    blocks = None if capacity_tokens is None else capacity_tokens // size
    if blocks is not None and blocks < 1:
        raise ValueError(
            f"capacity_tokens = {capacity_tokens}: give at least a block, {size} tokens"
        )
    if blocks is None:
        cache: _Cache = _Endless()
    elif order == "belady":
        cache = _Foresight(blocks, _next_uses(source))
    else:
        cache = _Ordered(blocks, _ORDERS[order](quotas=quotas))
    return _run(source, cache, size, order, blocks, warmup_requests)


def _run(
    source: StreamSource,
    cache: _Cache,
    size: int,
    order: ReplayOrder,
    capacity_blocks: int | None,
    warmup_requests: int,
) -> ReplayResult:
    seen: set[int] = set()
    reused: set[int] = set()
    queried: dict[int, int] = {}
    found: dict[int, int] = {}
    requests = queried_blocks = hit_blocks = 0
    evictions = ghost_hits = 0
    look_up = cache.look_up
    for number, (num_tokens, keys, tenant) in enumerate(prompts_of(source)):
        if number == warmup_requests:
            evictions, ghost_hits = cache.evictions, cache.ghost_hits
        hits = look_up(keys, tenant)
        if number < warmup_requests:
            continue
        requests += 1
        reused.update(seen.intersection(keys))
        seen.update(keys)
        queried_blocks += len(keys)
        hit_blocks += hits
        queried[tenant] = queried.get(tenant, 0) + num_tokens
        found[tenant] = found.get(tenant, 0) + min(hits * size, num_tokens)
    if not requests:
        raise ValueError(f"warmup_requests = {warmup_requests}: that leaves no request to count")
    return ReplayResult(
        order=order,
        capacity_blocks=capacity_blocks,
        requests=requests,
        queried_tokens=sum(queried.values()),
        hit_tokens=sum(found.values()),
        queried_blocks=queried_blocks,
        hit_blocks=hit_blocks,
        evictions=cache.evictions - evictions,
        ghost_hits=cache.ghost_hits - ghost_hits,
        unique_blocks=len(seen),
        reused_blocks=len(reused),
        tenants={
            tenant: Hits(queried_tokens=queried[tenant], hit_tokens=found[tenant])
            for tenant in sorted(queried)
        },
    )


class _Cache(ABC):
    """A cache of so many blocks that is asked for one prompt after the other."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._ghosts = GhostList(capacity)
        self.ghost_hits = 0

    @property
    def evictions(self) -> int:
        return self._ghosts.evictions

    @abstractmethod
    def look_up(self, keys: list[int], tenant: int) -> int:
        """Return the leading blocks that were there; `keys` are kept from now on."""

    def _leading(self, keys: list[int], blocks: Container[int]) -> int:
        hits = sum(1 for _ in takewhile(blocks.__contains__, keys))
        if self._ghosts.evictions and hits < len(keys):
            self.ghost_hits += self._ghosts.count(keys[hits:])
        return hits


class _Endless(_Cache):
    def __init__(self) -> None:
        super().__init__(1)
        self._blocks: set[int] = set()

    def look_up(self, keys: list[int], tenant: int) -> int:
        hits = self._leading(keys, self._blocks)
        self._blocks.update(keys[hits:])
        return hits


class _Ordered(_Cache):
    """The hits are used; then block after block, the last first, is taken in or used again."""

    def __init__(self, capacity: int, order: EvictionOrder) -> None:
        super().__init__(capacity)
        self._order = order
        self._blocks: set[int] = set()

    def look_up(self, keys: list[int], tenant: int) -> int:
        order, blocks = self._order, self._blocks
        hits = self._leading(keys, blocks)
        remove, add, watched = order.remove, order.add, order.watches_content
        # All hits are used before the first block is taken in, and so are not the next to go; their
        # place in the order is that of the second pass, behind the blocks that come after them.
        for key in keys[:hits]:
            remove(key)
            if watched:
                order.hit(key)
            add(key)
        for at in range(len(keys) - 1, -1, -1):
            key = keys[at]
            if key not in blocks:
                if len(blocks) == self._capacity:
                    self._give_up(order.pop(tenant=tenant, coming=1))
                blocks.add(key)
                turned_out = order.publish(key, tenant=tenant) if watched else None
                if turned_out is not None:
                    self._give_up(turned_out)
            elif at < hits:
                remove(key)
            else:
                # Behind a gap: nobody could use it, so it was not used.
                continue
            turned_out = add(key)
            if turned_out is not None:
                self._give_up(turned_out)
        return hits

    def _give_up(self, key: int) -> None:
        self._blocks.remove(key)
        self._ghosts.add(key)


class _PerfectLFU(LFU):
    """LFU whose counts outlive eviction: of keys, which mean the same when they come back."""

    def __init__(self, *, quotas: Mapping[int, int] | None = None) -> None:
        super().__init__(quotas=quotas)
        self._references: dict[int, int] = {}

    def publish(self, block: int, *, tenant: int = 0, hits: int = 0) -> int | None:
        self._references[block] = hits = self._references.get(block, hits) + 1
        return super().publish(block, tenant=tenant, hits=hits)

    def hit(self, block: int) -> None:
        self._references[block] += 1
        super().hit(block)


_ORDERS: Final = {"lru": LRU, "fifo": FIFO, "lfu": LFU, "perfect-lfu": _PerfectLFU}


class _Foresight(_Cache):
    """Belady's order: after each request the blocks stay that are asked for again the soonest.

    Whoever asks for a block asks for those before it, too. So these are never due later, and since
    the last goes first where several are due at once, no gap comes into being.
    """

    def __init__(self, capacity: int, next_uses: array[int]) -> None:
        super().__init__(capacity)
        self._next_uses = iter(next_uses)
        # When each block is due, and a heap with what is due last on top. What was found again has
        # two entries; the old one is passed over when it comes up.
        self._due: dict[int, tuple[int, int]] = {}
        self._latest: list[tuple[int, int, int]] = []

    def look_up(self, keys: list[int], tenant: int) -> int:
        due, latest = self._due, self._latest
        hits = self._leading(keys, due)
        for depth, key in enumerate(keys):
            next_use = next(self._next_uses)
            due[key] = (-next_use, -depth)
            heapq.heappush(latest, (-next_use, -depth, key))
        while len(due) > self._capacity:
            *when, key = heapq.heappop(latest)
            if due.get(key) == tuple(when):
                del due[key]
                self._ghosts.add(key)
        return hits


_NEVER: Final = 2**62


def _next_uses(source: StreamSource) -> array[int]:
    """For each reference to a block the number of the next request that makes one."""
    next_uses = array("q")
    last: dict[int, int] = {}
    for number, (_, keys, _) in enumerate(prompts_of(source)):
        for key in keys:
            before = last.get(key)
            if before is not None:
                next_uses[before] = number
            last[key] = len(next_uses)
            next_uses.append(_NEVER)
    return next_uses


def prompts_of(source: StreamSource) -> Iterator[tuple[int, list[int], int]]:
    """Yield the tokens, prefix blocks and tenant of each prompt."""
    number = 0
    for chunk in source.chunks():
        assert chunk.prefix is not None
        ids, offsets = chunk.prefix.ids.tolist(), chunk.prefix.offsets.tolist()
        tenants = [0] * len(chunk) if chunk.tenant is None else chunk.tenant.tolist()
        for at, (num_tokens, tenant) in enumerate(
            zip(chunk.prompt_tokens.tolist(), tenants, strict=True)
        ):
            keys = ids[offsets[at] : offsets[at + 1]]
            if len(set(keys)) < len(keys):
                raise ValueError(
                    f"request {number} of {source.name!r} names a prefix block twice: an id stands "
                    f"for a block and all before it, give each its own"
                )
            yield num_tokens, keys, tenant
            number += 1


def tokens_per_block(source: StreamSource) -> int:
    """Tokens of a stream's prefix blocks. Raises ValueError: it has none."""
    for chunk in source.chunks():
        if chunk.prefix is None:
            break
        return chunk.prefix.tokens_per_block
    raise ValueError(
        f"stream {source.name!r} has no prefix blocks: use a trace with hash_ids, or a generator "
        f"that shares prefixes"
    )
