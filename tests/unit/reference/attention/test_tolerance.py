"""The tolerance: right answers pass, the first wrong one fails, and its constants are derived."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.profiles import examples
from reference.attention import tolerance
from reference.attention.inputs import make_inputs
from reference.attention.problem import INPUT_KINDS, AttentionProblem
from reference.attention.strategies import problems
from reference.attention.tolerance import (
    UNIT_ROUNDOFF,
    Excess,
    lse_allowance,
    out_allowance,
    smallest_step,
    worst_excess,
)
from reference.attention.truth import Truth, attend
from studies.derive_tolerance import (
    BUGS,
    DESIGNS,
    Constants,
    Design,
    committed,
    derive,
    needs,
    power,
    simulate,
)

DTYPES = ("fp32", "fp16", "bf16")


def solved(spec: str) -> tuple[AttentionProblem, Truth]:
    problem = AttentionProblem.parse(spec)
    return problem, attend(make_inputs(problem))


def rounded(problem: AttentionProblem, truth: Truth) -> tuple[Tensor, Tensor]:
    """The best answer that a kernel can give."""
    return truth.out.to(problem.torch_dtype), truth.lse.float()


def rows(problem: AttentionProblem) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(
        st.integers(0, problem.num_tokens - 1), st.integers(0, problem.num_q_heads - 1)
    )


def test_unit_roundoff_is_half_the_distance_from_one_to_the_next_number() -> None:
    assert UNIT_ROUNDOFF == {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}


@examples(80)
@given(problems(max_len=60))
def test_the_truth_rounded_to_the_dtype_is_right(problem: AttentionProblem) -> None:
    truth = attend(make_inputs(problem))
    assert worst_excess(problem, truth, *rounded(problem, truth)) is None
    assert worst_excess(problem, truth, rounded(problem, truth)[0], None) is None


@examples(80)
@given(st.data(), problems(max_len=60))
def test_one_element_beyond_its_allowance_is_found_and_named(
    data: st.DataObject, problem: AttentionProblem
) -> None:
    truth = attend(make_inputs(problem))
    if not problem.num_tokens:
        return
    token, head = data.draw(rows(problem))
    element = data.draw(st.integers(0, problem.head_dim - 1))
    sign = data.draw(st.sampled_from((1, -1)))
    allowed = float(out_allowance(problem, truth)[token, head])
    # Wrong in float64: rounding the wrong number could bring it back within the allowance.
    for factor, right in ((0.99, True), (2.0, False), (1e6, False)):
        out = truth.out.clone()
        out[token, head, element] += sign * factor * allowed
        excess = worst_excess(problem, truth, out, truth.lse)
        if right:
            assert excess is None
            continue
        assert excess is not None
        assert (excess.what, excess.token, excess.head) == ("out", token, head)
        assert excess.allowed == allowed
        assert excess.error == pytest.approx(factor * allowed, rel=1e-3)
        assert excess.got == float(out[token, head, element])
        assert excess.expected == float(truth.out[token, head, element])


@examples(60)
@given(st.data(), problems(max_len=60))
def test_one_lse_beyond_its_allowance_is_found_and_named(
    data: st.DataObject, problem: AttentionProblem
) -> None:
    truth = attend(make_inputs(problem))
    finite = truth.lse.isfinite().nonzero().tolist()
    if not finite:
        return
    token, head = data.draw(st.sampled_from(finite))
    allowed = float(lse_allowance(truth)[token, head])
    for factor, right in ((0.99, True), (-0.99, True), (2.0, False), (-2.0, False)):
        lse = truth.lse.clone()
        lse[token, head] += factor * allowed
        excess = worst_excess(problem, truth, truth.out, lse)
        assert (excess is None) == right
        if excess is not None:
            assert (excess.what, excess.token, excess.head) == ("lse", token, head)
        assert worst_excess(problem, truth, truth.out, None) is None


def test_the_worst_of_several_wrong_rows_is_named() -> None:
    problem, truth = solved("(q4 k9) g2 d16 fp32")
    allowed = out_allowance(problem, truth)
    out, lse = truth.out.clone(), truth.lse.clone()
    out[1, 0, 3] += 5 * allowed[1, 0]
    out[3, 1, 0] -= 7 * allowed[3, 1]
    excess = worst_excess(problem, truth, out, lse)
    assert excess is not None
    assert (excess.what, excess.token, excess.head) == ("out", 3, 1)
    lse[2, 0] += 9 * lse_allowance(truth)[2, 0]
    excess = worst_excess(problem, truth, out, lse)
    assert excess is not None
    assert (excess.what, excess.token, excess.head) == ("lse", 2, 0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["out", "lse"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_infinitely_wrong(what: str, wrong: float, dtype: str) -> None:
    problem, truth = solved(f"(q3 k9) g2 d16 {dtype}")
    out, lse = rounded(problem, truth)
    (out if what == "out" else lse)[2, 1] = wrong
    excess = worst_excess(problem, truth, out, lse)
    assert excess is not None
    assert (excess.what, excess.token, excess.head) == (what, 2, 1)
    assert excess.error == math.inf


def test_equal_infinities_are_equal_and_others_are_not() -> None:
    problem, truth = solved("(q1 k0) (q1 k4) d16 bf16")
    out, lse = rounded(problem, truth)
    assert lse[0, 0] == -math.inf
    assert worst_excess(problem, truth, out, lse) is None
    for wrong in (math.inf, math.nan, -1e30, 0.0):
        lse[0, 0] = wrong
        excess = worst_excess(problem, truth, out, lse)
        assert excess is not None
        assert (excess.what, excess.token, excess.error) == ("lse", 0, math.inf)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_without_keys_must_be_zero_to_the_smallest_number(dtype: str) -> None:
    problem, truth = solved(f"(q1 k0) d16 {dtype}")
    out, lse = rounded(problem, truth)
    least = smallest_step(problem)
    assert torch.tensor(least, dtype=problem.torch_dtype) > 0
    assert torch.tensor(least / 2, dtype=problem.torch_dtype) == 0
    out[0, 0, 3] = least
    assert worst_excess(problem, truth, out, lse) is None
    out[0, 0, 3] = 2 * least
    assert worst_excess(problem, truth, out, lse) is not None


@pytest.mark.parametrize("spec", ["(q0 k0) d16", "(q0 k9) (q0 k0) g2 d16"])
def test_a_batch_without_query_tokens_has_nothing_wrong(spec: str) -> None:
    problem, truth = solved(spec)
    assert worst_excess(problem, truth, *rounded(problem, truth)) is None


def test_an_answer_that_was_not_written_is_wrong() -> None:
    problem, truth = solved("(q3 k9) g2 d16")
    out, lse = (torch.full_like(tensor, math.nan) for tensor in rounded(problem, truth))
    assert worst_excess(problem, truth, out, lse) is not None


def test_the_allowance_of_a_row_is_proportional_to_its_largest_element() -> None:
    problem, truth = solved("(q5 k40) g2 d32 bf16")
    larger = replace(truth, out=truth.out.clone())
    larger.out[3, 1] *= 1000
    before, after = out_allowance(problem, truth), out_allowance(problem, larger)
    assert float(after[3, 1]) == pytest.approx(1000 * float(before[3, 1]))
    after[3, 1] = before[3, 1]
    assert torch.equal(after, before)


def test_small_elements_of_a_row_have_the_allowance_of_its_largest() -> None:
    problem, truth = solved("(q1 k40) d32 bf16")
    largest = float(truth.out.abs().max())
    allowed = float(out_allowance(problem, truth))
    assert 2.5 * 2**-8 * largest < allowed < 2.6 * 2**-8 * largest


def test_the_allowance_follows_the_dtype_the_score_and_the_number_of_keys() -> None:
    allowed = {dtype: float(out_allowance(*solved(f"(q1 k40) d32 {dtype}"))) for dtype in DTYPES}
    assert allowed["fp32"] < allowed["fp16"] / 50
    assert allowed["fp16"] < allowed["bf16"] / 5
    problem, truth = solved("(q1 k40) d32 fp32")
    for louder in (
        replace(truth, score_bound=100 * truth.score_bound),
        replace(truth, keys=10_000 * truth.keys),
    ):
        assert out_allowance(problem, louder) > 3 * out_allowance(problem, truth)
    assert lse_allowance(replace(truth, score_bound=100 * truth.score_bound)) > 10 * lse_allowance(
        truth
    )


def test_an_excess_reads_as_a_sentence() -> None:
    excess = Excess("out", token=3, head=1, error=0.25, allowed=0.001, got=1.5, expected=1.25)
    assert str(excess) == (
        "out[token 3, head 1] is 1.5, the truth is 1.25: off by 0.25, allowed 0.001"
    )


# float32 does not run on tensor cores, or it would be tf32.
DESIGNS_OF = [
    (d, dtype) for d in DESIGNS for dtype in DTYPES if (d.order, dtype) != ("mma", "fp32")
]


@pytest.mark.parametrize(
    ("design", "dtype"), DESIGNS_OF, ids=[f"{design.name}-{dtype}" for design, dtype in DESIGNS_OF]
)
def test_right_kernels_of_every_design_pass(design: Design, dtype: str) -> None:
    for length in (1, 2, 15, 65, 300):
        for kind in INPUT_KINDS:
            # Seeds and head size are not those that the constants were derived from.
            spec = f"(q1 k{length}) g4 d96 {dtype} inputs={kind} seed=77"
            inputs = make_inputs(AttentionProblem.parse(spec))
            answer = simulate(inputs, design)
            assert worst_excess(inputs.problem, attend(inputs), *answer) is None, spec


@pytest.mark.parametrize(
    "spec",
    [
        # Few bits make few different products, whose roundings go the same way: they add up faster.
        "(q1 k40) g8 d256 b16 fp32 kv=e5m2 inputs=needle seed=2",
        "(q1 k40) g8 d256 b16 fp32 kv=e5m2 inputs=needle seed=307",
        # A sunken logit sums terms of one sign: its error grows faster than a random walk.
        "(q1 k17) g8 d256 b16 fp32 kv=e4m3 inputs=sunken seed=20",
    ],
)
def test_a_scalar_kernel_passes_where_its_roundings_go_the_same_way(spec: str) -> None:
    scalar = next(design for design in DESIGNS if design.name == "scalar")
    inputs = make_inputs(AttentionProblem.parse(spec))
    assert worst_excess(inputs.problem, attend(inputs), *simulate(inputs, scalar)) is None


# Beside a sink, all weights of a row can lie below float32's normal numbers: GPUs flush those.
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_below_the_normal_numbers_may_be_flushed_to_zero(dtype: str) -> None:
    problem, truth = solved(f"(q1 k9) d16 {dtype} sinks")
    for size, right in ((1e-39, True), (1e-33, False)):
        faint = replace(truth, out=truth.out / truth.out.abs().max() * size)
        flushed = torch.zeros_like(faint.out)
        assert (worst_excess(problem, faint, flushed, truth.lse) is None) == right


REDUCED = {"lengths": (17, 500), "head_dims": (16, 256)}
# The constants are rounded up to quarters, and BLAS adds up in another order on another CPU.
STEP = 0.25


@pytest.fixture(scope="module")
def rederived() -> Constants:
    return derive(list(needs(**REDUCED)))


def test_constants_rederived_on_part_of_the_grid_do_not_exceed_the_committed_ones(
    rederived: Constants,
) -> None:
    held = committed()
    for dtype in DTYPES:
        assert rederived.output[dtype] <= held.output[dtype] + STEP
    assert rederived.score <= held.score + STEP
    assert rederived.accumulate <= held.accumulate
    assert rederived.lse <= held.lse


def test_the_committed_constants_are_no_looser_than_right_kernels_need(
    rederived: Constants,
) -> None:
    # Even part of the grid needs a good share of them for rounding and scores.
    held = committed()
    for dtype in DTYPES:
        assert rederived.output[dtype] > held.output[dtype] / 2
    assert rederived.score > held.score / 3


def test_committed_is_what_the_tolerance_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, truth = solved("(q1 k40) d32 bf16")
    allowed, lse_allowed = out_allowance(problem, truth), lse_allowance(truth)
    monkeypatch.setitem(tolerance.OUTPUT, "bf16", 2 * tolerance.OUTPUT["bf16"])
    monkeypatch.setattr(tolerance, "LSE", 2 * tolerance.LSE)
    assert out_allowance(problem, truth) > 1.9 * allowed
    torch.testing.assert_close(lse_allowance(truth), 2 * lse_allowed)
    assert committed().output["bf16"] == 5.0
    assert committed().lse == tolerance.LSE


def test_every_planted_bug_is_killed_and_no_right_kernel_is() -> None:
    table = power(lengths=(64, 500), seeds=3)
    assert list(table) == ["(right kernel)", *(bug.name for bug in BUGS)]
    for name, row in table.items():
        expected = "0/6" if name == "(right kernel)" else "6/6"
        assert row == dict.fromkeys(DTYPES, expected), name


@pytest.mark.parametrize(
    ("output", "lse", "row", "killed"),
    [(100.0, 1e6, "scale +1 %", "0/1"), (0.25, tolerance.LSE, "(right kernel)", "1/1")],
    ids=["loose", "tight"],
)
def test_power_of_another_tolerance_is_another(
    monkeypatch: pytest.MonkeyPatch, output: float, lse: float, row: str, killed: str
) -> None:
    monkeypatch.setitem(tolerance.OUTPUT, "bf16", output)
    monkeypatch.setattr(tolerance, "LSE", lse)
    assert power(lengths=(500,), seeds=1)[row]["bf16"] == killed


def test_a_codec_may_be_rounded_to_the_working_type_once_more() -> None:
    """Codes times scales are rounded where a matrix unit takes them, and values may cancel."""
    problem = AttentionProblem.parse("(q1 k33) g2 d64 b16 fp16 codec=int4-token-head seed=1")
    truth = attend(make_inputs(problem))
    plain = out_allowance(problem.replace(codec=""), truth)
    more = out_allowance(problem, truth) - plain
    torch.testing.assert_close(more, (2**-11 * truth.value_bound).expand_as(more))
