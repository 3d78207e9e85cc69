"""Each check of the allocator machine fails on a wrong allocator, and on the right one it passes.

Programs are written by hand, a few steps each: what they show is shown by nothing else in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from helpers.swapping import SwappingSubject, swapping_allocator
from paged.allocator import PagedAllocator
from paged.pool import BlockPool
from paged.subject import PagedSubject, paged_allocator
from reference.allocator.contract import (
    HOSTILE_CALLS,
    AllocatorCapabilities,
    AllocatorDied,
    AllocatorFactory,
    capabilities_of_factory,
    declares_allocator,
)
from reference.allocator.machine import (
    CHECKS,
    MAX_RUNNING,
    NEEDS,
    NOBODY,
    AllocatorMachine,
    CheckFailed,
    Finding,
    find_fault,
    run_program,
)
from reference.allocator.programs import Pool, Program, Step

PAGED = capabilities_of_factory(paged_allocator)
SWAPPING = capabilities_of_factory(swapping_allocator)

SIX_BY_TWO = Pool(num_blocks=6, block_size=2)
NO_CACHE = replace(SIX_BY_TWO, prefix_caching=False)


# Allocators that are right, and made to be got wrong: every call is a method that can be overridden


class Methods:
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        del self.free, self.take_copies, self.idle_blocks

    @property
    def pool(self) -> BlockPool:
        return self.allocator.pool

    def take_copies(self) -> list[tuple[int, int]]:
        return self.allocator.take_copies()

    def idle_blocks(self) -> list[int]:
        return self.pool.eviction_order()


class Right(Methods, PagedSubject):
    can = PAGED

    def free(self, sequence: str) -> None:
        self.allocator.free(sequence)


class RightWithAHost(Methods, SwappingSubject):
    can = SWAPPING

    def free(self, sequence: str) -> None:
        self._free(sequence)


class AllAtOnce(BlockPool):
    """Evicts everything as soon as anything has to be."""

    def allocate(self, count: int, *, tenant: int = 0) -> list[int]:
        if self.num_free < count <= self.num_free + self.num_cached_idle:
            self.evict_idle()
        return super().allocate(count, tenant=tenant)


class RightAllAtOnce(Right):
    can = replace(PAGED, eviction="all")

    def __init__(self, allocator: PagedAllocator, **options: Any) -> None:
        allocator.pool = AllAtOnce(allocator.num_blocks, on_evict=allocator._forget)
        allocator._references = allocator.pool.reference_counts
        super().__init__(allocator, **options)


class RightLeavesFirst(Right):
    can = replace(PAGED, eviction="leaf")


class RightButForResetsWhileRunning(Right):
    """As engines do it that can forget only while nothing runs."""

    def reset(self) -> bool:
        return not self.allocator._tables and super().reset()


class RightWithSpareBlocks(Right):
    """As engines do it that keep a block back."""

    can = replace(PAGED, spare_blocks=1, can_admit=False)

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        if self.allocator.num_free + self.allocator.num_cached_idle <= len(tokens) // 2:
            return None
        return super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)


def factory_of(kind: type, can: AllocatorCapabilities | None = None) -> AllocatorFactory:
    @declares_allocator(can or kind.can)
    def make(
        num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
    ) -> object:
        allocator = PagedAllocator(num_blocks, block_size, prefix_caching=prefix_caching)
        return kind(allocator) if window is None else kind(allocator, window=window)

    return make


# Steps


def admit(name: str, *tokens: int, first: int | None = None, salt: str = "") -> Step:
    return Step("admit", name, tokens=tokens, num_tokens=first, salt=salt)


def append(name: str, *tokens: int) -> Step:
    return Step("append", name, tokens=tokens)


def fork(child: str, parent: str) -> Step:
    return Step("fork", child, parent=parent)


def free(name: str) -> Step:
    return Step("free", name)


# A copy is due after these three.
COPY_ON_WRITE = (admit("a", 0), fork("b", "a"), append("b", 1))
# Block 0 is idle after these, with tokens 0 and 1, and another one is free again.
ONE_IDLE = (admit("a", 0, 1, 2), free("a"))
# Five blocks of six are in use after this, and `REFUSED` takes two.
FIVE = admit("a", *range(10))
REFUSED = admit("b", 100, 101, 102, 103)


# What is wrong, by check


@dataclass(frozen=True, slots=True)
class Case:
    """A wrong allocator, and a program in which its last step is wrong, or what follows the end."""

    check: str
    wrong: type
    steps: tuple[Step, ...]
    message: str
    pool: Pool
    can: AllocatorCapabilities
    at_the_end: bool

    @property
    def right(self) -> type:
        return self.wrong.__bases__[0]

    def __str__(self) -> str:
        return f"{self.check}-{self.wrong.__name__}"


CASES: list[Case] = []


def fails(
    check: str,
    message: str,
    *steps: Step,
    pool: Pool = SIX_BY_TWO,
    at_the_end: bool = False,
    **declared: Any,
) -> Callable[[type], type]:
    def add(wrong: type) -> type:
        can = replace(wrong.can, **declared)
        CASES.append(Case(check, wrong, steps, message, pool, can, at_the_end))
        return wrong

    return add


@fails("content", "b, position 0 .*slot that was never written; 1 of 2", *COPY_ON_WRITE)
class CopiesAreForgotten(Right):
    def take_copies(self) -> list[tuple[int, int]]:
        return super().take_copies()[:0]


@fails(
    "content",
    "b, position 0 .*expected token .* behind prefix .*, found token",
    admit("a", 0, 1, 2),
    admit("b", 0, 1, 2, salt="other"),
)
class SaltIsIgnored(Right):
    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        return super().admit(sequence, tokens, num_tokens=num_tokens, salt="")

    def can_admit(self, tokens: Sequence[int], *, num_tokens: int, salt: str) -> bool:
        return super().can_admit(tokens, num_tokens=num_tokens, salt="")


@fails("table", "a has 3 tokens and 2 slots", admit("a", 0, 1, 2))
class OneSlotTooFew(Right):
    def slots(self, sequence: str) -> list[int]:
        return super().slots(sequence)[:-1]


@fails("table", "a: no slot for the positions before 1", admit("a", 0, 1))
class FirstSlotIsMissing(Right):
    def slots(self, sequence: str) -> list[int]:
        return [-1, *super().slots(sequence)[1:]]


@fails(
    "table",
    "a: no slot for the positions before 1",
    admit("a", 0, 1),
    pool=replace(SIX_BY_TWO, window=8),
)
class PartOfABlockIsGone(Right):
    def slots(self, sequence: str) -> list[int]:
        return [-1, *super().slots(sequence)[1:]]


@fails(
    "table",
    "a: position 0 is in slot 1; positions of a block lie side by side, .*offset p % 2",
    admit("a", 0, 1),
)
class SlotsAreReversed(Right):
    def slots(self, sequence: str) -> list[int]:
        return super().slots(sequence)[::-1]


@fails("table", "a: position 2 is in slot 3; ", admit("a", 0, 1, 2, 3, 4))
class SecondBlockIsTurnedRound(Right):
    def slots(self, sequence: str) -> list[int]:
        first, second, third, fourth, *rest = super().slots(sequence)
        return [first, second, fourth, third, *rest]


@fails("table", r"a holds blocks \[6\], not all of the pool's", admit("a", 0, 1))
class BlockOutsideThePool(Right):
    def slots(self, sequence: str) -> list[int]:
        return [slot + 12 for slot in super().slots(sequence)]


@fails("table", r"a holds blocks \[0, 0\]: one of them twice", admit("a", 0, 1, 2, 3))
class OneBlockTwice(Right):
    def slots(self, sequence: str) -> list[int]:
        return super().slots(sequence)[:2] * 2


@fails("ownership", "b writes to slot 1 of block 0, which a holds too", *COPY_ON_WRITE)
class NoCopyOnWrite(Right):
    def __init__(self, allocator: PagedAllocator, **options: Any) -> None:
        super().__init__(allocator, **options)
        allocator._is_shared = lambda _: False


@fails("ownership", "a writes to block 0, which is kept as idle", admit("a", 0), append("a", 1))
class WritesToWhatIsIdle(Right):
    idle: tuple[int, ...] = ()

    def take_copies(self) -> list[tuple[int, int]]:
        self.idle = (0,)
        return super().take_copies()

    def idle_blocks(self) -> Sequence[int]:
        return self.idle


@fails("copies", r"\[\(0, 1\), \(1, 2\)\]: their order would matter", *COPY_ON_WRITE)
class CopiesInAChain(Right):
    def take_copies(self) -> list[tuple[int, int]]:
        copies = super().take_copies()
        return copies and [*copies, (1, 2)]


@fails("copies", r"\[\(0, 1\), \(2, 1\)\]: their order would matter", *COPY_ON_WRITE)
class TwoCopiesToOnePlace(Right):
    def take_copies(self) -> list[tuple[int, int]]:
        copies = super().take_copies()
        return copies and [*copies, (2, 1)]


@fails("copies", r"\[\(0, 6\)\]: there is no block 6", *COPY_ON_WRITE)
class CopyToNoBlock(Right):
    def take_copies(self) -> list[tuple[int, int]]:
        return [(source, 6) for source, _ in super().take_copies()]


@fails("copies", r"\[\(0, 5\)\]: nobody holds block 5", *COPY_ON_WRITE)
class CopyToAFreeBlock(Right):
    def take_copies(self) -> list[tuple[int, int]]:
        return [(source, 5) for source, _ in super().take_copies()]


@fails(
    "conservation",
    "an empty pool shows 5 free, 0 idle and 1 used blocks",
)
class BlockInUseFromTheStart(Right):
    def counts(self) -> tuple[int, int, int]:
        free, idle, used = super().counts()
        return free - 1, idle, used + 1


@fails("conservation", "4 free, 0 idle and 1 used blocks: the pool has 6", admit("a", 0))
class BlockIsLost(Right):
    def counts(self) -> tuple[int, int, int]:
        free, idle, used = super().counts()
        return free - (used > 0), idle, used


@fails(
    "conservation",
    "4 free, 0 idle and 2 used blocks, and tables hold block 1",
    admit("a", 0),
    admit("b", 100),
    free("a"),
)
class BlockIsNotFreed(Right):
    def free(self, sequence: str) -> None:
        super().free(sequence)
        self.pool.allocate(1)


@fails(
    "conservation",
    "5 free, 1 idle and 0 used blocks without prefix caching",
    *ONE_IDLE,
    pool=NO_CACHE,
)
class KeepsWhatNobodyAskedFor(Right):
    def counts(self) -> tuple[int, int, int]:
        free, idle, used = super().counts()
        return (5, 1, 0) if hasattr(self, "freed") else (free, idle, used)

    def free(self, sequence: str) -> None:
        super().free(sequence)
        self.freed = True


@fails("conservation", "5 free, 1 idle and 0 used blocks, and idle are none", *ONE_IDLE)
class IdleBlocksAreNotNamed(Right):
    def idle_blocks(self) -> list[int]:
        return []


@fails(
    "conservation",
    "block 2 idle, and in tables",
    admit("a", 0, 1, 2),
    admit("b", 100),
    free("a"),
)
class BlockInUseIsNamedAsIdle(Right):
    def idle_blocks(self) -> list[int]:
        used = [b for b, count in enumerate(self.pool.reference_counts) if count]
        idle = super().idle_blocks()
        return used if used and idle else idle


@fails(
    "refusal",
    "1 tokens refused: they take at most 1 blocks, and there are 6 free, 0 idle and 0 used",
    admit("a", 0),
    can_admit=False,
)
class NothingIsAdmitted(Right):
    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        return None if len(tokens) == 1 else 0


@fails(
    "refusal", "2 more tokens refused: they take at most 1 blocks", admit("a", 0), append("a", 1, 2)
)
class NothingIsAppended(Right):
    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        return False


@fails("refusal", "a fork refused: they take at most 1 blocks", *COPY_ON_WRITE[:2])
class NothingIsForked(Right):
    def fork(self, parent: str, child: str) -> bool:
        return False


@fails(
    "refusal",
    "3 swapped tokens refused: they take at most 2 blocks",
    admit("a", 0, 1, 2),
    Step("swap_out", "a"),
    Step("swap_in", "a"),
)
class NothingComesBack(RightWithAHost):
    def swap_in(self, sequence: str) -> None:
        return None


@fails("promise", "can_admit said True, admit refused", FIVE, REFUSED)
class PromisesEverything(Right):
    def can_admit(self, tokens: Sequence[int], *, num_tokens: int, salt: str) -> bool:
        return True


@fails("promise", "can_admit said False, admit admitted", admit("a", 0))
class PromisesNothing(Right):
    def can_admit(self, tokens: Sequence[int], *, num_tokens: int, salt: str) -> bool:
        return False


@fails(
    "trace",
    "what was refused: there were 1 free, 0 idle and 5 used blocks, now 0 free, 0 idle and 6 used",
    FIVE,
    REFUSED,
)
class RefusalTakesABlock(Right):
    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        hit = super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)
        if hit is None:
            self.pool.allocate(1)
        return hit


@fails("trace", "free_unknown: other blocks are idle now", *ONE_IDLE, Step("free_unknown"))
class IdleBlocksChange(Right):
    moved = 0

    def free(self, sequence: str) -> None:
        self.moved += sequence == NOBODY
        super().free(sequence)

    def idle_blocks(self) -> list[int]:
        return [block + self.moved for block in super().idle_blocks()]


@fails(
    "trace",
    r"append_unknown: a held blocks \[0\], now \[1\]",
    admit("a", 0),
    Step("append_unknown"),
)
class TableChanges(Right):
    moved = 0

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        self.moved += sequence == NOBODY
        return super().append(sequence, tokens)

    def slots(self, sequence: str) -> list[int]:
        return [slot + 2 * self.moved for slot in super().slots(sequence)]


@fails("trace", "free_twice: there were 6 free", admit("a", 0), free("a"), Step("free_twice"))
class SecondFreeCounts(Right):
    freed = 0

    def free(self, sequence: str) -> None:
        self.freed += sequence == "a"
        super().free(sequence)

    def counts(self) -> tuple[int, int, int]:
        free, idle, used = super().counts()
        return free + (self.freed > 1), idle, used


@fails("trace", "can_admit: there were 6 free, 0 idle and 0 used blocks, now 5", admit("a", 0))
class AskingTakesABlock(Right):
    def can_admit(self, tokens: Sequence[int], *, num_tokens: int, salt: str) -> bool:
        self.pool.allocate(1)
        return super().can_admit(tokens, num_tokens=num_tokens, salt=salt)


@fails(
    "trace",
    "a reset that was refused: there were 4 free, 1 idle and 1 used",
    *ONE_IDLE,
    admit("b", 100),
    Step("reset"),
)
class RefusedResetForgets(RightButForResetsWhileRunning):
    def reset(self) -> bool:
        self.allocator.reset_prefix_cache()
        return super().reset()


@fails("trace", "a swap that was refused: there were 5 free", admit("a", 0), Step("swap_out", "a"))
class RefusedSwapTakesABlock(RightWithAHost):
    def swap_out(self, sequence: str) -> None:
        self.pool.allocate(1)


@fails("hit", "2 tokens found cached without prefix caching", admit("a", 0, 1, 2), pool=NO_CACHE)
class HitsWithoutACache(Right):
    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)
        return 2


@fails(
    "hit",
    "2 of 2 tokens found cached: one has to be left",
    admit("a", 0, 1),
    free("a"),
    admit("b", 0, 1),
)
class WholePromptIsAHit(Right):
    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)
        return 2 if sequence == "b" else 0


@fails("hit", "1 tokens found cached: that is not whole blocks", admit("a", 0, 1))
class HalfABlockIsAHit(Right):
    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)
        return 1


@fails(
    "hit",
    "0 tokens found cached, although 2 are and nothing had to be evicted",
    *ONE_IDLE,
    admit("b", 0, 1, 9),
)
class NothingIsFoundAgain(Right):
    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        hit = super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)
        return hit and 0


# Blocks 0, then 1, go idle, and then there is room for one block without eviction. Four take it
# and three more, with blocks 0 and 1 among them.
TWO_IDLE = (admit("a", 0, 1), admit("b", 100, 101), free("a"), free("b"))
TAKE_FIVE = admit("c", *range(200, 210))


@fails("eviction", "block 1 evicted, although block 0 went idle earlier", *TWO_IDLE, TAKE_FIVE)
class LastIsEvictedFirst(Right):
    def __init__(self, allocator: PagedAllocator, **options: Any) -> None:
        super().__init__(allocator, **options)
        idle = allocator.pool._idle
        idle.pop = lambda **_: idle._recency.popitem()[0]


# Of one sequence's blocks the last goes idle first: block 1 before block 0.
CHAIN_OF_TWO = (admit("a", 0, 1, 2, 3), free("a"))


@fails("eviction", "block 0 evicted, although block 1 went idle earlier", *CHAIN_OF_TWO, TAKE_FIVE)
class HeadIsEvictedBeforeItsTail(Right):
    def __init__(self, allocator: PagedAllocator, **options: Any) -> None:
        super().__init__(allocator, **options)
        release_all = allocator._release_all
        allocator._release_all = lambda blocks: release_all(blocks[::-1])


@fails(
    "eviction",
    "block 0 evicted, although [45] blocks are free",
    *ONE_IDLE,
    admit("b", 100),
)
class EvictsWithoutNeed(Right):
    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        if sequence == "b":
            self.pool.evict_idle()
        return super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)


@fails(
    "eviction",
    "block 0 evicted, although block 1 goes on from there",
    *CHAIN_OF_TWO,
    TAKE_FIVE,
)
class ParentIsEvictedBeforeItsChild(RightLeavesFirst):
    def __init__(self, allocator: PagedAllocator, **options: Any) -> None:
        super().__init__(allocator, **options)
        idle = allocator.pool._idle
        idle.pop = lambda **_: idle._recency.popitem()[0]


@fails("eviction", "block 0 evicted, and block 1 not", *TWO_IDLE, TAKE_FIVE)
class NotAllAreEvicted(RightAllAtOnce):
    def __init__(self, allocator: PagedAllocator, **options: Any) -> None:
        super().__init__(allocator, **options)
        allocator.pool.evict_idle = lambda: None


WINDOW_OF_TWO = Pool(num_blocks=6, block_size=1, window=2)


@fails(
    "window",
    "a has 3 tokens; the next query sees those from 2 on, and those before 3 were given up",
    admit("a", 0, 1, 2),
    pool=WINDOW_OF_TWO,
)
class GivenUpOneTokenEarly(Right):
    def commit(self, sequence: str) -> None:
        self.allocator.release_before(sequence, self.allocator.num_tokens(sequence))


@fails(
    "window",
    "a holds 2 blocks of tokens before 2, which no query sees",
    admit("a", 0, 1, 2),
    pool=WINDOW_OF_TWO,
)
class NothingIsGivenUp(Right):
    def commit(self, sequence: str) -> None:
        pass


@fails(
    "window",
    "a holds 2 blocks of tokens before 3, which no query sees",
    admit("a", 0, 1, 2, 3),
    pool=WINDOW_OF_TWO,
    window_slack=1,
)
class MoreThanTheSlackIsKept(Right):
    def commit(self, sequence: str) -> None:
        self.allocator.release_before(sequence, max(self.allocator.num_tokens(sequence) - 3, 0))


@fails(
    "window",
    "a: the positions before 3 are to be written, and gone",
    admit("a", 0, 1),
    append("a", 2),
    pool=WINDOW_OF_TWO,
)
class GivenUpBeforeItIsWritten(Right):
    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        granted = super().append(sequence, tokens)
        self.allocator.release_before(sequence, self.allocator.num_tokens(sequence))
        return granted


SWAP_OUT = (admit("a", 0, 1, 2), Step("swap_out", "a"))


@fails("swap", r"blocks \[0, 1\] to be swapped out, and it names \[\(1, \d+\)\]", *SWAP_OUT)
class BlockStaysBehind(RightWithAHost):
    def swap_out(self, sequence: str) -> list[tuple[int, int]] | None:
        return super().swap_out(sequence)[1:]


@fails("swap", r"host blocks \[7, 7\]: one is taken, or named twice", *SWAP_OUT)
class TwoBlocksToOnePlace(RightWithAHost):
    def swap_out(self, sequence: str) -> list[tuple[int, int]] | None:
        return [(block, 7) for block, _ in super().swap_out(sequence)]


@fails(
    "swap",
    r"host blocks \[7\]: one is taken, or named twice",
    admit("a", 0),
    admit("b", 100),
    Step("swap_out", "a"),
    Step("swap_out", "b"),
)
class TwoSequencesToOnePlace(RightWithAHost):
    def swap_out(self, sequence: str) -> list[tuple[int, int]] | None:
        return [(block, 7) for block, _ in super().swap_out(sequence)]


@fails("swap", "host block 23 to block .: there is none such", *SWAP_OUT, Step("swap_in", "a"))
class ComesFromElsewhere(RightWithAHost):
    def swap_in(self, sequence: str) -> list[tuple[int, int]] | None:
        return [(23, block) for _, block in super().swap_in(sequence)]


@fails("swap", "host block . to block 6: there is none such", *SWAP_OUT, Step("swap_in", "a"))
class GoesNowhere(RightWithAHost):
    def swap_in(self, sequence: str) -> list[tuple[int, int]] | None:
        return [(host, 6) for host, _ in super().swap_in(sequence)]


@fails("content", "a, position 2 .*never written", *SWAP_OUT, Step("swap_in", "a"))
class PartOfItComesBack(RightWithAHost):
    def swap_in(self, sequence: str) -> list[tuple[int, int]] | None:
        self.allocator.pool._free.reverse()  # to blocks that hold something else
        return super().swap_in(sequence)[:1]


@fails("reset", "refused, although there is no sequence", *ONE_IDLE, Step("reset"))
class ResetIsAlwaysRefused(Right):
    def reset(self) -> bool:
        return False


@fails("reset", "after a reset 5 free, 1 idle and 0 used blocks", *ONE_IDLE, Step("reset"))
class ResetForgetsNothing(Right):
    def reset(self) -> bool:
        return True


@fails(
    "drain",
    "4 free, 1 idle and 1 used blocks, and tables hold none",
    admit("a", 0, 1, 2),
    at_the_end=True,
)
class BlockLeaksAtTheEnd(Right):
    def free(self, sequence: str) -> None:
        super().free(sequence)
        self.pool.allocate(1)


@fails("capacity", "12 tokens refused: they take at most 6 blocks", at_the_end=True)
class WholePoolIsNeverGiven(Right):
    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        if not self.can_admit(tokens, num_tokens=num_tokens, salt=salt):
            return None
        return super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)

    def can_admit(self, tokens: Sequence[int], *, num_tokens: int, salt: str) -> bool:
        fits = super().can_admit(tokens, num_tokens=num_tokens, salt=salt)
        return fits and len(tokens) < 12


@fails("answer", "raised KeyError: 'a'", admit("a", 0), append("a", 1))
class RaisesOnALegalCall(Right):
    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        raise KeyError(sequence)


@fails("answer", "raised RuntimeError: no pool of 6")
class CannotBeMade(Right):
    def __init__(self, allocator: PagedAllocator, **_: Any) -> None:
        raise RuntimeError(f"no pool of {allocator.num_blocks}")


@fails("died", "killed by SIGSEGV", admit("a", 0), append("a", 1))
class DiesOnALegalCall(Right):
    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        raise AllocatorDied("killed by SIGSEGV", timed_out=False)


@fails("died", "gave no answer", admit("a", 0), Step("append_unknown"))
class DiesOnACallThatMakesNoSense(Right):
    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        if sequence == NOBODY:
            raise AllocatorDied("gave no answer", timed_out=True)
        return super().append(sequence, tokens)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_wrong_one_fails_just_this_check_and_the_right_one_none(case: Case) -> None:
    program = Program(case.pool, case.steps)
    finding = run_program(factory_of(case.wrong, case.can), program)
    assert finding is not None
    assert finding.check == case.check, str(finding)
    assert finding.at_the_end == case.at_the_end, str(finding)
    # It shows in the last step and not before; none was left out.
    assert finding.program == program
    with pytest.raises(CheckFailed, match=f"^{case.check}: {case.message}"):
        raise CheckFailed(finding.check, finding.message)
    assert run_program(factory_of(case.right, case.can), program) is None


def test_every_check_fails_in_one_of_them() -> None:
    assert {case.check for case in CASES} == CHECKS.keys()


@pytest.mark.parametrize("order", ["lru", "leaf", "all"])
def test_every_order_of_eviction_is_got_wrong(order: str) -> None:
    assert [c for c in CASES if c.check == "eviction" and c.can.eviction == order]


def test_what_a_check_needs_is_a_capability() -> None:
    fields = AllocatorCapabilities().as_json()
    assert {need for need in NEEDS.values() if need not in fields} == set()
    assert NEEDS.keys() < CHECKS.keys()


# Answers of another shape


@pytest.mark.parametrize(
    ("call", "answer", "words"),
    [
        ("admit", "0", "admit returned '0', neither a number nor None"),
        ("admit", True, "admit returned True, neither a number nor None"),
        ("append", None, "append returned None, neither True nor False"),
        ("append", 1, "append returned 1, neither True nor False"),
        ("fork", "yes", "fork returned 'yes', neither"),
        ("reset", None, "reset returned None, neither"),
        ("can_admit", None, "can_admit returned None, neither"),
        ("counts", None, "counts returned None, of another shape"),
        ("counts", (1, 2), r"counts returned \(1, 2\), of another shape"),
        ("counts", (6.0, 0, 0), r"counts returned \(6.0, 0, 0\), of another shape"),
        ("slots", None, "slots returned None, of another shape"),
        ("slots", [[0], [1, 2]], r"slots returned \[\[0\], \[1, 2\]\], of another shape"),
        ("slots", [[0]], "a has 1 tokens and 1 slots"),
        ("idle_blocks", None, "idle_blocks returned None, of another shape"),
        ("take_copies", None, "take_copies returned None, of another shape"),
        ("take_copies", [0, 1], r"take_copies returned \[0, 1\], of another shape"),
        ("swap_out", [(0, 0, 0)], r"swap_out returned \[\(0, 0, 0\)\], of another shape"),
        ("swap_in", 3, "swap_in returned 3, of another shape"),
    ],
)
def test_an_answer_of_another_shape_is_a_finding(call: str, answer: object, words: str) -> None:
    base = RightWithAHost if "swap" in call else Right
    wrong = type("Wrong", (base,), {call: lambda *_, **__: answer})
    steps = (admit("a", 0), append("a", 1), fork("b", "a"), Step("reset"))
    if base is RightWithAHost:
        steps = (admit("a", 0), Step("swap_out", "a"), Step("swap_in", "a"))
    finding = run_program(factory_of(wrong), Program(SIX_BY_TWO, steps))
    assert finding is not None
    assert finding.check == ("table" if answer == [[0]] else "answer")
    with pytest.raises(CheckFailed, match=words):
        raise CheckFailed(finding.check, finding.message)


def test_numbers_of_numpy_are_numbers() -> None:
    class Numpy(Right):
        def admit(self, *given: Any, **named: Any) -> np.int64:
            return np.int64(super().admit(*given, **named))

        def append(self, *given: Any) -> np.bool_:
            return np.bool_(super().append(*given))

        def can_admit(self, *given: Any, **named: Any) -> np.bool_:
            return np.bool_(super().can_admit(*given, **named))

        def counts(self) -> Any:
            return np.array(super().counts())

        def slots(self, sequence: str) -> Any:
            return np.array(super().slots(sequence), np.int32)

        def take_copies(self) -> Any:
            return np.array(super().take_copies(), np.int32).reshape(-1, 2)

    assert run_program(factory_of(Numpy), Program(SIX_BY_TWO, COPY_ON_WRITE)) is None


# What is left out


def made(kind: type, *steps: Step, pool: Pool = SIX_BY_TWO, **declared: Any) -> AllocatorMachine:
    """A machine that has run these steps."""
    machine = AllocatorMachine(factory_of(kind, replace(kind.can, **declared)), pool)
    for step in steps:
        machine.run(step)
    return machine


A, B = admit("a", 0, 1, 2), admit("b", 100)


@pytest.mark.parametrize(
    ("before", "step", "declared"),
    [
        ((A,), A, {}),
        ((), append("a", 1), {}),
        ((), free("a"), {}),
        ((A, free("a")), free("a"), {}),
        ((), Step("preempt", "a"), {}),
        ((), fork("b", "a"), {}),
        ((A, B), fork("b", "a"), {}),
        ((A,), fork("b", "a"), {"fork": False}),
        ((A,), Step("settle"), {}),
        ((), Step("reset"), {"reset": False}),
        ((A,), Step("reset"), {"reset_while_running": False}),
        ((), admit("a"), {"empty_calls": False}),
        ((A,), append("a"), {"empty_calls": False}),
        ((), admit("a", 0, first=2), {}),
        ((), admit("a", 0, first=-1), {}),
        ((), Step("free_twice"), {}),
        ((A, free("a"), A), Step("free_twice"), {}),
        ((A, free("a")), Step("free_twice"), {"hostile": frozenset({"free_unknown"})}),
        ((A,), Step("fork_onto_live", "a", parent="a"), {}),
        ((A,), Step("fork_onto_live", "a", parent="b"), {}),
        ((A, B), Step("fork_onto_live", "a", parent="b"), {"fork": False}),
        ((), Step("fork_unknown"), {"fork": False}),
        ((), Step("admit_live", "a", tokens=(0,)), {}),
        ((), Step("admit_negative", NOBODY, tokens=(0,)), {"chunked_prefill": False}),
        ((), Step("admit_oversized", NOBODY, tokens=(0,)), {"chunked_prefill": False}),
    ],
    ids=str,
)
def test_a_step_that_makes_no_sense_where_it_stands_is_left_out(
    before: tuple[Step, ...], step: Step, declared: dict[str, Any]
) -> None:
    machine = made(Right, *before, step, **declared)
    assert machine.steps == list(before)
    assert not machine.can_run(step)
    machine.finish()


def test_a_swapped_sequence_is_neither_admitted_nor_forked_onto_nor_swapped_out_again() -> None:
    machine = made(RightWithAHost, A, B, Step("swap_out", "a"))
    for step in (A, fork("a", "b"), Step("swap_out", "a"), append("a", 0), free("a")):
        assert not machine.can_run(step), step
    assert machine.can_run(Step("swap_in", "a"))
    assert not made(RightWithAHost, A, swap=False).can_run(Step("swap_out", "a"))
    assert not made(RightWithAHost, A).can_run(Step("swap_in", "a"))
    machine.finish()  # which frees what is swapped out, too


def test_a_preempted_sequence_may_come_back_under_its_name() -> None:
    machine = made(Right, A, Step("preempt", "a"))
    assert machine.waiting.keys() == {"a"}
    machine.run(A)
    assert machine.lives.keys() == {"a"}
    assert not machine.waiting
    assert machine.lives["a"].tokens == [0, 1, 2]
    machine.finish()


def test_no_more_than_so_many_sequences_run_at_once() -> None:
    many = [admit(f"s{number}", number) for number in range(MAX_RUNNING)]
    pool = replace(SIX_BY_TWO, num_blocks=16)
    machine = made(RightWithAHost, A, Step("swap_out", "a"), *many, pool=pool)
    assert len(machine.lives) == MAX_RUNNING
    for step in (admit("more", 7), fork("more", "s0"), Step("swap_in", "a")):
        assert not machine.can_run(step), step
    machine.run(free("s1"))
    for step in (admit("more", 7), fork("more", "s0"), Step("swap_in", "a")):
        assert machine.can_run(step), step
    machine.finish()


def test_what_an_allocator_does_not_declare_is_left_out_of_any_program() -> None:
    least = AllocatorCapabilities(prefix_caching=False, hostile=frozenset())
    steps = (
        A,
        fork("b", "a"),
        Step("swap_out", "a"),
        Step("reset"),
        Step("free_unknown"),
        free("a"),
    )
    machine = made(Right, pool=NO_CACHE)
    machine.can = least
    for step in steps:
        machine.run(step)
    assert machine.steps == [A, free("a")]


# Calls that make no sense


HOSTILE_STEPS = tuple(
    {
        "fork_onto_live": Step("fork_onto_live", "b", parent="a"),
        "admit_live": Step("admit_live", "a", tokens=(0, 1)),
        "admit_negative": Step("admit_negative", NOBODY, tokens=(0, 1)),
        "admit_oversized": Step("admit_oversized", NOBODY, tokens=(0, 1)),
    }.get(call, Step(call))
    for call in HOSTILE_CALLS
)


class DoesNothing(Right):
    """Where ours raises, this one looks away."""

    def free(self, sequence: str) -> None:
        if sequence in self.allocator._tables:
            super().free(sequence)

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        return sequence in self.allocator._tables and super().append(sequence, tokens)

    def fork(self, parent: str, child: str) -> bool:
        known = self.allocator._tables
        return parent in known and child not in known and super().fork(parent, child)

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        if sequence in self.allocator._tables or not 0 <= num_tokens <= len(tokens):
            return None
        return super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)


@pytest.mark.parametrize("kind", [Right, DoesNothing])
def test_a_call_that_makes_no_sense_may_raise_or_do_nothing(kind: type) -> None:
    machine = made(kind, A, B, admit("c", 5), free("c"), *HOSTILE_STEPS)
    assert machine.steps[-len(HOSTILE_STEPS) :] == list(HOSTILE_STEPS)
    assert {call: machine.calls[call] for call in HOSTILE_CALLS} == dict.fromkeys(HOSTILE_CALLS, 1)
    machine.finish()


@pytest.mark.parametrize("step", HOSTILE_STEPS, ids=str)
def test_a_call_that_makes_no_sense_must_change_nothing(step: Step) -> None:
    class Takes(Right):
        """Takes a block whenever ours raises."""

        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name not in ("admit", "append", "fork", "free"):
                return found

            def call(*given: Any, **named: Any) -> Any:
                try:
                    return found(*given, **named)
                except Exception:
                    self.pool.allocate(1)
                    raise

            return call

    steps = (A, B, admit("c", 5), free("c"), step)
    finding = run_program(factory_of(Takes), Program(SIX_BY_TWO, steps))
    assert finding is not None
    assert finding.check == "trace"
    assert finding.message.startswith(f"{step.call}: there were 3 free")
    assert finding.program.steps == steps


# The engine's part


class Written(Right):
    """Writes down what is asked of it, looking aside."""

    LOOKING = ("counts", "slots", "idle_blocks")

    def __init__(self, *given: Any, **named: Any) -> None:
        self.asked: list[str] = []
        super().__init__(*given, **named)

    def __getattribute__(self, name: str) -> Any:
        if name in ("admit", "append", "fork", "free", "preempt", "commit", "take_copies", "reset"):
            self.asked.append(name)
        return super().__getattribute__(name)

    def preempt(self, sequence: str) -> None:
        self.allocator.free(sequence)


def asked(*steps: Step, pool: Pool = SIX_BY_TWO, **declared: Any) -> list[str]:
    machine = made(Written, *steps, pool=pool, can_admit=False, **declared)
    return machine._allocator.asked


BATCHING = replace(SIX_BY_TWO, batching=True)


def test_each_call_is_followed_by_copies_and_commits() -> None:
    assert asked(A, append("a", 3), fork("b", "a")) == [
        *("admit", "commit"),
        *("append", "take_copies", "commit"),
        *("fork", "take_copies", "commit"),
    ]


def test_a_batch_waits_for_settle() -> None:
    steps = (A, B, append("a", 3), Step("settle"), Step("settle"))
    together = ["admit", "admit", "append", "take_copies", "commit", "commit"]
    assert asked(*steps, pool=BATCHING) == together
    assert asked(*steps[:3], pool=BATCHING) == together[:3]
    assert made(Right, *steps, pool=BATCHING).steps == list(steps[:4])


def test_between_call_and_settle_the_content_may_lag_behind() -> None:
    # Of two that are admitted at once the second may be told of a hit that nobody has written yet.
    steps = (A, admit("b", 0, 1, 5))
    machine = made(Right, *steps, pool=BATCHING)
    assert machine.lives["b"].written == 2
    assert not machine.shadow.prefixes.any()
    machine.run(Step("settle"))
    assert machine.lives["a"].written == machine.lives["b"].written == 3
    machine.finish()


def test_a_parent_is_written_before_it_is_forked() -> None:
    assert asked(A, fork("b", "a"), pool=BATCHING)[:3] == ["admit", "commit", "fork"]


@pytest.mark.parametrize(
    ("step", "settled_first"),
    [(admit("a", 0, 1, 2), True), (admit("a", 0), False)],
)
def test_full_blocks_are_written_before_they_are_freed(step: Step, *, settled_first: bool) -> None:
    calls = ["admit", "commit", "free"] if settled_first else ["admit", "free"]
    assert asked(step, free("a"), pool=BATCHING) == calls
    without = replace(BATCHING, prefix_caching=False)
    assert asked(step, free("a"), pool=without) == ["admit", "free"]
    assert asked(step, free("a"), pool=BATCHING, abort_before_write=True) == ["admit", "free"]


def test_preemption_is_asked_for_by_name_only_where_it_is_declared() -> None:
    assert asked(A, Step("preempt", "a"), preempt=True)[2] == "preempt"
    assert asked(A, Step("preempt", "a"))[2] == "free"


def test_commit_and_copies_are_asked_for_only_where_they_are_declared() -> None:
    assert asked(A, append("a", 3), commit=False, fork=False) == ["admit", "append"]


def test_the_rest_of_a_prompt_comes_before_new_tokens() -> None:
    machine = made(Right, admit("a", 9, 8, 7, 6, first=2))
    assert (machine.lives["a"].tokens, machine.lives["a"].rest) == ([9, 8], [7, 6])
    machine.run(append("a", 1, 2, 3))
    assert (machine.lives["a"].tokens, machine.lives["a"].rest) == ([9, 8, 7, 6, 3], [])
    machine.finish()


def test_a_cached_prefix_and_one_token_more_are_admitted_in_any_case() -> None:
    machine = made(Right, admit("a", 0, 1, 2, 3, 4), admit("b", 0, 1, 2, 3, 4, 5, 6, first=1))
    assert (machine.lives["b"].tokens, machine.lives["b"].rest) == ([0, 1, 2, 3, 4], [5, 6])
    assert machine.lives["b"].written == 5
    machine.finish()


def test_copies_are_carried_out_in_the_other_order() -> None:
    copies = []
    machine = made(Right, admit("a", 0, 1, 2), fork("b", "a"), fork("c", "a"), pool=BATCHING)
    machine.run(append("b", 3))
    machine.run(append("c", 4))
    copy = machine.shadow.copy
    machine.shadow.copy = lambda *pair: (copies.append(pair), copy(*pair))
    machine.run(Step("settle"))
    assert copies == [(1, 3), (1, 2)]
    assert machine.calls["copy"] == 2
    machine.finish()


def test_the_end_frees_everything_forgets_and_fills_the_pool_once() -> None:
    machine = made(Written, A, B, can_admit=False)
    machine._allocator.asked.clear()
    machine.finish()
    calls = [call for call in machine._allocator.asked if call not in ("commit", "take_copies")]
    assert calls == ["free", "free", "reset", "admit", "free"]
    assert machine.ending
    assert machine.steps == [A, B]


def test_a_prompt_without_tokens_is_fine() -> None:
    steps = (admit("a"), append("a"), append("a", 0), fork("b", "a"), append("a", *range(1, 9)))
    assert run_program(factory_of(Right), Program(SIX_BY_TWO, steps)) is None


# What is declared is put up with


def test_a_reset_may_be_refused_while_something_runs() -> None:
    program = Program(SIX_BY_TWO, (A, Step("reset"), free("a"), Step("reset")))
    assert run_program(factory_of(RightButForResetsWhileRunning), program) is None


def test_spare_blocks_may_be_kept_back_if_that_is_declared() -> None:
    program = Program(SIX_BY_TWO, (FIVE, free("a"), admit("b", *range(100, 112))))
    assert run_program(factory_of(RightWithSpareBlocks), program) is None
    honest = factory_of(RightWithSpareBlocks, replace(RightWithSpareBlocks.can, spare_blocks=0))
    finding = run_program(honest, program)
    assert finding is not None
    assert finding.check == "refusal"


def test_a_window_may_be_left_late_by_its_slack() -> None:
    late = factory_of(MoreThanTheSlackIsKept, replace(PAGED, window_slack=2))
    steps = (admit("a", 0, 1, 2, 3),)
    assert run_program(late, Program(WINDOW_OF_TWO, steps)) is None


@pytest.mark.parametrize("order", ["lru", "leaf"])
def test_an_order_that_is_not_declared_is_not_checked(order: str) -> None:
    wrong = {"lru": LastIsEvictedFirst, "leaf": ParentIsEvictedBeforeItsChild}[order]
    unwatched = factory_of(wrong, replace(PAGED, eviction=None))
    steps = (*TWO_IDLE, TAKE_FIVE, free("c"), *CHAIN_OF_TWO, TAKE_FIVE)
    assert run_program(unwatched, Program(SIX_BY_TWO, steps)) is None


def test_after_a_reset_new_sequences_find_nothing_of_the_old_weights() -> None:
    machine = made(Right, A, Step("reset"), admit("b", 0, 1, 2))
    assert machine.lives["b"].written == 3
    assert machine.lives["a"].origin != machine.lives["b"].origin
    machine.finish()


# Findings


def test_a_finding_says_when_it_showed() -> None:
    program = Program(SIX_BY_TWO, (A,))
    assert str(Finding("hit", "words", program, at_the_end=False)) == (
        "hit, in the last step: words"
    )
    assert str(Finding("drain", "words", program, at_the_end=True)) == (
        "drain, when everything was freed: words"
    )


def test_steps_behind_the_one_that_shows_it_are_not_in_the_finding() -> None:
    finding = run_program(
        factory_of(RaisesOnALegalCall), Program(SIX_BY_TWO, (A, append("a", 1), free("a"), B))
    )
    assert finding is not None
    assert finding.program.steps == (A, append("a", 1))


def test_capabilities_that_are_given_take_precedence() -> None:
    least = replace(PAGED, fork=False)
    seen = []

    def look(machine: AllocatorMachine) -> None:
        machine.on_step = lambda m: seen.append((m.steps[-1].call, len(m.lives)))
        for step in COPY_ON_WRITE:
            machine.run(step)

    assert find_fault(factory_of(Right), SIX_BY_TWO, look, capabilities=least) is None
    assert seen == [("admit", 1)]


def test_an_error_of_whoever_runs_the_machine_is_no_finding() -> None:
    def run(_: AllocatorMachine) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        find_fault(factory_of(Right), SIX_BY_TWO, run)


def test_states_are_equal_whatever_the_blocks_are_called() -> None:
    one = made(Right, A, B, free("b"))
    other = made(Right, B, A, free("b"))
    assert one.lives.keys() == other.lives.keys()
    assert one.state() == other.state()
    assert one.state() != made(Right, A, B).state()
