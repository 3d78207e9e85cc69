"""A sample of the study of tolerance rules: what each rule stops, and the tables of the page."""

from __future__ import annotations

import re
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.mutants import plant
from reference.attention.inputs import make_inputs
from reference.attention.problem import QUERY_DTYPES, AttentionProblem
from reference.attention.truth import attend
from studies.tolerance_rules import rules
from studies.tolerance_rules.rules import OURS, OURS_WITHOUT_LSE, RULES, Answer, Yardsticks
from studies.tolerance_rules.tables import (
    ALARMING,
    BEGIN,
    DOC,
    END,
    alarms,
    bugs_rejected,
    compared,
)
from studies.tolerance_rules.trials import Case, Trials, cases_of, try_bugs
from tests.meta.test_kernel_bugs import BUGS

ALL = {rule.name for rule in RULES}
OUR_RULES = {OURS.name, OURS_WITHOUT_LSE.name}
DEFAULTS = "`assert_close` defaults"


@cache
def held_to(spec: str) -> Yardsticks:
    return rules.yardsticks(make_inputs(AttentionProblem.parse(spec)))


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
    inputs = make_inputs(AttentionProblem.parse(spec.format(dtype)))
    truth = attend(inputs).out
    narrow = dtype != "fp32"  # then `float32` rounds once, at the end
    for arithmetic, units in (("float32", 1 if narrow else 8), ("mixed", 8), ("working", 16)):
        out = rules.eager_attention(inputs, arithmetic=arithmetic)  # type: ignore[arg-type]
        error = (out.double() - truth).abs().max()
        assert error <= units * torch.finfo(out.dtype).eps * truth.abs().max(), arithmetic


def bf16(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.bfloat16)


FOUR, EAGER = bf16(4.0, 4.0), bf16(4.0, 4.03125)  # 4 + 0.3 - 0.3 is 4: no floor
SMALL = torch.full((64,), 9e-3, dtype=torch.bfloat16)  # what a long context leaves
TWENTY = torch.ones(20, 64)
ONE = torch.ones(100, dtype=torch.float64)


def but(tensor: Tensor, at: Any, number: float) -> Tensor:
    changed = tensor.clone()
    changed[at] = number
    return changed


twice = partial(rules.flash_attention, reference=FOUR, eager=EAGER, softcap=None)
thrice = partial(twice, softcap=30.0)
flashinfer = partial(rules.flashinfer, expected=SMALL)
trace = partial(rules.flashinfer_trace, expected=SMALL)
vllm = partial(rules.vllm, expected=torch.zeros(8), quantised=False)
bench = partial(rules.flashinfer_bench, expected=TWENTY, matched_ratio=0.95)
gym = partial(
    rules.attention_gym, truth=ONE, eager=but(ONE.bfloat16(), 0, 1.25), reduction_sizes=(1,)
)
defaults = partial(rules.assert_close_defaults, expected=bf16(1.0, 1e-3))


@pytest.mark.parametrize(
    ("accepts", "accepted", "rejected"),
    [
        (twice, bf16(4.0625, 4.0), bf16(4.09375, 4.0)),
        (thrice, bf16(4.09375, 4.0), bf16(4.125, 4.0)),
        (flashinfer, 0 * SMALL, SMALL + 0.02),
        (trace, SMALL, 0 * SMALL),  # the cosine
        (vllm, torch.full((8,), 0.0149), torch.full((8,), 0.14)),
        (partial(vllm, quantised=True), torch.full((8,), 0.14), torch.full((8,), 0.16)),
        # A head of twenty is given away, and not one element more.
        (bench, but(TWENTY, 7, -1000.0), but(but(TWENTY, 7, -1000.0), (8, 0), -1000.0)),
        (partial(bench, matched_ratio=1.0), TWENTY + 0.009, but(TWENTY, 7, -1000.0)),
        (gym, but(ONE.bfloat16(), 5, 1.25), but(ONE.bfloat16(), 5, 1.5)),
        (gym, ONE.bfloat16(), but(ONE.bfloat16(), slice(50), 1.125)),
        (defaults, bf16(1.015, 1e-3), bf16(1.0, 1.03e-3)),  # small elements have to be exact
    ],
)
def test_rule_draws_the_line_where_its_source_does(
    accepts: Any, accepted: Tensor, rejected: Tensor
) -> None:
    assert accepts(accepted)
    assert not accepts(rejected)
    assert not accepts(but(accepted, -1, torch.nan))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_rule_accepts_what_is_not_finite(bad: float) -> None:
    held = held_to("(q1 k17) g2 d16 b16 bf16")
    got = Answer(held.rounded.clone(), held.truth.lse.float())
    assert rules.rejecting(got, held) == set()
    got.out[0, 1, 3] = bad
    assert rules.rejecting(got, held) == ALL


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_only_a_rule_by_rows_or_elements_sees_an_error_among_small_numbers(dtype: str) -> None:
    held = held_to(f"(q1 k3) (q1 k4096) g4 d64 b16 {dtype}")
    out = held.rounded.clone()
    out[1] = (held.truth.out[1] * (1 + 8 * torch.finfo(out.dtype).eps)).to(out.dtype)
    # The defaults see it, but they also reject what is right: see below.
    rejected = rules.rejecting(Answer(out, held.truth.lse.float()), held)
    assert rejected == OUR_RULES | {DEFAULTS}


