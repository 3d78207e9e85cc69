"""Orders of eviction by example: what is asked of each, and what a quota does."""

import pytest

from paged.errors import BadSize
from paged.eviction import FIFO, LFU, LRU, EvictionOrder, GhostList

ORDERS = [LRU, FIFO, LFU]


def published(order: EvictionOrder, blocks: list[int], *, tenant: int = 0) -> EvictionOrder:
    """All of `blocks` cached, then idle, both in this order."""
    for block in blocks:
        assert order.publish(block, tenant=tenant) is None
    for block in blocks:
        assert order.add(block) is None
    return order


def use(order: EvictionOrder, block: int) -> None:
    order.remove(block)
    order.hit(block)
    order.add(block)


def drained(order: EvictionOrder) -> list[int]:
    return [order.pop() for _ in range(len(order))]


@pytest.mark.parametrize(("make", "line"), [(LRU, [2, 3, 1]), (FIFO, [1, 2, 3]), (LFU, [2, 3, 1])])
def test_block_that_was_used_again(make: type[LRU | FIFO | LFU], line: list[int]) -> None:
    order = published(make(), [1, 2, 3])
    use(order, 1)
    assert order.order() == line
    assert drained(order) == line


@pytest.mark.parametrize("make", ORDERS)
def test_block_that_is_not_idle_cannot_be_let_go_of(make: type[LRU | FIFO | LFU]) -> None:
    order = published(make(), [1])
    order.remove(1)
    with pytest.raises(KeyError):
        order.remove(1)


@pytest.mark.parametrize("make", ORDERS)
@pytest.mark.parametrize("blocks", [-1, 1.5, True])
def test_quota_out_of_range_is_refused(make: type[LRU | FIFO | LFU], blocks: int) -> None:
    with pytest.raises(BadSize, match="quota of tenant 3 = "):
        make(quotas={3: blocks})


def test_only_an_order_that_has_to_is_told_of_contents() -> None:
    assert not LRU().watches_content
    assert LRU(quotas={0: 1}).watches_content
    assert FIFO().watches_content
    assert LFU().watches_content


def test_ghost_window_below_one_is_refused() -> None:
    with pytest.raises(BadSize, match="window = 0"):
        GhostList(0)
