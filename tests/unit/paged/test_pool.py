"""The pool of blocks: three states, and the ways from one to the next."""

import pytest

from paged.errors import BadSize, DoubleFree, UseAfterFree
from paged.eviction import LFU, LRU
from paged.pool import BlockPool


def counts(pool: BlockPool) -> tuple[int, int, int]:
    return pool.num_free, pool.num_cached_idle, pool.num_used


def pool_with_idle(num_blocks: int, idle: list[int]) -> BlockPool:
    """All blocks allocated, those in `idle` released again in that order, and kept."""
    pool = BlockPool(num_blocks)
    pool.allocate(num_blocks)
    for block in idle:
        pool.release(block, keep=True)
    return pool


def test_block_freed_last_is_handed_out_first() -> None:
    pool = BlockPool(5)
    pool.allocate(5)
    for block in (1, 4, 2):
        pool.release(block, keep=False)
    assert pool.allocate(3) == [2, 4, 1]


def test_block_released_from_the_eviction_callback_is_not_lost() -> None:
    def on_evict(block: int) -> None:
        if block == 0:
            pool.release(1, keep=True)

    pool = BlockPool(3, on_evict=on_evict)
    pool.allocate(3)
    pool.release(0, keep=True)
    assert pool.allocate(1) == [0]
    assert counts(pool) == (0, 1, 2)


def test_misused_block_is_named_and_the_pool_is_as_it_was() -> None:
    pool = pool_with_idle(3, [1])
    pool.release(0, keep=False)
    for block, keep in ((0, False), (1, True)):  # free, and idle
        with pytest.raises(DoubleFree, match=f"block {block} "):
            pool.release(block, keep=keep)
    with pytest.raises(UseAfterFree, match="block 0 "):
        pool.retain(0)
    assert counts(pool) == (1, 1, 1)
    assert pool.eviction_order() == [1]


@pytest.mark.parametrize("block", [-1, 3])
def test_block_outside_the_pool_is_refused(block: int) -> None:
    pool = BlockPool(3)
    pool.allocate(3)
    with pytest.raises(BadSize, match=f"block {block}: the pool has blocks 0 to 2"):
        pool.retain(block)
    with pytest.raises(BadSize, match=f"block {block}: the pool has blocks 0 to 2"):
        pool.release(block, keep=False)
    assert list(pool.reference_counts) == [1, 1, 1]


@pytest.mark.parametrize("num_blocks", [0, -1, 2**31, 1.5])
def test_pool_size_out_of_range_is_refused(num_blocks: int) -> None:
    with pytest.raises(BadSize, match="num_blocks = "):
        BlockPool(num_blocks)
    with pytest.raises(BadSize, match="count = -1"):
        BlockPool(3).allocate(-1)


def test_releasing_many_finds_the_block_without_a_reference() -> None:
    pool = BlockPool(3)
    pool.allocate(3)
    with pytest.raises(DoubleFree, match="block 1 "):
        pool.release_all([2, 1, 1, 0], keep=())
    assert list(pool.reference_counts) == [1, 0, 0]
    assert counts(pool) == (2, 0, 1)


def test_order_of_choice_decides_who_is_evicted() -> None:
    pool = BlockPool(3, eviction=LFU())
    pool.allocate(3)
    for block in (0, 1, 2):
        pool.publish(block, tenant=0)
    pool.hit(0)
    pool.release_all([0, 1, 2], keep={0, 1, 2})
    assert pool.eviction_order() == [1, 2, 0]
    assert sorted(pool.allocate(2)) == [1, 2]


def test_block_turned_out_by_a_quota_is_free() -> None:
    evicted: list[int] = []
    pool = BlockPool(4, on_evict=evicted.append, eviction=LRU(quotas={7: 1}))
    pool.allocate(3)
    for block in (0, 1):
        pool.publish(block, tenant=7)
    pool.release(0, keep=True)
    assert evicted == [0]
    pool.release(1, keep=True)
    assert pool.eviction_order() == [1]
    pool.publish(2, tenant=7)
    assert evicted == [0, 1]
    assert counts(pool) == (3, 0, 1)


def test_order_that_is_in_use_is_refused() -> None:
    order = LRU()
    order.add(0)
    with pytest.raises(BadSize, match="1 idle blocks: give each pool one of its own"):
        BlockPool(3, eviction=order)
