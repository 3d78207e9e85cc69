"""Merges as subjects: their specs, what is drawn, and a stranger's kernels."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import Phase

from bench.check.minimise import minimise
from bench.search.drawing import draw_each
from helpers.places import DOCS
from kernels.interpreter.memory import watch_attention
from reference.attention.catalogue import CHECKS, MEMORY, TRUTH
from reference.attention.checks import run_check
from reference.attention.contract import Capabilities, MergeBatch, declares
from reference.attention.coverage import Coverage
from reference.attention.inputs import make_inputs
from reference.attention.problem import AttentionProblem, InvalidProblem
from reference.attention.strategies import problems
from reference.attention.truth import attend, attend_to, parts_of

SPEC = "(q1 k0) (q3 k20) h2 d16 b16 bf16 parts=3 strides=lse,out interleave inputs=loud seed=7"
FENCED = re.compile(r"    from pagedbench import [^\n]*MergeBatch.*?(?=\n\n    \$ |\n\n\S)", re.S)


def test_spec_is_read_back() -> None:
    assert str(AttentionProblem.parse(SPEC)) == SPEC
    assert AttentionProblem.parse(SPEC).kind == "merge"


@pytest.mark.parametrize(
    "words",
    ["parts=0", "parts=65", "interleave", "parts=2 rope=16", "parts=2 kv=e4m3", "parts=2 sinks"],
)
def test_what_is_no_merge_is_refused(words: str) -> None:
    with pytest.raises(InvalidProblem, match=words.split(maxsplit=1)[0]):
        AttentionProblem.parse(f"(q1 k5) d64 b16 bf16 {words}")


def test_parts_hold_each_key_once() -> None:
    for spec in (SPEC, SPEC.replace(" interleave", "")):
        inputs = make_inputs(AttentionProblem.parse(spec).replace(dtype="fp32", kv_dtype="fp32"))
        whole, merged = attend_to(inputs), attend(inputs)
        assert torch.allclose(whole.out, merged.out, atol=1e-5)
        assert torch.allclose(whole.lse, merged.lse, rtol=1e-6)
        assert bool((parts_of(inputs).lse[:, 0] == -torch.inf).all())


def test_drawn_problems_are_merges_within_the_declaration() -> None:
    able = Capabilities(kind="merge", dtypes=frozenset({"fp16"}), head_dims=frozenset({128}))
    drawn: list[AttentionProblem] = []
    draw_each(
        problems(capabilities=able),
        count=20, seed_of_draw=0, seen=set(), example=drawn.append, phases=[Phase.generate],
    )  # fmt: skip
    assert {each.parts for each in drawn} > {1, 2}
    assert all(able.refusal(each) is None for each in drawn)
    assert {(each.kind, each.dtype, each.head_dim) for each in drawn} == {("merge", "fp16", 128)}


def test_a_merge_stays_one_when_it_is_made_smaller() -> None:
    smallest = minimise(AttentionProblem.parse(SPEC), lambda each: each.kind == "merge")
    assert str(smallest) == "(q1 k1) d16 b16 bf16 parts=1 inputs=loud"


def test_coverage_has_no_rows_of_caches() -> None:
    rows = Coverage().matrix(Capabilities(kind="merge"))
    names = {row.feature for row in rows}
    assert {"merge", "interleave", "window", "strides=lse"} <= names
    assert not {"kv_dtype=e4m3", "layout=packed", "pool", "softcap"} & names
    assert "grouping" in rows[0].cells
    assert "relabelled-pages" not in rows[0].cells


def test_the_kernel_of_the_docs_passes_every_check() -> None:
    page = (DOCS / "contract.md").read_text(encoding="utf-8")
    found = FENCED.search(page)
    assert found is not None
    lines = [line[4:] for line in found[0].splitlines()]
    assert len(lines) < 15
    space: dict[str, Any] = {}
    exec("\n".join(lines), space)
    asked = AttentionProblem.parse(SPEC)
    for check in CHECKS:
        if check.applies(asked) and check is not MEMORY:
            assert run_check(check, space["merge"], asked).findings == ()


@triton.jit
def _merge(  # type: ignore[no-untyped-def]
    part_out, part_lse, out, lse, p_p, p_t, p_h, l_p, l_t, l_h, o_t, o_h, e_t, e_h, parts, beyond,
    D: tl.constexpr,
):  # fmt: skip
    token, head, dim = tl.program_id(0), tl.program_id(1), tl.arange(0, D)
    largest, total = float("-inf"), 0.0
    acc = tl.zeros([D], dtype=tl.float32)
    for part in range(parts):
        logit = tl.load(part_lse + part * l_p + token * l_t + (head + beyond) * l_h)
        new = tl.maximum(largest, logit)
        to = tl.where(new == float("-inf"), 0.0, new)
        values = tl.load(part_out + part * p_p + token * p_t + head * p_h + dim).to(tl.float32)
        acc = acc * tl.exp(largest - to) + tl.exp(logit - to) * values
        total = total * tl.exp(largest - to) + tl.exp(logit - to)
        largest = new
    total = tl.where(total == 0.0, 1.0, total)
    tl.store(out + token * o_t + head * o_h + dim, (acc / total).to(out.dtype.element_ty))
    tl.store(lse + token * e_t + head * e_h, largest + tl.log(total))


@pytest.mark.parametrize("beyond", [0, 1])
def test_memory_of_a_triton_merge_is_watched(beyond: int) -> None:
    @declares(Capabilities(kind="merge"))
    def merge(batch: MergeBatch) -> None:
        out = batch.out if batch.lse is not None else batch.out.clone()
        lse = batch.out.new_empty(out.shape[:2]) if batch.lse is None else batch.lse
        _merge[out.shape[:2]](
            batch.part_out, batch.part_lse, out, lse, *batch.part_out.stride()[:3],
            *batch.part_lse.stride(), *out.stride()[:2], *lse.stride(), len(batch.part_out),
            beyond, D=out.shape[2],
        )  # fmt: skip

    asked = AttentionProblem.parse(SPEC)
    findings = run_check(MEMORY, merge, asked, watch=watch_attention).findings
    assert bool(findings) == bool(beyond), findings
    assert run_check(TRUTH, merge, asked).wrong == bool(beyond)
    if beyond:
        assert "part_lse" in " ".join(findings)


def test_base_2_goes_in_and_comes_out() -> None:
    def merge(batch: MergeBatch) -> None:
        top = batch.part_lse.amax(0).nan_to_num(neginf=0.0)
        weights = torch.exp2(batch.part_lse - top)
        total = weights.sum(0)
        shares = (weights / total.clamp(min=1e-30)).unsqueeze(-1)
        batch.out.copy_((shares * batch.part_out.float()).sum(0))
        if batch.lse is not None:
            batch.lse.copy_(top + total.log2())

    asked = AttentionProblem.parse(SPEC)
    assert not run_check(
        TRUTH, declares(Capabilities(kind="merge", lse_base="2"))(merge), asked
    ).wrong
    assert run_check(TRUTH, declares(Capabilities(kind="merge"))(merge), asked).wrong
