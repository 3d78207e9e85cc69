"""The shadow cache: it is satisfied with what is right, and precise about what is not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.profiles import examples
from reference.allocator.shadow import NEVER_WRITTEN, ShadowCache, ShadowFinding, prefix_hashes

TOKENS = st.lists(st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1), max_size=9)


def written(tokens: list[int]) -> ShadowCache:
    """Four blocks of two, with `tokens` in slots 2 and up."""
    shadow = ShadowCache(4, 2)
    shadow.write(range(2, 2 + len(tokens)), tokens)
    return shadow


def found(shadow: ShadowCache, slots: list[int], tokens: list[int]) -> ShadowFinding:
    finding = shadow.check(slots, tokens)
    assert finding is not None
    return finding


@given(left=TOKENS, right=TOKENS, shared=TOKENS)
@examples(300)
def test_hashes_are_equal_exactly_as_far_as_the_tokens_are(
    left: list[int], right: list[int], shared: list[int]
) -> None:
    ours, theirs = prefix_hashes(shared + left), prefix_hashes(shared + right)
    for at in range(min(ours.size, theirs.size)):
        equal = (shared + left)[: at + 1] == (shared + right)[: at + 1]
        assert (ours[at] == theirs[at]) == equal


@given(tokens=TOKENS)
@examples(100)
def test_no_two_prefixes_of_a_sequence_look_alike_or_unwritten(tokens: list[int]) -> None:
    hashes = prefix_hashes(tokens)
    assert hashes.dtype == np.uint64
    assert len({NEVER_WRITTEN, *hashes.tolist()}) == len(tokens) + 1


def test_sequence_that_reads_what_it_wrote_is_right() -> None:
    assert written([5, 6, 7]).check([2, 3, 4], [5, 6, 7]) is None
    assert written([]).check([], []) is None


def test_growing_one_token_at_a_time_is_writing_all_at_once() -> None:
    shadow = ShadowCache(4, 2)
    tokens = [5, 6, 7, 8]
    for at in range(4):
        shadow.write([7 - at], tokens[: at + 1], start=at)
    assert shadow.check([7, 6, 5, 4], tokens) is None


def test_copied_block_can_be_read_in_its_new_place() -> None:
    shadow = written([5, 6, 7])
    shadow.copy(1, 3)
    assert shadow.check([6, 7, 4], [5, 6, 7]) is None
    shadow.write([2], [9])
    assert shadow.check([6, 7, 4], [5, 6, 7]) is None


@pytest.mark.parametrize("start", [0, 1])
def test_finding_names_position_slot_block_and_both_contents(start: int) -> None:
    shadow = written([5, 6, 7])
    shadow.write([4], [1, 9], start=1)
    finding = shadow.check([2, 3, 4][start:], [5, 6, 7], start=start)
    assert finding == ShadowFinding(
        position=2,
        slot=4,
        block=2,
        expected_token=7,
        expected_hash=int(prefix_hashes([5, 6, 7])[2]),
        found_position=1,
        found_token=9,
        found_hash=int(prefix_hashes([1, 9])[1]),
        num_wrong=1,
        num_tokens=3 - start,
    )
    for words in ("position 2 (slot 4, block 2)", "expected token 7", "token 9 of position 1"):
        assert words in str(finding)


def test_equal_token_behind_another_prefix_is_found() -> None:
    finding = found(written([5, 6, 7]), [2, 3, 4], [1, 6, 7])
    assert (finding.position, finding.num_wrong) == (0, 3)
    shadow = written([5, 6, 7])
    shadow.write([2], [1])
    finding = found(shadow, [2, 3, 4], [1, 6, 7])
    assert (finding.position, finding.expected_token, finding.found_token) == (1, 6, 6)


def test_slot_that_was_never_written_is_found() -> None:
    finding = found(written([5, 6]), [2, 5], [5, 6])
    assert (finding.position, finding.found_position, finding.found_hash) == (1, None, 0)
    assert "a slot that was never written" in str(finding)


@pytest.mark.parametrize("slot", [-1, 8, 2**40])
def test_slot_outside_the_cache_is_a_finding_to_a_reader(slot: int) -> None:
    finding = found(written([5, 6]), [2, slot], [5, 6])
    assert (finding.position, finding.slot, finding.found_token) == (1, slot, None)


@pytest.mark.parametrize("slot", [-1, 8])
def test_slot_outside_the_cache_is_an_error_to_a_writer(slot: int) -> None:
    shadow = ShadowCache(4, 2)
    with pytest.raises(ValueError, match=f"slot {slot}: there are 8 slots"):
        shadow.write([0, slot], [5, 6])
    assert (shadow.prefixes == NEVER_WRITTEN).all()


def test_slot_named_twice_in_a_write_is_an_error() -> None:
    with pytest.raises(ValueError, match="a slot is named twice"):
        ShadowCache(4, 2).write([3, 3], [5, 6])


@pytest.mark.parametrize("slots", [[2], [2, 3, 4, 5], [[2, 3, 4]]])
def test_slots_have_to_match_the_tokens(slots: list[int]) -> None:
    shadow = written([5, 6, 7])
    with pytest.raises(ValueError, match="for 3 token positions"):
        shadow.check(slots, [5, 6, 7])
    with pytest.raises(ValueError, match="for 3 token positions"):
        shadow.write(slots, [5, 6, 7])


@pytest.mark.parametrize(("source", "destination"), [(-1, 0), (0, 4)])
def test_copy_outside_the_cache_is_an_error(source: int, destination: int) -> None:
    with pytest.raises(ValueError, match="there are 4 blocks"):
        ShadowCache(4, 2).copy(source, destination)


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 2), (2, 0)])
def test_cache_without_slots_is_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="give at least 1 of each"):
        ShadowCache(num_blocks, block_size)


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_sequence_is_read_from_where_its_window_begins(start: int) -> None:
    assert written([5, 6, 7]).check([2, 3, 4][start:], [5, 6, 7], start=start) is None


def test_what_lies_before_the_start_is_not_looked_at_but_decides_what_is_right() -> None:
    shadow = written([5, 6, 7])
    shadow.write([2], [9])
    assert shadow.check([3, 4], [5, 6, 7], start=1) is None
    finding = shadow.check([3, 4], [9, 6, 7], start=1)
    assert finding is not None
    assert (finding.position, finding.num_wrong, finding.num_tokens) == (1, 2, 2)


def test_slots_have_to_match_the_tokens_from_the_start_on() -> None:
    with pytest.raises(ValueError, match="for 2 token positions"):
        written([5, 6, 7]).check([2, 3, 4], [5, 6, 7], start=1)
