"""Wrong allocators, each of which the machines of tests/property/test_allocator.py must reject.

Every bug is planted into the code under test, most by replacing one small method, and comes with
the words of the finding that it has to end in: a machine that merely crashes proves nothing.
"""

from collections.abc import Callable, Container, Hashable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from numpy.typing import NDArray

from paged.allocator import PagedAllocator
from paged.errors import OutOfBlocks
from paged.eviction import LRU
from paged.pool import BlockPool
from paged.prefix import PrefixChain, PrefixIndex
from paged.table import BlockTable
from tests.property.test_allocator import AllocatorMachine, PoolMachine

MAX_EXAMPLES = 2500

SEES_ANOTHER_PREFIX = r"position \d+ \(slot \d+, block \d+\): expected token"
# Where a block ends up with the wrong owners, chance decides which of these is seen first.
WRONG_OWNERS = "|".join(
    [
        SEES_ANOTHER_PREFIX,
        "references, and owners of each block",
        "used blocks, and owned ones",
        "blocks in the table, and blocks needed",
        "blocks are lost",
        "blocks needed and only",
        "is indexed already",
        "a slot is named twice",
        "has no reference left",
        "is free, its content is gone",
    ]
)
LEAVES_A_TRACE = r"an operation that was refused left a trace"


@dataclass(frozen=True)
class Bug:
    plant: Callable[[pytest.MonkeyPatch], None]
    finding: str
    machine: type[AllocatorMachine | PoolMachine] = AllocatorMachine


BUGS: dict[str, Bug] = {}


def bug(
    finding: str, *, machine: type[AllocatorMachine | PoolMachine] = AllocatorMachine
) -> Callable[[Callable[[pytest.MonkeyPatch], None]], None]:
    def register(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
        BUGS[plant.__name__] = Bug(plant, finding, machine)

    return register


# Copy-on-write


@bug(WRONG_OWNERS)
def missing_copy_on_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagedAllocator, "_is_shared", lambda self, block: False)


@bug(SEES_ANOTHER_PREFIX)
def copy_is_never_asked_for(patch: pytest.MonkeyPatch) -> None:
    take = PagedAllocator.take_copies
    patch.setattr(PagedAllocator, "take_copies", lambda self: take(self)[:0])


@bug(SEES_ANOTHER_PREFIX)
def copy_in_the_wrong_direction(patch: pytest.MonkeyPatch) -> None:
    take = PagedAllocator.take_copies
    patch.setattr(
        PagedAllocator, "take_copies", lambda self: [(to, source) for source, to in take(self)]
    )


@bug(SEES_ANOTHER_PREFIX)
def only_the_first_copy_of_a_step(patch: pytest.MonkeyPatch) -> None:
    take = PagedAllocator.take_copies
    patch.setattr(PagedAllocator, "take_copies", lambda self: take(self)[:1])


@bug("copies .* to blocks that are free|" + WRONG_OWNERS)
def copy_outlives_its_destination(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagedAllocator, "_drop_copy", lambda self, destination: None)


@bug("source and destination at once|source of .* handed out|" + WRONG_OWNERS)
def source_is_given_away_before_its_copy(patch: pytest.MonkeyPatch) -> None:
    grow = PagedAllocator._grow

    def hasty(self: PagedAllocator, sequence: Hashable, table: Any, num_tokens: int) -> None:
        pending = set(self._copies)
        grow(self, sequence, table, num_tokens)
        for copy in set(self._copies) - pending:
            self._waiting[self._copies[copy]] -= 1
            self._release(self._copies[copy])

    def take(self: PagedAllocator) -> list[tuple[int, int]]:
        taken = [(source, copy) for copy, source in self._copies.items()]
        self._copies.clear()
        return taken

    def drop(self: PagedAllocator, destination: int) -> None:
        del self._copies[destination]

    patch.setattr(PagedAllocator, "_grow", hasty)
    patch.setattr(PagedAllocator, "take_copies", take)
    patch.setattr(PagedAllocator, "_drop_copy", drop)


@bug(WRONG_OWNERS)
def row_not_updated_after_a_copy(patch: pytest.MonkeyPatch) -> None:
    def replace_last(self: BlockTable, block: int) -> None:
        self.blocks[-1] = block

    patch.setattr(BlockTable, "replace_last", replace_last)


