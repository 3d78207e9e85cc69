"""The rules of docs/tolerance-rules.md: what each stops and lets pass, and the page's tables."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.mutants import plant
from helpers.rule_trials import Case, Trials, cases_of, try_bugs
from helpers.tolerance_rules import (
    OURS,
    OURS_WITHOUT_LSE,
    RULES,
    Answer,
    Yardsticks,
    assert_close_defaults,
    attention_gym,
    eager_attention,
    flash_attention,
    flashinfer,
    flashinfer_bench,
    flashinfer_trace,
    rejecting,
    vllm,
    yardsticks,
)
from reference.attention.inputs import Inputs, make_inputs
from reference.attention.problem import QUERY_DTYPES, AttentionProblem
from reference.attention.truth import attend
from studies.derive_tolerance import DESIGNS, simulate
from tests.meta.test_kernel_bugs import BUGS
from tests.meta.tolerance_rules import ALARMING, BEGIN, DOC, END, alarms, bugs_rejected, compared

ALL = {rule.name for rule in RULES}
OUR_RULES = {OURS.name, OURS_WITHOUT_LSE.name}


def inputs_of(spec: str) -> Inputs:
    return make_inputs(AttentionProblem.parse(spec))


@cache
def held_to(spec: str) -> Yardsticks:
    return yardsticks(inputs_of(spec))


def bf16(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.bfloat16)


# Eager attention, the yardstick of two rules


@pytest.mark.parametrize(
    "spec",
    [
        "(q3 k40) (q1 k0) (q1 k9) h2 g3 d32 b16 {} window=7 softcap=5.0",
        "(q4 k33) (q0 k5) g2 d64 b16 {} noncausal alibi sinks",
        "(q2 k20) h2 g2 d16 b16 {} kv=e4m3 kscale=0.5 vscale=1.7 sinks alibi",
    ],
)
@pytest.mark.parametrize("dtype", QUERY_DTYPES)
def test_eager_attention_is_right_within_a_few_roundings(spec: str, dtype: str) -> None:
    inputs = inputs_of(spec.format(dtype))
    truth = attend(inputs).out
    largest = truth.abs().max()
    narrow = dtype != "fp32"  # then `float32` rounds once, at the end
    for arithmetic, units in (("float32", 1 if narrow else 8), ("mixed", 8), ("working", 16)):
        out = eager_attention(inputs, arithmetic=arithmetic)  # type: ignore[arg-type]
        assert out.dtype == inputs.problem.torch_dtype
        error = (out.double() - truth).abs().max()
        assert error <= units * torch.finfo(out.dtype).eps * largest, arithmetic


def test_eager_in_the_working_type_is_less_accurate_than_in_float32() -> None:
    inputs = inputs_of("(q1 k200) g8 d80 b16 bf16")
    truth = attend(inputs).out
    errors = {
        arithmetic: float((eager_attention(inputs, arithmetic=arithmetic).double() - truth).norm())
        for arithmetic in ("float32", "mixed", "working")
    }
    assert errors["float32"] < errors["mixed"] < errors["working"]


# flash-attention: twice the error of eager attention


def test_flash_attention_allows_twice_the_error_of_eager_and_thrice_with_a_softcap() -> None:
    r = bf16(4.0, 4.0)  # 4 + 0.3 - 0.3 is 4: no floor
    eager = bf16(4.0, 4.03125)
    twice, thrice, more = bf16(4.0625, 4.0), bf16(4.09375, 4.0), bf16(4.125, 4.0)
    assert flash_attention(twice, reference=r, eager=eager, softcap=None)
    assert not flash_attention(thrice, reference=r, eager=eager, softcap=None)
    assert flash_attention(thrice, reference=r, eager=eager, softcap=30.0)
    assert not flash_attention(more, reference=r, eager=eager, softcap=30.0)


def test_flash_attention_has_a_floor_that_does_not_shrink_with_the_output() -> None:
    r = torch.full((64,), 1e-3, dtype=torch.bfloat16)
    assert flash_attention(torch.zeros_like(r), reference=r, eager=r, softcap=None)


def test_flash_attention_rejects_a_neighbouring_number_where_eager_is_exact() -> None:
    r = bf16(8.0)
    assert not flash_attention(bf16(8.0625), reference=r, eager=r, softcap=None)


def test_flash_attention_rejects_nan_and_everything_if_eager_is_nan() -> None:
    r = bf16(1.0)
    assert not flash_attention(bf16(torch.nan), reference=r, eager=r, softcap=None)
    assert not flash_attention(r, reference=r, eager=bf16(torch.nan), softcap=None)


def test_flash_attention_rejects_the_best_answer_where_eager_overflows_float16() -> None:
    held = held_to("(q1 k64) g2 d64 b16 fp16 inputs=sunken")
    assert held.eager.isnan().any()
    got = Answer(held.rounded, held.truth.lse.float())
    assert rejecting(got, held) == {"flash-attention, 2 × eager"}


# FlashInfer, vLLM, flashinfer-bench, assert_close: fixed thresholds


@pytest.mark.parametrize(("dtype", "threshold"), [("fp32", 1e-5), ("fp16", 1e-3), ("bf16", 1e-2)])
def test_flashinfer_has_one_threshold_a_type(dtype: str, threshold: float) -> None:
    zero = torch.zeros(8, dtype=QUERY_DTYPES[dtype])
    within, beyond = (zero + 0.9 * threshold), (zero + 1.1 * threshold)
    assert flashinfer(within, expected=zero)
    assert not flashinfer(beyond, expected=zero)
    one = torch.ones_like(zero)
    assert flashinfer_trace(one + 1.5 * threshold, expected=one)
    assert not flashinfer_trace(one + 2.5 * threshold, expected=one)


def test_flashinfer_passes_zeros_for_what_a_long_context_leaves() -> None:
    r = torch.full((64,), 9e-3, dtype=torch.bfloat16)
    assert flashinfer(torch.zeros_like(r), expected=r)
    assert vllm(torch.zeros_like(r), expected=r, quantised=False)
    assert flashinfer_bench(torch.zeros_like(r), expected=r, matched_ratio=1.0)


def test_cosine_stops_zeros_but_not_a_wrong_row_among_large_ones() -> None:
    r = torch.full((64, 8), 9e-3, dtype=torch.bfloat16)
    assert not flashinfer_trace(torch.zeros_like(r), expected=r)
    r[1:] = 1.0
    out = r.clone()
    out[0] = 0.0
    assert flashinfer_trace(out, expected=r)


def test_default_check_judges_by_the_type_of_the_output() -> None:
    r = torch.linspace(1, 2, 64, dtype=torch.float16)
    assert flashinfer_trace(r.bfloat16(), expected=r)
    assert not flashinfer(r.bfloat16(), expected=r)


def test_vllm_forgives_ten_times_more_with_float8() -> None:
    zero, off = torch.zeros(8), torch.full((8,), 0.14)
    assert not vllm(off, expected=zero, quantised=False)
    assert vllm(off, expected=zero, quantised=True)
    assert vllm(torch.full((8,), 0.0149), expected=zero, quantised=False)


def test_flashinfer_bench_needs_both_errors_to_be_large() -> None:
    small = torch.linspace(-4e-3, 4e-3, 100)
    assert flashinfer_bench(-small, expected=small, matched_ratio=1.0)
    large = torch.full((100,), 100.0)
    assert flashinfer_bench(large + 0.9, expected=large, matched_ratio=1.0)
    assert not flashinfer_bench(large + 1.1, expected=large, matched_ratio=1.0)


def test_a_matched_ratio_of_95_per_cent_gives_a_head_of_twenty_away() -> None:
    r = torch.ones(1, 20, 64)
    out = r.clone()
    out[:, 7] = -1000.0
    assert flashinfer_bench(out, expected=r, matched_ratio=0.95)
    assert not flashinfer_bench(out, expected=r, matched_ratio=1.0)
    out[:, 8, 0] = -1000.0
    assert not flashinfer_bench(out, expected=r, matched_ratio=0.95)


def test_assert_close_defaults_want_small_elements_exact() -> None:
    r = bf16(1.0, 1e-3)
    assert not assert_close_defaults(bf16(1.0, 1.03e-3), expected=r)  # 2^-15 off, below u
    assert assert_close_defaults(bf16(1.015, 1e-3), expected=r)


# attention-gym: mean and largest error


def test_attention_gym_bounds_the_mean_and_the_largest_error_by_those_of_eager() -> None:
    truth = torch.ones(100, dtype=torch.float64)
    eager = truth.bfloat16()
    eager[0] = 1.25
    one, many = truth.bfloat16(), truth.bfloat16()
    one[5] = 1.25
    many[:50] = 1.125
    assert attention_gym(one, truth=truth, eager=eager, reduction_sizes=(1,))
    assert not attention_gym(many, truth=truth, eager=eager, reduction_sizes=(1,))
    one[5] = 1.5
    assert not attention_gym(one, truth=truth, eager=eager, reduction_sizes=(1,))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_rule_accepts_what_is_not_finite(bad: float) -> None:
    held = held_to("(q1 k17) g2 d16 b16 bf16")
    got = Answer(held.rounded.clone(), held.truth.lse.float())
    assert rejecting(got, held) == set()
    got.out[0, 1, 3] = bad
    assert rejecting(got, held) == ALL


# What a rule for the whole tensor cannot see, on a problem with rows of both kinds

SHORT_AND_LONG = "(q1 k3) (q1 k4096) g4 d64 b16 {}"


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_only_a_rule_by_rows_or_elements_sees_an_error_among_small_numbers(dtype: str) -> None:
    held = held_to(SHORT_AND_LONG.format(dtype))
    truth = held.truth
    assert truth.out[1].abs().max() < 0.1 * truth.out[0].abs().amax(-1).min()
    out = held.rounded.clone()
    out[1] = (truth.out[1] * (1 + 8 * torch.finfo(out.dtype).eps)).to(out.dtype)
    rejected = rejecting(Answer(out, truth.lse.float()), held)
    # The defaults would see it, but they also reject what is right: see below.
    assert rejected == OUR_RULES | {"`assert_close` defaults"}


def test_a_wrong_log_sum_exp_is_seen_by_our_rule_alone() -> None:
    held = held_to("(q1 k100) g4 d64 b16 bf16")
    binary = Answer(held.rounded, (held.truth.lse / torch.log(torch.tensor(2.0))).float())
    assert rejecting(binary, held) == {OURS.name}


@pytest.mark.parametrize("dtype", QUERY_DTYPES)
@pytest.mark.parametrize("keys", [64, 4096])
def test_right_designs_pass_ours_and_fail_the_defaults(dtype: str, keys: int) -> None:
    spec = f"(q1 k{keys}) g8 d64 b16 {dtype}"
    held, inputs = held_to(spec), inputs_of(spec)
    designs = [design for design in DESIGNS if dtype != "fp32" or design.order != "mma"]
    judged = [rejecting(Answer(*simulate(inputs, design)), held) for design in designs]
    assert not any(rejected & OUR_RULES for rejected in judged)
    if dtype != "fp32":
        assert any("`assert_close` defaults" in rejected for rejected in judged)


def test_twice_the_error_of_eager_is_much_where_logits_are_large() -> None:
    held = held_to("(q1 k64) g8 d128 b16 bf16 inputs=loud")
    error = (held.eager.double() - held.truth.out).abs().max()
    assert error > 5 * torch.finfo(torch.bfloat16).eps * held.truth.out.abs().max()
    rejected = rejecting(Answer(held.eager, held.truth.lse.float()), held)
    assert ALL - rejected == {"finite, nothing else", "flash-attention, 2 × eager"}


# Planted bugs

SAMPLE = (
    "last_token_lost",
    "scale_one_per_cent_off",
    "weights_rounded_to_float8",
    "pages_swapped_in_pairs",
    "values_of_the_first_head",
    "lse_in_binary_units",
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    folder = tmp_path_factory.mktemp("sample")
    right, trials = plant(None, folder), Trials()
    for name in SAMPLE:
        bug = compared()[name]
        cases = [case for case in cases_of(bug.by) if case.problem.inputs == "flat"]
        drawn = [case for case in cases if case.context is None][:6]
        long = [case for case in cases if case.context == 1024 and not case.problem.seed]
        planted = {name: plant(bug.mutant, folder)}
        trials.add(try_bugs(bug.by, planted, right, [*drawn, *long]))
    return trials


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.parametrize("dtype", QUERY_DTYPES)
def test_ours_rejects_the_bug_in_every_type(sample: Trials, name: str, dtype: str) -> None:
    wrong = [
        judged
        for judged in sample.wrong
        if judged.subject == name and judged.case.problem.dtype == dtype
    ]
    assert name in bugs_rejected(wrong, OURS.name)
    in_out = [judged for judged in wrong if judged.out_differs]
    assert not in_out or name in bugs_rejected(in_out, OURS_WITHOUT_LSE.name)
    assert bool(in_out) == (name != "lse_in_binary_units")


def test_ours_accepts_every_right_answer_and_the_defaults_do_not(sample: Trials) -> None:
    assert {judged.subject for judged in sample.right} == {"Triton", "torch", "contiguous"}
    assert [judged for judged in sample.right if judged.rejected & OUR_RULES] == []
    rejected, tried = alarms(sample.right, "`assert_close` defaults")
    assert rejected > ALARMING * tried


def test_fixed_thresholds_miss_a_lost_token_in_a_long_context(sample: Trials) -> None:
    (judged,) = (
        judged
        for judged in sample.wrong
        if judged.subject == "last_token_lost"
        and judged.case == Case(judged.case.problem, 1024)
        and judged.case.problem.dtype == "bf16"
    )
    assert not judged.rejected & {"FlashInfer", "vLLM", "flashinfer-bench"}
    assert judged.rejected >= OUR_RULES


# The page


def table_lines() -> list[str]:
    text = DOC.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    return text.partition(BEGIN)[2].partition(END)[0].splitlines()


def test_every_table_names_exactly_the_rules_that_exist() -> None:
    tables: list[list[str]] = []
    for line in table_lines():
        if line.startswith("| rule |"):
            tables.append([])
        elif line.startswith("| ") and tables and not line.startswith("| ---"):
            tables[-1].append(line.split("|")[1].strip())
    assert tables == [[rule.name for rule in RULES]] * 5


def test_bugs_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`(\w+)`(?: \(|[,.])", "\n".join(table_lines())))
    assert named
    assert named <= set(BUGS), f"write the tables anew, as {DOC.name} says: {named - set(BUGS)}"


def test_the_page_links_every_source_that_a_rule_names() -> None:
    text = DOC.read_text()
    source = Path(__file__).parents[1] / "helpers" / "tolerance_rules.py"
    repositories = {
        "Dao-AILab/flash-attention",
        "flashinfer-ai/flashinfer",
        "flashinfer-ai/flashinfer-bench",
        "vllm-project/vllm",
        "meta-pytorch/attention-gym",
        "meta-pytorch/tritonbench",
    }
    assert {name for name in repositories if name not in source.read_text()} == set()
    assert {name for name in repositories if name not in text} == set()
