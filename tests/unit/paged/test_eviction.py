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


def test_lfu_prefers_many_hits_long_ago_to_one_just_now() -> None:
    order = published(LFU(), [1, 2, 3])
    for block in (1, 1, 2):
        use(order, block)
    assert drained(order) == [3, 2, 1]


def test_lfu_counts_hits_of_a_block_that_is_in_use_already() -> None:
    order = LFU()
    for block in (1, 2):
        order.publish(block)
    order.hit(1)
    order.add(1)
    order.add(2)
    assert drained(order) == [2, 1]


def test_lfu_starts_anew_with_the_content() -> None:
    order = published(LFU(), [1, 2])
    use(order, 1)
    use(order, 2)
    order.remove(1)
    order.forget(1)
    order.publish(1)
    order.add(1)
    assert drained(order) == [1, 2]


def test_fifo_starts_anew_with_the_content() -> None:
    order = published(FIFO(), [1, 2])
    assert order.pop() == 1
    order.publish(1)
    order.add(1)
    assert drained(order) == [2, 1]


@pytest.mark.parametrize("make", ORDERS)
def test_tenant_at_its_quota_pays_with_its_own(make: type[LRU | FIFO | LFU]) -> None:
    order = make(quotas={1: 2})
    published(order, [10, 11], tenant=0)
    published(order, [20, 21], tenant=1)
    assert order.order() == [10, 11, 20, 21]
    assert order.pop(tenant=1, coming=1) == 20
    assert order.pop(tenant=1, coming=1) == 10, "one place is left to tenant 1"
    assert order.pop(tenant=0, coming=5) == 11, "tenant 0 has no quota"


@pytest.mark.parametrize("make", ORDERS)
def test_more_than_the_quota_is_given_up_at_once(make: type[LRU | FIFO | LFU]) -> None:
    order = make(quotas={1: 1})
    published(order, [10], tenant=1)
    assert order.publish(11, tenant=1) == 10
    assert order.publish(12, tenant=1) is None, "nothing is idle that could be given up"
    assert order.add(11) == 11
    assert order.add(12) is None
    assert order.order() == [12]


@pytest.mark.parametrize("make", ORDERS)
def test_quota_of_nothing_keeps_nothing(make: type[LRU | FIFO | LFU]) -> None:
    order = make(quotas={1: 0})
    assert order.publish(5, tenant=1) is None
    assert order.add(5) == 5
    assert len(order) == 0


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


def test_ghost_that_was_evicted_again_is_remembered_from_then_on() -> None:
    ghosts = GhostList(3)
    for key in "abacd":
        ghosts.add(key)
    assert [key for key in "abcd" if key in ghosts] == ["a", "c", "d"]
    assert (len(ghosts), ghosts.evictions) == (3, 5)
    ghosts.clear()
    assert (len(ghosts), ghosts.evictions) == (0, 5)


def test_ghost_window_below_one_is_refused() -> None:
    with pytest.raises(BadSize, match="window = 0"):
        GhostList(0)