@bug(WRONG_OWNERS)
def child_grows_the_table_of_its_parent(patch: pytest.MonkeyPatch) -> None:
    def fork(self: BlockTable) -> BlockTable:
        child = BlockTable(self.block_size)
        child.blocks = self.blocks
        child.num_tokens = self.num_tokens
        return child

    patch.setattr(BlockTable, "fork", fork)


# References


@bug(WRONG_OWNERS)
def freed_without_looking_at_the_references(patch: pytest.MonkeyPatch) -> None:
    def release(self: BlockPool, block: int, *, keep: bool) -> None:
        if self._references[block]:
            self._references[block] = 0
            self._free.append(block)

    def release_all(self: BlockPool, blocks: Iterable[int], *, keep: Container[int]) -> None:
        for block in blocks:
            release(self, block, keep=block in keep)

    patch.setattr(BlockPool, "release", release)
    patch.setattr(BlockPool, "release_all", release_all)


@bug(WRONG_OWNERS)
def block_twice_in_the_free_list(patch: pytest.MonkeyPatch) -> None:
    release = BlockPool.release

    def release_twice(self: BlockPool, block: int, *, keep: bool) -> None:
        release(self, block, keep=keep)
        if not keep and self._references[block] == 0:
            self._free.append(block)

    def release_all(self: BlockPool, blocks: Iterable[int], *, keep: Container[int]) -> None:
        for block in blocks:
            release_twice(self, block, keep=block in keep)

    patch.setattr(BlockPool, "release", release_twice)
    patch.setattr(BlockPool, "release_all", release_all)


@bug(WRONG_OWNERS)
def fork_takes_no_references(patch: pytest.MonkeyPatch) -> None:
    def fork(self: PagedAllocator, parent: Hashable, child: Hashable) -> None:
        self._tables[child] = self._tables[parent].fork()

    patch.setattr(PagedAllocator, "fork", fork)


@bug(WRONG_OWNERS)
def last_block_is_never_released(patch: pytest.MonkeyPatch) -> None:
    free = PagedAllocator.free

    def forgetful(self: PagedAllocator, sequence: Hashable) -> None:
        if len(self._tables[sequence].blocks) > 1:
            self._tables[sequence].blocks.pop()
        free(self, sequence)

    patch.setattr(PagedAllocator, "free", forgetful)


@bug(WRONG_OWNERS)
def hit_that_can_still_be_evicted(patch: pytest.MonkeyPatch) -> None:
    def retain(self: BlockPool, block: int) -> None:
        self._references[block] += 1

    patch.setattr(BlockPool, "retain", retain)


# Prefixes


@bug(SEES_ANOTHER_PREFIX)
def hash_without_its_parent(patch: pytest.MonkeyPatch) -> None:
    def link(self: PrefixChain, content: bytes) -> bytes:
        return blake2b(content, digest_size=32).digest()

    patch.setattr(PrefixChain, "_link", link)


@bug(SEES_ANOTHER_PREFIX)
def hash_without_the_last_token(patch: pytest.MonkeyPatch) -> None:
    link = PrefixChain._link
    patch.setattr(PrefixChain, "_link", lambda self, content: link(self, content[:-8]))


@bug(SEES_ANOTHER_PREFIX)
def tenants_share_their_prefixes(patch: pytest.MonkeyPatch) -> None:
    init = PrefixChain.__init__

    def unsalted(self: PrefixChain, block_size: int, *, salt: bytes = b"") -> None:
        init(self, block_size)

    patch.setattr(PrefixChain, "__init__", unsalted)


@bug(WRONG_OWNERS)
def evicted_block_is_still_indexed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagedAllocator, "_forget", lambda self, evicted: None)
    insert = PrefixIndex.insert

    def overwrite(self: PrefixIndex, digest: bytes, block: int) -> bool:
        self._digest_of.pop(block, None)
        return insert(self, digest, block)

    patch.setattr(PrefixIndex, "insert", overwrite)


