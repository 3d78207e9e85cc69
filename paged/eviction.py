"""Which cached block goes first when its room is needed, and which have gone lately.

A block is *cached* from the moment its content is published until it is given up. In between a
sequence may use it, or nobody does: then it is *idle*, and only then it can be a victim. What an
order goes by outlives the changes between the two: when the content was first cached (`FIFO`), or
how often a lookup has found it (`LFU`), be it idle or in use.

Quotas keep one tenant's scan from pushing out what another tenant is about to ask for again (the
noisy neighbour). A tenant's quota is the most blocks that are cached for it, idle and in use
together; a block counts for the tenant that published it, whoever finds it later. Two rules hold:

- Who takes blocks that would bring its tenant beyond the quota pays with that tenant's own next
  victim. Otherwise the next victim of all goes, whosever it is.
- Where more is cached for a tenant than its quota, its idle blocks are given up at once, even if
  there is free room. So what is beyond a quota is in use, and goes as soon as it is not.

A quota limits one tenant and thereby protects the others; fully so, if every tenant has one and
they add up to no more than the pool.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Final, Protocol

from paged.errors import checked_size


class EvictionOrder(Protocol):
    """An order of the idle blocks, and what it has to know of the cached blocks in use."""

    watches_content: bool
    """Whether `publish`, `hit` and `forget` have to be called. An order that goes by the moment of
    becoming idle alone is cheaper without."""

    def publish(self, block: int, *, tenant: int = 0) -> int | None:
        """Hear that `block`, in use, is cached for `tenant`; returns what a quota turns out,
        forgotten.
        """

    def hit(self, block: int) -> None:
        """Hear that a lookup found `block`, which is cached and, by now, in use."""

    def forget(self, block: int) -> None:
        """Hear that `block`, which is in use, is cached no longer."""

    def add(self, block: int, *, tenant: int = 0) -> int | None:
        """Take in `block`, which has just become idle, and is published if it was not.

        Returns the block that a quota turns out, perhaps this one. It is forgotten.
        """

    def remove(self, block: int) -> None:
        """Let go of `block`, which is in use again. Raises KeyError if it was not idle."""

    def pop(self, *, tenant: int | None = None, coming: int = 0) -> int:
        """Take out the next victim, and forget it. Raises KeyError: no block is idle.

        `tenant` needs the room, and is taking `coming` blocks that are not cached yet; None: the
        next victim of all, quotas aside.
        """

    def order(self) -> list[int]:
        """Return the idle blocks, the next victim first, quotas aside."""

    def __len__(self) -> int:
        """Idle blocks."""

    def __contains__(self, block: object, /) -> bool:
        """Whether `block` is idle."""


class _Order:
    """What the orders share: a ranking of all idle blocks, and one of each tenant with a quota."""

    watches_content = True

    def __init__(self, *, quotas: Mapping[int, int] | None = None) -> None:
        self._quotas = {
            tenant: checked_size(f"quota of tenant {tenant}", blocks, at_least=0)
            for tenant, blocks in (quotas or {}).items()
        }
        self._ranking = self._new_ranking()
        self._own = {tenant: self._new_ranking() for tenant in self._quotas}
        # All cached blocks, idle and in use: whose each is, and how many a tenant with a quota has.
        self._tenant_of: dict[int, int] = {}
        self._cached = dict.fromkeys(self._quotas, 0)

    def publish(self, block: int, *, tenant: int = 0) -> int | None:
        self._begin(block, tenant)
        return self._turned_out(tenant) if tenant in self._quotas else None

    def hit(self, block: int) -> None:
        pass

    def forget(self, block: int) -> None:
        tenant = self._tenant_of.pop(block)
        if tenant in self._quotas:
            self._cached[tenant] -= 1

    def add(self, block: int, *, tenant: int = 0) -> int | None:
        if block not in self._tenant_of:
            self._begin(block, tenant)
        self._ranking.add(block)
        owner = self._tenant_of[block]
        if owner not in self._quotas:
            return None
        self._own[owner].add(block)
        return self._turned_out(owner)

    def remove(self, block: int) -> None:
        self._ranking.remove(block)
        owner = self._tenant_of[block]
        if owner in self._quotas:
            self._own[owner].remove(block)

    def pop(self, *, tenant: int | None = None, coming: int = 0) -> int:
        if not self._ranking:
            raise KeyError("no block is idle")
        if tenant in self._quotas and self._cached[tenant] + coming > self._quotas[tenant]:
            own = self._own[tenant]
            if own:
                return self._give_up(own.first())
        return self._give_up(self._ranking.first())

    def order(self) -> list[int]:
        return self._ranking.order()

    def __len__(self) -> int:
        return len(self._ranking)

    def __contains__(self, block: object, /) -> bool:
        return block in self._ranking

    def _begin(self, block: int, tenant: int) -> None:
        self._tenant_of[block] = tenant
        if tenant in self._quotas:
            self._cached[tenant] += 1

    def _turned_out(self, tenant: int) -> int | None:
        """The victim that brings a tenant back to its quota. One is enough: it was kept before."""
        own = self._own[tenant]
        if self._cached[tenant] <= self._quotas[tenant] or not own:
            return None
        return self._give_up(own.first())

    def _give_up(self, block: int) -> int:
        self.remove(block)
        self.forget(block)
        return block

    def _new_ranking(self) -> _Ranking:
        raise NotImplementedError


class LRU(_Order):
    """Least recently used first: the block that became idle first. Operations take constant time.

    `quotas`: most cached blocks, idle and in use, by tenant; those that are not named have no
    limit. Raises BadSize: a quota is negative or no integer.
    """

    def __init__(self, *, quotas: Mapping[int, int] | None = None) -> None:
        super().__init__(quotas=quotas)
        # Without quotas this order is the default of every pool, and has nothing to remember.
        self.watches_content = bool(self._quotas)
        self._recency = OrderedDict[int, None]()
        if not self.watches_content:
            self._ranking = _ByRecency(self._recency)

    def add(self, block: int, *, tenant: int = 0) -> int | None:
        """Take in a block that has become idle."""
        if self.watches_content:
            return super().add(block, tenant=tenant)
        self._recency[block] = None
        return None

    def remove(self, block: int) -> None:
        """Let go of a block that is in use again."""
        if self.watches_content:
            super().remove(block)
        else:
            del self._recency[block]

    def pop(self, *, tenant: int | None = None, coming: int = 0) -> int:
        """Take out the next victim, and forget it."""
        if self.watches_content:
            return super().pop(tenant=tenant, coming=coming)
        return self._recency.popitem(last=False)[0]

    def _new_ranking(self) -> _Ranking:
        return _ByRecency()


class FIFO(_Order):
    """First cached, first out, however often and however lately it was used since.

    Of the blocks that one admission publishes the last goes first: a block is of use only as long
    as those before it are there, so whoever publishes several does so from the last to the first.

    Operations take logarithmic time. Quotas are those of `LRU`.
    """

    def __init__(self, *, quotas: Mapping[int, int] | None = None) -> None:
        self._since: dict[int, int] = {}
        self._published = 0
        super().__init__(quotas=quotas)

    def forget(self, block: int) -> None:
        """Hear that a block in use is cached no longer."""
        super().forget(block)
        del self._since[block]

    def _begin(self, block: int, tenant: int) -> None:
        super()._begin(block, tenant)
        self._published += 1
        self._since[block] = self._published

    def _new_ranking(self) -> _Ranking:
        return _ByAge(self._since)


class LFU(_Order):
    """Least frequently used first: fewest hits since it was cached, of equals the one idle longest.

    The count lives as long as the content is cached and ends with it (in-cache LFU). So what was
    popular once stays for good, and what is evicted starts at 0 when it comes back.

    Operations take logarithmic time. Quotas are those of `LRU`.
    """

    def __init__(self, *, quotas: Mapping[int, int] | None = None) -> None:
        self._hits: dict[int, int] = {}
        super().__init__(quotas=quotas)

    def publish(self, block: int, *, tenant: int = 0, hits: int = 0) -> int | None:
        """Hear that a block in use is cached from now on, and starts with `hits` hits."""
        turned_out = super().publish(block, tenant=tenant)
        self._hits[block] = hits
        return turned_out

    def hit(self, block: int) -> None:
        """Hear that a lookup found a block."""
        self._hits[block] += 1

    def forget(self, block: int) -> None:
        """Hear that a block in use is cached no longer."""
        super().forget(block)
        del self._hits[block]

    def _begin(self, block: int, tenant: int) -> None:
        super()._begin(block, tenant)
        self._hits[block] = 0

    def _new_ranking(self) -> _Ranking:
        return _ByHits(self._hits)


class _Blocks:
    """A set of blocks that knows its first, in one of three orders."""

    _blocks: Collection[int]

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: object, /) -> bool:
        return block in self._blocks


class _ByRecency(_Blocks):
    """Blocks in the order in which they were added."""

    def __init__(self, blocks: OrderedDict[int, None] | None = None) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict() if blocks is None else blocks

    def add(self, block: int) -> None:
        self._blocks[block] = None

    def remove(self, block: int) -> None:
        del self._blocks[block]

    def first(self) -> int:
        return next(iter(self._blocks))

    def order(self) -> list[int]:
        return list(self._blocks)


class _ByAge(_Blocks):
    """Blocks by a stamp that does not change while they are in here.

    A heap. What is removed stays in it until it comes up, or until there is more of it than of the
    rest: so the heap is never more than twice as long as it has to be.
    """

    def __init__(self, since: Mapping[int, int]) -> None:
        self._since = since
        self._blocks: set[int] = set()
        self._heap: list[tuple[int, int]] = []
        self._listed: set[tuple[int, int]] = set()

    def add(self, block: int) -> None:
        self._blocks.add(block)
        entry = (self._since[block], block)
        if entry in self._listed:
            return
        self._listed.add(entry)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._blocks) + _SLACK:
            self._heap = sorted((self._since[block], block) for block in self._blocks)
            self._listed = set(self._heap)

    def remove(self, block: int) -> None:
        self._blocks.remove(block)

    def first(self) -> int:
        heap = self._heap
        while True:
            since, block = heap[0]
            if block in self._blocks and self._since[block] == since:
                return block
            self._listed.remove(heapq.heappop(heap))

    def order(self) -> list[int]:
        return sorted(self._blocks, key=self._since.__getitem__)


_SLACK: Final = 64


class _ByHits(_Blocks):
    """Blocks by a count that does not change while they are in here, then as they were added.

    A bucket for each count, and a heap of the counts. A count whose bucket is gone stays in the
    heap until it comes up; no count is in there twice.
    """

    def __init__(self, hits: Mapping[int, int]) -> None:
        self._hits = hits
        self._blocks: dict[int, int] = {}
        self._buckets: dict[int, OrderedDict[int, None]] = {}
        self._heap: list[int] = []
        self._listed: set[int] = set()

    def add(self, block: int) -> None:
        count = self._hits[block]
        self._blocks[block] = count
        bucket = self._buckets.get(count)
        if bucket is not None:
            bucket[block] = None
            return
        self._buckets[count] = OrderedDict.fromkeys([block])
        if count not in self._listed:
            self._listed.add(count)
            heapq.heappush(self._heap, count)

    def remove(self, block: int) -> None:
        count = self._blocks.pop(block)
        bucket = self._buckets[count]
        del bucket[block]
        if not bucket:
            del self._buckets[count]

    def first(self) -> int:
        heap = self._heap
        while heap[0] not in self._buckets:
            self._listed.remove(heapq.heappop(heap))
        return next(iter(self._buckets[heap[0]]))

    def order(self) -> list[int]:
        return [block for count in sorted(self._buckets) for block in self._buckets[count]]


_Ranking = _ByRecency | _ByAge | _ByHits


class GhostList:
    """What was evicted within the last `window` evictions, 1 or more. With as many as the cache has
    blocks, a ghost is what a cache of about twice the size would still have.
    """

    __slots__ = ("_latest", "_most", "evictions", "window")

    def __init__(self, window: int) -> None:
        self.window = checked_size("window", window, at_least=1)
        self._most = 2 * self.window
        self.evictions = 0
        """How many keys were added so far."""
        # The number of its latest eviction, by key. Those that have left the window are swept out
        # when they may be as many as those in it: an eviction has to be cheap, a look may wait.
        self._latest: dict[Hashable, int] = {}

    def add(self, key: Hashable) -> None:
        """Say that `key` was evicted."""
        latest = self._latest
        self.evictions += 1
        latest[key] = self.evictions
        if len(latest) > self._most:
            self._sweep()

    def count(self, keys: Iterable[Hashable]) -> int:
        """Return how many of `keys` are ghosts."""
        get, gone = self._latest.get, self.evictions - self.window
        return sum(get(key, gone) > gone for key in keys)

    def clear(self) -> None:
        """Forget all of them; the count of evictions goes on."""
        self._latest.clear()

    def __contains__(self, key: object, /) -> bool:
        gone = self.evictions - self.window
        return self._latest.get(key, gone) > gone

    def __len__(self) -> int:
        self._sweep()
        return len(self._latest)

    def _sweep(self) -> None:
        gone = self.evictions - self.window
        self._latest = {key: number for key, number in self._latest.items() if number > gone}
