"""Wrong allocators: copies, references, and what is shared of prefixes."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from helpers.wrong_allocators.catalogue import (
    CHAIN_OF_TWO,
    COPY_ON_WRITE,
    OWNERS,
    A,
    Step,
    admit,
    bug,
    free,
    shown,
)
from paged.allocator import PagedAllocator
from paged.pool import BlockPool
from paged.prefix import PrefixChain, PrefixIndex
from paged.subject import PagedSubject
from paged.table import BlockTable

# Copy-on-write


@bug("ownership", seen="vllm-project/vllm#1556")
@shown("ownership: b writes to slot 1 of block 0, which a holds too", *COPY_ON_WRITE)
class MissingCopyOnWrite(PagedAllocator):
    def _is_shared(self, block: int) -> bool:
        return False


@bug("content")
@shown("content: b, position 0 .*slot that was never written; 1 of 2", *COPY_ON_WRITE)
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
@shown("trace: free_twice: there were 6 free", admit("a", 0), free("a"), Step("free_twice"))
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
@shown("drain: 4 free, 1 idle and 1 used blocks, and tables hold none", A, at_the_end=True)
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
@shown(
    "content: b, position 0 .*found the same tokens under another salt, '' instead of 'other'; ",
    A,
    admit("b", 0, 1, 2, salt="other"),
)
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
@shown("hit: 4 of 4 tokens found cached: one has to be left", *CHAIN_OF_TWO, admit("b", 0, 1, 2, 3))
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
