"""Which key a wrong row lost is told from the one figure that a finding holds."""

from dataclasses import replace

import pytest
import torch

from bench.check.lost_key import lost_key
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
    assert lost_key(problem, [finding(problem, without=weights)]) == (1, weights)


def _needle(problem: AttentionProblem) -> int:
    inputs = make_inputs(problem)
    rows = inputs.query[1, 0].double() @ inputs.keys[3:, 0].double().T
    return int(torch.argmax(rows))


def test_what_no_single_key_explains_names_none() -> None:
    problem = AttentionProblem.parse("(q1 k3) (q1 k40) d16 b8 fp32 seed=4")
    said = "out[token 1, head 0] is 123, the truth is 0.1: off by 123, allowed 1e-7"
    assert lost_key(problem, [said]) is None
    assert lost_key(problem, ["wrote to `query`"]) is None
