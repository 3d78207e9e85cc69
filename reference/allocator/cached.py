"""Which prefixes are known to be cached: what `admit` has to find again, and what it cannot.

A prefix is known from the `commit` that puts its last block into the cache until it is evicted.
What is evicted, `idle_blocks` shows; without it a prefix is known until a call may have needed more
room than was free. A block that stays idle stands in for an equal one that is evicted: its content
is kept by the allocator's own account.
"""

from __future__ import annotations

from collections.abc import Iterable

from reference.allocator.programs import Pool
from reference.allocator.shadow import Life, ShadowCache


class Cached:
    """Prefixes in whole blocks, by the hash of their last token."""

    def __init__(self, pool: Pool, shadow: ShadowCache) -> None:
        self._size = pool.block_size
        self._caching = pool.prefix_caching and pool.window is None
        # The hash in the last slot of each block, as the engine writes them.
        self._ends = shadow.prefixes[self._size - 1 :: self._size]
        self._known: set[int] = set()
        # What went since the engine's step began. A sequence of this step may have found it there,
        # and kept its own block to itself.
        self._gone: set[int] = set()

    def publish(self, ends: Iterable[int]) -> None:
        """Take up prefixes that were committed, all for the first time by their sequence."""
        self._known.update(end for end in ends if end not in self._gone)

    def step_ends(self) -> None:
        """All that was to be committed in this step of the engine was."""
        self._gone.clear()

    def evict(self, blocks: Iterable[int]) -> None:
        """Blocks were cached, and are not any more."""
        ends = self._ends[list(blocks)].tolist()
        self._gone.update(ends)
        self._known.difference_update(ends)

    def give_up(self, life: Life) -> None:
        """A sequence goes whose blocks need not stay."""
        self._known.difference_update(life.hashes.tolist())

    def forget(self) -> None:
        """Everything may be gone."""
        self._gone |= self._known
        self._known.clear()

    def longest(self, life: Life, idle: frozenset[int] | None) -> int:
        """Tokens of the longest known prefix that leaves one token to compute."""
        if not self._caching:
            return 0
        standing_in: set[int] | None = None if idle else set()
        found = 0
        for end in life.hashes[self._size - 1 : len(life.tokens) - 1 : self._size].tolist():
            if end not in self._known:
                if standing_in is None:
                    standing_in = set(self._ends[list(idle or ())].tolist())
                if end not in standing_in:
                    break
            found += self._size
        return found
