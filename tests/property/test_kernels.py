"""The Triton kernels, interpreted, against float64 contiguous attention on drawn problems.

Together these are some 200 drawn problems in everyday runs, and 4,000 in `make test-long`.
"""

from functools import partial
from itertools import cycle

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given
from hypothesis import strategies as st

from helpers.mutants import in_a_large_pool
from helpers.profiles import examples
from kernels import interpreter
from kernels.attention import paged_attention
from kernels.launch import Tiles
from reference.attention.catalogue import LAWS, TRUTH, applicable
from reference.attention.checks import judge, run_check
from reference.attention.contract import Capabilities
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems
from reference.attention.truth import attend
from reference.attention.verdict import Status


@st.composite
def problems_and_tiles(draw: st.DrawFn, **limits: bool) -> tuple[AttentionProblem, Tiles]:
    """A problem and any tile that holds a group of query heads: the answer may not depend on it."""
    problem = draw(problems(**limits))
    rows = [rows for rows in (16, 32, 64) if rows >= problem.group_size]
    return problem, Tiles(
        block_n=draw(st.sampled_from((64, 16, 32, 128))), block_m=draw(st.sampled_from(rows))
    )


def accept(problem: AttentionProblem, **launch: object) -> None:
    """Fail with the problem's spec unless the kernel's answer is right."""
    kernel = partial(paged_attention, **launch)
    verdict = run_check(TRUTH, kernel, problem)
    assert verdict.status is Status.PASSED, (str(problem), launch, verdict.findings)


@examples(60)
@given(problems_and_tiles(prefill=False), st.sampled_from((1, 2, 3, 5, 8)))
def test_decode_with_any_tile_and_split(drawn, num_splits):
    problem, tile = drawn
    accept(problem, tiles=tile, num_splits=num_splits)


@examples(40)
@given(problems_and_tiles(prefill=True))
def test_prefill_chunked_and_mixed_with_any_tile(drawn):
    problem, tile = drawn
    accept(problem, tiles=tile)


# The soft-cap's exp2 overflows, to the infinity that its formula wants.
OVERFLOWING = AttentionProblem.parse(
    "(q75 k75) 2x(q72 k72) (q1 k104) g20 d96 b16 fp32 softcap=5.0 shared=94 inputs=loud seed=282"
)


@examples(30)
@given(problems())
@example(OVERFLOWING)
def test_as_launched_by_default(problem):
    accept(problem)


@pytest.mark.parametrize(
    "law", [law for law in LAWS if law.concerns(Capabilities())], ids=lambda law: law.name
)
def test_laws(law):
    # Few batches share a whole block: drawing them is cheap, running them is not.
    @examples(8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
    @given(problems(max_len=100))
    def holds(problem):
        assume(law.applies(problem))
        verdict = run_check(law, paged_attention, problem)
        assert verdict.status is Status.PASSED, (str(problem), verdict.findings)

    holds()


@examples(10)
@given(problems(prefill=False, max_len=300), st.sampled_from((1, 2, 4)))
def test_splits_agree_with_one_split(problem, block_n):
    inputs = make_inputs(problem)
    truth = attend(inputs)
    for num_splits in (1, 3, 7):
        placement = place(inputs)
        paged_attention(
            placement.batch, num_splits=num_splits, tiles=Tiles(block_n=16 * block_n, block_m=32)
        )
        assert not judge(problem, truth, placement), (str(problem), num_splits)


@examples(15)
@given(problems(max_len=100))
def test_no_int32_overflow_in_any_address(problem):
    with interpreter.overflow_checks():
        accept(problem)


SPECS = (
    "(q1 k0) d16 b1 fp32",
    "(q0 k0) (q1 k1) d16 b1 fp32",
    "3x(q1 k0) g8 d256 b256 bf16 sinks",
    "2x(q1 k129) g4 d80 b16 bf16 window=32",
    "(q64 k64) (q1 k300) (q17 k80) h2 g4 d128 b16 fp16 softcap=30.0 sinks alibi",
    "(q1 k1000) g71 d64 b64 bf16 kv=e4m3 kscale=0.5 vscale=0.25",
    "(q33 k33) g3 d96 b8 fp32 noncausal inputs=loud",
    "(q5 k200) g5 d16 b4 bf16 window=1",
)


@pytest.mark.parametrize("spec", SPECS)
def test_named_problems(spec):
    problem = AttentionProblem.parse(spec)
    accept(problem)
    for law in applicable(problem):
        verdict = run_check(law, paged_attention, problem)
        assert verdict.status is Status.PASSED, verdict.findings


@pytest.mark.parametrize("block_size", [16, 256])
def test_a_cache_of_more_than_two_to_the_31_elements(block_size):
    problem = AttentionProblem.parse(f"(q1 k300) g4 d128 b{block_size} bf16 kv=e4m3")
    placement = place(make_inputs(problem), seed=1)
    truth = attend(make_inputs(problem))
    # The prefill kernel takes the same call as a batch of longer queries.
    for query_len, launch in ((1, {"num_splits": 1}), (1, {"num_splits": 3}), (2, {})):
        placement.reset()
        kernel = in_a_large_pool(partial(paged_attention, **launch))
        kernel(placement.batch.replace(max_query_len=query_len))
        assert not judge(problem, truth, placement)


def test_what_breaks_the_contract_is_refused():
    batch = place(make_inputs(AttentionProblem.parse("(q1 k20) g2 d16 b16 fp32"))).batch
    keys = batch.key_cache
    three_heads = torch.cat([keys, keys, keys], dim=2)
    wrong = {
        "num_splits=0": ({}, {"num_splits": 0}),
        "block_m=1:": ({}, {"tiles": Tiles(block_n=16, block_m=1)}),
        "same blocks, slots, heads and dtype": ({"value_cache": batch.value_cache[1:]}, {}),
        "not a whole group": ({"key_cache": three_heads, "value_cache": three_heads}, {}),
        "power of two": ({"key_cache": keys[:, :3], "value_cache": keys[:, :3]}, {}),
        "must be 1": ({"key_cache": keys[..., ::2], "value_cache": keys[..., ::2]}, {}),
        "must be int32": ({"seq_lens": batch.seq_lens.long()}, {}),
    }
    for message, (change, launch) in wrong.items():
        with pytest.raises(ValueError, match=message):
            paged_attention(batch.replace(**change), **launch)


def test_every_law_was_reached():
    # A law that no drawn problem can show would pass above without having been tried.
    reached = set()
    for seed, spec in zip(range(len(SPECS) * 2), cycle(SPECS), strict=False):
        problem = AttentionProblem.parse(spec).replace(seed=seed, shared_prefix=32)
        reached |= {law.name for law in applicable(problem)}
    assert reached == {law.name for law in LAWS if law.concerns(Capabilities())}
