"""Wrong allocators: small subclasses of ours, each of which takes the place of what it comes from.

Most are modelled on bugs that were really shipped. `seen` names where one of the kind was reported,
and `by` the checks that may give it away: where a block has the wrong owners, chance decides which
of them is first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final
from unittest import mock

import numpy as np

from helpers.swapping import SwappingSubject, swapping_allocator
from paged.allocator import PagedAllocator
from paged.errors import OutOfBlocks
from paged.eviction import LRU
from paged.pool import BlockPool
from paged.prefix import PrefixChain, PrefixIndex
from paged.subject import PagedSubject, paged_allocator
from paged.table import BlockTable
from reference.allocator.contract import AllocatorCapabilities, AllocatorFactory
from reference.allocator.machine import CHECKS

PLACES: Final[dict[type, tuple[str, ...]]] = {
    PagedAllocator: ("paged.subject.PagedAllocator",),
    PagedSubject: ("paged.subject.PagedSubject",),
    BlockPool: ("paged.allocator.BlockPool",),
    BlockTable: ("paged.allocator.BlockTable", "paged.table.BlockTable"),
    PrefixChain: ("paged.allocator.PrefixChain", "paged.prefix.PrefixChain"),
    PrefixIndex: ("paged.allocator.PrefixIndex",),
    LRU: ("paged.pool.LRU",),
    SwappingSubject: ("helpers.swapping.SwappingSubject",),
}
"""Where each class is looked up when one of it is made."""


@dataclass(frozen=True, slots=True)
class Bug:
    """A wrong allocator."""

    name: str
    """What is wrong."""
    by: frozenset[str]
    """Checks, one of which has to find it."""
    wrong: type
    """The class that is wrong, and stands in for its base."""
    seen: str
    """Where one of the kind was reported; empty if it was thought up."""
    capabilities: AllocatorCapabilities
    """What is declared instead, where that matters."""

    @property
    def factory(self) -> AllocatorFactory:
        """Makes the wrong allocators while the bug is planted, the right ones otherwise."""
        return swapping_allocator if issubclass(self.wrong, SwappingSubject) else paged_allocator

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Let the wrong class take the place of the right one."""
        base = next(base for base in self.wrong.__mro__[1:] if base in PLACES)
        patches = []
        for place in PLACES[base]:
            module, _, name = place.rpartition(".")
            patches.append(mock.patch.object(importlib.import_module(module), name, self.wrong))
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


BUGS: Final[dict[str, Bug]] = {}


def bug(by: str, *, seen: str = "", **declared: Any) -> Callable[[type], type]:
    """Put a class into the zoo."""

    def register(wrong: type) -> type:
        name = "".join(f"_{c.lower()}" if c.isupper() else c for c in wrong.__name__).strip("_")
        expected = frozenset(by.split())
        assert expected <= CHECKS.keys(), expected - CHECKS.keys()
        swaps = issubclass(wrong, SwappingSubject)
        right = swapping_allocator if swaps else paged_allocator
        capabilities = right.capabilities  # type: ignore[attr-defined]
        fields = capabilities.as_json() | declared
        BUGS[name] = Bug(name, expected, wrong, seen, AllocatorCapabilities.from_mapping(fields))
        return wrong

    return register


OWNERS: Final = "content ownership conservation table answer copies drain capacity"
"""A block has the wrong owners, or none."""


# Copy-on-write


@bug("ownership", seen="vllm-project/vllm#1556")
class MissingCopyOnWrite(PagedAllocator):
    def _is_shared(self, block: int) -> bool:
        return False


@bug("content")
class CopyIsNeverAskedFor(PagedAllocator):
    def take_copies(self) -> list[tuple[int, int]]:
        return super().take_copies()[:0]


@bug("content copies")
class CopyOneStepLate(PagedAllocator):
    late: list[tuple[int, int]] = []

    def take_copies(self) -> list[tuple[int, int]]:
        due, self.late = self.late, super().take_copies()
        return due


