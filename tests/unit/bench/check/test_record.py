"""Outcomes as data: what is counted, what is kept, and the command that replays."""

import shlex
from collections import Counter
from dataclasses import replace

import pytest
from pydantic import ValidationError

from bench.check.need import contiguous_need, paged_need
from bench.check.record import (
    KernelRecord,
    kernel_record,
    memory_record,
    replay_command,
)
from bench.check.search import Failure, Outcome
from bench.workloads.builtin import builtin_stream
from bench.workloads.record import stream_record
from reference.attention.contract import Capabilities
from reference.attention.coverage import Coverage
from reference.attention.expected import Expectations, ExpectedFailure
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict

SPEC = "2x(q1 k129) g4 d80 b16 bf16 window=32"
FAILURE = Failure(SPEC, "alone", Status.CRASHED, ("one", "two"), "(q1 k9999) d80 b16 bf16")


def outcome(**changes) -> Outcome:
    counts = Counter(
        {
            ("truth", Status.PASSED): 7,
            ("alone", Status.PASSED): 2,
            ("alone", Status.CRASHED): 1,
            ("truth", Status.NOT_SUPPORTED): 3,
        }
    )
    return replace(
        Outcome("k.py:f", Capabilities(), asked=12, problems=7, counts=counts, failure=FAILURE),
        **changes,
    )


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


def test_verdicts_are_counted_by_check_and_status():
    record = kernel_record(outcome())
    assert record.checks == {
        "alone": {"crashed": 1, "passed": 2},
        "truth": {"passed": 7, "not supported": 3},
    }
    assert [record.count(status) for status in ("passed", "not supported", "failed")] == [9, 3, 0]
    assert (record.name, record.asked, record.problems, record.complete) == ("k.py:f", 12, 7, False)


def test_a_check_that_saw_something_now_and_then_is_not_said_to_have_seen_nothing():
    def unseen(*statuses: Status) -> dict[str, str]:
        counts = Counter({("memory", status): 1 for status in statuses})
        return kernel_record(outcome(counts=counts, unseen={"memory": "no launch"})).unseen

    assert unseen(Status.NOT_RUN) == {"memory": "no launch"}
    assert unseen(Status.NOT_RUN, Status.NOT_SUPPORTED) == {"memory": "no launch"}
    assert unseen(Status.NOT_RUN, Status.PASSED) == {}


def test_coverage_keeps_each_cell_and_its_counts():
    problem = AttentionProblem.parse(SPEC)
    coverage = Coverage()
    for status in (Status.PASSED, Status.PASSED, Status.CRASHED):
        coverage.add(problem, Verdict("truth", status))
    able = Capabilities(variants=frozenset({"window"}))
    record = kernel_record(outcome(coverage=coverage, capabilities=able))
    assert [row.feature for row in record.coverage] == [
        row.feature for row in coverage.matrix(able)
    ]
    rows = {row.feature: row for row in record.coverage}
    window = rows["window"].cells["truth"]
    assert window.model_dump() == {"state": "failed", "counts": {"passed": 2, "crashed": 1}}
    assert window.failed == 1
    assert rows["window"].cells["alone"].state == "not run"
    assert rows["softcap"].cells["truth"].state == "not supported"
    states = [cell.state for row in record.coverage for cell in row.cells.values()]
    for state in ("failed", "not run", "not supported"):
        assert record.cells(state) == states.count(state) > 0


def test_an_expected_failure_keeps_what_came_of_it_in_figures_and_in_words():
    waiver = ExpectedFailure(
        kernel="f", check="truth", when=("window",), reason="https://example.org/issues/12"
    )
    expectations = Expectations.of([waiver], "k.py:f")
    problem = AttentionProblem.parse(SPEC)
    expectations.judge(problem, Verdict("truth", Status.FAILED, ("off",)))
    (record,) = kernel_record(outcome(expectations=expectations)).expected
    assert record.model_dump() == {
        "kernel": "f",
        "check": "truth",
        "when": ["window"],
        "reason": "https://example.org/issues/12",
        "problems": 1,
        "failed": 1,
        "finding": "off",
        "problem": SPEC,
        "state": "failed as expected",
        "said": "f truth [window] fails 1 of 1 problems, as expected: "
        "https://example.org/issues/12",
    }


def test_a_failure_keeps_what_was_seen_and_how_to_see_it_again():
    failure = kernel_record(outcome(), device="cuda", saved_to="there.txt").failure
    assert failure.model_dump() == {
        "problem": SPEC,
        "check": "alone",
        "status": "crashed",
        "findings": ["one", "two"],
        "first_problem": "(q1 k9999) d80 b16 bf16",
        "replay": replay_command("k.py:f", "cuda", SPEC),
        "saved_to": "there.txt",
    }
    assert kernel_record(outcome(failure=None, complete=True)).failure is None


def test_records_come_back_from_json_and_cannot_be_changed():
    record = kernel_record(outcome())
    assert KernelRecord.model_validate_json(record.model_dump_json()) == record
    with pytest.raises(ValidationError, match="frozen"):
        record.problems = 8
    with pytest.raises(ValidationError):
        KernelRecord.model_validate({"name": "k"})


def test_memory_and_stream_keep_every_figure():
    stream = builtin_stream("azure-code", num_requests=50)
    for need in (contiguous_need(stream), paged_need(stream)):
        record = memory_record(need, pool_bytes=2**30)
        assert record.requests_in_pool == need.requests_that_fit(2**30)
        for name in set(type(record).model_fields) - {"requests_in_pool"}:
            assert getattr(record, name) == getattr(need, name)
    record = stream_record(stream)
    assert record.mean_prompt_tokens == pytest.approx(stream.prompt_tokens.mean())
    assert record.mean_output_tokens == pytest.approx(stream.output_tokens.mean())
    assert (record.name, record.requests, record.source) == ("azure-code", 50, stream.source)
