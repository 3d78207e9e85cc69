"""Wrong pools, orders of eviction, ghosts, keys and releases, all of which are rejected.

It is the machines of tests/property that have to reject them: most of it shows in no allocator
under the contract, whose bugs stand in helpers/wrong_allocators. Each bug comes with
the words of the finding that it has to end in.
"""

import heapq
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from helpers.planted import until_found
from paged.allocator import PagedAllocator
from paged.eviction import FIFO, LFU, LRU, GhostList, _ByAge, _ByHits, _ByRecency, _Order
from paged.pool import BlockPool
from paged.prefix import KeyedChain, PrefixChain
from paged.table import BlockTable
from tests.property.test_allocator import PoolMachine
from tests.property.test_eviction import GHOSTS, KeyedMachine, OrderMachine, check_ghosts

MAX_EXAMPLES = 2000

WRONG_LINE = "order, and line|victim, and first in line|turned out by a quota, and first in line"
WRONG_QUOTA = "turned out by a quota|idle blocks beyond a quota|victim, and first in line"
WRONG_OWNERS = "|".join(
    [
        "references, and owners",
        "sees another prefix",
        "released places",
        "released too early",
        "second release left a trace",
        "blocks are lost",
        "has no reference left",
        "is free, its content is gone",
        "the pool has blocks",
    ]
)


@dataclass(frozen=True)
class Bug:
    plant: Callable[[pytest.MonkeyPatch], None]
    finding: str
    subject: type[RuleBasedStateMachine] | Callable[..., None]


BUGS: dict[str, Bug] = {}


def bug(
    subject: type[RuleBasedStateMachine] | Callable[..., None], finding: str
) -> Callable[[Callable[[pytest.MonkeyPatch], None]], None]:
    def register(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
        BUGS[plant.__name__] = Bug(plant, finding, subject)

    return register


# Who goes first


@bug(OrderMachine, WRONG_LINE)
def lfu_forgets_its_counts_when_a_block_is_idle(patch: pytest.MonkeyPatch) -> None:
    def add(self: LFU, block: int, *, tenant: int = 0) -> int | None:
        self._hits[block] = 0
        return _Order.add(self, block, tenant=tenant)

    patch.setattr(LFU, "add", add, raising=False)


@bug(OrderMachine, WRONG_LINE)
def lfu_does_not_count_hits_of_blocks_in_use(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LFU, "hit", lambda self, block: None)


@bug(OrderMachine, WRONG_LINE)
def lfu_breaks_ties_by_the_latest(patch: pytest.MonkeyPatch) -> None:
    first = _ByHits.first

    def latest(self: _ByHits) -> int:
        return next(reversed(self._buckets[self._hits[first(self)]]))

    patch.setattr(_ByHits, "first", latest)


@bug(OrderMachine, "list index out of range|" + WRONG_LINE)
def lfu_takes_a_count_for_listed_that_has_come_up(patch: pytest.MonkeyPatch) -> None:
    def first(self: _ByHits) -> int:
        while self._heap[0] not in self._buckets:
            heapq.heappop(self._heap)
        return next(iter(self._buckets[self._heap[0]]))

    patch.setattr(_ByHits, "first", first)


@bug(OrderMachine, WRONG_LINE)
def fifo_behaves_as_lru(patch: pytest.MonkeyPatch) -> None:
    def add(self: FIFO, block: int, *, tenant: int = 0) -> int | None:
        if block in self._since:
            self._published += 1
            self._since[block] = self._published
        return _Order.add(self, block, tenant=tenant)

    patch.setattr(FIFO, "add", add, raising=False)


@bug(OrderMachine, r"(?m:^\d+$)|" + WRONG_LINE)
def fifo_trusts_an_old_entry_of_its_heap(patch: pytest.MonkeyPatch) -> None:
    def first(self: _ByAge) -> int:
        return self._heap[0][1]

    patch.setattr(_ByAge, "first", first)


@bug(OrderMachine, WRONG_LINE)
def lru_goes_by_the_latest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_ByRecency, "first", lambda self: self.order()[-1])
    patch.setattr(LRU, "pop", _Order.pop)
    patch.setattr(LRU, "add", _Order.add)
    patch.setattr(LRU, "remove", _Order.remove)


@bug(OrderMachine, WRONG_LINE)
def used_block_stays_in_line(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LRU, "remove", lambda self, block: None)


# The pool


