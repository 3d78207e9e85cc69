"""The allocator against the shadow cache, and the pool against plain lists.

The machine plays the engine: it admits, appends, forks and frees, carries copies out and writes,
and after every step lets each live sequence read its own prefixes back through its own table.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from helpers.profiles import examples
from paged.allocator import PagedAllocator
from paged.errors import OutOfBlocks
from paged.pool import BlockPool
from reference.shadow import ShadowCache

# Mostly the same one, so that prefixes meet.
PAGES = st.sampled_from([0, 0, 0, 1])
TENANTS = st.sampled_from([0, 0, 0, 1])
# Sequences that run at once. With more, pools of these sizes are full and most steps are refusals.
MAX_RUNNING = 5


def page_tokens(page: int, start: int, count: int, block_size: int) -> list[int]:
    """Tokens at positions `start`.. of a sequence made of one library page over and over.

    What a decoding sequence appends so fills the same blocks that a prompt is made of.
    """
    return [100 * page + position % block_size for position in range(start, start + count)]


@dataclass(frozen=True)
class Prompt:
    """Whole pages of a small library, a part of one more, and perhaps one token changed."""

    pages: tuple[int, ...]
    tail: int = 0
    changed: int | None = None

    def tokens(self, block_size: int) -> list[int]:
        tokens: list[int] = []
        for page in self.pages:
            tokens += page_tokens(page, 0, block_size, block_size)
        tokens += page_tokens(0, 0, self.tail % block_size, block_size)
        if self.changed is not None and tokens:
            tokens[self.changed % len(tokens)] += 50
        return tokens


def prompts() -> st.SearchStrategy[Prompt]:
    # Exact multiples of a block are drawn about as often as all other lengths: hits end there.
    return st.builds(
        Prompt,
        pages=st.one_of([st.tuples(*[PAGES] * count) for count in range(5)]),
        tail=st.sampled_from([0, 0, 0, 1, 2, 3, 5, 7]),
        changed=st.sampled_from([None] * 10 + [0, 1, 2, 3, 5, 8]),
    )


@dataclass
class Life:
    """A live sequence as the engine sees it.

    `origin` is what its keys and values depend on besides its tokens: tenant and weights.
    """

    tokens: list[int]
    origin: int
    written: int

    def seen_by_shadow(self) -> list[int]:
        return [token + 1000 * self.origin for token in self.tokens]


class AllocatorMachine(RuleBasedStateMachine):
    """An engine that writes what it is told to where it is told to, and reads all of it back."""

    sequences = Bundle("sequences")
    has_a_seat = precondition(lambda self: len(self.lives) < MAX_RUNNING)

    @initialize(
        target=sequences,
        prompt=prompts(),
        num_blocks=st.integers(1, 16),
        block_size=st.integers(1, 8),
        prefix_caching=st.sampled_from([True, True, False]),
        batched=st.booleans(),
    )
    def start(
        self,
        *,
        prompt: Prompt,
        num_blocks: int,
        block_size: int,
        prefix_caching: bool,
        batched: bool,
    ) -> object:
        self.allocator = PagedAllocator(num_blocks, block_size, prefix_caching=prefix_caching)
        self.shadow = ShadowCache(num_blocks, block_size)
        self.lives: dict[int, Life] = {}
        self.admitted = 0
        self.weights = 0
        # Batched: several operations go by before their copies and writes are carried out.
        self.batched = batched
        self.settled = True
        self.admitted_before_reset = 0
        self.in_step = False
        return self.admit(prompt, 0)

    # The operations

    @has_a_seat
    @rule(target=sequences, prompt=prompts(), tenant=TENANTS)
    def admit(self, prompt: Prompt, tenant: int) -> object:
        return self.admit_tokens(prompt.tokens(self.allocator.block_size), tenant)

    @has_a_seat
    @rule(
        target=sequences,
        model=sequences,
        length=st.none() | st.integers(1, 40),
        tenant=st.none() | TENANTS,
    )
    def admit_again(self, model: int, length: int | None, tenant: int | None) -> object:
        """The beginning of what a live sequence holds, decoded tokens included."""
        life = self.lives[model]
        if tenant is None:
            tenant = life.origin % 2
        return self.admit_tokens(life.tokens[:length], tenant)

    @rule(target=sequences, finished=consumes(sequences), prompt=prompts())
    def replace(self, finished: int, prompt: Prompt) -> object:
        """What a full engine does nearly all the time. Without it most drawn pools are stuck."""
        tenant = self.lives[finished].origin % 2
        self.free(finished)
        return self.admit(prompt, tenant)

    @rule(sequence=sequences, page=PAGES, count=st.integers(0, 8) | st.just(20))
    def append(self, sequence: int, page: int, count: int) -> None:
        self.append_tokens(sequence, page, count)

    @rule(page=PAGES)
    def decode(self, page: int) -> None:
        """One more token for everybody."""
        for sequence in self.lives:
            if not self.append_tokens(sequence, page, 1):
                break

    @has_a_seat
    @rule(target=sequences, parent=sequences, num_children=st.sampled_from([1, 1, 2, 3]))
    def fork(self, parent: int, num_children: int) -> object:
        self.begin()
        life = self.lives[parent]
        if life.written < len(life.tokens):
            self.settle()
        children = range(self.admitted, self.admitted + num_children)
        for child in children:
            self.allocator.fork(parent, child)
            self.lives[child] = Life(list(life.tokens), life.origin, life.written)
        self.admitted += num_children
        return multiple(*children)

    @rule(sequence=consumes(sequences))
    def free(self, sequence: int) -> None:
        self.begin()
        life = self.lives[sequence]
        size = self.allocator.block_size
        # Tokens of a full block have to be written, for it was published; others may be dropped.
        if self.allocator.prefix_caching and life.written // size < len(life.tokens) // size:
            self.settle()
        self.allocator.free(sequence)
        del self.lives[sequence]

    # Rarely enough that there are prefixes to be hit.
    @precondition(lambda self: self.admitted >= self.admitted_before_reset + 4)
    @rule(page=PAGES)
    def change_weights(self, page: int) -> None:
        self.begin()
        self.admitted_before_reset = self.admitted
        self.allocator.reset_prefix_cache()
        self.weights += 1
        assert self.allocator.num_cached_idle == 0
        # Running sequences go on. The blocks that they fill now still rest on the old weights.
        for sequence in self.lives:
            self.append_tokens(sequence, page, self.allocator.block_size)

    @precondition(lambda self: not self.settled)
    @rule()
    def settle(self) -> None:
        """Carry out the copies, then the writes: the end of an engine's step."""
        self.in_step = True
        copies = self.allocator.take_copies()
        sources = {source for source, _ in copies}
        destinations = {destination for _, destination in copies}
        assert len(destinations) == len(copies), f"a destination twice in {copies}"
        assert not sources & destinations, f"source and destination at once in {copies}"
        # A copied block has something in its first slot, and no owner writes that again.
        first_slots = {source * self.allocator.block_size for source in sources}
        # Any order has to do, since a kernel copies all of them at once; so take the other one.
        for source, destination in reversed(copies):
            self.shadow.copy(source, destination)
        for sequence, life in self.lives.items():
            if life.written < len(life.tokens):
                slots = self.allocator.slots(sequence, start=life.written)
                assert not first_slots & set(slots.tolist()), f"source of {copies} handed out"
                self.shadow.write(slots, life.seen_by_shadow(), start=life.written)
                life.written = len(life.tokens)
        assert self.allocator.take_copies() == [], "copies were not cleared"
        self.settled = True

    # What has to be true after each of them

    @invariant()
    def all_is_well(self) -> None:
        self.every_sequence_sees_its_own_prefixes()
        self.tables_agree()
        self.counts_add_up()
        self.in_step = False

    def counts_add_up(self) -> None:
        allocator = self.allocator
        assert (
            allocator.num_free + allocator.num_cached_idle + allocator.num_used
            == allocator.num_blocks
        )
        assert allocator.prefix_caching or allocator.num_cached_idle == 0
        if self.settled:
            owners = np.zeros(allocator.num_blocks, int)
            for sequence in self.lives:
                owners[self.blocks_of(sequence)] += 1
            references = list(allocator.pool.reference_counts)
            assert references == owners.tolist(), "references, and owners of each block"
            assert allocator.num_used == np.count_nonzero(owners), "used blocks, and owned ones"

    def tables_agree(self) -> None:
        size = self.allocator.block_size
        for sequence, life in self.lives.items():
            assert self.allocator.num_tokens(sequence) == len(life.tokens), "tokens in the table"
            slots = self.allocator.slots(sequence)
            blocks = self.blocks_of(sequence)
            needed = self.allocator.blocks_needed(len(life.tokens))
            assert len(blocks) == needed, "blocks in the table, and blocks needed"
            assert (slots[::size] // size).tolist() == blocks, "slots, and block_table"

    def every_sequence_sees_its_own_prefixes(self) -> None:
        # Between an operation and the writes that it calls for, the cache lags behind the tables.
        if self.settled:
            for sequence, life in self.lives.items():
                slots = self.allocator.slots(sequence)
                finding = self.shadow.check(slots, life.seen_by_shadow())
                assert finding is None, f"sequence {sequence}, {finding}"

    def teardown(self) -> None:
        # A step that failed has its finding; what a broken allocator does next would only hide it.
        if not hasattr(self, "allocator") or self.in_step:
            return
        for sequence in self.lives:
            self.allocator.free(sequence)
        kept = set(self.allocator.pool.eviction_order())
        copies = self.allocator.take_copies()
        assert {to for _, to in copies} <= kept, f"copies {copies} to blocks that are free"
        assert self.allocator.num_used == 0, "blocks are lost after all sequences were freed"
        self.allocator.reset_prefix_cache()
        assert self.allocator.num_free == self.allocator.num_blocks
        self.allocator.admit("whole pool", range(self.shadow.prefixes.size))
        slots = self.allocator.slots("whole pool")
        assert sorted(slots.tolist()) == list(range(self.shadow.prefixes.size))

    # Their parts

    def admit_tokens(self, tokens: list[int], tenant: int) -> object:
        before = self.begin()
        salt = b"tenant" * tenant
        possible = self.allocator.can_admit(tokens, salt=salt)
        self.nothing_changed(before)
        sequence = self.admitted
        try:
            hit = self.allocator.admit(sequence, tokens, salt=salt)
        except OutOfBlocks:
            assert not possible, "refused what can_admit had promised"
            assert self.allocator.blocks_needed(len(tokens)) > self.available(), (
                f"{len(tokens)} tokens refused with {self.available()} blocks to be had"
            )
            self.nothing_changed(before)
            return multiple()
        assert possible, "admitted what can_admit had ruled out"
        assert hit % self.allocator.block_size == 0, f"hit of {hit} tokens is not whole blocks"
        assert hit <= max(len(tokens) - 1, 0), f"hit of {hit} leaves none of {len(tokens)}"
        assert hit == 0 or self.allocator.prefix_caching
        self.admitted += 1
        self.lives[sequence] = Life(tokens, tenant + 2 * self.weights, hit)
        self.after_write()
        return sequence

    def append_tokens(self, sequence: int, page: int, count: int) -> bool:
        before = self.begin()
        life = self.lives[sequence]
        length = len(life.tokens)
        tokens = page_tokens(page, length, count, self.allocator.block_size)
        needed = self.needed_to_append(sequence, count)
        available = self.available()
        try:
            self.allocator.append(sequence, tokens)
        except OutOfBlocks:
            assert needed > available, f"refused {needed} blocks with {available} to be had"
            self.nothing_changed(before)
            return False
        assert needed <= available, f"{needed} blocks needed and only {available} to be had"
        life.tokens += tokens
        self.after_write()
        return True

    def needed_to_append(self, sequence: int, count: int) -> int:
        length = len(self.lives[sequence].tokens)
        blocks_needed = self.allocator.blocks_needed
        needed = blocks_needed(length + count) - blocks_needed(length)
        if count and length % self.allocator.block_size:
            last = self.blocks_of(sequence)[-1]
            needed += sum(last in self.blocks_of(other) for other in self.lives) > 1
        return needed

    def after_write(self) -> None:
        self.settled = False
        if not self.batched:
            self.settle()

    def available(self) -> int:
        return self.allocator.num_free + self.allocator.num_cached_idle

    def blocks_of(self, sequence: int) -> list[int]:
        return self.allocator.block_table([sequence])[0].tolist()

    def begin(self) -> tuple[object, ...]:
        self.in_step = True
        return self.observe()

    def observe(self) -> tuple[object, ...]:
        allocator = self.allocator
        return (
            (allocator.num_free, allocator.num_cached_idle, allocator.num_used),
            tuple(allocator.pool.reference_counts),
            allocator.pool.eviction_order(),
            {sequence: allocator.slots(sequence).tolist() for sequence in self.lives},
        )

    def nothing_changed(self, before: tuple[object, ...]) -> None:
        assert self.observe() == before, "an operation that was refused left a trace"


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


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = examples(400, stateful_step_count=40)

TestPool = PoolMachine.TestCase
TestPool.settings = examples(100, stateful_step_count=40)


@given(
    block_size=st.integers(1, 4),
    programme=st.lists(st.tuples(prompts(), st.integers(0, 9), st.booleans()), max_size=8),
)
@examples(200)
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
        appended = page_tokens(1, len(tokens), num_appended, block_size)
        for token in appended:
            allocator.append(sequence, token)
        content = tokens + appended
        known |= {tuple(content[:end]) for end in range(block_size, len(content) + 1, block_size)}
        if freed:
            allocator.free(sequence)
