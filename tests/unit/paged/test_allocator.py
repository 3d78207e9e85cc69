"""The allocator where it refuses, copies and rounds; tests/property holds it to its laws."""

from collections.abc import Callable

import numpy as np
import pytest

from paged.allocator import PagedAllocator
from paged.errors import BadSize, CopyPending, DuplicateSequence, OutOfBlocks, UnknownSequence


def counts(allocator: PagedAllocator) -> tuple[int, int, int]:
    return allocator.num_free, allocator.num_cached_idle, allocator.num_used


def blocks_of(allocator: PagedAllocator, sequence: str) -> list[int]:
    return allocator.block_table([sequence])[0].tolist()


def plain(num_blocks: int, block_size: int = 4) -> PagedAllocator:
    return PagedAllocator(num_blocks, block_size)


def caching(num_blocks: int, block_size: int = 4) -> PagedAllocator:
    return PagedAllocator(num_blocks, block_size, prefix_caching=True)


# Admission


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_admission_takes_the_blocks_that_the_tokens_need(num_tokens: int, num_blocks: int) -> None:
    allocator = plain(5)
    assert allocator.admit("a", range(num_tokens)) == 0
    assert allocator.num_tokens("a") == num_tokens
    assert counts(allocator) == (5 - num_blocks, 0, num_blocks)
    assert allocator.blocks_needed(num_tokens) == num_blocks


def test_second_admission_of_a_name_is_refused_until_it_is_freed() -> None:
    allocator = plain(5)
    allocator.admit("a", [1])
    with pytest.raises(DuplicateSequence, match="'a'"):
        allocator.admit("a", [1, 2, 3, 4, 5])
    assert allocator.num_tokens("a") == 1
    allocator.free("a")
    allocator.admit("a", [1, 2])
    assert allocator.num_tokens("a") == 2


@pytest.mark.parametrize("tokens", [1.5, [1.5], [[1, 2]], [[1]], "text", True, [True]])
@pytest.mark.parametrize("make", [plain, caching])
def test_tokens_that_are_no_tokens_are_refused_without_a_trace(
    make: Callable[[int], PagedAllocator], tokens: list[int]
) -> None:
    allocator = make(3)
    allocator.admit("a", [1, 2])
    for call in (
        lambda: allocator.admit("b", tokens),
        lambda: allocator.can_admit(tokens),
        lambda: allocator.append("a", tokens),
    ):
        with pytest.raises(BadSize, match="tokens of"):
            call()
    assert allocator.num_tokens("a") == 2
    assert counts(allocator) == (2, 0, 1)


# Append


@pytest.mark.parametrize("tokens", [5, [5], (5,), np.array([5]), np.int32(5)])
@pytest.mark.parametrize("make", [plain, caching])
def test_one_token_may_come_in_any_form(
    make: Callable[[int], PagedAllocator], tokens: list[int]
) -> None:
    allocator = make(3)
    allocator.admit("a", [1, 2])
    allocator.append("a", tokens)
    allocator.append("a", tokens)
    assert allocator.num_tokens("a") == 4
    allocator.append("a", tokens)
    assert allocator.num_tokens("a") == 5
    assert counts(allocator) == (1, 0, 2)


# Fork and copy-on-write


def test_append_at_a_block_boundary_needs_no_copy() -> None:
    allocator = plain(5)
    allocator.admit("a", range(4))
    allocator.fork("a", "b")
    allocator.append("b", 9)
    assert allocator.take_copies() == []
    assert blocks_of(allocator, "b")[0] == blocks_of(allocator, "a")[0]


def test_last_of_several_sharers_writes_in_place() -> None:
    allocator = plain(5)
    allocator.admit("parent", range(2))
    allocator.fork("parent", "one")
    allocator.fork("parent", "two")
    (source,) = blocks_of(allocator, "parent")
    allocator.append("one", 7)
    allocator.append("parent", 8)
    allocator.append("two", 9)
    # The copies still hold the source, but they are carried out before "two" writes to it.
    assert blocks_of(allocator, "two") == [source]
    copies = allocator.take_copies()
    assert copies == [
        (source, blocks_of(allocator, "one")[0]),
        (source, blocks_of(allocator, "parent")[0]),
    ]
    assert counts(allocator) == (2, 0, 3)


def test_append_over_several_blocks_counts_the_copy_too() -> None:
    allocator = plain(4)
    allocator.admit("a", [1, 2])
    allocator.fork("a", "b")
    with pytest.raises(OutOfBlocks) as refusal:
        allocator.append("b", range(11))
    assert (refusal.value.needed, refusal.value.available) == (4, 3)
    allocator.append("b", range(10))
    assert counts(allocator) == (0, 0, 4)


