"""Subjects against the truth: what it comes to in verdicts and reports, and how it is put together.

Real subjects are judged in tests/meta/test_gate_toy.py.
"""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from bench.command.progress import Silence
from bench.command.project import Project
from bench.gate.benchmark import Benchmark
from bench.gate.exact import Exact, Said
from bench.gate.record import BuildRecord, GateRecord, SideTruth, TruthRecord
from bench.gate.report.annotations import workflow_commands
from bench.gate.report.junit import junit
from bench.gate.report.markdown import markdown
from bench.gate.report.words import truth_that_matters
from bench.gate.truth import with_points
from bench.gate.turns import DoesNotStart, SideRaised
from bench.gate.verdict import judge
from helpers import gate_records, gate_toys
from helpers.places import ROOT

RIGHT = SideTruth(verdict="right", tried=100)
WRONG = SideTruth(
    verdict="wrong",
    tried=3,
    check="truth",
    finding=f"out is 3 {gate_records.HOSTILE}",
    problem="(q1 k3)",
    replay="pagedbench check --kernel k --problem '(q1 k3)'",
)
UNCHECKED = SideTruth(verdict="not checked", finding="cannot import 'k'")
BROKEN = SideTruth(verdict="wrong", check="import", finding="cannot import 'k'")


def record(base: SideTruth, head: SideTruth, **changes: Any) -> GateRecord:
    truth = TruthRecord(subject="k", kind="kernel", seed=1, base=base, head=head)
    usual: dict[str, Any] = {"truth": [truth], "counters": [], "outputs": [], "benchmarks": []}
    return judge(gate_records.gate_record(**{**usual, **changes}))


@pytest.mark.parametrize(
    ("base", "head", "verdict", "code", "words"),
    [
        (RIGHT, WRONG, "wrong", 1, "k is wrong: check truth at (q1 k3): out is 3"),
        (WRONG, WRONG, "wrong", 1, "(base is wrong, too)"),
        (RIGHT, BROKEN, "wrong", 1, "it does not import: cannot import 'k' (base is right)"),
        (WRONG, RIGHT, "pass", 0, "mended: k"),
        (UNCHECKED, RIGHT, "pass", 0, "k: right, and base has nothing to compare with"),
        (UNCHECKED, UNCHECKED, "harness failed", 4, "nothing was compared"),
    ],
)
def test_a_wrong_head_is_wrong_whatever_base_was(
    base: SideTruth, head: SideTruth, verdict: str, code: int, words: str
) -> None:
    found = record(base, head)
    assert (found.verdict, found.exit_code) == (verdict, code)
    assert words in found.reason
    assert "\n" not in found.reason


def test_a_build_that_fails_says_more_than_what_follows_from_it() -> None:
    built = {"seconds": 1.0, "kept": False}
    builds = [
        BuildRecord(side="base", **built),
        BuildRecord(side="head", failed=True, said="a.c:1: error\nended with code 1", **built),
    ]
    found = record(RIGHT, WRONG, builds=builds)
    assert (found.verdict, found.exit_code) == ("fails to build", 1)
    assert found.reason == "head fails to build: ended with code 1"
    assert "    a.c:1: error" in markdown(found)


REPORTS: dict[str, Callable[[GateRecord], str]] = {
    "markdown": markdown,
    "junit": junit,
    "annotations": workflow_commands,
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_has_the_finding_its_replay_and_no_markup_of_it(name: str) -> None:
    said = REPORTS[name](record(RIGHT, WRONG))
    assert "--problem" in said
    assert "base is right" in said
    assert "\x1b" not in said
    assert ("<script>" in said) == (name == "annotations"), "which is no HTML"
    assert "\n::error::gotcha" not in said


@pytest.mark.parametrize("name", REPORTS)
def test_what_is_right_on_both_sides_is_no_news(name: str) -> None:
    found = record(RIGHT, RIGHT)
    assert truth_that_matters(found) == []
    assert "base is" not in REPORTS[name](found)
    assert truth_that_matters(record(WRONG, RIGHT))[0][1].startswith("mended: base is wrong")


def test_what_a_point_shows_counts_where_drawn_problems_showed_nothing() -> None:
    def of(base: SideTruth, head: SideTruth) -> TruthRecord:
        return TruthRecord(subject="k", kind="kernel", seed=1, base=base, head=head)

    at_a_point = WRONG.model_copy(update={"problem": "(q1 k900)"})
    (found,) = with_points([of(RIGHT, RIGHT)], [of(RIGHT, at_a_point)])
    assert (found.base, found.head) == (RIGHT, at_a_point)
    (found,) = with_points([of(RIGHT, WRONG)], [of(RIGHT, at_a_point)])
    assert found.head == WRONG, "the smaller one"
    assert with_points([], [of(at_a_point, RIGHT)])[0].base == at_a_point


KERNEL = Benchmark(key="kernel/k[p]", title="", prepare=dict, subject="k", problem="(q1 k3)")
POOL = Benchmark(key="allocator/k[s]", title="", prepare=dict, subject="k")


@pytest.mark.parametrize("measured", [KERNEL, POOL])
def test_what_one_side_raises_where_it_is_measured_is_wrong(measured: Benchmark) -> None:
    raised = SideRaised("base", "ValueError: no luck\nTraceback")
    fine = Said(outputs=[])
    exact = exact_part([measured])
    exact._compare(measured, {"base": Said(failure=raised), "head": fine}, {})
    (found,) = exact._at_points
    assert (found.base.verdict, found.head.verdict) == ("wrong", "right")
    assert found.base.finding == "raised ValueError: no luck"
    assert bool(found.base.replay) == (measured is KERNEL)
    exact.truth = [found]
    exact._check(None)


def test_what_both_sides_raise_is_no_verdict_unless_the_truth_has_it() -> None:
    exact = exact_part([KERNEL])
    raised = Said(failure=SideRaised("base", "ValueError: no luck"))
    exact._compare(KERNEL, {"base": raised, "head": raised}, {})
    assert exact._at_points == []
    for base in (RIGHT, WRONG):
        exact.truth = [TruthRecord(subject="k", kind="kernel", seed=1, base=base, head=RIGHT)]
        with pytest.raises(SideRaised):
            exact._check(None)


def test_a_base_that_does_not_start_is_not_compared_with_where_its_subjects_are_to_blame() -> None:
    exact = exact_part([KERNEL])
    broke = DoesNotStart("base", "base does not import: SyntaxError")
    exact.truth = [TruthRecord(subject="k", kind="kernel", seed=1, base=UNCHECKED, head=RIGHT)]
    exact._check(broke)
    assert exact.not_compared == {KERNEL.key: "base does not import: SyntaxError"}
    exact.truth = [exact.truth[0].model_copy(update={"base": RIGHT})]
    with pytest.raises(DoesNotStart):
        exact._check(broke)


def exact_part(suite: list[Benchmark]) -> Exact:
    tree = ROOT / "nowhere"
    plan = gate_toys.plan(tree, tree)
    return Exact(plan, Project(root=tree), suite, Silence(), threading.Event())


def test_a_record_of_before_is_read() -> None:
    stored = json.loads((ROOT / "tests/frozen/records/gate.json").read_text(encoding="utf-8"))
    for new in ("truth", "builds"):
        del stored[new]
    assert GateRecord.model_validate(stored).truth == []