@bug("content copies")
class CopyInTheWrongDirection(PagedAllocator):
    def take_copies(self) -> list[tuple[int, int]]:
        return [(to, source) for source, to in super().take_copies()]


@bug("content")
class OnlyTheFirstCopyOfAStep(PagedAllocator):
    def take_copies(self) -> list[tuple[int, int]]:
        return super().take_copies()[:1]


@bug("copies " + OWNERS)
class CopyOutlivesItsDestination(PagedAllocator):
    def _drop_copy(self, destination: int) -> None:
        pass


@bug("copies " + OWNERS, seen="vllm-project/vllm#52360")
class SourceIsGivenAwayBeforeItsCopy(PagedAllocator):
    def _grow(self, sequence: Hashable, table: BlockTable, num_tokens: int) -> None:
        pending = set(self._copies)
        super()._grow(sequence, table, num_tokens)
        for copy in set(self._copies) - pending:
            self._waiting[self._copies[copy]] -= 1
            self._release(self._copies[copy])

    def take_copies(self) -> list[tuple[int, int]]:
        taken = [(source, copy) for copy, source in self._copies.items()]
        self._copies.clear()
        return taken

    def _drop_copy(self, destination: int) -> None:
        del self._copies[destination]


@bug("copies")
class TableNotUpdatedAfterACopy(BlockTable):
    __slots__ = ()

    def replace_last(self, block: int) -> None:
        self.blocks[-1] = block


@bug(OWNERS)
class ChildGrowsTheTableOfItsParent(BlockTable):
    __slots__ = ()

    def fork(self) -> BlockTable:
        child = super().fork()
        child.blocks = self.blocks
        return child


# References


@bug(OWNERS, seen="sgl-project/sglang-jax#982")
class BlockTwiceInTheFreeList(BlockPool):
    __slots__ = ()

    def release_all(self, blocks: Iterable[int], *, keep: Container[int]) -> None:
        before = len(self._free)
        super().release_all(blocks, keep=keep)
        self._free += self._free[before : before + 1]


@bug(OWNERS, seen="vllm-project/vllm#42571")
class FreedWithoutLookingAtTheReferences(BlockPool):
    __slots__ = ()

    def release_all(self, blocks: Iterable[int], *, keep: Container[int]) -> None:
        for block in blocks:
            self._references[block] = 1
            self.release(block, keep=block in keep)


@bug("trace")
class SecondFreeIsCarriedOut(PagedSubject):
    def __init__(self, allocator: PagedAllocator, *, window: int | None = None) -> None:
        super().__init__(allocator, window=window)
        self.last: dict[str, list[int]] = {}
        self.free = self._free

    def _free(self, sequence: str) -> None:
        if sequence in self.last:
            self.allocator.pool._free.extend(self.last.pop(sequence))
            return
        held = self.allocator._tables[sequence].held()
        self.last = {sequence: held}
        self.allocator.free(sequence)


@bug(OWNERS)
class ForkTakesNoReferences(PagedAllocator):
    def fork(self, parent: Hashable, child: Hashable) -> None:
        self._tables[child] = self._tables[parent].fork()


@bug("conservation drain", seen="sgl-project/sglang#11970")
class LastBlockIsNeverReleased(PagedAllocator):
    def free(self, sequence: Hashable) -> None:
        if len(self._tables[sequence].blocks) > 1:
            self._tables[sequence].blocks.pop()
        super().free(sequence)


@bug("conservation drain", seen="vllm-project/vllm#46283")
class AbortLeaksWhatIsNotComplete(PagedSubject):
    def __init__(self, allocator: PagedAllocator, *, window: int | None = None) -> None:
        super().__init__(allocator, window=window)
        self.wanted: dict[str, int] = {}
        self.free = self._free

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        self.wanted[sequence] = len(tokens)
        return super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)

    def _free(self, sequence: str) -> None:
        table = self.allocator._tables.get(sequence)
        if table is not None and table.blocks and table.num_tokens < self.wanted.get(sequence, 0):
            table.blocks.pop()
        self.allocator.free(sequence)


