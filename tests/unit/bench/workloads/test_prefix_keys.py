"""Cache keys are equal where blocks hold the same tokens behind the same tokens, and only there."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.workloads.prefix import PrefixBlocks
from helpers.profiles import examples


def blocks_of(paths, tokens_per_block):
    """Give ids to prompts that are stated as lists of letters, one for each prefix block."""
    ids = {}
    rows = [
        [ids.setdefault(tuple(path[: end + 1]), len(ids)) for end in range(len(path))]
        for path in paths
    ]
    return PrefixBlocks(
        ids=np.array([block for row in rows for block in row], dtype=np.int64),
        offsets=np.cumsum([0, *map(len, rows)]),
        tokens_per_block=tokens_per_block,
    )


@st.composite
def prompts(draw):
    tokens_per_block = draw(st.integers(1, 7))
    paths = draw(st.lists(st.lists(st.sampled_from("ab"), max_size=4), min_size=1, max_size=5))
    # The last prefix block may be filled in part; the ids may end before the prompt does.
    tokens = [
        max(0, len(path) * tokens_per_block - draw(st.integers(0, tokens_per_block - 1)))
        if draw(st.booleans())
        else len(path) * tokens_per_block + draw(st.integers(0, 9))
        for path in paths
    ]
    return paths, tokens, blocks_of(paths, tokens_per_block)


@examples(300)
@given(prompts(), st.integers(1, 16))
def test_keys_are_equal_where_all_tokens_up_to_the_blocks_end_are(made, block_size):
    paths, tokens, prefix = made
    size = prefix.tokens_per_block
    known = {}
    for request, (path, prompt) in enumerate(zip(paths, tokens, strict=True)):
        # Token p of a prompt is told by the letter of its prefix block and its place there.
        letters = [(letter, place) for letter in path for place in range(size)][:prompt]
        keys = prefix.keys(request, block_size, prompt).tolist()
        assert len(keys) == len(letters) // block_size
        for block, key in enumerate(keys):
            content = tuple(letters[: (block + 1) * block_size])
            assert known.setdefault(content, key) == key
    assert len(set(known.values())) == len(known)


@examples(150)
@given(prompts(), st.integers(1, 7), st.integers(1, 16))
def test_finer_blocks_say_the_same(made, finer, block_size):
    _, tokens, prefix = made
    assume(prefix.tokens_per_block % finer == 0)
    refined = prefix.refined(finer, np.array(tokens))

    def agreement(blocks):
        """Which blocks of which requests share a key."""
        keys = [
            blocks.keys(request, block_size, prompt).tolist()
            for request, prompt in enumerate(tokens)
        ]
        return [
            [mine.index(key) if key in mine else -1 for key in theirs]
            for mine in keys
            for theirs in keys
        ]

    assert agreement(refined) == agreement(prefix)


@pytest.mark.parametrize(
    ("block_size", "prompt", "keys"),
    [
        (16, 47, [40, 7]),  # the id where the sizes agree
        (32, 80, [7, 6]),  # the last id of a larger block
        (16, 1000, [40, 7, 9, 6]),  # none behind the known ids
    ],
)
def test_a_key_is_the_last_id_of_what_it_is_filled_with(block_size, prompt, keys):
    prefix = PrefixBlocks(ids=[40, 7, 9, 6], offsets=[0, 4], tokens_per_block=16)
    assert prefix.keys(0, block_size, prompt).tolist() == keys
    assert prefix.keys(0, 8, 1000).size == 8
    with pytest.raises(IndexError, match="request 1 of 1"):
        prefix.keys(1, 16, 16)


@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (lambda p: p.keys(0, 0, 5), "block_size is 0"),
        (lambda p: p.keys(0, 8, 16), f"prefix id {2**62} times 2 blocks of 8 tokens"),
        (lambda p: p.refined(5, np.array([16])), "cannot be cut into blocks of 5"),
        (lambda p: p.refined(4, np.array([16])), "does not fit int64"),
    ],
)
def test_what_gives_no_keys_is_refused(act, complaint):
    with pytest.raises(ValueError, match=complaint):
        act(PrefixBlocks(ids=[2**62], offsets=[0, 1], tokens_per_block=16))