@bug("leaves none of")
def whole_prompt_is_a_hit(patch: pytest.MonkeyPatch) -> None:
    admit = PagedAllocator.admit
    run = PrefixIndex.longest_run

    def uncapped(
        self: PagedAllocator, sequence: Hashable, tokens: Any, *, salt: bytes = b""
    ) -> int:
        hit = admit(self, sequence, tokens, salt=salt)
        if self.prefix_caching:
            chain = PrefixChain(self.block_size, salt=salt)
            hit = len(run(self._index, chain.extend(np.asarray(tokens, int)))) * self.block_size
        return hit

    patch.setattr(PagedAllocator, "admit", uncapped)


@bug(SEES_ANOTHER_PREFIX)
def sequences_publish_on_after_a_reset(patch: pytest.MonkeyPatch) -> None:
    def reset(self: PagedAllocator) -> None:
        self._index.clear()
        self.pool.evict_idle()

    patch.setattr(PagedAllocator, "reset_prefix_cache", reset)


@bug(SEES_ANOTHER_PREFIX)
def reset_forgets_only_the_idle_blocks(patch: pytest.MonkeyPatch) -> None:
    def reset(self: PagedAllocator) -> None:
        self._chains.clear()
        self.pool.evict_idle()

    patch.setattr(PagedAllocator, "reset_prefix_cache", reset)


@bug(WRONG_OWNERS)
def block_is_published_one_token_early(patch: pytest.MonkeyPatch) -> None:
    admit = PagedAllocator.admit

    def eager(self: PagedAllocator, sequence: Hashable, tokens: Any, *, salt: bytes = b"") -> int:
        hit = admit(self, sequence, tokens, salt=salt)
        chain = self._chains.get(sequence)
        if chain is not None and len(chain.tail) == self.block_size - 1 > 0:
            guess = chain.fork().push(0)
            block = self._tables[sequence].blocks[-1]
            if guess is not None and block not in self._index.digests:
                self._index.insert(guess, block)
        return hit

    patch.setattr(PagedAllocator, "admit", eager)


# Slots


@bug(SEES_ANOTHER_PREFIX + r"|write to slot \d+: there are")
def slot_off_by_one(patch: pytest.MonkeyPatch) -> None:
    slots = BlockTable.slots
    patch.setattr(BlockTable, "slots", lambda self, *, start=0: slots(self, start=start) + 1)


@bug(SEES_ANOTHER_PREFIX + "|slots, and block_table")
def slots_start_one_late_in_a_later_block(patch: pytest.MonkeyPatch) -> None:
    slots = BlockTable.slots

    def late(self: BlockTable, *, start: int = 0) -> NDArray[np.int64]:
        right = slots(self, start=start)
        return right if start < self.block_size else np.roll(right, 1)

    patch.setattr(BlockTable, "slots", late)


# Running out


@bug(LEAVES_A_TRACE)
def refused_admission_keeps_its_hits(patch: pytest.MonkeyPatch) -> None:
    demand = PagedAllocator._demand

    def greedy(self: PagedAllocator, prompt: Any) -> tuple[int, int]:
        needed, available = demand(self, prompt)
        if needed > available:
            for block in prompt.hits:
                self.pool.retain(block)
        return needed, available

    patch.setattr(PagedAllocator, "_demand", greedy)


@bug(LEAVES_A_TRACE)
def refused_allocation_evicts(patch: pytest.MonkeyPatch) -> None:
    allocate = BlockPool.allocate

    def eager(self: BlockPool, count: int, *, tenant: int = 0) -> list[int]:
        if count > len(self._free):
            self.evict_idle()
        return allocate(self, count, tenant=tenant)

    patch.setattr(BlockPool, "allocate", eager)


@bug(LEAVES_A_TRACE)
def refused_append_keeps_the_blocks_it_got(patch: pytest.MonkeyPatch) -> None:
    allocate = BlockPool.allocate

    def one_by_one(self: BlockPool, count: int, *, tenant: int = 0) -> list[int]:
        return [block for _ in range(count) for block in allocate(self, 1, tenant=tenant)]

    patch.setattr(BlockPool, "allocate", one_by_one)