@bug("conservation drain", preempt=True)
class PreemptionForgetsTheTail(PagedSubject):
    def preempt(self, sequence: str) -> None:
        table = self.allocator._tables[sequence]
        if table.num_tokens % self.allocator.block_size and len(table.blocks) > 1:
            table.blocks.pop()
        self.free(sequence)


@bug("conservation eviction " + OWNERS, seen="sgl-project/mini-sglang#52")
class HitCanStillBeEvicted(BlockPool):
    __slots__ = ()

    def retain(self, block: int) -> None:
        self._references[block] += 1


@bug(OWNERS, seen="vllm-project/vllm#10507")
class AdmissionEvictsItsOwnHit(BlockPool):
    """Hits are retained after the rest was allocated, whatever became of them in between."""

    __slots__ = ("revived",)

    def retain(self, block: int) -> None:
        if self._references[block] == 0:
            self.revived = [*getattr(self, "revived", []), block]
        super().retain(block)

    def allocate(self, count: int, *, tenant: int = 0) -> list[int]:
        hits = [b for b in getattr(self, "revived", []) if self._references[b] == 1]
        recency = self._idle._recency  # type: ignore[attr-defined]
        for block in hits:
            self._references[block] = 0
            recency[block] = None
            recency.move_to_end(block, last=False)
        blocks = super().allocate(count, tenant=tenant)
        for block in hits:
            recency.pop(block, None)
            self._references[block] += 1
        self.revived = []
        return blocks


# Prefixes


@bug(OWNERS)
class HashWithoutItsParent(PrefixChain):
    __slots__ = ()

    def _link(self, content: bytes) -> bytes:
        return blake2b(content, digest_size=32).digest()


@bug("content ownership")
class HashWithoutTheLastToken(PrefixChain):
    __slots__ = ()

    def _link(self, content: bytes) -> bytes:
        return super()._link(content[:-8])


@bug(OWNERS, seen="openvinotoolkit/openvino.genai#3722")
class CollisionIsNotVerified(PrefixChain):
    """A digest of six bits, and nothing but the digest is compared."""

    __slots__ = ()

    def _link(self, content: bytes) -> bytes:
        self.digest = bytes([blake2b(self.digest + content, digest_size=1).digest()[0] & 63])
        return self.digest


@bug("content ownership table", seen="vllm-project/vllm#12621")
class HashOfTheSumOfTheTokens(PrefixChain):
    """Predictable: who wants another's keys and values sends the same tokens in another order."""

    __slots__ = ()

    def _link(self, content: bytes) -> bytes:
        total = int(np.frombuffer(content, np.int64).sum())
        return super()._link(total.to_bytes(8, "little"))


@bug("content ownership", seen="LMCache/LMCache#690")
class TenantsShareTheirPrefixes(PrefixChain):
    __slots__ = ()

    def __init__(self, block_size: int, *, salt: bytes = b"") -> None:
        super().__init__(block_size)


@bug("content ownership hit", seen="vllm-project/vllm#44701")
class SaltOnlyInTheFirstLookup(PagedAllocator):
    """What a sequence appends is published without the salt of its admission."""

    def append(self, sequence: Hashable, tokens: Any) -> None:
        chain = self._chains.get(sequence)
        if isinstance(chain, PrefixChain) and self._tables[sequence].num_tokens < self.block_size:
            fresh = PrefixChain(self.block_size)
            fresh.tail = chain.tail
            self._chains[sequence] = fresh
        super().append(sequence, tokens)


