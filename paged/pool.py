"""The pool: which physical blocks are free, which are used and how often, which are idle."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from typing import Final

from paged.errors import BadSize, DoubleFree, OutOfBlocks, UseAfterFree, checked_size
from paged.eviction import LRU, EvictionOrder

MAX_BLOCKS: Final = 2**31 - 1
"""Block tables are int32 in the attention contract, so blocks have to be countable in int32."""


class BlockPool:
    """Physical blocks `0 .. num_blocks - 1` with reference counts.

    Each block is in one of three states:

    - *free*: no reference, and no content worth keeping;
    - *used*: one reference or more;
    - *idle*: no reference, but its content is kept for reuse until the block is needed elsewhere.

    Of the free blocks the one freed last is handed out first: its lines are the likeliest to be in
    a cache of the device. Idle blocks are evicted when the free ones do not suffice, in the order
    `eviction`, which is empty at first; least recently used first if not given. `on_evict` is
    called with each block that is evicted, before it is handed out again; it may release other
    blocks.

    Raises BadSize: `num_blocks` is not 1 to 2**31 - 1, or `eviction` is in use already.
    """

    __slots__ = ("_free", "_idle", "_on_evict", "_references", "num_blocks", "reference_counts")

    def __init__(
        self,
        num_blocks: int,
        *,
        on_evict: Callable[[int], None] | None = None,
        eviction: EvictionOrder | None = None,
    ) -> None:
        self.num_blocks = checked_size("num_blocks", num_blocks, at_least=1, at_most=MAX_BLOCKS)
        self._references = [0] * self.num_blocks
        self.reference_counts: Sequence[int] = self._references
        """References to each block. To be read, not written."""
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._idle: EvictionOrder = LRU() if eviction is None else eviction
        if len(self._idle):
            raise BadSize(
                f"eviction order with {len(self._idle)} idle blocks: give each pool one of its own"
            )
        self._on_evict = on_evict

    @property
    def num_free(self) -> int:
        """Blocks without a reference and without content."""
        return len(self._free)

    @property
    def num_cached_idle(self) -> int:
        """Blocks without a reference whose content is kept for reuse."""
        return len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks with one reference or more."""
        return self.num_blocks - len(self._free) - len(self._idle)

    def eviction_order(self) -> list[int]:
        """Return the idle blocks, the next to be evicted first, tenants' quotas aside."""
        return self._idle.order()

    def allocate(self, count: int, *, tenant: int = 0) -> list[int]:
        """Take `count` blocks for `tenant`, evicting idle ones where the free ones do not suffice.

        They are distinct, each with one reference. Raises BadSize: `count` is negative.
        OutOfBlocks: fewer are free or idle; none was taken and none evicted.
        """
        free = self._free
        if count == 1 and free:
            # What nearly every call of a decoding engine is.
            block = free.pop()
            self._references[block] = 1
            return [block]
        if count < 0:
            raise BadSize(f"count = {count}: blocks are allocated 0 or more at a time")
        missing = count - len(free)
        if missing > 0:
            if missing > len(self._idle):
                raise OutOfBlocks(count, len(free) + len(self._idle))
            pop, on_evict = self._idle.pop, self._on_evict
            if self._idle.watches_content:
                # An order that does not cannot know whose blocks are whose.
                pop = partial(pop, tenant=tenant, coming=count)
            for _ in range(missing):
                block = pop()
                if on_evict is not None:
                    on_evict(block)
                free.append(block)
        first = len(free) - count
        blocks = free[first:]
        del free[first:]
        blocks.reverse()
        references = self._references
        for block in blocks:
            references[block] = 1
        return blocks

    def retain(self, block: int) -> None:
        """Add a reference; an idle block is used again. BadSize: no such block. UseAfterFree."""
        self._check(block)
        if self._references[block] == 0:
            if block not in self._idle:
                raise UseAfterFree(block)
            self._idle.remove(block)
        self._references[block] += 1

    def release(self, block: int, *, keep: bool) -> None:
        """Drop a reference. With the last one the block becomes idle if `keep`, else free.

        Raises BadSize: there is no such block. DoubleFree: it has no reference.
        """
        self._check(block)
        self.release_all([block], keep=[block] if keep else [])

    def release_all(self, blocks: Iterable[int], *, keep: Container[int]) -> None:
        """Drop a reference of each of `blocks`, in this order, as `release` does of one.

        That the pool has them is not checked. Those in `keep` become idle with their last
        reference. Raises DoubleFree: a block has no reference. Those before it were released.
        """
        references, free, add = self._references, self._free, self._idle.add
        for block in blocks:
            count = references[block]
            if count == 0:
                raise DoubleFree(block)
            references[block] = count - 1
            if count > 1:
                continue
            if block not in keep:
                free.append(block)
            elif (turned_out := add(block)) is not None:
                self._give_up(turned_out)

    def publish(self, block: int, *, tenant: int) -> None:
        """Say that the content of `block`, in use, is of use to others: for orders that watch
        content.
        """
        turned_out = self._idle.publish(block, tenant=tenant)
        if turned_out is not None:
            self._give_up(turned_out)

    def hit(self, block: int) -> None:
        """Say that a lookup has found the content of `block`, which is in use by now."""
        self._idle.hit(block)

    def forget(self, block: int) -> None:
        """Say that the content of `block`, which is in use, is no longer of use to others."""
        self._idle.forget(block)

    def evict_idle(self) -> None:
        """Evict every idle block."""
        while len(self._idle):
            self._give_up(self._idle.pop())

    def _give_up(self, block: int) -> None:
        if self._on_evict is not None:
            self._on_evict(block)
        self._free.append(block)

    def _check(self, block: int) -> None:
        # Without this, -1 would quietly be the last block.
        if not 0 <= block < self.num_blocks:
            raise BadSize(f"block {block}: the pool has blocks 0 to {self.num_blocks - 1}")
