"""What a launch of the attention kernels costs in Triton's interpreter.

With PAGEDBENCH_STOCK_INTERPRETER=1: in Triton's own, whose bfloat16 results are wrong. `watched` is
with the memory checker on, its shadow state built anew for every launch, as a check does.
"""

from functools import partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kernels import interpreter
from kernels.attention import paged_attention
from kernels.interpreter.memory import watch_attention
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem

LAUNCHES = pytest.mark.parametrize(
    ("spec", "num_splits"),
    [
        pytest.param("2x(q1 k129) g4 d64 b16 fp32", 1, id="decode-fp32"),
        pytest.param("2x(q1 k129) g4 d64 b16 bf16", 1, id="decode-bf16"),
        pytest.param("2x(q1 k200) g4 d64 b16 fp32", 3, id="decode-3-splits"),
        pytest.param("(q20 k129) (q1 k40) (q5 k5) g4 d64 b16 fp32", None, id="prefill-fp32"),
        pytest.param("(q20 k129) (q1 k40) (q5 k5) g4 d64 b16 bf16", None, id="prefill-bf16"),
    ],
)


@LAUNCHES
def test_launch(benchmark: BenchmarkFixture, spec: str, num_splits: int | None) -> None:
    placement = place(make_inputs(AttentionProblem.parse(spec)))
    benchmark(paged_attention, placement.batch, num_splits=num_splits)
    assert bool(placement.batch.out.isfinite().all()) or not interpreter.installed()


@LAUNCHES
def test_watched_launch(benchmark: BenchmarkFixture, spec: str, num_splits: int | None) -> None:
    batch = place(make_inputs(AttentionProblem.parse(spec))).batch
    kernel = partial(paged_attention, num_splits=num_splits)
    assert benchmark(watch_attention, kernel, batch) == []
