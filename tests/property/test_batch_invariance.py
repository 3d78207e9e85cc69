"""In batch-invariant attention the bits of a sequence depend on nothing but the sequence."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.profiles import examples
from kernels import interpreter
from kernels.attention import batch_invariant_attention, paged_attention
from kernels.launch import Tiles
from reference.attention.catalogue import TRUTH, applicable
from reference.attention.checks import run_check
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems
from reference.attention.verdict import Status

MIXED = "(q1 k200) (q0 k30) (q7 k150) (q1 k0) (q1 k90) h2 g4 d64 b16 bf16"

INTEGERS = {2: torch.int16, 4: torch.int32}

assert interpreter.installed()  # bfloat16 is wrong without it


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits, so that -0 is not 0 and a NaN equals itself."""
    return tensor.view(INTEGERS[tensor.element_size()])


def run(attention, batch, **launch: object) -> None:
    """As on a GPU, where the soft-cap's exp2 becomes infinite without a warning."""
    with np.errstate(all="ignore"):
        attention(batch, **launch)


def changed_by_neighbours(attention, problem: AttentionProblem, **launch: object) -> list[int]:
    """Sequences that get other bits alone than in the batch."""
    inputs = make_inputs(problem)
    together = place(inputs).batch
    run(attention, together, **launch)
    starts = problem.query_starts
    changed = []
    for index, request in enumerate(problem.requests):
        if not request.query_len:
            continue
        alone = place(inputs.select([(index, request)]), seed=7).batch
        run(attention, alone, **launch)
        rows = slice(starts[index], starts[index + 1])
        same = torch.equal(bits(alone.out), bits(together.out[rows]))
        if together.lse is not None and alone.lse is not None:
            same = same and torch.equal(bits(alone.lse), bits(together.lse[rows]))
        if not same:
            changed.append(index)
    return changed


@examples(15)
@given(problems(max_len=300), st.sampled_from((16, 32)))
def test_a_sequence_gets_the_same_bits_alone_and_in_any_batch(problem, block_n):
    tiles = Tiles(block_n=block_n, block_m=64 if problem.group_size <= 64 else 128)
    assert changed_by_neighbours(batch_invariant_attention, problem, tiles=tiles) == []


@pytest.mark.parametrize("variant", ["", "sinks", "kv=e4m3 kscale=0.5", "window=40 softcap=30.0"])
@pytest.mark.parametrize(
    "requests", [MIXED, MIXED.replace("(q7 k150) ", ""), MIXED.replace("(q1 k200)", "(q1 k1500)")]
)
def test_mixed_batches_and_long_neighbours(requests, variant):
    problem = AttentionProblem.parse(f"{requests} {variant}")
    assert changed_by_neighbours(batch_invariant_attention, problem) == []


def test_bits_do_not_depend_on_the_longest_length_that_is_announced():
    batch = place(make_inputs(AttentionProblem.parse("(q1 k300) g4 d64 b16 bf16 sinks"))).batch
    batch_invariant_attention(batch)
    other = batch.replace(
        out=torch.empty_like(batch.out),
        lse=torch.empty_like(batch.lse),
        max_seq_len=20_000,
        max_query_len=9,
    )
    batch_invariant_attention(other)
    assert torch.equal(bits(batch.out), bits(other.out))
    assert torch.equal(bits(batch.lse), bits(other.lse))


@pytest.mark.parametrize(
    "spec",
    [
        "(q1 k600) (q1 k20000) d16 b16 fp32",  # the long neighbour makes splits longer
        "(q1 k600) (q9 k64) g4 d64 b16 fp32",  # the longer query brings in the prefill kernel
    ],
)
def test_by_default_neighbours_may_change_the_last_bits(spec):
    problem = AttentionProblem.parse(spec)
    assert 0 in changed_by_neighbours(paged_attention, problem)
    assert changed_by_neighbours(batch_invariant_attention, problem) == []


@examples(10)
@given(problems(max_len=150))
def test_it_is_right(problem):
    verdict = run_check(TRUTH, batch_invariant_attention, problem)
    assert verdict.status is Status.PASSED, (str(problem), verdict.findings)


def test_it_obeys_the_laws():
    problem = AttentionProblem.parse(f"{MIXED} shared=48")
    for law in applicable(problem):
        verdict = run_check(law, batch_invariant_attention, problem)
        assert verdict.status is Status.PASSED, (law.name, verdict.findings)


def test_a_tile_that_does_not_hold_a_group_is_refused():
    batch = place(make_inputs(AttentionProblem.parse("(q1 k20) g17 d16 b16 fp32"))).batch
    with pytest.raises(ValueError, match="block_m=16: a tile holds the 17 query heads"):
        batch_invariant_attention(batch, tiles=Tiles(block_n=16, block_m=16))
