"""The catalogue by pytest-benchmark, and what the cross-check costs, which is the harness's own.

`make bench` turns the clock on; without it a sample is called once and its result is checked.
Problems of the cross-check are of the size that Hypothesis draws, kernels in Triton's interpreter;
`watched` is with the memory checker on, its shadow state built anew for every launch, as a check
does. With PAGEDBENCH_STOCK_INTERPRETER=1 it is Triton's own interpreter, whose bfloat16 results
are wrong.
"""

import time
from functools import partial

import numpy as np
import pytest
from hypothesis import Phase, given, seed, settings
from pytest_benchmark.fixture import BenchmarkFixture

from bench.gate.benchmark import Benchmark
from bench.gate.suite import SUITE
from helpers.profiles import scale
from kernels import interpreter
from kernels.attention import paged_attention as triton_attention
from kernels.interpreter.memory import watch_attention
from paged.attention import paged_attention as torch_attention
from reference.attention.catalogue import TRUTH
from reference.attention.checks import run_check
from reference.attention.contract import PagedBatch
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems
from reference.attention.verdict import Status

KERNELS = {"torch": torch_attention, "triton": triton_attention}
LAUNCHES = {
    "decode-fp32": ("2x(q1 k129) g4 d64 b16 fp32", 1),
    "decode-bf16": ("2x(q1 k129) g4 d64 b16 bf16", 1),
    "decode-3-splits": ("2x(q1 k200) g4 d64 b16 fp32", 3),
    "prefill-fp32": ("(q20 k129) (q1 k40) (q5 k5) g4 d64 b16 fp32", None),
    "prefill-bf16": ("(q20 k129) (q1 k40) (q5 k5) g4 d64 b16 bf16", None),
}
PROBLEMS = {
    "decode": "2x(q1 k129) (q1 k40) h2 g4 d64 b16 bf16",
    "decode-e4m3": "2x(q1 k129) (q1 k40) h2 g4 d64 b16 bf16 kv=e4m3 kscale=0.5 vscale=2.0",
    "prefill-all": "(q24 k129) (q40 k40) (q1 k33) h2 g4 d64 b16 bf16 window=50 softcap=20.0 "
    "alibi sinks",
}


def kind_of(entry: Benchmark) -> str:
    return entry.key.partition("[")[0]


# What the gate has is called by its own tests; of the others the first and the last of a kind.
UNGATED = [each for each in SUITE if each.timed and each.device == "cpu" and not each.gated]
EVERY_DAY = {
    *({kind_of(each): each.key for each in UNGATED}.values()),
    *({kind_of(each): each.key for each in reversed(UNGATED)}.values()),
}


@pytest.mark.parametrize(
    "entry",
    [each for each in SUITE if each.timed and each.device == "cpu"],
    ids=lambda entry: entry.key,
)
def test_call(benchmark: BenchmarkFixture, entry: Benchmark) -> None:
    if not (benchmark.enabled or scale() > 1 or entry.key in EVERY_DAY):
        pytest.skip("called by make bench and make test-long")
    benchmark.group = kind_of(entry)
    prepared = entry.prepare()
    prepared.call()
    first = {name: output.values.copy() for name, output in prepared.outputs().items()}
    benchmark(prepared.call)
    for name, output in prepared.outputs().items():
        np.testing.assert_array_equal(output.values, first[name])


@pytest.mark.benchmark(group="a launch, interpreted")
@pytest.mark.parametrize("watched", [False, True], ids=["alone", "watched"])
@pytest.mark.parametrize(("spec", "num_splits"), LAUNCHES.values(), ids=LAUNCHES)
def test_launch(
    benchmark: BenchmarkFixture, spec: str, num_splits: int | None, *, watched: bool
) -> None:
    batch = place(make_inputs(AttentionProblem.parse(spec))).batch
    kernel = partial(triton_attention, num_splits=num_splits)
    if watched:
        assert benchmark(watch_attention, kernel, batch) == []
    else:
        benchmark(kernel, batch)
    assert bool(batch.out.isfinite().all()) or not interpreter.installed()


@pytest.mark.benchmark(group="a problem of the cross-check")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("spec", PROBLEMS.values(), ids=PROBLEMS)
def test_whole_check(benchmark: BenchmarkFixture, spec: str, kernel: str) -> None:
    problem = AttentionProblem.parse(spec)
    assert benchmark(run_check, TRUTH, KERNELS[kernel], problem).status is Status.PASSED


@pytest.mark.benchmark(group="cross-check of drawn problems, Triton interpreted")
@pytest.mark.parametrize("watched", [False, True], ids=["truth", "truth, every access watched"])
def test_drawn_problems(benchmark: BenchmarkFixture, *, watched: bool) -> None:
    """Drawing, float64 truth, placement, kernel and verdict, as the main job does them."""
    findings: list[str] = []

    def kernel(batch: PagedBatch) -> None:
        if watched:
            findings.extend(watch_attention(triton_attention, batch) or ())
        else:
            triton_attention(batch)

    count = 500 if benchmark.enabled else 10
    passed = 0

    # What a seed draws depends on the modules that are loaded, and the cost on what is drawn: from
    # one draw of 500 to another the rate differs several times over. Compare runs of one tree only.
    @seed(0)
    @settings(max_examples=count, phases=[Phase.generate], database=None)
    @given(problems())
    def cross_check(problem: AttentionProblem) -> None:
        nonlocal passed
        verdict = run_check(TRUTH, kernel, problem)
        assert verdict.status is Status.PASSED, verdict
        passed += 1

    began = time.process_time()
    benchmark.pedantic(cross_check, rounds=1)
    benchmark.extra_info["problems_per_cpu_s"] = round(passed / (time.process_time() - began), 1)
    assert passed == count
    assert findings == []