@bug(OWNERS, seen="vllm-project/vllm#4764")
class EvictedBlockIsStillIndexed(PrefixIndex):
    __slots__ = ()

    def forget(self, block: int) -> Any:
        return self._digest_of.get(block)

    def insert(self, digest: Any, block: int) -> bool:
        self._digest_of.pop(block, None)
        return super().insert(digest, block)


@bug("answer content ownership")
class FreedWhileCached(BlockPool):
    """A block whose content is published goes to the free list, and is found there."""

    __slots__ = ()

    def release_all(self, blocks: Iterable[int], *, keep: Container[int]) -> None:
        super().release_all(blocks, keep=())


@bug("hit", seen="LMCache/LMCache#3322")
class WholePromptIsAHit(PagedSubject):
    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        hit = super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)
        if hit is not None and hit + self.allocator.block_size == len(tokens):
            longer = self.allocator.cached_tokens([*tokens, 0], salt=salt.encode())
            return max(hit, longer)
        return hit


@bug("hit", seen="vllm-project/vllm#17999")
class FullHitDropsTwoBlocks(PrefixIndex):
    """Of a run that covers the prompt the last block is left out, although one token is left."""

    __slots__ = ()

    def longest_run(self, digests: Iterable[Any]) -> list[int]:
        digests = list(digests)
        run = super().longest_run(digests)
        return run[:-1] if len(run) == len(digests) > 1 else run


@bug("hit")
class AppendedBlocksAreNeverFound(PagedAllocator):
    def append(self, sequence: Hashable, tokens: Any) -> None:
        self._chains.pop(sequence, None)
        super().append(sequence, tokens)


@bug("content ownership conservation")
class SequencesPublishOnAfterAReset(PagedAllocator):
    def reset_prefix_cache(self) -> None:
        self._index.clear()
        self.pool.evict_idle()


@bug("content ownership reset conservation")
class ResetForgetsOnlyTheIdleBlocks(PagedAllocator):
    def reset_prefix_cache(self) -> None:
        self._chains.clear()
        self.pool.evict_idle()


@bug("reset")
class ResetForgetsTheIndexOnly(PagedAllocator):
    def reset_prefix_cache(self) -> None:
        self._chains.clear()
        self._index.clear()


@bug("content ownership answer")
class BlockIsPublishedOneTokenEarly(PagedAllocator):
    """The last block counts as full, and is shared, while its last token is still to come."""

    def admit(self, sequence: Hashable, prompt: Any, **options: Any) -> int:
        hit = super().admit(sequence, prompt, **options)
        chain = self._chains.get(sequence)
        if isinstance(chain, PrefixChain) and len(chain.tail) == self.block_size - 1 > 0:
            guess = chain.fork().push(0)
            block = self._tables[sequence].blocks[-1]
            if guess is not None and block not in self._index.digests:
                self._index.insert(guess, block)
        return hit


@bug("eviction ownership content conservation answer")
class DuplicatesAreExchangedWhileShared(PagedAllocator):
    """A block with the content of another is given up for that one, of which nobody is told."""

    def _publish(self, sequence: Hashable, blocks: list[int], first: int, keys: Any) -> None:
        keys = list(keys)
        for at, key in enumerate(keys, first):
            same = self._index._block_of.get(key)
            if same is not None and same != blocks[at]:
                self.pool._free.append(blocks[at])
                blocks[at] = same
        super()._publish(sequence, blocks, first, ())
        for at, key in enumerate(keys, first):
            if blocks[at] not in self._index.digests:
                self._index.insert(key, blocks[at])


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
class MostRecentlyUsedIsEvictedFirst(LRU):
    def pop(self, *, tenant: int | None = None, coming: int = 0) -> int:
        return self._recency.popitem()[0]


@bug("eviction", seen="vllm-project/vllm#48532")
class HeadIsEvictedBeforeTheTail(BlockPool):
    __slots__ = ()

    def release_all(self, blocks: Iterable[int], *, keep: Container[int]) -> None:
        super().release_all(list(blocks)[::-1], keep=keep)


@bug("eviction")
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
