"""Tiers behind the pool: against a plain model of them, and times by hand."""

import random
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from paged.accounting import Serving, TierUse
from paged.arrivals import Request
from paged.clock import StepTime
from paged.counting import serve_by_counts
from paged.errors import BadSize
from paged.policy import PagedPolicy
from paged.tiers import Tier, TieredServer

SIZE = 4
ALONE = PagedPolicy(block_size=SIZE, prefix_caching=True, max_running=1)
HOST = Tier(name="host", slots=40, load_ps_per_token=7_000, store_ps_per_token=0)
DISK = Tier(name="disk", slots=60, load_ps_per_token=50_000, store_ps_per_token=0)
TIME = StepTime(step_ns=1_000, prefill_ns_per_token=100)


def served(
    requests: list[Request], policy: PagedPolicy, *tiers: Tier, slots: int, **more: Any
) -> Serving:
    kind = partial(TieredServer, tiers=tiers)
    return serve_by_counts(requests, policy, slots=slots, kind=kind, time=TIME, **more)


def tree(seed: int, requests: int = 60) -> list[Request]:
    """Prompts that follow a few paths of a tree, and leave them at random."""
    draw = random.Random(seed)
    made = []
    for number in range(requests):
        family, shared, blocks = draw.randrange(5), draw.randrange(7), draw.randrange(1, 8)
        keys = [
            family * 100 + at if at < shared else 1000 * (number + 1) + at for at in range(blocks)
        ]
        made.append(Request(blocks * SIZE + draw.randrange(SIZE), 1, None, tuple(keys)))
    return made


