"""The float64 truth against the formula written out in loops over Python floats.

What is compared with the truth can be no better than the truth; so here is a second one, slow and
without tensors, and it knows the mistakes that the truth must not make.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from helpers.profiles import examples
from reference.attention.contract import Capabilities
from reference.attention.inputs import Inputs, make_inputs
from reference.attention.problem import INPUT_KINDS, AttentionProblem, Request
from reference.attention.strategies import problems
from reference.attention.truth import Truth, attend, positions, visible

SMALL = Capabilities(head_dims=frozenset({16}))


@dataclass
class Row:
    """What the loops find out about one (token, head)."""

    out: list[float]
    lse: float
    magnitudes: list[float]
    keys: int


def loop_truth(inputs: Inputs, *, mistake: str = "") -> list[list[Row]]:
    """Rows by token and query head, from the formula; `mistake` names one to make on purpose."""
    problem = inputs.problem
    query, keys, values = (
        tensor.double().tolist() for tensor in (inputs.query, inputs.keys, inputs.values)
    )
    slopes = inputs.alibi_slopes.double().tolist() if problem.alibi else None
    sinks = inputs.sinks.double().tolist() if problem.sinks else None
    rows, token, first_key = [], 0, 0
    for request in problem.requests:
        for number in range(request.query_len):
            position = request.seq_len - request.query_len + number
            rows.append(
                [
                    _loop_row(
                        problem,
                        query[token][head],
                        _of_head(
                            problem, keys[first_key : first_key + request.seq_len], head, mistake
                        ),
                        _of_head(
                            problem, values[first_key : first_key + request.seq_len], head, mistake
                        ),
                        position=position,
                        slope=slopes[head] if slopes else None,
                        sink=sinks[head] if sinks else None,
                        mistake=mistake,
                    )
                    for head in range(problem.num_q_heads)
                ]
            )
            token += 1
        first_key += request.seq_len
    return rows


def _of_head(
    problem: AttentionProblem, tokens: list[list[list[float]]], head: int, mistake: str
) -> list[list[float]]:
    interleaved = mistake == "interleaved heads"
    kv_head = head % problem.num_kv_heads if interleaved else head // problem.group_size
    return [token[kv_head] for token in tokens]


def _loop_row(
    problem: AttentionProblem,
    query: list[float],
    keys: list[list[float]],
    values: list[list[float]],
    *,
    position: int,
    slope: float | None,
    sink: float | None,
    mistake: str,
) -> Row:
    logits, seen, magnitudes = [], [], []
    k_scale = 1.0 if mistake == "k_scale ignored" else problem.k_scale
    v_scale = 1.0 if mistake == "v_scale ignored" else problem.v_scale
    window = problem.window
    if window is not None and mistake == "window one short":
        window -= 1
    for at, key in enumerate(keys):
        logit = (
            problem.softmax_scale
            * k_scale
            * math.fsum(q * k for q, k in zip(query, key, strict=True))
        )
        magnitudes.append(abs(logit))
        bias = -slope * abs(position - at) if slope is not None else 0.0
        if mistake == "softcap after ALiBi":
            logit += bias
        if problem.softcap is not None:
            logit = problem.softcap * math.tanh(logit / problem.softcap)
        if mistake != "softcap after ALiBi":
            logit += bias
        magnitudes.append(abs(logit))
        if problem.causal and at > position:
            continue
        if window is not None and at <= position - window:
            continue
        logits.append(logit)
        seen.append(values[at])
    summed = list(logits)
    if sink is not None and mistake != "sink left out":
        summed.append(sink)
        magnitudes.append(abs(sink))
    if not summed:
        return Row([0.0] * problem.head_dim, -math.inf, magnitudes, 0)
    top = max(summed)
    lse = top + math.log(math.fsum(math.exp(logit - top) for logit in summed))
    weights = [math.exp(logit - lse) for logit in logits]
    out = [
        v_scale * math.fsum(w * value[e] for w, value in zip(weights, seen, strict=True))
        for e in range(problem.head_dim)
    ]
    if mistake == "sink not in the lse" and sink is not None:
        lse = math.log(math.fsum(math.exp(logit) for logit in logits)) if logits else -math.inf
    return Row(out, lse, magnitudes, len(logits))


def out_of(rows: list[list[Row]]) -> torch.Tensor:
    return torch.tensor([[row.out for row in heads] for heads in rows], dtype=torch.float64)


def lse_of(rows: list[list[Row]]) -> torch.Tensor:
    return torch.tensor([[row.lse for row in heads] for heads in rows], dtype=torch.float64)


def assert_is_the_formula(inputs: Inputs) -> Truth:
    truth, rows = attend(inputs), loop_truth(inputs)
    if not rows:
        assert truth.out.shape == (0, inputs.problem.num_q_heads, inputs.problem.head_dim)
        return truth
    assert truth.out.dtype == truth.lse.dtype == torch.float64
    # Both round in float64: a logit loses in proportion to its size, and the weights with it.
    lost = 1e-12 + 1e-14 * float(truth.score_bound.max())
    torch.testing.assert_close(truth.out, out_of(rows), rtol=10 * lost, atol=lost)
    torch.testing.assert_close(truth.lse, lse_of(rows), rtol=1e-12, atol=1e-12)
    return truth


BATCH = "(q1 k5) (q3 k4) (q1 k0) (q4 k4) (q0 k0) (q1 k1)"
MASKS = ("", "noncausal", "window=1", "window=3")
BIASES = [" ".join(words) for n in range(4) for words in itertools.combinations(
    ("softcap=1.5", "alibi", "sinks"), n)]  # fmt: skip


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", ["", "h3", "g3", "h2 g3"])
def test_truth_is_the_formula_for_every_variant(heads: str, mask: str, bias: str) -> None:
    spec = f"{BATCH} {heads} d16 b16 fp32 {mask} {bias}"
    assert_is_the_formula(make_inputs(AttentionProblem.parse(spec)))


@pytest.mark.parametrize("inputs", INPUT_KINDS)
@pytest.mark.parametrize("kv", ["e4m3", "e5m2"])
@pytest.mark.parametrize("scales", ["", "kscale=0.03 vscale=1.7"])
@pytest.mark.parametrize("variant", ["", "window=2 softcap=5 alibi sinks scale=1"])
def test_truth_is_the_formula_for_float8_caches(
    kv: str, scales: str, variant: str, inputs: str
) -> None:
    spec = f"{BATCH} h2 g2 d16 b16 bf16 kv={kv} {scales} {variant} inputs={inputs}"
    assert_is_the_formula(make_inputs(AttentionProblem.parse(spec)))


@examples(80)
@given(problems(capabilities=SMALL, max_len=9, max_seqs=3))
def test_truth_is_the_formula_on_drawn_problems(problem: AttentionProblem) -> None:
    inputs = make_inputs(problem)
    truth, rows = assert_is_the_formula(inputs), loop_truth(inputs)
    for token, heads in enumerate(rows):
        for head, row in enumerate(heads):
            bound = float(truth.score_bound[token, head])
            assert max(row.magnitudes, default=0.0) <= bound * (1 + 1e-12)
            assert float(truth.keys[token]) == row.keys


BOUND_TERMS = {
    "": lambda inputs: 0.0,
    "softcap=5": lambda inputs: 5.0,
    "alibi": lambda inputs: inputs.alibi_slopes.double() * 9,  # slope times sequence length
    "sinks": lambda inputs: inputs.sinks.double().abs(),
}


@pytest.mark.parametrize(("words", "term"), BOUND_TERMS.items(), ids=BOUND_TERMS)
def test_the_bound_of_a_score_is_that_of_its_product_plus_one_term_for_each_bias(
    words: str,
    term: Callable[[Inputs], Tensor | float],
) -> None:
    inputs = make_inputs(AttentionProblem.parse(f"(q3 k9) g2 d16 bf16 kv=e4m3 kscale=0.5 {words}"))
    longest_key = float(inputs.keys.double().norm(dim=-1).max()) * 0.5
    product = inputs.query.double().norm(dim=-1) * longest_key / 4
    torch.testing.assert_close(attend(inputs).score_bound, product + term(inputs))


def test_the_bound_holds_where_the_bias_is_all_there_is() -> None:
    inputs = make_inputs(AttentionProblem.parse("(q2 k40) g2 d16 fp32 alibi sinks"))
    silent = replace(inputs, query=torch.zeros_like(inputs.query))
    truth, rows = attend(silent), loop_truth(silent)
    for token, heads in enumerate(rows):
        for head, row in enumerate(heads):
            assert 0 < max(row.magnitudes) <= float(truth.score_bound[token, head])


# A mistake, and a problem on which it must show.
MISTAKES = {
    "softcap after ALiBi": "g8 softcap=1.5 alibi",
    "sink left out": "sinks",
    "sink not in the lse": "sinks",
    "window one short": "window=3",
    "interleaved heads": "h2 g3",
    "k_scale ignored": "kv=e4m3 kscale=0.5",
    "v_scale ignored": "kv=e4m3 vscale=0.5",
}


@pytest.mark.parametrize(("mistake", "words"), MISTAKES.items(), ids=MISTAKES)
def test_truth_does_not_make_this_mistake(mistake: str, words: str) -> None:
    inputs = make_inputs(AttentionProblem.parse(f"(q1 k9) (q3 k4) d16 fp16 {words}"))
    truth, wrong = attend(inputs), loop_truth(inputs, mistake=mistake)
    off = max(
        float((truth.out - out_of(wrong)).abs().max()),
        float((truth.lse - lse_of(wrong)).abs().max()),
    )
    assert off > 0.05


@pytest.mark.parametrize("words", ["", "h2", "g4", "h2 g3 d80", "noncausal", "scale=0.3"])
@pytest.mark.parametrize("lengths", ["(q1 k40)", "(q40 k40)", "(q7 k40)"])
def test_truth_is_torch_sdpa_where_sdpa_can(lengths: str, words: str) -> None:
    problem = AttentionProblem.parse(f"{lengths} {words} fp32")
    inputs = make_inputs(problem)
    (request,) = problem.requests
    query, keys, values = (
        tensor.double().transpose(0, 1).unsqueeze(0)
        for tensor in (inputs.query, inputs.keys, inputs.values)
    )
    mask = torch.ones(request.query_len, request.seq_len, dtype=torch.bool)
    if problem.causal:
        mask = mask.tril(request.seq_len - request.query_len)
    expected = scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=problem.softmax_scale, enable_gqa=True
    )
    truth = attend(inputs)
    torch.testing.assert_close(truth.out, expected[0].transpose(0, 1), rtol=1e-11, atol=1e-12)


def test_a_row_without_keys_is_zero_and_its_lse_minus_infinity() -> None:
    truth = attend(make_inputs(AttentionProblem.parse("(q1 k0) 2x(q1 k3) g2 fp32")))
    assert torch.equal(truth.out[0], torch.zeros(2, 64, dtype=torch.float64))
    assert truth.lse[0].tolist() == [-math.inf, -math.inf]
    assert truth.keys.tolist() == [0, 3, 3]
    assert bool(truth.out.isfinite().all())


def test_a_row_without_keys_has_the_sink_for_its_lse() -> None:
    inputs = make_inputs(AttentionProblem.parse("(q1 k0) h2 g2 fp32 sinks"))
    truth = attend(inputs)
    assert not truth.out.any()
    assert inputs.sinks is not None
    torch.testing.assert_close(truth.lse[0], inputs.sinks.double(), rtol=1e-15, atol=0)
    assert bool((truth.score_bound[0] >= inputs.sinks.abs()).all())


def test_a_single_key_is_returned_as_it_is_stored() -> None:
    inputs = make_inputs(AttentionProblem.parse("(q1 k1) g2 d16 fp16 inputs=loud"))
    truth = attend(inputs)
    torch.testing.assert_close(truth.out[0, 1], inputs.values[0, 0].double(), rtol=1e-15, atol=0)
    logit = inputs.query[0].double() @ inputs.keys[0, 0].double() / 4
    torch.testing.assert_close(truth.lse[0], logit, rtol=1e-13, atol=0)


def test_a_batch_without_query_tokens_has_an_empty_answer() -> None:
    truth = attend(make_inputs(AttentionProblem.parse("(q0 k0) (q0 k7) g2 d16")))
    assert truth.out.shape == (0, 2, 16)
    assert truth.lse.shape == truth.score_bound.shape == (0, 2)
    assert truth.keys.shape == (0,)


def test_loud_logits_do_not_overflow_the_truth() -> None:
    truth = attend(make_inputs(AttentionProblem.parse("(q9 k400) g4 d64 fp32 scale=1 inputs=loud")))
    assert bool(truth.out.isfinite().all())
    assert float(truth.lse.max()) > 89  # exp(89) is beyond float32


def test_nothing_is_rounded_to_the_working_type() -> None:
    inputs = make_inputs(AttentionProblem.parse("(q4 k64) d64 bf16"))
    truth = attend(inputs)
    assert float((truth.out - truth.out.float().double()).abs().max()) > 0


def test_a_chunk_stands_at_the_end_of_its_sequence() -> None:
    query_at, key_at = positions(Request(3, 8), torch.device("cpu"))
    assert query_at.tolist() == [5, 6, 7]
    assert key_at.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("", ["1110", "1111"]),
        ("noncausal", ["1111", "1111"]),
        ("window=1", ["0010", "0001"]),
        ("window=2", ["0110", "0011"]),
        ("window=9", ["1110", "1111"]),
    ],
)
def test_visible_keys_are_drawn_out_by_hand(words: str, rows: list[str]) -> None:
    problem = AttentionProblem.parse(f"(q2 k4) {words}")
    seen = visible(problem, problem.requests[0], torch.device("cpu"))
    assert ["".join(str(int(key)) for key in row) for row in seen] == rows


def test_window_counts_the_query_position_itself() -> None:
    truth = attend(make_inputs(AttentionProblem.parse("(q6 k6) window=3 fp32")))
    assert truth.keys.tolist() == [1, 2, 3, 3, 3, 3]


def test_alibi_slopes_are_halved_from_head_to_head_for_eight_heads() -> None:
    inputs = make_inputs(AttentionProblem.parse("(q1 k1) g8 alibi"))
    assert inputs.alibi_slopes is not None
    assert inputs.alibi_slopes.tolist() == [2.0**-power for power in range(1, 9)]