@bug(LEAVES_A_TRACE)
def idle_hits_are_promised_twice(patch: pytest.MonkeyPatch) -> None:
    demand = PagedAllocator._demand

    def generous(self: PagedAllocator, prompt: Any) -> tuple[int, int]:
        needed, _ = demand(self, prompt)
        return needed, self.num_free + self.num_cached_idle

    patch.setattr(PagedAllocator, "_demand", generous)
    patch.setattr(
        PagedAllocator,
        "can_admit",
        lambda self, tokens, *, salt=b"": _admits(self, tokens, salt),
    )


def _admits(allocator: PagedAllocator, tokens: list[int], salt: bytes) -> bool:
    """What the right `can_admit` says, for bugs of `admit` alone."""
    hits = allocator._index.match(tokens[:-1], salt=salt) if allocator.prefix_caching else []
    idle = sum(allocator.pool.reference_counts[block] == 0 for block in hits)
    needed = allocator.blocks_needed(len(tokens)) - len(hits)
    return needed <= allocator.num_free + allocator.num_cached_idle - idle


@bug("refused what can_admit had promised|refused .* to be had")
def idle_blocks_do_not_count_as_available(patch: pytest.MonkeyPatch) -> None:
    allocate = BlockPool.allocate

    def thrifty(self: BlockPool, count: int, *, tenant: int = 0) -> list[int]:
        if count > self.num_free:
            raise OutOfBlocks(count, self.num_free)
        return allocate(self, count, tenant=tenant)

    patch.setattr(BlockPool, "allocate", thrifty)


@bug(WRONG_OWNERS)
def admission_evicts_its_own_hit(patch: pytest.MonkeyPatch) -> None:
    retain = BlockPool.retain
    allocate = BlockPool.allocate

    # Hits are retained only after the rest was allocated, whatever became of them in between.
    def late(self: BlockPool, count: int, *, tenant: int = 0) -> list[int]:
        hits = [block for block in revived if self._references[block] == 1]
        recency = self._idle._recency
        for block in hits:
            self._references[block] = 0
            recency[block] = None
            recency.move_to_end(block, last=False)
        blocks = allocate(self, count, tenant=tenant)
        for block in hits:
            recency.pop(block, None)
            self._references[block] += 1
        revived.clear()
        return blocks

    def remember(self: BlockPool, block: int) -> None:
        if self._references[block] == 0:
            revived.append(block)
        retain(self, block)

    revived: list[int] = []
    patch.setattr(BlockPool, "retain", remember)
    patch.setattr(BlockPool, "allocate", late)


# The order of eviction, which the pool's own machine watches


@bug("evicted, and least recently used", machine=PoolMachine)
def most_recently_used_is_evicted_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LRU, "pop", lambda self, *, tenant=None, coming=0: self._recency.popitem()[0])


@bug("eviction order, and least", machine=PoolMachine)
def revived_block_stays_in_the_eviction_order(patch: pytest.MonkeyPatch) -> None:
    def retain(self: BlockPool, block: int) -> None:
        self._references[block] += 1

    patch.setattr(BlockPool, "retain", retain)


@bug("evicted, and least recently used", machine=PoolMachine)
def owner_is_not_told_of_an_eviction(patch: pytest.MonkeyPatch) -> None:
    init = BlockPool.__init__

    def deaf(self: BlockPool, num_blocks: int, **kwargs: Any) -> None:
        init(self, num_blocks, **kwargs | {"on_evict": None})

    patch.setattr(BlockPool, "__init__", deaf)


def run(machine: type[AllocatorMachine | PoolMachine], *, max_examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=40,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
            # What it shrinks to is of no interest here, only whether it is found.
            phases=[Phase.generate],
        ),
    )


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = BUGS[name]
    planted.plant(monkeypatch)
    with pytest.raises(Exception, match=planted.finding):
        run(planted.machine, max_examples=MAX_EXAMPLES)


def test_promise_of_the_right_can_admit() -> None:
    allocator = PagedAllocator(4, 2, prefix_caching=True)
    allocator.admit("a", [1, 2, 3, 4])
    allocator.free("a")
    for tokens in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 8], list(range(9)), [1, 2] * 4):
        assert _admits(allocator, tokens, b"") == allocator.can_admit(tokens)
