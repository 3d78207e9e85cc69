"""A request stream refuses what is not one, and its parts stay in step."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workloads.prefix import PrefixBlocks
from bench.workloads.stream import MAX_TOKENS
from helpers.profiles import examples
from helpers.streams import stream


def prefix(ids, offsets, *, tokens_per_block=4):
    return PrefixBlocks(ids=ids, offsets=offsets, tokens_per_block=tokens_per_block)


def test_columns_are_typed_copies_that_cannot_be_written():
    given_tokens = np.array([3, 4])
    made = stream(given_tokens, [1, 2], arrival_s=[0, 1])
    given_tokens[0] = 99
    assert made.prompt_tokens.tolist() == [3, 4]
    assert made.prompt_tokens.dtype == made.output_tokens.dtype == np.int64
    assert made.arrival_s.dtype == np.float64
    assert made.final_tokens.tolist() == [4, 6]
    assert (len(made), repr(made)) == (2, "RequestStream('s', 2 requests, source='a test')")
    for column in (made.prompt_tokens, made.output_tokens, made.arrival_s):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "other"


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"prompt": [], "output": []}, "'s' has no request"),
        ({"prompt": [1, 2], "output": [1]}, "2 prompt lengths and 1 output lengths"),
        ({"prompt": [1, -2], "output": [1, 1]}, r"prompt_tokens\[1\] is -2"),
        ({"prompt": [1], "output": [MAX_TOKENS + 1]}, rf"output_tokens\[0\] is {MAX_TOKENS + 1}"),
        ({"prompt": [1.5], "output": [1]}, "prompt_tokens is float64"),
        ({"prompt": [True], "output": [1]}, "prompt_tokens is bool"),
        ({"prompt": [[1]], "output": [1]}, r"int64 \[1, 1\]; it must be one dimension"),
        ({"prompt": [1], "output": [1], "arrival_s": [0.0, 1.0]}, r"shape \[2\]; give one time"),
        ({"prompt": [1], "output": [1], "arrival_s": [np.nan]}, r"arrival_s\[0\] is nan"),
        ({"prompt": [1], "output": [1], "arrival_s": [-1.0]}, r"arrival_s\[0\] is -1.0"),
        ({"arrival_s": [2.0, 1.0]}, "sort the requests"),
        ({"tenant": [0, 0]}, "tenant is given without tenant_names"),
        ({"tenant": [0, 2], "tenant_names": ("a", "b")}, r"tenant\[1\] is 2"),
        ({"tenant": [0], "tenant_names": ("a",)}, "tenant has 1 entries; give one for each of the"),
        ({"tenant_names": ("a",)}, "tenant is None; give both or neither"),
        ({"prefix": prefix([1], [0, 1])}, "cover 1 requests of 2"),
        ({"prefix": prefix([1, 2, 3], [0, 1, 3])}, "request 1 has 2 prefix blocks of 4 tokens"),
    ],
)
def test_bad_columns_are_refused_with_the_value(columns, complaint):
    with pytest.raises(ValueError, match=complaint):
        stream(**{"prompt": [4, 4], "output": [1, 1], **columns})


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"ids": [1, 2], "offsets": [0, 1]}, "do not cover the 2 ids"),
        ({"ids": [1, 2], "offsets": [1, 2]}, "do not cover the 2 ids"),
        ({"ids": [], "offsets": []}, "do not cover the 0 ids"),
        ({"ids": [1, 2], "offsets": [0, 2, 1, 2]}, "fall after entry 1"),
        ({"ids": [-1], "offsets": [0, 1]}, r"prefix ids\[0\] is -1"),
        ({"ids": [1], "offsets": [0, 1], "tokens_per_block": 0}, "tokens_per_block is 0"),
    ],
)
def test_bad_prefix_blocks_are_refused(parts, complaint):
    with pytest.raises(ValueError, match=complaint):
        prefix(**parts)


def test_prefix_blocks_of_a_request():
    blocks = prefix([7, 8, 9], [0, 2, 2, 3])
    assert [blocks.of(request).tolist() for request in range(3)] == [[7, 8], [], [9]]
    with pytest.raises(IndexError, match="request 3 of 3"):
        blocks.of(3)
    with pytest.raises(IndexError, match="request -1 of 3"):
        blocks.of(-1)


@examples(100)
@given(
    rows=st.lists(
        st.tuples(st.lists(st.integers(0, 99), max_size=5), st.integers(0, 50), st.booleans()),
        min_size=1,
        max_size=12,
    ).filter(lambda rows: any(keep for *_, keep in rows))
)
def test_take_keeps_all_columns_in_step(rows):
    counts = [len(ids) for ids, *_ in rows]
    whole = stream(
        [4 * count for count in counts],
        [output for _, output, _ in rows],
        arrival_s=np.arange(len(rows)),
        prefix=prefix(
            np.array([i for ids, *_ in rows for i in ids], dtype=np.int64),
            np.concatenate(([0], np.cumsum(counts))),
        ),
    )
    kept = [index for index, (*_, keep) in enumerate(rows) if keep]
    part = whole.take(np.array(kept))
    assert part.prompt_tokens.tolist() == [4 * counts[index] for index in kept]
    assert part.output_tokens.tolist() == [rows[index][1] for index in kept]
    assert part.arrival_s.tolist() == kept
    assert [part.prefix.of(r).tolist() for r in range(len(part))] == [rows[i][0] for i in kept]


def test_head_takes_the_first_and_no_more_than_there_are():
    whole = stream([1, 2, 3], [4, 5, 6])
    assert whole.head(2).prompt_tokens.tolist() == [1, 2]
    assert len(whole.head(9)) == 3
    with pytest.raises(ValueError, match=r"head\(0\)"):
        whole.head(0)


def test_tenants_stay_with_their_requests():
    made = stream([3, 4, 5], [1, 2, 3], tenant=[1, 0, 1], tenant_names=("a", "b"))
    assert made.tenant.dtype == np.int64
    kept = made.take(np.array([1, 2]))
    assert (kept.tenant.tolist(), kept.tenant_names) == ([0, 1], ("a", "b"))
    assert made.between(2, 9).tenant.tolist() == [1]
    assert made.take(np.array([2, 1])).prompt_tokens.tolist() == [5, 4]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 5), (1, 1), (1, 0)])
def test_a_run_without_requests_is_refused(start, stop):
    with pytest.raises(ValueError, match=rf"between\({start}, {stop}\) leaves no request of 2"):
        stream([1, 2], [1, 2]).between(start, stop)