def test_block_that_waits_for_its_copy_cannot_be_copied() -> None:
    allocator = plain(5)
    allocator.admit("a", [1, 2])
    allocator.fork("a", "b")
    allocator.append("b", 3)
    (waiting,) = blocks_of(allocator, "b")
    allocator.fork("b", "c")
    before = counts(allocator)
    with pytest.raises(CopyPending, match=f"block {waiting} "):
        allocator.append("c", 4)
    assert counts(allocator) == before
    assert allocator.num_tokens("c") == 3
    allocator.take_copies()
    allocator.append("c", 4)
    assert allocator.take_copies() == [(waiting, *blocks_of(allocator, "c"))]


def test_fork_needs_a_parent_and_a_free_name() -> None:
    allocator = plain(3)
    with pytest.raises(UnknownSequence, match="'a'"):
        allocator.fork("a", "b")
    allocator.admit("a", [1])
    with pytest.raises(DuplicateSequence, match="'a'"):
        allocator.fork("a", "a")
    assert allocator.pool.reference_counts[blocks_of(allocator, "a")[0]] == 1


# Free


def test_freed_sequence_is_unknown() -> None:
    allocator = plain(3)
    allocator.admit("a", [1])
    allocator.free("a")
    calls: list[Callable[[], object]] = [
        lambda: allocator.free("a"),
        lambda: allocator.append("a", 1),
        lambda: allocator.append("a", [1, 2]),
        lambda: allocator.fork("a", "b"),
        lambda: allocator.slots("a"),
        lambda: allocator.num_tokens("a"),
        lambda: allocator.block_table(["a"]),
    ]
    for call in calls:
        with pytest.raises(UnknownSequence, match="'a'"):
            call()
    assert counts(allocator) == (3, 0, 0)


# Prefix caching


def test_own_idle_hit_does_not_count_as_available() -> None:
    allocator = caching(3)
    allocator.admit("a", range(4))
    allocator.free("a")
    before = allocator.pool.eviction_order()
    assert not allocator.can_admit(range(16))
    with pytest.raises(OutOfBlocks) as refusal:
        allocator.admit("b", range(16))
    assert (refusal.value.needed, refusal.value.available) == (3, 2)
    assert counts(allocator) == (2, 1, 0)
    assert allocator.pool.eviction_order() == before


def test_duplicate_of_a_full_block_stays_private() -> None:
    allocator = caching(9)
    allocator.admit("a", range(8))
    allocator.admit("b", range(8))
    private = blocks_of(allocator, "b")[1]
    allocator.free("b")
    # Head still in use by "a", duplicate of its second block of no use to anybody.
    assert counts(allocator) == (7, 0, 2)
    allocator.free("a")
    assert private not in allocator.pool.eviction_order()
    assert counts(allocator) == (7, 2, 0)


# Tables and slots


def test_slots_are_int64_and_start_where_asked() -> None:
    allocator = plain(5)
    allocator.admit("a", range(6))
    first, second = blocks_of(allocator, "a")
    slots = allocator.slots("a", start=3)
    assert slots.dtype == np.int64
    assert slots.tolist() == [first * 4 + 3, second * 4, second * 4 + 1]
    assert allocator.slots("a", start=6).shape == (0,)
    with pytest.raises(BadSize, match="start = 7"):
        allocator.slots("a", start=7)


def test_block_table_is_int32_and_filled_up() -> None:
    allocator = plain(5)
    allocator.admit("a", range(9))
    allocator.admit("empty", [])
    allocator.admit("b", [1])
    table = allocator.block_table(["b", "empty", "a"], width=4, fill=77)
    (only,) = blocks_of(allocator, "b")
    assert table.dtype == np.int32
    assert table.tolist() == [
        [only, 77, 77, 77],
        [77, 77, 77, 77],
        [*blocks_of(allocator, "a"), 77],
    ]


def test_block_table_is_as_wide_as_its_longest_row_and_a_copy() -> None:
    allocator = plain(5)
    allocator.admit("a", range(9))
    allocator.admit("empty", [])
    assert allocator.block_table(["empty"]).shape == (1, 0)
    assert allocator.block_table([]).shape == (0, 0)
    table = allocator.block_table(["a", "empty"])
    assert table.shape == (2, 3)
    before = table.copy()
    allocator.block_table(["a"])[:] = -5
    with pytest.raises(BadSize, match="width = 2: the longest sequence has 3 blocks"):
        allocator.block_table(["a"], width=2)
    allocator.append("a", range(9))
    assert (table == before).all()
    assert -5 not in blocks_of(allocator, "a")


# Numbers


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0), (-1, 4), (4, 1.5)])
def test_sizes_out_of_range_are_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(BadSize, match=r"(num_blocks|block_size) = "):
        PagedAllocator(num_blocks, block_size)


def test_blocks_needed_refuses_a_negative_length() -> None:
    with pytest.raises(BadSize, match="num_tokens = -1"):
        plain(1).blocks_needed(-1)