def test_twice_the_error_of_eager_is_nothing_where_eager_overflows_and_much_where_it_is_poor() -> (
    None
):
    eager = {"flash-attention, 2 × eager"}
    overflows = held_to("(q1 k64) g2 d64 b16 fp16 inputs=sunken")
    best = Answer(overflows.rounded, overflows.truth.lse.float())
    assert rules.rejecting(best, overflows) == eager
    loud = held_to("(q1 k64) g8 d128 b16 bf16 inputs=loud")
    poor = Answer(loud.eager, loud.truth.lse.float())
    assert ALL - rules.rejecting(poor, loud) == eager | {"finite, nothing else"}


# Planted bugs

SAMPLE = (
    "last_token_lost",
    "scale_one_per_cent_off",
    "weights_rounded_to_float8",
    "lse_in_binary_units",
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    folder = tmp_path_factory.mktemp("sample")
    right, trials = plant(None, folder), Trials()
    bugs = {name: compared()[name] for name in SAMPLE}
    all_cases = {harness: list(cases_of(harness)) for harness in {bug.by for bug in bugs.values()}}
    for name, bug in bugs.items():
        cases = [case for case in all_cases[bug.by] if case.problem.inputs == "flat"]
        drawn = [case for case in cases if case.context is None][:3]
        long = [case for case in cases if case.context == 1024 and not case.problem.seed]
        planted = {name: plant(bug.mutant, folder)}
        trials.add(try_bugs(bug.by, planted, right, [*drawn, *long]))
    return trials


@pytest.mark.parametrize("dtype", QUERY_DTYPES)
def test_ours_rejects_every_bug_of_the_sample(sample: Trials, dtype: str) -> None:
    wrong = [judged for judged in sample.wrong if judged.case.problem.dtype == dtype]
    assert bugs_rejected(wrong, OURS.name) == set(SAMPLE)
    in_out = [judged for judged in wrong if judged.out_differs]
    assert bugs_rejected(in_out, OURS_WITHOUT_LSE.name) == {*SAMPLE} - {"lse_in_binary_units"}


def test_ours_accepts_every_right_answer_and_the_defaults_do_not(sample: Trials) -> None:
    assert {judged.subject for judged in sample.right} == {"Triton", "torch", "contiguous"}
    assert [judged for judged in sample.right if judged.rejected & OUR_RULES] == []
    rejected, tried = alarms(sample.right, DEFAULTS)
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


def test_the_page_names_the_rules_and_bugs_that_exist() -> None:
    text = DOC.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    written = text.partition(BEGIN)[2].partition(END)[0]
    tables: list[list[str]] = []
    for line in written.splitlines():
        if line.startswith("| rule |"):
            tables.append([])
        elif line.startswith("| ") and tables and not line.startswith("| ---"):
            tables[-1].append(line.split("|")[1].strip())
    assert tables == [[rule.name for rule in RULES]] * 5
    named = set(re.findall(r"`(\w+)`(?: \(|[,.])", written))
    assert named
    assert named <= set(BUGS), f"write the tables anew, as {DOC.name} says: {named - set(BUGS)}"
