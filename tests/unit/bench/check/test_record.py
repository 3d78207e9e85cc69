"""Outcomes as data: what reports ask of it, and the command that replays."""

import shlex

import pytest
from pydantic import ValidationError

from bench.check.record import Failure, KernelRecord, replay_command
from reference.attention.contract import Capabilities
from reference.attention.coverage import Coverage
from reference.attention.expected import Expectations, ExpectedFailure
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict

SPEC = "2x(q1 k129) g4 d80 b16 bf16 window=32"
PROBLEM = AttentionProblem.parse(SPEC)
REASON = "https://example.org/issues/12"


@pytest.mark.parametrize(
    "kernel",
    ["torch", "my kernels/it's.py:f", "$HOME/k.py:f", 'a"b.py:f', "--odd.py:f", "k\\.py:f"],
)
def test_a_shell_reads_back_what_is_to_be_replayed(kernel):
    words = shlex.split(replay_command(kernel, "cuda", SPEC))
    assert words[:2] == ["pagedbench", "check"]
    assert dict(zip(words[2::2], words[3::2], strict=True)) == {
        "--kernel": kernel,
        "--device": "cuda",
        "--problem": SPEC,
    }


def a_record() -> KernelRecord:
    coverage = Coverage()
    for status in (Status.PASSED, Status.PASSED, Status.CRASHED):
        coverage.add(PROBLEM, Verdict("truth", status))
    waiver = ExpectedFailure(kernel="f", check="truth", when=("window",), reason=REASON)
    expectations = Expectations.of([waiver], "k.py:f")
    expectations.judge(PROBLEM, Verdict("truth", Status.FAILED, ("off",)))
    able = Capabilities(variants=frozenset({"window"}))
    return KernelRecord(
        name="k.py:f",
        asked=12,
        problems=7,
        checks={
            "alone": {"crashed": 1, "passed": 2},
            "truth": {"passed": 7, "not supported": 3},
        },
        unseen={},
        expected=expectations.met,
        coverage=coverage.matrix(able),
        complete=False,
        failure=Failure.of(PROBLEM, Verdict("alone", Status.CRASHED, ("one", "two"))),
    )


def test_reports_count_verdicts_and_cells():
    record = a_record()
    assert [record.count(status) for status in ("passed", "not supported", "failed")] == [9, 3, 0]
    rows = {row.feature: row.cells for row in record.coverage}
    assert rows["window"]["truth"].failed == 1
    assert rows["window"]["truth"].counts == {"passed": 2, "crashed": 1}
    assert rows["window"]["alone"].state == "not run"
    assert rows["softcap"]["truth"].state == "not supported"
    states = [cell.state for cells in rows.values() for cell in cells.values()]
    for state in ("failed", "not run", "not supported"):
        assert record.cells(state) == states.count(state) > 0


def test_an_expected_failure_keeps_what_came_of_it_in_figures_and_in_words():
    (met,) = a_record().model_dump(mode="json")["expected"]
    assert met == {
        "kernel": "f",
        "check": "truth",
        "when": ["window"],
        "line": "",
        "message": "",
        "reason": REASON,
        "problems": 1,
        "failed": 1,
        "finding": "off",
        "problem": SPEC,
        "state": "failed as expected",
        "said": f"f truth [window] fails 1 of 1 problems, as expected: {REASON}",
    }


def test_records_come_back_from_json_and_cannot_be_changed():
    record = a_record()
    assert KernelRecord.model_validate_json(record.model_dump_json()) == record
    with pytest.raises(ValidationError, match="frozen"):
        record.problems = 8
    with pytest.raises(ValidationError):
        KernelRecord.model_validate({"name": "k"})


def test_a_kernel_that_no_search_came_to_has_shown_nothing():
    record = KernelRecord.not_run("k", Capabilities(), asked=9)
    assert (record.asked, record.problems, record.complete, record.checks) == (9, 0, False, {})
    assert record.cells("passed") == 0 < record.cells("not run")
