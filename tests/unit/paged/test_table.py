"""Block tables: slot arithmetic, growth, and forks that grow apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.profiles import examples
from paged.errors import BadSize
from paged.table import BlockTable


def table_of(num_tokens: int, blocks: list[int], block_size: int) -> BlockTable:
    table = BlockTable(block_size)
    table.grow(num_tokens, blocks)
    return table


@given(
    block_size=st.integers(1, 9),
    blocks=st.lists(st.integers(0, 99), unique=True, max_size=6),
    spare=st.integers(0, 8),
    data=st.data(),
)
@examples(100)
def test_slots_follow_the_formula(
    block_size: int, blocks: list[int], spare: int, data: st.DataObject
) -> None:
    num_tokens = max(len(blocks) * block_size - spare % block_size, 0)
    table = table_of(num_tokens, blocks, block_size)
    start = data.draw(st.integers(0, num_tokens))
    slots = table.slots(start=start)
    assert slots.dtype == np.int64
    assert slots.tolist() == [
        blocks[position // block_size] * block_size + position % block_size
        for position in range(start, num_tokens)
    ]


def test_slots_beyond_int32_do_not_wrap() -> None:
    block = 2**30
    assert table_of(2, [block], 256).slots().tolist() == [block * 256, block * 256 + 1]


def test_row_is_int32_and_follows_the_table() -> None:
    table = BlockTable(2)
    assert table.row().shape == table.slots().shape == (0,)
    table.grow(3, [7, 5])
    assert table.row().tolist() == [7, 5]
    assert table.row().dtype == np.int32
    table.replace_last(9)
    assert table.row().tolist() == [7, 9]
    assert table.slots(start=2).tolist() == [18]
    table.grow(40, list(range(10, 30)))
    assert table.row().tolist() == [7, 9, *range(10, 30)]


@pytest.mark.parametrize(
    ("num_tokens", "blocks"), [(3, [1]), (2, [1, 2]), (0, [1]), (-1, []), (1, [])]
)
def test_blocks_have_to_match_the_tokens(num_tokens: int, blocks: list[int]) -> None:
    table = BlockTable(2)
    with pytest.raises(BadSize, match="more tokens with"):
        table.grow(num_tokens, blocks)
    assert (table.num_tokens, table.blocks) == (0, [])


@pytest.mark.parametrize("start", [-1, 4])
def test_start_outside_the_sequence_is_refused(start: int) -> None:
    with pytest.raises(BadSize, match=f"start = {start}: .* 0 to 3"):
        table_of(3, [7, 5], 2).slots(start=start)
    with pytest.raises(BadSize, match=f"block_size = {min(start, 0)}"):
        BlockTable(min(start, 0))


def test_released_blocks_keep_their_places() -> None:
    table = table_of(7, [9, 4, 6, 2], 2)
    assert table.release_before(5) == [9, 4]
    assert table.blocks == [-1, -1, 6, 2]
    assert table.row().tolist() == [-1, -1, 6, 2]
    assert table.held() == [6, 2]
    assert (table.num_tokens, table.num_released) == (7, 2)
    assert table.slots(start=4).tolist() == [12, 13, 4]


def test_row_that_was_read_before_shows_what_was_released_since() -> None:
    table = table_of(5, [9, 4, 6], 2)
    assert table.row().tolist() == [9, 4, 6]
    table.release_before(2)
    assert table.row().tolist() == [-1, 4, 6]
    table.grow(2, [8])
    table.release_before(4)
    assert table.row().tolist() == [-1, -1, 6, 8]


def test_what_was_released_and_what_never_was_is_refused() -> None:
    table = table_of(5, [9, 4, 6], 2)
    table.release_before(4)
    for start in (0, 1, 3):
        message = f"start = {start}: the blocks before position 4 were rel"
        with pytest.raises(BadSize, match=message):
            table.slots(start=start)
    for position in (-1, 6):
        message = f"position = {position}: the sequence has 5 tokens"
        with pytest.raises(BadSize, match=message):
            table.release_before(position)
    assert table.held() == [6]
