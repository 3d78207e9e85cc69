"""The pool: which physical blocks are free, which are used and how often, which are idle."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from paged.errors import BadSize, DoubleFree, OutOfBlocks, UseAfterFree, checked_size

MAX_BLOCKS: Final = 2**31 - 1
"""Block tables are int32 in the attention contract, so blocks have to be countable in int32."""


class BlockPool:
    """Physical blocks `0 .. num_blocks - 1` with reference counts.

    Each block is in one of three states:

    - *free*: no reference, and no content worth keeping;
    - *used*: one reference or more;
    - *idle*: no reference, but its content is kept for reuse until the block is needed elsewhere.

    Of the free blocks the one freed last is handed out first: its lines are the likeliest to be in
    a cache of the device. Idle blocks are evicted when the free ones do not suffice, least recently
    used first.

    Parameters
    ----------
    num_blocks
        Blocks in the pool, 1 to 2**31 - 1.
    on_evict
        Called with each idle block that is evicted, before it is handed out again, so that whoever
        remembers its content forgets it. It may release other blocks.

    Attributes
    ----------
    reference_counts
        References to each block, indexed by block. To be read, not written.

    Raises
    ------
    BadSize
        `num_blocks` is out of range.
    """

    __slots__ = ("_free", "_idle", "_on_evict", "_references", "num_blocks", "reference_counts")

    def __init__(self, num_blocks: int, *, on_evict: Callable[[int], None] | None = None) -> None:
        self.num_blocks = checked_size("num_blocks", num_blocks, at_least=1, at_most=MAX_BLOCKS)
        self._references = [0] * self.num_blocks
        self.reference_counts: Sequence[int] = self._references
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
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
        """Return the idle blocks, the next to be evicted first."""
        return list(self._idle)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, evicting idle ones where the free ones do not suffice.

        Returns
        -------
        list[int]
            `count` distinct blocks, each with one reference.

        Raises
        ------
        BadSize
            `count` is negative.
        OutOfBlocks
            Fewer than `count` blocks are free or idle. None was taken and none evicted.
        """
        if count < 0:
            raise BadSize(f"count = {count}: blocks are allocated 0 or more at a time")
        free = self._free
        missing = count - len(free)
        if missing > 0:
            if missing > len(self._idle):
                raise OutOfBlocks(count, len(free) + len(self._idle))
            for _ in range(missing):
                self._evict()
        first = len(free) - count
        blocks = free[first:]
        del free[first:]
        blocks.reverse()
        references = self._references
        for block in blocks:
            references[block] = 1
        return blocks

    def retain(self, block: int) -> None:
        """Add a reference. An idle block is used again and leaves the eviction order.

        Raises
        ------
        BadSize
            There is no such block.
        UseAfterFree
            The block is free.
        """
        self._check(block)
        if self._references[block] == 0:
            if block not in self._idle:
                raise UseAfterFree(block)
            del self._idle[block]
        self._references[block] += 1

    def release(self, block: int, *, keep: bool) -> None:
        """Drop a reference. With the last one the block becomes idle if `keep`, else free.

        A block that becomes idle is the most recently used of the idle ones.

        Raises
        ------
        BadSize
            There is no such block.
        DoubleFree
            The block has no reference.
        """
        self._check(block)
        count = self._references[block]
        if count == 0:
            raise DoubleFree(block)
        self._references[block] = count - 1
        if count == 1:
            if keep:
                self._idle[block] = None
            else:
                self._free.append(block)

    def evict_idle(self) -> None:
        """Evict every idle block."""
        while self._idle:
            self._evict()

    def _evict(self) -> None:
        block, _ = self._idle.popitem(last=False)
        if self._on_evict is not None:
            self._on_evict(block)
        self._free.append(block)

    def _check(self, block: int) -> None:
        # Without this, -1 would quietly be the last block.
        if not 0 <= block < self.num_blocks:
            raise BadSize(f"block {block}: the pool has blocks 0 to {self.num_blocks - 1}")
