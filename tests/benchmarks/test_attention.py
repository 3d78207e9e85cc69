"""Attention on the CPU: paged torch by block size, beside a contiguous cache and torch's own.

One layer of Llama-3-8B in bfloat16. `make bench` turns the clock on; without it each is one call
whose answer is held against float64.
"""

from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.check.timing import sdpa_one_by_one
from paged.attention import paged_attention
from reference.attention.checks import judge
from reference.attention.contiguous import ContiguousBatch, contiguous_attention
from reference.attention.inputs import Inputs, make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.tolerance import worst_excess
from reference.attention.truth import Truth, attend

DECODE = "8x(q1 k1024) h8 g4 d128 b16 bf16"
PREFILL = "(q128 k1024) h8 g4 d128 b16 bf16"

decode = pytest.mark.benchmark(group=f"decode step: {DECODE}")
prefill = pytest.mark.benchmark(group=f"prefill chunk: {PREFILL}")
block_sizes = pytest.mark.parametrize("block_size", [1, 16, 128], ids="b{}".format)


@cache
def solved(spec: str) -> tuple[Inputs, Truth]:
    """The tensors of a problem and their answer; neither depends on the block size."""
    inputs = make_inputs(AttentionProblem.parse(spec))
    return inputs, attend(inputs)


def time_paged(benchmark: BenchmarkFixture, spec: str, block_size: int) -> None:
    inputs, truth = solved(spec)
    problem = inputs.problem.replace(block_size=block_size)
    placement = place(Inputs(problem, inputs.query, inputs.keys, inputs.values, None, None))
    benchmark(paged_attention, placement.batch)
    assert judge(problem, truth, placement) == []


def contiguous(inputs: Inputs) -> ContiguousBatch:
    """The same tokens, one sequence a row."""
    problem = inputs.problem
    rows = (len(problem.requests), problem.max_seq_len, problem.num_kv_heads, problem.head_dim)
    out = torch.full_like(inputs.query, torch.nan)
    return ContiguousBatch(
        query=inputs.query,
        key_cache=inputs.keys.view(rows),
        value_cache=inputs.values.view(rows),
        seq_lens=torch.tensor([r.seq_len for r in problem.requests], dtype=torch.int32),
        query_start_loc=torch.tensor(problem.query_starts, dtype=torch.int32),
        out=out,
        lse=torch.full(out.shape[:2], torch.nan),
        scale=problem.softmax_scale,
    )


def time_contiguous(benchmark: BenchmarkFixture, spec: str) -> None:
    inputs, truth = solved(spec)
    batch = contiguous(inputs)
    benchmark(contiguous_attention, batch)
    assert worst_excess(inputs.problem, truth, batch.out, batch.lse) is None


@decode
@block_sizes
def test_decode_paged(benchmark: BenchmarkFixture, block_size: int) -> None:
    time_paged(benchmark, DECODE, block_size)


@decode
def test_decode_contiguous(benchmark: BenchmarkFixture) -> None:
    time_contiguous(benchmark, DECODE)


@decode
def test_decode_torch_sdpa(benchmark: BenchmarkFixture) -> None:
    inputs, truth = solved(DECODE)
    batch = contiguous(inputs)
    benchmark(sdpa_one_by_one, batch, batch.seq_lens.tolist())
    assert worst_excess(inputs.problem, truth, batch.out, None) is None


@prefill
@block_sizes
def test_prefill_paged(benchmark: BenchmarkFixture, block_size: int) -> None:
    time_paged(benchmark, PREFILL, block_size)


@prefill
def test_prefill_contiguous(benchmark: BenchmarkFixture) -> None:
    time_contiguous(benchmark, PREFILL)
