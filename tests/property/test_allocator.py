"""The allocator through the conformance machine, and the pool against plain lists."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from helpers.profiles import examples
from helpers.swapping import swapping_allocator
from paged.allocator import PagedAllocator
from paged.errors import OutOfBlocks
from paged.pool import BlockPool
from paged.subject import paged_allocator
from reference.allocator.contract import AllocatorFactory, capabilities_of_factory
from reference.allocator.machine import AllocatorMachine
from reference.allocator.moves import SMALL, Drawn, Prompt, drawn_programs, run_drawn


class Watched(AllocatorMachine):
    """Sees one thing more: that each block has as many references as tables hold it."""

    def _check_counts(self) -> None:
        super()._check_counts()
        if not self._copies_due:
            allocator = self._allocator.allocator
            owners = [0] * allocator.num_blocks
            for view in self.sight.views.values():
                for block in view.blocks:
                    owners[block] += block >= 0
            assert list(allocator.pool.reference_counts) == owners, "references, and owners"


@pytest.mark.parametrize(
    ("factory", "count", "fixed"),
    [
        (paged_allocator, 200, {}),
        (swapping_allocator, 100, {}),
        (paged_allocator, 60, {"block_size": 1, "window": None}),
    ],
    ids=["paged", "swapping", "single tokens"],
)
def test_allocator_conforms(factory: AllocatorFactory, count: int, fixed: dict[str, Any]) -> None:
    @given(drawn_programs(capabilities_of_factory(factory), **fixed))
    @examples(count)
    def conforms(drawn: Drawn) -> None:
        run_drawn(drawn, Watched(factory, drawn.pool))

    conforms()


class PoolMachine(RuleBasedStateMachine):
    """The pool against lists so plain that they are evidently right."""

    @initialize(num_blocks=st.integers(1, 6))
    def start(self, num_blocks: int) -> None:
        self.evicted: list[int] = []
        self.pool = BlockPool(num_blocks, on_evict=self.evicted.append)
        self.counts = [0] * num_blocks
        self.idle: list[int] = []

    @rule(count=st.integers(0, 7))
    def allocate(self, count: int) -> None:
        num_free = self.counts.count(0) - len(self.idle)
        self.evicted.clear()
        if count > num_free + len(self.idle):
            with pytest.raises(OutOfBlocks) as refusal:
                self.pool.allocate(count)
            assert (refusal.value.needed, refusal.value.available) == (
                count,
                num_free + len(self.idle),
            )
            assert self.evicted == []
            return
        missing = max(count - num_free, 0)
        due, self.idle = self.idle[:missing], self.idle[missing:]
        blocks = self.pool.allocate(count)
        assert self.evicted == due, "evicted, and least recently used"
        assert len(set(blocks)) == count
        for block in blocks:
            assert self.counts[block] == 0
            assert block not in self.idle
            self.counts[block] = 1

    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        held = [block for block, count in enumerate(self.counts) if count] + self.idle
        if held:
            block = data.draw(st.sampled_from(held))
            self.pool.retain(block)
            self.counts[block] += 1
            if block in self.idle:
                self.idle.remove(block)

    @rule(data=st.data(), keep=st.booleans())
    def release(self, *, data: st.DataObject, keep: bool) -> None:
        held = [block for block, count in enumerate(self.counts) if count]
        if held:
            block = data.draw(st.sampled_from(held))
            self.pool.release(block, keep=keep)
            self.counts[block] -= 1
            if keep and self.counts[block] == 0:
                self.idle.append(block)

    @rule(data=st.data(), size=st.integers(0, 6))
    def release_all(self, data: st.DataObject, size: int) -> None:
        held = [block for block, count in enumerate(self.counts) for _ in range(count)]
        blocks = data.draw(st.permutations(held))[:size]
        keep = {block for block in blocks if block % 2}
        self.pool.release_all(blocks, keep=keep)
        for block in blocks:
            self.counts[block] -= 1
            if block in keep and self.counts[block] == 0:
                self.idle.append(block)

    @rule()
    def evict_idle(self) -> None:
        self.evicted.clear()
        self.pool.evict_idle()
        assert self.evicted == self.idle, "evicted, and least recently used"
        self.idle.clear()

    @invariant()
    def agrees_with_the_lists(self) -> None:
        assert list(self.pool.reference_counts) == self.counts, "references, and owners"
        assert self.pool.eviction_order() == self.idle, "eviction order, and least recently used"
        assert self.pool.num_cached_idle == len(self.idle)
        assert self.pool.num_used == sum(count > 0 for count in self.counts)
        assert self.pool.num_free == self.counts.count(0) - len(self.idle)


TestPool = PoolMachine.TestCase
TestPool.settings = examples(60, stateful_step_count=40)


PROMPTS = st.builds(
    Prompt,
    pages=st.one_of([st.tuples(*[st.sampled_from([0, 0, 0, 1])] * count) for count in range(5)]),
    tail=st.sampled_from([0, 0, 0, 1, 2, 3, 5, 7]),
    change=st.sampled_from(["", "", "", "first", "last", "middle", "swapped"]),
)


@given(
    block_size=st.integers(1, 4),
    programme=st.lists(st.tuples(PROMPTS, st.integers(0, 9), st.booleans()), max_size=8),
)
@examples(100)
def test_hit_is_the_longest_known_prefix_while_nothing_is_evicted(
    block_size: int, programme: list[tuple[Prompt, int, bool]]
) -> None:
    allocator = PagedAllocator(200, block_size, prefix_caching=True)
    known: set[tuple[int, ...]] = set()
    for sequence, (prompt, num_appended, freed) in enumerate(programme):
        tokens = prompt.tokens(block_size)
        usable = range(0, max(len(tokens), 1), block_size)
        expected = max(end for end in usable if end == 0 or tuple(tokens[:end]) in known)
        assert allocator.admit(sequence, tokens) == expected
        appended = SMALL.page_tokens(1, len(tokens), num_appended, block_size)
        for token in appended:
            allocator.append(sequence, token)
        content = tokens + appended
        known |= {tuple(content[:end]) for end in range(block_size, len(content) + 1, block_size)}
        if freed:
            allocator.free(sequence)