@bug(PoolMachine, "eviction order, and least recently used")
def revived_block_stays_in_the_eviction_order(patch: pytest.MonkeyPatch) -> None:
    def retain(self: BlockPool, block: int) -> None:
        self._references[block] += 1

    patch.setattr(BlockPool, "retain", retain)


@bug(PoolMachine, "evicted, and least recently used")
def owner_is_not_told(patch: pytest.MonkeyPatch) -> None:
    init = BlockPool.__init__
    patch.setattr(BlockPool, "__init__", lambda self, num_blocks, **_: init(self, num_blocks))


@bug(PoolMachine, "evicted, and least recently used")
def pool_gives_up_the_most_recently_used(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LRU, "pop", lambda self, *, tenant=None, coming=0: self._recency.popitem()[0])


# Quotas


@bug(OrderMachine, WRONG_QUOTA)
def quota_is_off_by_one(patch: pytest.MonkeyPatch) -> None:
    init = _Order.__init__

    def generous(self: _Order, *, quotas: dict[int, int] | None = None) -> None:
        init(self, quotas={tenant: blocks + 1 for tenant, blocks in (quotas or {}).items()})

    patch.setattr(_Order, "__init__", generous)


@bug(OrderMachine, WRONG_QUOTA)
def quota_does_not_count_blocks_in_use(patch: pytest.MonkeyPatch) -> None:
    def turned_out(self: _Order, tenant: int) -> int | None:
        own = self._own[tenant]
        return self._give_up(own.first()) if len(own) > self._quotas[tenant] else None

    patch.setattr(_Order, "_turned_out", turned_out)


@bug(OrderMachine, WRONG_QUOTA)
def quota_forgets_to_count_down(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Order, "forget", lambda self, block: self._tenant_of.pop(block, None))
    patch.setattr(FIFO, "forget", _Order.forget)
    patch.setattr(LFU, "forget", _Order.forget)


@bug(OrderMachine, WRONG_QUOTA)
def room_for_a_tenant_is_made_at_the_cost_of_others(patch: pytest.MonkeyPatch) -> None:
    pop = _Order.pop
    patch.setattr(
        _Order, "pop", lambda self, *, tenant=None, coming=0: pop(self, tenant=None, coming=coming)
    )


@bug(OrderMachine, "victim, and first in line")
def blocks_that_are_coming_do_not_count(patch: pytest.MonkeyPatch) -> None:
    pop = _Order.pop
    patch.setattr(
        _Order, "pop", lambda self, *, tenant=None, coming=0: pop(self, tenant=tenant, coming=0)
    )


@bug(KeyedMachine, "remembered, and cached")
def reset_does_not_tell_the_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockPool, "forget", lambda self, block: None)


@bug(KeyedMachine, WRONG_OWNERS + "|refused")
def block_turned_out_is_not_freed(patch: pytest.MonkeyPatch) -> None:
    def give_up(self: BlockPool, block: int) -> None:
        assert self._on_evict is not None
        self._on_evict(block)

    patch.setattr(BlockPool, "_give_up", give_up)


# Ghosts


@bug(check_ghosts, "more keys are remembered than may be")
def ghosts_are_never_swept_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GhostList, "_sweep", lambda self: None)


@bug(check_ghosts, "ghosts, and last evicted")
def ghosts_stay_until_they_are_swept_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GhostList, "__contains__", lambda self, key: key in self._latest)


@bug(check_ghosts, "ghosts, and last evicted")
def ghost_goes_with_its_first_eviction(patch: pytest.MonkeyPatch) -> None:
    add = GhostList.add

    def first(self: GhostList, key: Hashable) -> None:
        before = self._latest.get(key)
        add(self, key)
        if before is not None:
            self._latest[key] = before

    patch.setattr(GhostList, "add", first)


# Keys


