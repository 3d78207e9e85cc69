"""Our allocator under the allocator contract: a subject on equal terms with everybody's."""

from __future__ import annotations

from collections.abc import Sequence

from paged.allocator import PagedAllocator
from paged.errors import OutOfBlocks
from reference.allocator.contract import AllocatorCapabilities, declares_allocator


class PagedSubject:
    """`PagedAllocator` with the contract's words for refusals, and a window where one is given."""

    def __init__(self, allocator: PagedAllocator, *, window: int | None = None) -> None:
        self.allocator = allocator
        self.free = allocator.free
        self.take_copies = allocator.take_copies
        self.idle_blocks = allocator.pool.eviction_order
        self._window = window

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        """`PagedAllocator.admit`."""
        try:
            return self.allocator.admit(sequence, tokens, num_tokens=num_tokens, salt=salt.encode())
        except OutOfBlocks:
            return None

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        """`PagedAllocator.append`."""
        try:
            self.allocator.append(sequence, tokens)
        except OutOfBlocks:
            return False
        return True

    def fork(self, parent: str, child: str) -> bool:
        """`PagedAllocator.fork`, which takes no blocks and so is never refused."""
        self.allocator.fork(parent, child)
        return True

    def commit(self, sequence: str) -> None:
        """Give up what lies behind the window of the next query."""
        if self._window is not None:
            behind = self.allocator.num_tokens(sequence) - self._window + 1
            self.allocator.release_before(sequence, max(behind, 0))

    def can_admit(self, tokens: Sequence[int], *, num_tokens: int, salt: str) -> bool:
        """`PagedAllocator.can_admit`."""
        return self.allocator.can_admit(tokens, num_tokens=num_tokens, salt=salt.encode())

    def reset(self) -> bool:
        """`PagedAllocator.reset_prefix_cache`, which is never refused."""
        self.allocator.reset_prefix_cache()
        return True

    def slots(self, sequence: str) -> list[int]:
        """Slot of each token position; -1 in blocks that were released."""
        allocator, first = self.allocator, 0
        if self._window is not None:
            num_tokens = allocator.num_tokens(sequence)
            released = allocator.blocks_needed(num_tokens) - allocator.num_blocks_of(sequence)
            first = min(released * allocator.block_size, num_tokens)
        slots: list[int] = allocator.slots(sequence, start=first).tolist()
        return [-1] * first + slots if first else slots

    def counts(self) -> tuple[int, int, int]:
        """Blocks that are free, idle and used."""
        pool = self.allocator.pool
        return pool.num_free, pool.num_cached_idle, pool.num_used


@declares_allocator(
    AllocatorCapabilities(
        sliding_window=True,
        window_with_caching=True,
        salt=True,
        fork=True,
        chunked_prefill=True,
        commit=True,
        can_admit=True,
        reset=True,
        batching=True,
        finds_every_prefix=True,
        eviction="lru",
    )
)
def paged_allocator(
    num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
) -> PagedSubject:
    """Make an empty one."""
    allocator = PagedAllocator(num_blocks, block_size, prefix_caching=prefix_caching)
    return PagedSubject(allocator, window=window)
