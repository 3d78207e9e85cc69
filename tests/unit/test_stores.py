"""Cache writes and block copies: words of a spec, what is drawn, and the adapter of the docs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import Phase

from bench.check.minimise import minimise
from bench.search.drawing import draw_each
from helpers.places import DOCS
from reference.attention.catalogue import CHECKS, MEMORY
from reference.attention.checks import run_check
from reference.attention.contract import Capabilities, WriteBatch
from reference.attention.coverage import Coverage
from reference.attention.inputs import make_inputs
from reference.attention.problem import AttentionProblem, InvalidProblem
from reference.attention.stores import Target, place_stores
from reference.attention.strategies import problems

WRITE = "(q1 k0) (q3 k20) h2 d16 b16 bf16 strides=query write inputs=loud seed=7"
COPY = "(q1 k0) (q3 k20) (q1 k40) h2 d16 b16 bf16 copy=2 strides=table chained seed=7"
FENCED = re.compile(
    r"    import torch\n    from pagedbench import [^\n]*WriteBatch.*?(?=\n\n    \$ )", re.S
)


@pytest.mark.parametrize(("spec", "kind"), [(WRITE, "write"), (COPY, "copy")])
def test_spec_is_read_back(spec: str, kind: str) -> None:
    assert str(AttentionProblem.parse(spec)) == spec
    assert AttentionProblem.parse(spec).kind == kind


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("write window=5", "write: window=5 says nothing of it"),
        ("write g2", "write: group_size=2"),
        ("write spare=0", "write: spare=0"),
        ("write inputs=needle", "inputs=needle"),
        ("write strides=out", "strides=out: a write has query only"),
        ("write copy=2", "copy: write=True"),
        ("copy=2 kv=e4m3 kscale=0.5", "copy: k_scale=0.5"),
        ("copy=0", "copy=0: blocks are copied in 1 to 64 layers"),
        ("chained", "chained: .* needs copy="),
        ("copy=1 parts=2", "copy: parts=2"),
    ],
)
def test_what_says_nothing_is_refused(words: str, said: str) -> None:
    with pytest.raises(InvalidProblem, match=said):
        AttentionProblem.parse(
            f"(q1 k5) d64 b16 bf16 {words}".replace("bf16 write g2", "g2 bf16 write")
        )


@pytest.mark.parametrize("kind", ["write", "copy"])
def test_drawn_problems_are_within_the_declaration(kind: Any) -> None:
    also = {"write": {"records"}, "copy": {"records", "chained"}}[kind]
    able = Capabilities(kind=kind, dtypes=frozenset({"fp16"}), also=frozenset(also))
    drawn: list[AttentionProblem] = []
    draw_each(
        problems(capabilities=able),
        count=30, seed_of_draw=0, seen=set(), example=drawn.append, phases=[Phase.generate],
    )  # fmt: skip
    assert all(able.refusal(each) is None for each in drawn)
    assert {(each.kind, each.dtype, each.value_dim) for each in drawn} == {(kind, "fp16", None)}
    shown = {
        "records": any(each.rope is not None for each in drawn),
        "keys and values": any(each.rope is None for each in drawn),
        "far": any(each.pool for each in drawn),
        "padding": any(-1 in place_slots(each) for each in drawn if each.write and not each.pool),
        "loud": any(each.inputs == "loud" for each in drawn),
        "chained": any(each.chained for each in drawn),
        "layers": any((each.copy or 0) > 1 for each in drawn),
    }
    lacks = {"write": {"chained", "layers"}, "copy": {"padding", "loud"}}[kind]
    assert {name for name, seen in shown.items() if not seen} == lacks


def test_now_and_then_a_step_fills_several_tiles_of_tokens() -> None:
    """A write that loses what is behind its first 64 tokens passes all others."""
    able = Capabilities(kind="write", dtypes=frozenset({"fp16"}))
    drawn: list[int] = []
    draw_each(
        problems(capabilities=able, extremes=True),
        count=120, seed_of_draw=0, seen=set(), phases=[Phase.generate],
        example=lambda problem: drawn.append(problem.num_tokens),
    )  # fmt: skip
    assert max(drawn) > 64
    assert sum(tokens > 36 for tokens in drawn) < len(drawn) / 8


def place_slots(problem: AttentionProblem) -> list[int]:
    batch = place_stores(make_inputs(problem)).batch
    assert isinstance(batch, WriteBatch)
    return batch.slot_mapping.tolist()


@pytest.mark.parametrize(
    ("spec", "smallest"),
    [(WRITE, "(q1 k1) d16 b16 bf16 write inputs=loud"), (COPY, "(q1 k1) d16 b16 bf16 copy=1")],
)
def test_it_stays_of_its_kind_when_it_is_made_smaller(spec: str, smallest: str) -> None:
    problem = AttentionProblem.parse(spec)
    assert str(minimise(problem, lambda each: each.kind == problem.kind)) == smallest


def test_coverage_has_no_rows_of_attention() -> None:
    rows = Coverage().matrix(Capabilities(kind="copy", also=frozenset({"records"})))
    names = {row.feature for row in rows}
    assert {"copy", "records", "strides=table", "layout=packed", "pool"} <= names
    assert not {"write", "chained", "window", "lse", "inputs=needle", "heads=gqa", "tight"} & names
    assert set(rows[0].cells) == {"memory", "truth", "any-order", "written-over"}


def test_the_kernel_of_the_docs_passes_every_check() -> None:
    found = FENCED.search((DOCS / "contract.md").read_text(encoding="utf-8"))
    assert found is not None
    lines = [line[4:] for line in found[0].splitlines()]
    assert len(lines) < 25
    space: dict[str, Any] = {}
    exec("\n".join(lines), space)
    for check in CHECKS:
        if check.applies(AttentionProblem.parse(WRITE)) and check is not MEMORY:
            assert run_check(check, space["write"], AttentionProblem.parse(WRITE)).findings == ()


@pytest.mark.parametrize(("off", "wrong"), [(0.0, False), (2.0**-23, False), (2.0**-16, True)])
def test_a_code_on_either_side_of_a_middle_is_right(off: float, wrong: bool) -> None:  # noqa: FBT001
    given = torch.tensor([1.0625 * (1 - off), -500.0]).double().view(2, 1, 1)
    after, there = (
        torch.tensor([[[code]], [[-448.0]]]).to(torch.float8_e4m3fn) for code in (1.0, 1.125)
    )
    cache, slots = there.clone().unsqueeze(0), torch.arange(2)
    target = Target("key_cache", cache, slots, after, after, row=str, source=given)
    assert target.wrong().flatten().tolist() == [wrong, False]


def test_a_law_calls_no_write_without_tokens() -> None:
    def write(batch: WriteBatch) -> None:
        assert len(batch.keys), "a grid of no programs"
        slots, size = batch.slot_mapping, batch.key_cache.shape[1]
        batch.key_cache[slots // size, slots % size] = batch.keys
        batch.value_cache[slots // size, slots % size] = batch.values

    write.capabilities = Capabilities(kind="write", kv_dtypes=frozenset())  # type: ignore[attr-defined]
    one = AttentionProblem.parse("(q1 k5) d16 b16 bf16 write")
    for law in CHECKS:
        if law.applies(one) and law is not MEMORY:
            assert not run_check(law, write, one).findings, law.name  # type: ignore[arg-type]
