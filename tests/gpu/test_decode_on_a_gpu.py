"""Decode as an engine runs it: the same bits every time, no waiting, in a CUDA graph."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from kernels.attention import batch_invariant_attention, paged_attention
from reference.attention.checks import judge
from reference.attention.contract import PagedBatch
from reference.attention.inputs import make_inputs
from reference.attention.placement import Placement, place
from reference.attention.problem import AttentionProblem
from reference.attention.truth import attend

RAGGED = "(q1 k9000) 3x(q1 k700) (q1 k0) (q1 k130) 30x(q1 k1500) h4 g4 d128 b16 bf16 sinks"
MIXED = "(q1 k3000) (q60 k700) (q1 k130) (q7 k7) h4 g4 d128 b16 bf16 sinks"


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Whatever makes the host wait for the device raises."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def placed(spec: str) -> Placement:
    return place(make_inputs(AttentionProblem.parse(spec), device="cuda"))


def fresh(batch: PagedBatch) -> PagedBatch:
    """The same call with outputs of its own."""
    return batch.replace(
        out=torch.full_like(batch.out, torch.nan), lse=torch.full_like(batch.lse, torch.nan)
    )


@pytest.mark.parametrize("attention", [paged_attention, batch_invariant_attention])
@pytest.mark.parametrize("spec", [RAGGED, RAGGED + " kv=e5m2 kscale=0.5"])
def test_a_thousand_repeats_give_the_same_bits(spec, attention):
    batch = placed(spec).batch
    attention(batch)
    first_out, first_lse = batch.out.clone(), batch.lse.clone()
    differing = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        batch.out.fill_(torch.nan)
        batch.lse.fill_(torch.nan)
        attention(batch)
        differing += (batch.out.view(torch.int16) != first_out.view(torch.int16)).sum()
        differing += (batch.lse.view(torch.int32) != first_lse.view(torch.int32)).sum()
    assert differing.item() == 0


@pytest.mark.parametrize("attention", [paged_attention, batch_invariant_attention])
@pytest.mark.parametrize("spec", [RAGGED, MIXED])
def test_the_host_never_waits(spec, attention):
    placement = placed(spec)
    attention(placement.batch)  # compiles, and loads what was compiled
    torch.cuda.synchronize()
    placement.reset()
    with no_synchronisation():
        attention(placement.batch)
    problem = AttentionProblem.parse(spec)
    assert not judge(problem, attend(make_inputs(problem)), placement)


@pytest.mark.parametrize("attention", [paged_attention, batch_invariant_attention])
def test_a_graph_is_right_for_other_lengths(attention):
    batch = placed(RAGGED).batch
    attention(batch)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        attention(batch)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention(batch)
    longest = batch.seq_lens.clone()
    generator = torch.Generator(device="cuda").manual_seed(0)
    for _ in range(20):
        # Up to the length that was captured: the first tokens of each sequence.
        share = torch.rand(longest.shape, device="cuda", generator=generator)
        batch.seq_lens.copy_((longest * share).to(torch.int32))
        batch.out.fill_(torch.nan)
        graph.replay()
        eager = fresh(batch)
        attention(eager)
        assert torch.equal(batch.out, eager.out)
        assert torch.equal(batch.lse, eager.lse)
        assert not batch.out.isnan().any()


@pytest.mark.parametrize("spec", [RAGGED, MIXED, MIXED + " kv=e5m2"])
def test_a_sequence_gets_the_same_bits_alone_and_in_its_batch(spec):
    problem = AttentionProblem.parse(spec)
    inputs = make_inputs(problem, device="cuda")
    together = place(inputs).batch
    batch_invariant_attention(together)
    for index, request in enumerate(problem.requests):
        alone = place(inputs.select([(index, request)]), seed=3).batch
        batch_invariant_attention(alone)
        rows = slice(problem.query_starts[index], problem.query_starts[index + 1])
        assert torch.equal(alone.out.view(torch.int16), together.out[rows].view(torch.int16))
        assert torch.equal(alone.lse.view(torch.int32), together.lse[rows].view(torch.int32))


@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_float8_value_comes_out_as_it_is(kv_dtype):
    if kv_dtype == torch.float8_e4m3fn and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("e4m3 needs sm_89 or newer")
    problem = AttentionProblem.parse("16x(q1 k1) d16 b1 bf16")
    batch = placed(str(problem)).batch
    codes = torch.arange(256, dtype=torch.int16, device="cuda").to(torch.uint8).view(kv_dtype)
    values = codes.view(16, 1, 1, 16)
    batch = batch.replace(
        key_cache=torch.zeros_like(values),
        value_cache=values,
        block_table=torch.arange(16, dtype=torch.int32, device="cuda")[:, None],
    )
    paged_attention(batch)
    expected = codes.view(16, 16).float().to(torch.bfloat16)
    assert torch.equal(batch.out[:, 0].isnan(), expected.isnan())
    assert torch.equal(batch.out[:, 0].nan_to_num(7.0), expected.nan_to_num(7.0))