@bug(KeyedMachine, "sees another prefix|is indexed already")
def keyed_block_is_published_one_block_early(patch: pytest.MonkeyPatch) -> None:
    publish = PagedAllocator._publish

    def advance(self: KeyedChain, num_tokens: int) -> Iterator[int]:
        first = self.num_tokens // self._block_size
        self.num_tokens += num_tokens
        return iter(self._keys[first : self.num_tokens // self._block_size + 1])

    def fitting(
        self: PagedAllocator, sequence: Hashable, blocks: list[int], first: int, keys: Any
    ) -> None:
        publish(self, sequence, blocks, first, list(keys)[: len(blocks) - first])

    patch.setattr(KeyedChain, "advance", advance)
    patch.setattr(PagedAllocator, "_publish", fitting)


@bug(KeyedMachine, "sees another prefix")
def unknown_tokens_are_published(patch: pytest.MonkeyPatch) -> None:
    """As if they were those of a page that many prompts have."""

    def advance(self: PagedAllocator, sequence: Hashable, filled: int, num_tokens: int) -> None:
        chain = self._chains[sequence]
        if isinstance(chain, PrefixChain):
            for _ in range(num_tokens):
                key = chain.push(len(chain.tail))
                if key is not None:
                    self._publish(sequence, self._tables[sequence].blocks, filled, [key])
                    filled += 1

    patch.setattr(PagedAllocator, "_advance", advance)


@bug(KeyedMachine, "no token is left to be computed")
def whole_keyed_prompt_is_a_hit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("paged.lookup.candidates", lambda num_tokens, size: num_tokens // size)


@bug(KeyedMachine, "blocks taken, and blocks_for_admission|refused what can_admit had promised")
def idle_hits_cost_nothing(patch: pytest.MonkeyPatch) -> None:
    ask = PagedAllocator.blocks_for_admission

    def cheap(self: PagedAllocator, prompt: Any, num_tokens: int | None = None) -> tuple[int, int]:
        needed, available = ask(self, prompt, num_tokens)
        if self.prefix_caching:
            lookup = self._look_up(prompt, num_tokens, b"")
            needed -= sum(self._references[block] == 0 for block in lookup.hits)
        return needed, available

    patch.setattr(PagedAllocator, "blocks_for_admission", cheap)
    patch.setattr(PagedAllocator, "can_admit", _can_admit(cheap))


def _can_admit(ask: Callable[..., tuple[int, int]]) -> Callable[..., bool]:
    def can_admit(self: PagedAllocator, prompt: Any, *, num_tokens: int | None = None) -> bool:
        needed, available = ask(self, prompt, num_tokens)
        return needed <= available

    return can_admit


# Releases


@bug(KeyedMachine, WRONG_OWNERS)
def one_block_too_many_is_released(patch: pytest.MonkeyPatch) -> None:
    release = BlockTable.release_before
    patch.setattr(
        BlockTable,
        "release_before",
        lambda self, position: release(self, min(position + self.block_size, self.num_tokens)),
    )


@bug(KeyedMachine, WRONG_OWNERS)
def partly_passed_block_is_released(patch: pytest.MonkeyPatch) -> None:
    release = BlockTable.release_before

    def rounded_up(self: BlockTable, position: int) -> list[int]:
        end = -(-position // self.block_size) * self.block_size
        return release(self, min(end, self.num_tokens))

    patch.setattr(BlockTable, "release_before", rounded_up)


@bug(KeyedMachine, WRONG_OWNERS)
def released_blocks_are_freed_again_with_the_sequence(patch: pytest.MonkeyPatch) -> None:
    release = BlockTable.release_before

    def forgetful(self: BlockTable, position: int) -> list[int]:
        blocks = self.blocks.copy()
        released = release(self, position)
        self.blocks[:] = blocks
        return released

    patch.setattr(BlockTable, "release_before", forgetful)
    patch.setattr(BlockTable, "held", lambda self: self.blocks)


@bug(KeyedMachine, WRONG_OWNERS)
def released_blocks_are_never_given_back(patch: pytest.MonkeyPatch) -> None:
    release = BlockTable.release_before
    patch.setattr(BlockTable, "release_before", lambda self, position: release(self, position)[1:])


@bug(KeyedMachine, WRONG_OWNERS)
def fork_does_not_know_what_was_released(patch: pytest.MonkeyPatch) -> None:
    fork = BlockTable.fork

    def fork_all(self: BlockTable) -> BlockTable:
        child = fork(self)
        child.num_released = 0
        return child

    patch.setattr(BlockTable, "fork", fork_all)


def run(subject: type[RuleBasedStateMachine] | Callable[..., None]) -> None:
    chosen = until_found(MAX_EXAMPLES, stateful_step_count=40)
    if isinstance(subject, type):
        run_state_machine_as_test(subject, settings=chosen)
    else:
        chosen(given(**GHOSTS)(subject))()


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = BUGS[name]
    planted.plant(monkeypatch)
    with pytest.raises(Exception, match=planted.finding):
        run(planted.subject)
