"""The prefix index: what counts as the same prefix, and what does not."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.profiles import examples
from paged.errors import BadSize, PagedCacheError
from paged.prefix import PrefixChain, PrefixIndex, token_array

TOKENS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=12)


def digests(tokens: list[int], *, block_size: int = 2, salt: bytes = b"") -> list[bytes]:
    return list(PrefixChain(block_size, salt=salt).extend(token_array(tokens)))


def index_of(tokens: list[int], blocks: list[int], *, salt: bytes = b"") -> PrefixIndex:
    """An index with blocks of two that holds `tokens` in `blocks`."""
    index = PrefixIndex(2)
    for digest, block in zip(digests(tokens, salt=salt), blocks, strict=True):
        assert index.insert(digest, block)
    return index


def test_match_is_the_longest_run_of_whole_blocks() -> None:
    index = index_of([1, 2, 3, 4, 5, 6], [7, 8, 9])
    assert index.match([1, 2, 3, 4, 5, 6]) == [7, 8, 9]
    assert index.match([1, 2, 3, 4, 5]) == [7, 8]
    assert index.match([1, 2, 3, 4, 5, 0]) == [7, 8]
    assert index.match([1]) == []
    assert index.match([]) == []


def test_match_stops_at_the_first_gap() -> None:
    index = index_of([1, 2, 3, 4, 5, 6], [7, 8, 9])
    index.forget(8)
    assert index.match([1, 2, 3, 4, 5, 6]) == [7]


def test_equal_tokens_with_another_salt_are_no_match() -> None:
    index = index_of([1, 2], [7], salt=b"tenant a")
    assert index.match([1, 2], salt=b"tenant a") == [7]
    assert index.match([1, 2], salt=b"tenant b") == []
    assert index.match([1, 2]) == []


def test_salt_may_be_longer_than_any_block() -> None:
    assert digests([1, 2], salt=b"a" * 1000) != digests([1, 2], salt=b"a" * 1001)


def test_salt_made_of_a_digest_and_tokens_does_not_pass_for_them() -> None:
    (first,) = digests([1, 2])
    forged = first + token_array([3, 4]).tobytes()
    assert PrefixChain(2, salt=forged).digest != digests([1, 2, 3, 4])[1]


@given(left=TOKENS, right=TOKENS, block_size=st.integers(1, 4))
@examples(200)
def test_digests_are_equal_exactly_as_far_as_the_tokens_are(
    left: list[int], right: list[int], block_size: int
) -> None:
    for tokens in (right, left[:5] + right):
        ours = digests(left, block_size=block_size)
        theirs = digests(tokens, block_size=block_size)
        for at, (one, other) in enumerate(zip(ours, theirs, strict=False), 1):
            assert (one == other) == (left[: at * block_size] == tokens[: at * block_size])


@given(tokens=TOKENS, block_size=st.integers(1, 4), cuts=st.lists(st.integers(0, 12)))
@examples(100)
def test_chain_does_not_depend_on_how_tokens_arrive(
    tokens: list[int], block_size: int, cuts: list[int]
) -> None:
    chain = PrefixChain(block_size)
    arrived: list[bytes] = []
    edges = sorted({0, len(tokens), *(cut for cut in cuts if cut <= len(tokens))})
    for begin, end in pairwise(edges):
        if end - begin == 1:
            digest = chain.push(tokens[begin])
            arrived += [] if digest is None else [digest]
        else:
            arrived += chain.fork().extend(token_array(tokens[begin:end]))
            list(chain.extend(token_array(tokens[begin:end])))
    assert arrived == digests(tokens, block_size=block_size)
    assert chain.tail.tolist() == tokens[len(tokens) - len(tokens) % block_size :]


def test_fork_leaves_its_parent_alone() -> None:
    parent = PrefixChain(2)
    parent.push(1)
    assert parent.fork().push(2) == digests([1, 2])[0]
    assert parent.push(3) == digests([1, 3])[0]


def test_first_block_of_a_digest_stays_and_the_duplicate_is_private() -> None:
    index = index_of([1, 2], [7])
    (digest,) = digests([1, 2])
    assert not index.insert(digest, 8)
    assert index.match([1, 2]) == [7]
    assert 8 not in index.digests
    index.forget(8)
    assert index.match([1, 2]) == [7]


def test_forgotten_block_can_be_indexed_again() -> None:
    index = index_of([1, 2], [7])
    index.forget(7)
    assert (len(index), index.match([1, 2])) == (0, [])
    assert index.insert(digests([5, 6])[0], 7)
    assert index.match([5, 6]) == [7]


def test_indexed_block_cannot_stand_for_a_second_prefix() -> None:
    index = index_of([1, 2], [7])
    with pytest.raises(PagedCacheError, match="block 7 is indexed already"):
        index.insert(digests([5, 6])[0], 7)


@pytest.mark.parametrize(
    "tokens", [[3, 1, 2], (3, 1, 2), np.array([3, 1, 2], np.int32), np.array([3, 1, 2], np.uint64)]
)
def test_tokens_may_come_in_any_flat_integer_form(tokens: list[int]) -> None:
    ids = token_array(tokens)
    assert ids.dtype == np.int64
    assert ids.tolist() == [3, 1, 2]


@pytest.mark.parametrize("tokens", [[], (), range(0), np.empty(0, np.float32)])
def test_no_tokens_are_fine_in_any_form(tokens: list[int]) -> None:
    assert token_array(tokens).shape == (0,)
    assert token_array(tokens).dtype == np.int64


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        ([1.5, 2], "dtype float64"),
        ([True, False], "dtype bool"),
        ("text", r"shape \[\]"),
        (["text"], "dtype <U4"),
        ([[1, 2], [3, 4]], r"shape \[2, 2\]"),
        (7, r"shape \[\]"),
        ([[1], [2, 3]], "one flat list"),
        ([2**70], "dtype object"),
        (np.array([2**63], np.uint64), "dtype uint64"),
    ],
)
def test_tokens_that_are_not_flat_integers_are_refused(tokens: list[int], complaint: str) -> None:
    with pytest.raises(BadSize, match=complaint):
        token_array(tokens)


def test_token_beyond_64_bits_leaves_the_chain_alone() -> None:
    chain = PrefixChain(2)
    with pytest.raises(BadSize, match=str(2**63)):
        chain.push(2**63)
    chain.push(1)
    assert chain.push(2) == digests([1, 2])[0]
