"""Attention by chunks, over the contiguous cache and over the paged one, against the truth.

The drawn problems are cut into chunks of 16 keys instead of 64, so that small ones have many.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from helpers.profiles import examples
from paged.attention import paged_attention
from reference.attention.chunked import CHUNK_TOKENS, attend_in_chunks
from reference.attention.contiguous import ContiguousBatch, contiguous_attention
from reference.attention.contract import AttentionKernel, Capabilities, PagedBatch
from reference.attention.inputs import Inputs, make_inputs
from reference.attention.placement import Placement, place
from reference.attention.problem import INPUT_KINDS, AttentionProblem, Request
from reference.attention.strategies import problems
from reference.attention.tolerance import Excess, worst_excess
from reference.attention.truth import attend


def contiguous_cache(inputs: Inputs, contents: Tensor) -> Tensor:
    """[num_seqs, longest + 3, heads, head_dim]: one row for each sequence, NaN beyond its end."""
    problem = inputs.problem
    shape = (len(problem.requests), problem.max_seq_len + 3, *contents.shape[1:])
    cache = torch.full(shape, torch.nan).to(contents.dtype)
    for row, (start, request) in enumerate(
        zip(problem.cache_starts, problem.requests, strict=False)
    ):
        cache[row, : request.seq_len] = contents[start : start + request.seq_len]
    return cache


def reserve(inputs: Inputs) -> ContiguousBatch:
    problem = inputs.problem
    return ContiguousBatch(
        query=inputs.query,
        key_cache=contiguous_cache(inputs, inputs.keys),
        value_cache=contiguous_cache(inputs, inputs.values),
        seq_lens=torch.tensor([r.seq_len for r in problem.requests], dtype=torch.int32),
        query_start_loc=torch.tensor(problem.query_starts, dtype=torch.int32),
        out=torch.full_like(inputs.query, torch.nan),
        lse=torch.full(inputs.query.shape[:2], torch.nan),
        scale=problem.softmax_scale,
        causal=problem.causal,
        window=problem.window,
        softcap=problem.softcap,
        alibi_slopes=inputs.alibi_slopes,
        sinks=inputs.sinks,
        k_scale=problem.k_scale,
        v_scale=problem.v_scale,
    )


def excess_of_contiguous(problem: AttentionProblem) -> Excess | None:
    inputs = make_inputs(problem)
    batch = reserve(inputs)
    before = [
        batch.key_cache.view(torch.uint8).clone(),
        batch.value_cache.view(torch.uint8).clone(),
    ]
    contiguous_attention(batch)
    after = [batch.key_cache.view(torch.uint8), batch.value_cache.view(torch.uint8)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return worst_excess(problem, attend(inputs), batch.out, batch.lse)


def excess_of_paged(problem: AttentionProblem) -> Excess | None:
    inputs = make_inputs(problem)
    placement = place(inputs)
    paged_attention(placement.batch)
    assert placement.overwritten() == []
    return worst_excess(problem, attend(inputs), placement.batch.out, placement.batch.lse)


CACHES = {"contiguous": excess_of_contiguous, "paged": excess_of_paged}
each_cache = pytest.mark.parametrize("excess_of", CACHES.values(), ids=CACHES)


Excesses = Callable[[AttentionProblem], Excess | None]


@contextmanager
def chunks_of(tokens: int) -> Iterator[None]:
    """Both caches cut the KV range into chunks of this length."""

    def cut(*arguments: Any, **options: Any) -> None:
        attend_in_chunks(*arguments, **{**options, "chunk": tokens})

    with (
        mock.patch("reference.attention.contiguous.attend_in_chunks", cut),
        mock.patch("paged.attention.attend_in_chunks", cut),
    ):
        yield


# --- by hand: the boundaries ---------------------------------------------------------------------

BOUNDARIES = [count * CHUNK_TOKENS + off for count in (1, 2) for off in (-1, 0, 1)]


@each_cache
@pytest.mark.parametrize("length", BOUNDARIES)
@pytest.mark.parametrize(
    "words",
    [
        "",
        "noncausal",
        "window=1",
        "window=3",
        f"window={CHUNK_TOKENS}",
        f"window={CHUNK_TOKENS + 1}",
        "softcap=5 alibi sinks",
        f"window={CHUNK_TOKENS - 6} alibi sinks kv=e4m3 kscale=0.5 vscale=1.7",
    ],
)
def test_lengths_on_both_sides_of_a_chunk(excess_of: Excesses, words: str, length: int) -> None:
    spec = f"(q3 k{length}) (q1 k{length}) (q1 k5) d16 h2 g2 b32 fp32 {words}"
    assert excess_of(AttentionProblem.parse(spec)) is None


@each_cache
@pytest.mark.parametrize("block_size", [1, 16, 256])
@pytest.mark.parametrize("inputs", INPUT_KINDS)
def test_unsorted_batches_of_all_kinds_of_requests(
    excess_of: Excesses, inputs: str, block_size: int
) -> None:
    spec = (
        "(q1 k3) (q0 k0) (q1 k600) (q5 k300) (q1 k0) (q1 k129) (q40 k40) (q1 k1) (q0 k9) "
        f"d16 g3 b{block_size} fp32 inputs={inputs}"
    )
    assert excess_of(AttentionProblem.parse(spec)) is None


@each_cache
def test_a_long_prefill_that_spans_chunks(excess_of: Excesses) -> None:
    assert excess_of(AttentionProblem.parse("(q300 k600) (q1 k2) d16 b16 fp32 window=290")) is None


# Decode sequences without a chunk in common: between them lies one that no window reaches.
GAPS = [
    "(q1 k40) (q1 k9) d16 b16 fp32 window=3",
    "(q1 k9) (q1 k100) (q1 k0) d16 b1 fp32 window=1",
    "(q1 k150) (q1 k60) (q1 k20) (q1 k1) d16 b32 fp32 window=2 sinks",
]


@each_cache
@pytest.mark.parametrize("spec", GAPS)
def test_windows_that_leave_a_chunk_to_nobody(excess_of: Excesses, spec: str) -> None:
    with chunks_of(16):
        assert excess_of(AttentionProblem.parse(spec)) is None


@each_cache
@pytest.mark.parametrize("block_size", [16, 256])
def test_windows_that_leave_many_chunks_to_nobody(excess_of: Excesses, block_size: int) -> None:
    spec = f"(q1 k2000) (q1 k100) d16 b{block_size} fp32 window=10"
    assert excess_of(AttentionProblem.parse(spec)) is None


# Longest first, and yet the decode sequences are no slice of the batch.
SPLIT_BATCHES = [
    "(q1 k30) (q5 k20) (q1 k10) d16 b16 fp32",
    "(q1 k30) (q0 k20) (q1 k10) d16 b16 fp32",
    "(q1 k30) (q1 k30) (q2 k30) (q1 k30) (q4 k8) (q1 k8) (q1 k0) d16 b16 fp32 window=9",
]


@pytest.mark.parametrize(
    "excess_of",
    [excess_of_contiguous, excess_of_paged],
    ids=CACHES,
)
@pytest.mark.parametrize("spec", SPLIT_BATCHES)
def test_sorted_batches_with_other_requests_between_the_decodes(
    excess_of: Excesses, spec: str
) -> None:
    with chunks_of(16):
        assert excess_of(AttentionProblem.parse(spec)) is None


# --- drawn ---------------------------------------------------------------------------------------

SIXTEEN = Capabilities(head_dims=frozenset({16}))


@st.composite
def orderly_problems(draw: st.DrawFn) -> AttentionProblem:
    """Also with idle sequences, and half of them sorted by length as an engine may do."""
    problem = draw(problems(capabilities=SIXTEEN, max_seqs=6, max_len=120))
    batch = list(problem.requests)
    if draw(st.booleans()):
        batch.append(Request(0, draw(st.integers(0, 100))))
    if draw(st.booleans()):
        batch.sort(key=lambda request: -request.seq_len)
    if problem.causal and draw(st.booleans()):
        problem = problem.replace(window=draw(st.integers(1, 20)))
    return problem.replace(requests=tuple(batch))


@pytest.mark.parametrize(
    "excess_of",
    [excess_of_contiguous, excess_of_paged],
    ids=CACHES,
)
def test_drawn_problems_in_chunks_of_16(excess_of: Excesses) -> None:
    @examples(50)
    @example(AttentionProblem.parse(GAPS[0]))
    @example(AttentionProblem.parse(SPLIT_BATCHES[0]))
    @given(orderly_problems())
    def right(problem: AttentionProblem) -> None:
        with chunks_of(16):
            assert excess_of(problem) is None

    right()


@examples(40)
@given(problems(capabilities=SIXTEEN, max_len=100), st.sampled_from((1, 3, 16, 100)))
def test_the_length_of_a_chunk_matters_only_to_rounding(
    problem: AttentionProblem, tokens: int
) -> None:
    # Also chunks that begin within a block: the gather has to skip its first rows.
    with chunks_of(tokens):
        assert excess_of_paged(problem) is None


@examples(40)
@given(problems(max_len=CHUNK_TOKENS))
def test_paged_and_contiguous_give_the_same_bits(problem: AttentionProblem) -> None:
    # One arithmetic, and these problems fit in one chunk: only where the keys lie differs.
    ordered = sorted(problem.requests, key=lambda r: (r.query_len, -r.seq_len))
    inputs = make_inputs(problem.replace(requests=tuple(ordered)))
    reserved, placement = reserve(inputs), place(inputs)
    contiguous_attention(reserved)
    paged_attention(placement.batch)
    assert torch.equal(reserved.out, placement.batch.out)
    assert reserved.lse is not None
    assert placement.batch.lse is not None
    assert torch.equal(reserved.lse, placement.batch.lse)


# --- what is not asked for, and what is not read -------------------------------------------------


@pytest.mark.parametrize("spec", ["(q1 k40) (q3 k20) (q1 k0) g2 d16 fp32", "2x(q1 k20) d16 sinks"])
def test_without_lse_nothing_changes(spec: str) -> None:
    inputs = make_inputs(AttentionProblem.parse(spec))
    one, other = place(inputs), place(inputs)
    paged_attention(one.batch)
    paged_attention(other.batch.replace(lse=None))
    assert torch.equal(one.batch.out, other.batch.out)
    assert other.batch.lse is not None
    assert bool(other.batch.lse.isnan().all())


def test_a_batch_without_query_tokens_is_answered() -> None:
    inputs = make_inputs(AttentionProblem.parse("(q0 k0) (q0 k7) d16"))
    paged_attention(place(inputs).batch)
    contiguous_attention(reserve(inputs))


def read_through_the_table(placement: Placement) -> set[int]:
    """Blocks that paged attention gathers, by watching `index_select`."""
    seen: set[int] = set()
    select = Tensor.index_select

    def watched(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
        seen.update(index.tolist())
        return select(tensor, dim, index)

    with mock.patch.object(Tensor, "index_select", watched):
        paged_attention(placement.batch)
    return seen


@pytest.mark.parametrize("words", ["", "window=5", "noncausal"])
def test_only_blocks_of_the_batch_are_gathered(words: str) -> None:
    problem = AttentionProblem.parse(f"(q1 k300) (q1 k7) (q4 k90) (q1 k0) d16 b16 fp32 {words}")
    placement = place(make_inputs(problem))
    owned = set((placement.owned_slots // problem.block_size).tolist())
    seen = read_through_the_table(placement)
    assert seen
    assert seen <= owned


def test_a_window_keeps_chunks_before_it_from_being_read() -> None:
    problem = AttentionProblem.parse("(q1 k1000) d16 b16 fp32 window=20")
    placement = place(make_inputs(problem))
    # The window reaches from 980 to 999, and reading begins at the chunk that holds 980.
    first = 980 // CHUNK_TOKENS * CHUNK_TOKENS
    assert first > 0
    assert len(read_through_the_table(placement)) == -(-(1000 - first) // 16)


def wrong_at_the_boundary(batch: PagedBatch) -> None:
    """Skips the first key of the second chunk, as a range with a wrong start would."""
    blocks = batch.key_cache.clone()
    blocks[batch.block_table[:, CHUNK_TOKENS // batch.block_size].long(), 0] = 0
    paged_attention(batch.replace(key_cache=blocks))


@pytest.mark.parametrize(
    ("kernel", "right"), [(paged_attention, True), (wrong_at_the_boundary, False)]
)
def test_one_key_lost_at_a_boundary_would_be_seen(kernel: AttentionKernel, right: bool) -> None:  # noqa: FBT001 - a parameter of the test
    problem = AttentionProblem.parse("2x(q1 k400) d64 b16 fp32")
    inputs = make_inputs(problem)
    placement = place(inputs)
    kernel(placement.batch)
    batch = placement.batch
    assert (worst_excess(problem, attend(inputs), batch.out, batch.lse) is None) == right
