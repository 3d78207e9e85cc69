"""Blocks by key: against the allocator that moves them, and where the line runs full."""

import random
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from paged.allocator import PagedAllocator
from paged.eviction import FIFO, LFU, LRU, EvictionOrder
from paged.keyed_blocks import KEYED
from paged.prefix import KeyedPrompt


@pytest.mark.parametrize("eviction", [LRU, LFU, FIFO])
def test_keys_are_held_found_and_given_up_as_the_allocator_does(
    eviction: Callable[[], EvictionOrder],
) -> None:
    # 600 prompts of 20 blocks fill the line three times.
    draw = random.Random(0)
    allocator = PagedAllocator(120, 1, prefix_caching=True, eviction=eviction())
    blocks = KEYED[eviction.__name__.lower()](120)  # type: ignore[attr-defined]
    running: dict[int, list[np.ndarray]] = {}
    ghosts = 0
    for number in range(600):
        family, shared = draw.randrange(9), draw.randrange(1, 20)
        keys = [family * 100 + at for at in range(shared)]
        keys += [10_000 + number * 100 + at for at in range(shared, 20)]
        numbered = blocks.numbered(keys)
        hits, _ = blocks.look(numbered[:19])
        prompt = KeyedPrompt(20, keys)
        assert hits == allocator.cached_tokens(prompt)
        if len(running) == 4:
            gone = draw.choice(list(running))
            allocator.free(gone)
            blocks.release(np.concatenate(running.pop(gone)))
        hits, _ = blocks.look(numbered[:19])
        allocator.admit(number, prompt)
        ghosts += blocks.ghosts(numbered[hits:19])
        blocks.hold(numbered[:hits])
        while blocks.idle > allocator.num_cached_idle:
            blocks.evict(min(blocks.idle - allocator.num_cached_idle, draw.randrange(1, 30)))
        running[number] = [numbered[:hits], blocks.publish(numbered[hits:])]
        assert blocks.idle == allocator.num_cached_idle
        assert blocks.evictions == allocator.num_evictions
    assert ghosts == allocator.num_ghost_hits > 0


def test_growing_copies_one_column_after_the_other() -> None:
    many, column = 2**18, 2**18 * 4
    tracemalloc.start()
    try:
        blocks = KEYED["lru"](1)
        blocks.numbered(np.array([many - 1]))
        tracemalloc.reset_peak()
        blocks.numbered(np.array([many]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two of twice the size, and one of the old ones.
    assert 5 * column <= peak < 5.5 * column
