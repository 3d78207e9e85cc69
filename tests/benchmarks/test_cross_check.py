"""What one problem of the cross-check costs, part by part: where a drawn problem's time goes.

Problems of the size that Hypothesis draws, kernels in Triton's interpreter. `make bench` turns the
clock on; without it each is one call whose result is checked.
"""

import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, given, seed, settings
from pytest_benchmark.fixture import BenchmarkFixture

from kernels import interpreter
from kernels.attention import paged_attention as triton_attention
from kernels.interpreter.memory import watch_attention
from paged.attention import paged_attention as torch_attention
from reference.attention.checks import TRUTH, judge, run_check
from reference.attention.contract import PagedBatch
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems
from reference.attention.truth import attend
from reference.attention.verdict import Status

SPECS = {
    "decode": "2x(q1 k129) (q1 k40) h2 g4 d64 b16 bf16",
    "decode-e4m3": "2x(q1 k129) (q1 k40) h2 g4 d64 b16 bf16 kv=e4m3 kscale=0.5 vscale=2.0",
    "prefill": "(q24 k129) (q40 k40) (q1 k33) h2 g4 d64 b16 bf16",
    "prefill-all": "(q24 k129) (q40 k40) (q1 k33) h2 g4 d64 b16 bf16 window=50 softcap=20.0 "
    "alibi sinks",
}
KERNELS = {"torch": torch_attention, "triton": triton_attention}

every_problem = pytest.mark.parametrize(
    "problem",
    [pytest.param(AttentionProblem.parse(spec), id=name) for name, spec in SPECS.items()],
)
both_kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def group(name: str) -> pytest.MarkDecorator:
    return pytest.mark.benchmark(group=f"cross-check: {name}")


@group("draw the tensors")
@every_problem
def test_make_inputs(benchmark: BenchmarkFixture, problem: AttentionProblem) -> None:
    inputs = benchmark(make_inputs, problem)
    assert inputs.keys.shape == (problem.cache_tokens, 2, 64)
    assert inputs.keys.dtype == problem.torch_kv_dtype
    assert torch.equal(inputs.query, make_inputs(problem).query)


@group("answer in float64")
@every_problem
def test_attend(benchmark: BenchmarkFixture, problem: AttentionProblem) -> None:
    inputs = make_inputs(problem)
    truth = benchmark(attend, inputs)
    assert truth.out.dtype == torch.float64
    # The first query of the last sequence, alone.
    request = problem.requests[-1]
    alone = attend(inputs.select([(len(problem.requests) - 1, request)]))
    torch.testing.assert_close(truth.out[-request.query_len :], alone.out, rtol=0, atol=1e-12)


@group("lay out in pages")
@every_problem
def test_place(benchmark: BenchmarkFixture, problem: AttentionProblem) -> None:
    inputs = make_inputs(problem)
    placement = benchmark(place, inputs)
    keys = placement.batch.key_cache.float().flatten(0, 1)
    assert torch.equal(keys[placement.owned_slots], inputs.keys.float())
    assert int(keys.isfinite().all(-1).all(-1).sum()) == problem.cache_tokens


@group("judge an answer")
@every_problem
def test_judge(benchmark: BenchmarkFixture, problem: AttentionProblem) -> None:
    inputs = make_inputs(problem)
    truth, placement = attend(inputs), place(inputs)
    torch_attention(placement.batch)
    assert benchmark(judge, problem, truth, placement) == []
    placement.batch.out[-1, -1] *= 1.05
    assert len(judge(problem, truth, placement)) == 1


@group("run the kernel")
@every_problem
@both_kernels
def test_kernel(
    benchmark: BenchmarkFixture,
    problem: AttentionProblem,
    kernel: Callable[[PagedBatch], None],
) -> None:
    assert interpreter.installed()
    inputs = make_inputs(problem)
    placement = place(inputs)
    benchmark(kernel, placement.batch)
    assert judge(problem, attend(inputs), placement) == []


@group("all of it")
@every_problem
@both_kernels
def test_whole_check(
    benchmark: BenchmarkFixture,
    problem: AttentionProblem,
    kernel: Callable[[PagedBatch], None],
) -> None:
    assert benchmark(run_check, TRUTH, kernel, problem).status is Status.PASSED


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
