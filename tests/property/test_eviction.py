"""Orders of eviction against plain lists, and keyed prompts and released blocks against the shadow.

The first machine keeps, for each cached block, all that any order could go by, and looks through
all of it for the next victim. The second one plays an engine that knows keys instead of tokens; it
makes up tokens that agree with the keys, and every sequence reads them back.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
from paged.eviction import FIFO, LFU, LRU, EvictionOrder, GhostList
from paged.prefix import KeyedPrompt
from reference.allocator.shadow import ShadowCache

ORDERS = {"lru": LRU, "fifo": FIFO, "lfu": LFU}
TENANTS = range(3)
QUOTAS = st.dictionaries(st.sampled_from([0, 1]), st.integers(0, 5))


@dataclass
class Cached:
    """What is known of a cached block."""

    tenant: int
    since: int
    hits: int = 0
    idle_since: int | None = None


class OrderMachine(RuleBasedStateMachine):
    """An order against a list of everything."""

    @initialize(kind=st.sampled_from(sorted(ORDERS)), quotas=QUOTAS)
    def start(self, kind: str, quotas: dict[int, int]) -> None:
        self.kind = kind
        self.quotas = quotas
        self.order: EvictionOrder = ORDERS[kind](quotas=quotas)
        self.cached: dict[int, Cached] = {}
        self.now = 0
        self.blocks = 0

    # What may happen to a block

    @rule(tenant=st.sampled_from(TENANTS))
    def publish(self, tenant: int) -> None:
        block = self.fresh()
        self.cached[block] = Cached(tenant, self.tick())
        if self.order.watches_content:
            self.turned_out(self.order.publish(block, tenant=tenant), tenant)

    @rule(tenant=st.sampled_from(TENANTS))
    def add_unpublished(self, tenant: int) -> None:
        block = self.fresh()
        now = self.tick()
        self.cached[block] = Cached(tenant, now, idle_since=now)
        self.turned_out(self.order.add(block, tenant=tenant), tenant)

    @precondition(lambda self: self.used())
    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.used()))
        self.cached[block].idle_since = self.tick()
        self.turned_out(self.order.add(block), self.cached[block].tenant)

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), hits=st.sampled_from([0, 1, 1, 3]))
    def use(self, data: st.DataObject, hits: int) -> None:
        block = data.draw(st.sampled_from(self.idle()))
        self.order.remove(block)
        self.cached[block].idle_since = None
        self.hit(block, hits)

    @precondition(lambda self: self.used())
    @rule(data=st.data())
    def hit_in_use(self, data: st.DataObject) -> None:
        self.hit(data.draw(st.sampled_from(self.used())), 1)

    @precondition(lambda self: self.used())
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.used()))
        if self.order.watches_content:
            self.order.forget(block)
        del self.cached[block]

    @precondition(lambda self: self.idle())
    @rule(tenant=st.none() | st.sampled_from(TENANTS), coming=st.integers(0, 3))
    def pop(self, tenant: int | None, coming: int) -> None:
        own = [block for block in self.idle() if self.cached[block].tenant == tenant]
        if tenant in self.quotas and self.count(tenant) + coming > self.quotas[tenant] and own:
            due = self.first(own)
        else:
            due = self.first(self.idle())
        assert self.order.pop(tenant=tenant, coming=coming) == due, "victim, and first in line"
        del self.cached[due]

    @precondition(lambda self: not self.idle())
    @rule()
    def pop_of_nothing_is_refused(self) -> None:
        with pytest.raises(KeyError):
            self.order.pop()

    # What has to be true

    @invariant()
    def agrees_with_the_list(self) -> None:
        line = sorted(self.idle(), key=self.rank)
        assert self.order.order() == line, "order, and line"
        assert len(self.order) == len(line)
        assert all((block in self.order) == (block in line) for block in range(self.blocks))
        for tenant, quota in self.quotas.items():
            own_idle = [block for block in line if self.cached[block].tenant == tenant]
            assert self.count(tenant) <= quota or not own_idle, "idle blocks beyond a quota"

    # Their parts

    def turned_out(self, block: int | None, tenant: int) -> None:
        quota = self.quotas.get(tenant)
        own_idle = [idle for idle in self.idle() if self.cached[idle].tenant == tenant]
        due = None
        if quota is not None and self.count(tenant) > quota and own_idle:
            due = self.first(own_idle)
        assert block == due, "turned out by a quota, and first in line of its tenant"
        if due is not None:
            del self.cached[due]

    def hit(self, block: int, times: int) -> None:
        for _ in range(times):
            self.cached[block].hits += 1
            if self.order.watches_content:
                self.order.hit(block)

    def fresh(self) -> int:
        self.blocks += 1
        return self.blocks - 1

    def tick(self) -> int:
        self.now += 1
        return self.now

    def used(self) -> list[int]:
        return [block for block, cached in self.cached.items() if cached.idle_since is None]

    def idle(self) -> list[int]:
        return [block for block, cached in self.cached.items() if cached.idle_since is not None]

    def count(self, tenant: int) -> int:
        return sum(cached.tenant == tenant for cached in self.cached.values())

    def first(self, blocks: list[int]) -> int:
        return min(blocks, key=self.rank)

    def rank(self, block: int) -> tuple[int, ...]:
        cached = self.cached[block]
        assert cached.idle_since is not None
        if self.kind == "fifo":
            return (cached.since,)
        if self.kind == "lfu":
            return (cached.hits, cached.idle_since)
        return (cached.idle_since,)


@dataclass
class Life:
    """A live sequence: all the tokens its prompt will have, how many it has, and what it lost."""

    prompt: list[int]
    tokens: list[int]
    tenant: int
    written: int
    released: int = 0
    keyed: bool = True


class KeyedMachine(RuleBasedStateMachine):
    """An engine that admits by key, computes prompts in chunks and looks back through a window."""

    sequences = Bundle("sequences")
    has_a_seat = precondition(lambda self: len(self.lives) < 4)

    @initialize(
        kind=st.sampled_from(sorted(ORDERS)),
        quotas=st.just({}) | QUOTAS,
        num_blocks=st.integers(2, 24),
        block_size=st.sampled_from([1, 2, 2, 3, 4]),
        prefix_caching=st.sampled_from([True, True, True, False]),
    )
    def start(
        self,
        *,
        kind: str,
        quotas: dict[int, int],
        num_blocks: int,
        block_size: int,
        prefix_caching: bool,
    ) -> None:
        self.order = ORDERS[kind](quotas=quotas)
        self.allocator = PagedAllocator(
            num_blocks, block_size, prefix_caching=prefix_caching, eviction=self.order
        )
        self.shadow = ShadowCache(num_blocks, block_size)
        self.quotas = quotas
        self.lives: dict[int, Life] = {}
        self.keys: dict[tuple[int, ...], int] = {}
        self.admitted = 0
        self.unknown = 1000
        self.in_step = False

    @has_a_seat
    @rule(
        target=sequences,
        pages=st.lists(st.sampled_from([0, 0, 0, 1]), min_size=1, max_size=6),
        tail=st.sampled_from([0, 0, 1, 2, 3]),
        num_tokens=st.none() | st.integers(0, 5),
        tenant=st.sampled_from([0, 0, 1]),
        keyed=st.booleans(),
    )
    def admit(
        self, *, pages: list[int], tail: int, num_tokens: int | None, tenant: int, keyed: bool
    ) -> object:
        tokens = self.pages(pages) + [7] * (tail % self.allocator.block_size)
        return self.admit_tokens(tokens, num_tokens, tenant, keyed=keyed)

    @has_a_seat
    @rule(
        target=sequences,
        model=sequences,
        pages=st.lists(st.sampled_from([0, 0, 0, 1]), max_size=3),
        num_tokens=st.none() | st.integers(0, 5),
    )
    def admit_longer(self, model: int, pages: list[int], num_tokens: int | None) -> object:
        """The prompt of a live sequence, again or with more: the next turn of a conversation."""
        life = self.lives[model]
        tokens = life.prompt + self.pages(pages)
        return self.admit_tokens(tokens, num_tokens, life.tenant, keyed=life.keyed)

    def pages(self, pages: list[int]) -> list[int]:
        return [10 * page + at for page in pages for at in range(self.allocator.block_size)]

    def admit_tokens(
        self, tokens: list[int], num_tokens: int | None, tenant: int, *, keyed: bool
    ) -> object:
        if num_tokens is not None:
            num_tokens = min(num_tokens, len(tokens))
        prompt = self.prompt(tokens, tenant) if keyed else tokens
        before = self.begin()
        cached = self.allocator.cached_tokens(prompt)
        needed, available = self.allocator.blocks_for_admission(prompt, num_tokens)
        possible = self.allocator.can_admit(prompt, num_tokens=num_tokens)
        assert available == self.allocator.num_free + self.allocator.num_cached_idle
        assert possible == (needed <= available), "can_admit, and blocks_for_admission"
        assert self.observe() == before, "a question left a trace"
        name = self.admitted
        try:
            hit = self.allocator.admit(name, prompt, num_tokens=num_tokens, tenant=tenant)
        except OutOfBlocks:
            assert not possible, "refused what can_admit had promised"
            assert self.observe() == before, "a refused admission left a trace"
            return multiple()
        assert possible
        assert hit == cached, "hits, and cached_tokens"
        assert hit <= max(len(tokens) - 1, 0), "no token is left to be computed"
        room = self.allocator.num_tokens(name)
        asked = len(tokens) if num_tokens is None else num_tokens
        assert room == max(asked, min(hit + 1, len(tokens))), "room, and tokens asked for"
        if not self.quotas:
            present = self.allocator.num_free + self.allocator.num_cached_idle
            assert present == available - needed, "blocks taken, and blocks_for_admission"
        self.admitted += 1
        self.lives[name] = Life(tokens, tokens[:room], tenant, hit, keyed=keyed)
        self.write(name)
        return name

    @rule(sequence=sequences, count=st.integers(0, 9), exact=st.booleans())
    def extend(self, *, sequence: int, count: int, exact: bool) -> None:
        """Go on with the prompt, and behind it with tokens that nobody knows."""
        life = self.lives[sequence]
        start = len(life.tokens)
        tokens = life.prompt[start : start + count]
        if exact and not life.keyed and len(tokens) == count:
            self.grow(sequence, lambda: self.allocator.append(sequence, tokens), tokens)
            return
        while len(tokens) < count:
            self.unknown += 1
            tokens.append(self.unknown)
        self.grow(sequence, lambda: self.allocator.extend(sequence, count), tokens)

    @rule(sequence=sequences, count=st.integers(1, 5))
    def compute(self, sequence: int, count: int) -> None:
        """The next chunk of the prompt, if there is more of it."""
        life = self.lives[sequence]
        tokens = life.prompt[len(life.tokens) :][:count]
        if tokens and life.keyed:
            self.grow(sequence, lambda: self.allocator.extend(sequence, len(tokens)), tokens)
        elif tokens:
            self.grow(sequence, lambda: self.allocator.append(sequence, tokens), tokens)

    def grow(self, sequence: int, call: Callable[[], None], tokens: list[int]) -> None:
        before = self.begin()
        try:
            call()
        except OutOfBlocks:
            assert self.observe() == before, "a refused extension left a trace"
            return
        self.lives[sequence].tokens += tokens
        for source, destination in self.allocator.take_copies():
            self.shadow.copy(source, destination)
        self.write(sequence)

    @has_a_seat
    @rule(target=sequences, parent=sequences)
    def fork(self, parent: int) -> object:
        self.in_step = True
        child = self.admitted
        self.admitted += 1
        self.allocator.fork(parent, child)
        life = self.lives[parent]
        self.lives[child] = Life(
            life.prompt,
            list(life.tokens),
            life.tenant,
            life.written,
            released=life.released,
            keyed=life.keyed,
        )
        return child

    @rule(sequence=sequences, behind=st.integers(0, 12))
    def release_before(self, sequence: int, behind: int) -> None:
        self.in_step = True
        life = self.lives[sequence]
        position = max(len(life.tokens) - behind, 0)
        life.released = max(life.released, position // self.allocator.block_size)
        self.allocator.release_before(sequence, position)
        after = self.observe()
        self.allocator.release_before(sequence, position)
        assert self.observe() == after, "a second release left a trace"

    @rule(sequence=consumes(sequences))
    def free(self, sequence: int) -> None:
        self.in_step = True
        self.allocator.free(sequence)
        del self.lives[sequence]

    @rule()
    def reset(self) -> None:
        self.in_step = True
        self.allocator.reset_prefix_cache()
        assert self.allocator.num_cached_idle == 0

    @invariant()
    def all_is_well(self) -> None:
        allocator = self.allocator
        size = allocator.block_size
        owners = [0] * allocator.num_blocks
        for sequence, life in self.lives.items():
            row = allocator.block_table([sequence], fill=-7)[0].tolist()
            assert row[: life.released] == [-7] * life.released, "released places"
            assert -7 not in row[life.released :], "a block was released too early"
            assert allocator.num_blocks_of(sequence) == len(row) - life.released
            for block in row[life.released :]:
                owners[block] += 1
            start = life.released * size
            slots = allocator.slots(sequence, start=start)
            # A slot's hash covers the whole prefix, also the part of it that was given up.
            truth = ShadowCache(1, max(len(life.tokens), 1))
            truth.write(range(len(life.tokens)), life.tokens)
            seen = self.shadow.prefixes[slots]
            expected = truth.prefixes[start : len(life.tokens)]
            assert seen.tolist() == expected.tolist(), "sequence sees another prefix"
        assert list(allocator.pool.reference_counts) == owners, "references, and owners"
        assert allocator.num_free + allocator.num_cached_idle + allocator.num_used == len(owners)
        self.in_step = False

    def teardown(self) -> None:
        # A step that failed has its finding; what a broken allocator does next would only hide it.
        if not hasattr(self, "allocator") or self.in_step:
            return
        for sequence in self.lives:
            self.allocator.free(sequence)
        assert self.allocator.num_used == 0, "blocks are lost after all sequences were freed"
        order = self.order
        if order.watches_content:
            assert set(order._tenant_of) == set(order.order()), "remembered, and cached"
        self.allocator.reset_prefix_cache()
        assert self.allocator.num_free == self.allocator.num_blocks, "blocks are lost"

    def prompt(self, tokens: list[int], tenant: int) -> KeyedPrompt:
        size = self.allocator.block_size
        ends = range(size, len(tokens) + 1, size)
        keys = [self.keys.setdefault(tuple(tokens[:end]), len(self.keys)) for end in ends]
        return KeyedPrompt(len(tokens), tuple(keys), tenant)

    def write(self, sequence: int) -> None:
        life = self.lives[sequence]
        if life.written < len(life.tokens):
            slots = self.allocator.slots(sequence, start=life.written)
            self.shadow.write(slots, life.tokens, start=life.written)
            life.written = len(life.tokens)

    def begin(self) -> tuple[object, ...]:
        self.in_step = True
        return self.observe()

    def observe(self) -> tuple[object, ...]:
        allocator = self.allocator
        return (
            (allocator.num_free, allocator.num_cached_idle, allocator.num_used),
            tuple(allocator.pool.reference_counts),
            allocator.pool.eviction_order(),
            allocator.block_table(list(self.lives)).tolist(),
            (allocator.num_evictions, allocator.num_ghost_hits, allocator.num_copies),
        )


TestOrder = OrderMachine.TestCase
TestOrder.settings = examples(60, stateful_step_count=40)

TestKeyed = KeyedMachine.TestCase
TestKeyed.settings = examples(60, stateful_step_count=40)


GHOSTS = {"window": st.integers(1, 6), "keys": st.lists(st.integers(0, 9), max_size=60)}


@given(**GHOSTS)
@examples(200)
def test_ghosts_are_the_last_evictions(window: int, keys: list[int]) -> None:
    check_ghosts(window, keys)


def check_ghosts(window: int, keys: list[int]) -> None:
    ghosts = GhostList(window)
    for number, key in enumerate(keys, 1):
        ghosts.add(key)
        recent = set(keys[max(number - window, 0) : number])
        assert {each for each in range(10) if each in ghosts} == recent, "ghosts, and last evicted"
        assert ghosts.count(range(10)) == len(recent)
        assert ghosts.evictions == number
        assert len(ghosts._latest) <= 2 * window, "more keys are remembered than may be"


@given(
    kind=st.sampled_from(sorted(ORDERS)),
    programme=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=80),
)
@examples(100)
def test_order_remembers_nothing_of_what_is_gone(
    kind: str, programme: list[tuple[int, bool]]
) -> None:
    """Blocks go in and out for ever; what an order holds is bounded by what is in it."""
    order = ORDERS[kind](quotas={0: 1000})
    for block, popped in programme * 5:
        if block in order:
            order.remove(block)
            order.hit(block)
            order.add(block)
        else:
            order.publish(block)
            order.add(block)
        if popped:
            order.pop()
    while len(order):
        order.pop()
    assert order._tenant_of == {}
    assert order._cached == {0: 0}
    heap = getattr(order._ranking, "_heap", [])
    assert len(heap) <= 2 * 6 + 64, "a heap that grows"


@given(
    prompts=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 5), st.booleans()), min_size=1, max_size=30
    ),
    num_blocks=st.integers(5, 9),
)
@examples(150)
def test_keys_and_token_ids_are_treated_alike(
    prompts: list[tuple[int, int, bool]], num_blocks: int
) -> None:
    """The same prompts, told by token ids and by keys, are the same to two allocators."""
    size = 2
    by_tokens = PagedAllocator(num_blocks, size, prefix_caching=True)
    by_keys = PagedAllocator(num_blocks, size, prefix_caching=True)
    running: list[int] = []
    for name, (first, blocks, stays) in enumerate(prompts):
        tokens = [first] * (size * blocks)
        keyed = KeyedPrompt(len(tokens), tuple(10 * first + at for at in range(blocks)))
        fits = by_tokens.can_admit(tokens)
        assert by_keys.can_admit(keyed) == fits
        if not fits and running:
            for each in (by_tokens, by_keys):
                each.free(running[0])
            del running[0]
            continue
        if fits:
            assert by_keys.admit(name, keyed) == by_tokens.admit(name, tokens)
            running.append(name)
            if not stays:
                by_tokens.free(name)
                by_keys.free(name)
                running.pop()
    for name in running:
        assert (by_keys.slots(name) == by_tokens.slots(name)).all()
    assert by_keys.pool.eviction_order() == by_tokens.pool.eviction_order()
    assert by_keys.num_evictions == by_tokens.num_evictions
    assert by_keys.num_ghost_hits == by_tokens.num_ghost_hits
