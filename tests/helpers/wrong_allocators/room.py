"""Wrong allocators: tables, room, the order of eviction, the window and swapping."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Sequence
from typing import Any

from helpers.swapping import SwappingSubject
from helpers.wrong_allocators.catalogue import (
    CHAIN_OF_TWO,
    ONE_IDLE,
    OWNERS,
    TAKE_FIVE,
    TWO_IDLE,
    WINDOW_OF_TWO,
    A,
    Pool,
    admit,
    bug,
    shown,
)
from paged.allocator import PagedAllocator
from paged.errors import OutOfBlocks
from paged.eviction import LRU
from paged.pool import BlockPool
from paged.subject import PagedSubject
from paged.table import BlockTable

# Slots and tables


@bug("table content")
class SlotOffByOne(BlockTable):
    __slots__ = ()

    def slots(self, *, start: int = 0) -> Any:
        return super().slots(start=start) + 1


@bug("content table")
class SlotsOfALaterBlockRotated(PagedSubject):
    def slots(self, sequence: str) -> list[int]:
        slots = super().slots(sequence)
        size = self.allocator.block_size
        return [*slots[:size], *slots[size + 1 :], *slots[size : size + 1]]


@bug("table")
class SlotPastTheEndOfTheTable(PagedSubject):
    def slots(self, sequence: str) -> list[int]:
        slots = super().slots(sequence)
        return slots if len(slots) % self.allocator.block_size else [*slots, 0][: len(slots) + 1]


@bug("conservation drain", seen="pegainfer-project/pegainfer#291")
class BlockToSpareWhereTheLastOneIsFull(PagedAllocator):
    def admit(self, sequence: Hashable, prompt: Any, **options: Any) -> int:
        hit = super().admit(sequence, prompt, **options)
        num_tokens = self._tables[sequence].num_tokens
        if num_tokens and num_tokens % self.block_size == 0 and self.num_free:
            self.pool.allocate(1)
        return hit


@bug("table answer", seen="sgl-project/sglang#39040")
class SameBlockTwiceInATable(BlockPool):
    __slots__ = ()

    def allocate(self, count: int, *, tenant: int = 0) -> list[int]:
        blocks = super().allocate(count, tenant=tenant)
        return [*blocks[:-1], blocks[0]] if len(blocks) > 2 else blocks


@bug("table answer conservation promise", seen="sgl-project/sglang#30892")
class CapacityIsNotChecked(BlockPool):
    """More is handed out than there is: what lies behind the free list."""

    __slots__ = ()

    def allocate(self, count: int, *, tenant: int = 0) -> list[int]:
        try:
            return super().allocate(count, tenant=tenant)
        except OutOfBlocks:
            return [self.num_blocks + block for block in range(count)]


# Running out


@bug("trace conservation drain", seen="vllm-project/vllm#11565")
class RefusedAdmissionKeepsItsHits(PagedAllocator):
    def admit(self, sequence: Hashable, prompt: Any, **options: Any) -> int:
        try:
            return super().admit(sequence, prompt, **options)
        except OutOfBlocks:
            if self.prefix_caching:
                lookup = self._look_up(prompt, options.get("num_tokens"), options["salt"])
                for block in lookup.hits:
                    self.pool.retain(block)
            raise


@bug("trace", seen="sgl-project/sglang#16067")
class RefusedAppendKeepsTheBlocksItGot(BlockPool):
    __slots__ = ()

    def allocate(self, count: int, *, tenant: int = 0) -> list[int]:
        return [
            block
            for _ in range(count)
            for block in super(type(self), self).allocate(1, tenant=tenant)
        ]


@bug("trace conservation drain", seen="vllm-project/vllm#24228")
class RefusalCountsTheBlocksAsTaken(PagedSubject):
    missing = 0

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        granted = super().append(sequence, tokens)
        self.missing += not granted
        return granted

    def counts(self) -> tuple[int, int, int]:
        free, idle, used = super().counts()
        taken = min(self.missing, free)
        return free - taken, idle, used + taken


@bug("trace eviction")
class RefusedAllocationEvicts(BlockPool):
    __slots__ = ()

    def allocate(self, count: int, *, tenant: int = 0) -> list[int]:
        if count > len(self._free):
            self.evict_idle()
        return super().allocate(count, tenant=tenant)


@bug("trace answer promise table")
class IdleHitsArePromisedTwice(PagedAllocator):
    def _demand(self, prompt: Any) -> tuple[int, int]:
        needed, _ = super()._demand(prompt)
        return needed, self.num_free + self.num_cached_idle


@bug("promise refusal")
class IdleBlocksDoNotCountAsAvailable(BlockPool):
    __slots__ = ()

    def allocate(self, count: int, *, tenant: int = 0) -> list[int]:
        if count > self.num_free:
            raise OutOfBlocks(count, self.num_free)
        return super().allocate(count, tenant=tenant)


@bug("refusal")
class LastBlockIsNotAppended(PagedSubject):
    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        return self.allocator.num_free != 1 and super().append(sequence, tokens)


@bug("capacity")
@shown(
    "capacity: 104 tokens refused: they take at most 26 blocks",
    admit("a", *range(104)),
    pool=Pool(num_blocks=26, block_size=4),
)
class WholePoolIsNeverGiven(PagedSubject):
    """The last block is out of reach, where the pool is so large that nothing else shows it."""

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        if not self.can_admit(tokens, num_tokens=num_tokens, salt=salt):
            return None
        return super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)

    def can_admit(self, tokens: Sequence[int], *, num_tokens: int, salt: str) -> bool:
        whole = self.allocator.num_blocks * self.allocator.block_size
        fits = super().can_admit(tokens, num_tokens=num_tokens, salt=salt)
        return fits and not len(tokens) == whole > 100


@bug("promise")
class PromiseForgetsTheSalt(PagedSubject):
    def can_admit(self, tokens: Sequence[int], *, num_tokens: int, salt: str) -> bool:
        return super().can_admit(tokens, num_tokens=num_tokens, salt="")


@bug("conservation", seen="sgl-project/sglang#35270")
class SharedBlocksAreCountedForEachOwner(PagedSubject):
    def counts(self) -> tuple[int, int, int]:
        free, idle, used = super().counts()
        return free, idle, max(used, sum(self.allocator.pool.reference_counts))


@bug("trace")
class NegativeRoomIsTakenForAll(PagedSubject):
    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        room = len(tokens) if num_tokens < 0 else num_tokens
        return super().admit(sequence, tokens, num_tokens=room, salt=salt)


@bug("trace table conservation answer")
class LiveNameIsAdmittedAgain(PagedAllocator):
    def admit(self, sequence: Hashable, prompt: Any, **options: Any) -> int:
        self._tables.pop(sequence, None)
        return super().admit(sequence, prompt, **options)


# The order of eviction


@bug("eviction")
@shown("eviction: block 1 evicted, although block 0 went idle earlier", *TWO_IDLE, TAKE_FIVE)
class MostRecentlyUsedIsEvictedFirst(LRU):
    def pop(self, *, tenant: int | None = None, coming: int = 0) -> int:
        return self._recency.popitem()[0]


@bug("eviction", seen="vllm-project/vllm#48532")
@shown("eviction: block 0 evicted, although block 1 went idle earlier", *CHAIN_OF_TWO, TAKE_FIVE)
class HeadIsEvictedBeforeTheTail(BlockPool):
    __slots__ = ()

    def release_all(self, blocks: Iterable[int], *, keep: Container[int]) -> None:
        super().release_all(list(blocks)[::-1], keep=keep)


@bug("eviction")
@shown("eviction: block 0 evicted, although [45] blocks are free", *ONE_IDLE, admit("b", 100))
class EvictsAlthoughBlocksAreFree(BlockPool):
    __slots__ = ()

    def allocate(self, count: int, *, tenant: int = 0) -> list[int]:
        if count and len(self._idle) and len(self._free) > count:
            self._give_up(self._idle.pop())
        return super().allocate(count, tenant=tenant)


@bug("answer content ownership conservation", seen="vllm-project/vllm#4764")
class NobodyIsToldOfAnEviction(PagedAllocator):
    def _forget(self, evicted: int) -> None:
        pass


# The window


@bug("window", seen="vllm-project/vllm#3385")
@shown(
    "window: a has 3 tokens; the next query sees those from 2 on, and those before 3 were given up",
    A,
    pool=WINDOW_OF_TWO,
)
class WindowReleasedOneTokenEarly(PagedSubject):
    def commit(self, sequence: str) -> None:
        if self._window is not None:
            num_tokens = self.allocator.num_tokens(sequence)
            self.allocator.release_before(
                sequence, min(max(num_tokens - self._window + 2, 0), num_tokens)
            )


@bug("window", seen="huggingface/transformers#39408")
class WindowReleasedOneTokenLate(PagedSubject):
    def commit(self, sequence: str) -> None:
        if self._window is not None:
            behind = self.allocator.num_tokens(sequence) - self._window
            self.allocator.release_before(sequence, max(behind, 0))


@bug(OWNERS, seen="vllm-project/vllm#1556")
class WindowIsReleasedTwice(BlockTable):
    """The blocks behind the window are given up, and once more when the sequence is freed."""

    __slots__ = ("before",)

    def release_before(self, position: int) -> list[int]:
        released = super().release_before(position)
        self.before = [*getattr(self, "before", []), *released]
        return released

    def held(self) -> list[int]:
        return [*getattr(self, "before", []), *super().held()]


# Swapping


@bug("swap content", seen="NVIDIA/TensorRT-LLM#8813")
class HostBlocksAreGivenBackAtOnce(SwappingSubject):
    def swap_out(self, sequence: str) -> list[tuple[int, int]] | None:
        pairs = super().swap_out(sequence)
        self.host.release_all(self.waiting[sequence][1], keep=())
        return pairs

    def give_back(self, hosts: list[int]) -> None:
        pass  # that has been done


@bug("content", seen="LMCache/LMCache#4385")
class BlocksComeBackInAnotherOrder(SwappingSubject):
    def swap_in(self, sequence: str) -> list[tuple[int, int]] | None:
        pairs = super().swap_in(sequence)
        if pairs is None:
            return None
        blocks = [block for _, block in pairs]
        return list(zip([host for host, _ in pairs], reversed(blocks), strict=True))


@bug("swap")
class SharedBlocksAreNotSwappedOut(SwappingSubject):
    def swap_out(self, sequence: str) -> list[tuple[int, int]] | None:
        counts = list(self.allocator.pool.reference_counts)
        pairs = super().swap_out(sequence)
        return None if pairs is None else [pair for pair in pairs if counts[pair[0]] == 1]


@bug("conservation drain", seen="NVIDIA/TensorRT-LLM#11879")
class SwappedSequenceKeepsABlock(SwappingSubject):
    def swap_out(self, sequence: str) -> list[tuple[int, int]] | None:
        blocks = self.blocks_of(sequence)
        pairs = super().swap_out(sequence)
        if (
            pairs
            and self.allocator.pool.reference_counts[blocks[-1]] == 0
            and self.allocator.num_free
        ):
            self.allocator.pool.allocate(1)
        return pairs
