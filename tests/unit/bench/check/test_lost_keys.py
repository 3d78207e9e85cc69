"""Which key a wrong row lost is told from the one figure that a finding holds."""

from dataclasses import replace

import pytest
import torch

from bench.check.lost_keys import _runs, lost_keys
from reference.attention.inputs import make_inputs
from reference.attention.problem import AttentionProblem
from reference.attention.tolerance import worst_excess
from reference.attention.truth import attend


def finding(problem: AttentionProblem, *, without: int) -> str:
    """What the truth check says of a kernel that leaves a key of sequence 1 out."""
    inputs = make_inputs(problem)
    truth = attend(inputs)
    start = problem.cache_starts[1]
    # A key that no query is near, and whose value is nothing, is as good as none.
    keys, values = inputs.keys.clone(), inputs.values.clone()
    rest = [at for at in range(len(keys)) if at != start + without]
    shorter = problem.replace(
        requests=(problem.requests[0], replace(problem.requests[1], seq_len=len(rest) - start))
    )
    lacking = replace(inputs, problem=shorter, keys=keys[rest], values=values[rest])
    got = attend(lacking)
    excess = worst_excess(problem, truth, got.out, None)
    assert excess is not None
    return str(excess)


@pytest.mark.parametrize("variant", ["", " sinks", " softcap=30.0", " inputs=needle"])
def test_the_one_key_that_explains_it_is_named(variant: str) -> None:
    problem = AttentionProblem.parse(f"(q1 k3) (q1 k40) g2 d16 b8 fp32{variant} seed=4")
    weights = 7 if "needle" not in variant else _needle(problem)
    assert lost_keys(problem, [finding(problem, without=weights)]) == (1, weights, weights)


def _needle(problem: AttentionProblem) -> int:
    inputs = make_inputs(problem)
    rows = inputs.query[1, 0].double() @ inputs.keys[3:, 0].double().T
    return int(torch.argmax(rows))


def test_a_figure_that_moved_little_still_names_one_key() -> None:
    """Off by 2 % in its log-sum-exp, which is a thousand times what rounding may come to."""
    problem = AttentionProblem.parse("(q1 k3) (q1 k9) d16 b8 bf16 seed=1")
    start, truth = problem.cache_starts[1], attend(make_inputs(problem))
    inputs = make_inputs(problem).select([(1, problem.requests[1])])
    less = problem.replace(requests=(replace(problem.requests[1], seq_len=8),))
    got = attend(replace(inputs, problem=less, keys=inputs.keys[:8], values=inputs.values[:8]))
    assert start == 3
    lse = torch.stack([truth.lse[0], got.lse[0]])
    excess = worst_excess(problem, truth, truth.out, lse)
    assert lost_keys(problem, [str(excess)]) == (1, 8, 8)
    assert lost_keys(problem, [str(excess)], lse) == (1, 8, 8)


def test_a_whole_row_tells_keys_apart_that_one_figure_does_not() -> None:
    problem = AttentionProblem.parse("(q1 k600) d16 b8 bf16 seed=2")
    inputs = make_inputs(problem)
    truth = attend(inputs)
    less = problem.replace(requests=(replace(problem.requests[0], seq_len=599),))
    lacking = replace(inputs, problem=less, keys=inputs.keys[:599], values=inputs.values[:599])
    got = attend(lacking).out
    off = int((got - truth.out).abs()[0, 0].argmax())
    said = (
        f"out[token 0, head 0] is {got[0, 0, off]:.6g}, the truth is {truth.out[0, 0, off]:.6g}: "
        "off by 1, allowed 1e-4"
    )
    assert lost_keys(problem, [said]) is None
    assert lost_keys(problem, [said], got) == (0, 599, 599)


@pytest.mark.parametrize("variant", ["", " sinks"])
@pytest.mark.parametrize(
    ("first", "last"), [(16, 23), (32, 47), (0, 4), (37, 49)], ids=["block", "tile", "head", "tail"]
)
def test_the_run_of_keys_that_explains_a_row_is_named(first: int, last: int, variant: str) -> None:
    problem = AttentionProblem.parse(f"(q1 k50) g2 d16 b8 fp32{variant} seed=4")
    inputs = make_inputs(problem)
    rest = [at for at in range(50) if not first <= at <= last]
    fewer = problem.replace(requests=(replace(problem.requests[0], seq_len=len(rest)),))
    lacking = replace(inputs, problem=fewer, keys=inputs.keys[rest], values=inputs.values[rest])
    got = attend(lacking).out
    excess = worst_excess(problem, attend(inputs), got, None)
    assert lost_keys(problem, [str(excess)], got) == (0, first, last)
    assert lost_keys(problem, [str(excess)]) is None, "one figure would fit by chance"


def test_a_run_that_no_kernel_takes_at_once_is_not_named() -> None:
    assert (3, 9) not in _runs(50, 8)
    assert len(set(_runs(1024, 16))) == len(_runs(1024, 16)) < 4 * 1024


def test_what_no_single_key_explains_names_none() -> None:
    problem = AttentionProblem.parse("(q1 k3) (q1 k40) d16 b8 fp32 seed=4")
    said = "out[token 1, head 0] is 123, the truth is 0.1: off by 123, allowed 1e-7"
    assert lost_keys(problem, [said]) is None
    assert lost_keys(problem, ["wrote to `query`"]) is None