class Plain:
    """One request after the other, in lists: a pool, and tiers behind it."""

    def __init__(self, blocks: int, rooms: list[int]) -> None:
        self.blocks, self.rooms = blocks, rooms
        self.pool: OrderedDict[int, None] = OrderedDict()
        self.tiers: list[OrderedDict[int, None]] = [OrderedDict() for _ in rooms]
        self.hits, self.loaded, self.stored = 0, [0] * len(rooms), [0] * len(rooms)

    def serve(self, request: Request) -> None:
        mine = request.keys[: request.prompt_tokens // SIZE]
        look_up = mine[: (request.prompt_tokens - 1) // SIZE]
        hits = 0
        while hits < len(look_up) and look_up[hits] in self.pool:
            hits += 1
        found: list[tuple[int, int]] = []
        for key in look_up[hits:]:
            where = [nth for nth, tier in enumerate(self.tiers) if key in tier]
            if not where:
                break
            found.append((where[0], key))
        for nth in range(len(self.tiers)):
            took = [key for where, key in found if where == nth]
            self.loaded[nth] += len(took)
            for key in reversed(took):
                self.tiers[nth].move_to_end(key)
        self.hits += hits + len(found)
        held = list(self.pool)  # whoever is not asked for may have to go
        for key in mine[:hits]:
            del self.pool[key]
        # What lies behind a gap stays where it is, and the request has a block of its own for it.
        free = self.blocks - len(held)
        need = -(-request.prompt_tokens // SIZE) - hits
        self.give_up(max(0, need - free))
        fresh = [key for key in mine[hits:] if key not in self.pool]
        for key in reversed([*mine[:hits], *fresh]):
            self.pool[key] = None

    def give_up(self, count: int) -> None:
        self.keep(0, [self.pool.popitem(last=False)[0] for _ in range(count)])

    def keep(self, nth: int, keys: list[int]) -> None:
        if nth == len(self.tiers) or not self.rooms[nth]:
            return
        tier = self.tiers[nth]
        for key in keys:
            self.stored[nth] += key not in tier
            tier[key] = None
            tier.move_to_end(key)
        over = len(tier) - self.rooms[nth]
        if over > 0:
            self.keep(nth + 1, [tier.popitem(last=False)[0] for _ in range(over)])


@pytest.mark.parametrize("seed", range(6))
def test_what_moves_is_what_a_plain_model_moves(seed: int) -> None:
    requests = tree(seed)
    slots = 44 + 8 * seed
    run = served(requests, ALONE, HOST, DISK, slots=slots)
    plain = Plain(slots // SIZE, [HOST.slots // SIZE, DISK.slots // SIZE])
    for request in requests:
        plain.serve(request)
    assert run.total.hit_tokens == plain.hits * SIZE
    assert [use.loaded_tokens for use in run.tiers] == [each * SIZE for each in plain.loaded]
    assert [use.stored_tokens for use in run.tiers] == [each * SIZE for each in plain.stored]
    assert run.total.loaded_tokens == sum(plain.loaded) * SIZE > 0
    assert run.total.stored_tokens == sum(plain.stored) * SIZE


def test_a_tier_without_room_changes_nothing() -> None:
    requests = tree(7)
    run = served(requests, ALONE, replace(HOST, slots=SIZE - 1), slots=48)
    assert run.tiers == (
        TierUse(name="host", loaded_tokens=0, stored_tokens=0, load_ns=0, store_ns=0),
    )
    plain = serve_by_counts(requests, ALONE, slots=48, time=TIME)
    assert replace(run, tiers=()) == plain


# Two prompts of eight blocks in turn, in a pool that holds one of them.
ONE, OTHER = (Request(33, 1, None, tuple(range(at, at + 8))) for at in (0, 100))
TURNS = [ONE, OTHER, ONE]
ROOM = 36


def test_loads_make_a_step_longer_and_overlap_hides_them() -> None:
    cold = served(TURNS, ALONE, replace(HOST, slots=0), slots=ROOM)
    assert cold.total.time_ns == 3 * (1_000 + 33 * 100)
    warm = served(TURNS, ALONE, HOST, slots=ROOM)
    # The last prompt's eight blocks are loaded, and its last token is computed.
    assert warm.total.loaded_tokens == 32
    assert warm.total.time_ns == cold.total.time_ns - 32 * 100 + 32 * 7
    (use,) = warm.tiers
    assert use.load_ns == 32 * 7
    hidden = served(TURNS, ALONE, replace(HOST, overlap=1.0), slots=ROOM)
    assert hidden.total.time_ns == cold.total.time_ns - 32 * 100
    # As slow as this, half a step of 1,100 ns hides 550.
    slow = replace(HOST, load_ps_per_token=100_000, overlap=0.5)
    half = served(TURNS, ALONE, slow, slots=ROOM)
    assert half.total.time_ns == cold.total.time_ns - 550


def test_a_step_waits_for_stores_that_are_late() -> None:
    cold = served(TURNS, ALONE, replace(HOST, slots=0), slots=ROOM)
    early = served(TURNS, ALONE, replace(HOST, store_ps_per_token=30_000), slots=ROOM)
    late = served(TURNS, ALONE, replace(HOST, store_ps_per_token=400_000), slots=ROOM)
    assert early.tiers[0].stored_tokens == late.tiers[0].stored_tokens > 0
    gained = cold.total.time_ns - early.total.time_ns
    assert gained == 32 * 93  # stores that are done with the step cost nothing
    # The second prompt gives up eight blocks: 32 tokens of 400 ns each, in a step of 4,300. The
    # third gives up as many, in a step of 1,100 and loads.
    late_ns = 2 * 32 * 400 - 4_300 - (1_100 + 32 * 7)
    assert late.total.time_ns - early.total.time_ns == late_ns


def test_who_is_preempted_is_copied_where_there_is_room_and_computed_again_elsewhere() -> None:
    requests = [Request(8, 30), Request(8, 30)]
    policy = PagedPolicy(block_size=SIZE, preemption="swap")
    roomy = served(requests, policy, HOST, slots=44)
    assert roomy.total.preemptions == 1
    assert roomy.total.recomputed_tokens == 0
    assert roomy.total.swapped_out == roomy.total.swapped_in > 0
    assert (
        roomy.tiers[0].stored_tokens
        == roomy.tiers[0].loaded_tokens
        == SIZE * roomy.total.swapped_in
    )
    tight = served(requests, policy, replace(HOST, slots=SIZE), slots=44)
    again = served(requests, replace(policy, preemption="recompute"), HOST, slots=44)
    assert tight.total == again.total
    assert tight.total.recomputed_tokens > 0


def test_a_tier_that_is_none_is_refused() -> None:
    with pytest.raises(BadSize, match=r"overlap = 1\.5"):
        replace(HOST, overlap=1.5)
    with pytest.raises(BadSize, match="load_ps_per_token"):
        replace(HOST, load_ps_per_token=-1)
