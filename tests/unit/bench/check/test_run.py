"""The whole job of `pagedbench check`: its steps and verdicts, and what it keeps when cut short.

The children are Python functions in this process.
"""

import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

import bench.check.run
from bench.check import search as cross_check
from bench.check.failures import FailureStore
from bench.check.run import CheckPlan, replay_problem, run_check, stream_lengths
from bench.command.exit_codes import INTERRUPTED
from bench.search import lanes as children
from bench.workloads.builtin import builtin_stream
from bench.workloads.stream import RequestStream
from helpers.check_scenarios import PASSED, Child, Kernel, expects, too_long, wrong_in_e5m2
from helpers.wrong_kernels import SHORT
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict
from subjects.loading import SubjectError
from subjects.process import SubjectDied


@pytest.fixture
def kernel(monkeypatch):
    kernel = Kernel()
    monkeypatch.setattr(cross_check, "start", kernel.start)
    return kernel


class Told:
    """Progress that remembers, and may stop the job."""

    def __init__(self):
        self.steps: list[str] = []
        self.counts: list[int] = []
        self.stop = threading.Event()
        self.stop_in = ""

    def begin(self, what: str, total: int) -> None:
        self.steps.append(what)

    def advance(self, count: int) -> None:
        self.counts.append(count)
        if self.stop_in and self.stop_in in self.steps[-1]:
            self.stop.set()


def check(folder: Path, told: Told, **changes):
    usual = {
        "kernels": ["one", "two"],
        "stream": builtin_stream(num_requests=20),
        "problems": 6,
        "max_len": 64,
        "seed": 0,
        "device": "cpu",
        "lanes": 1,
        "store": FailureStore(folder),
        "timed": AttentionProblem.parse("2x(q1 k1) h1 g4 d16 b16 bf16"),
    }
    return run_check(CheckPlan(**{**usual, **changes}), progress=told, stop=told.stop)


def test_a_job_goes_through_its_steps_and_is_right(kernel, tmp_path):
    told = Told()
    record = check(tmp_path / "save", told)
    assert told.steps == ["cross-checking one", "cross-checking two", "timing decode"]
    assert (record.verdict, record.exit_code) == ("right", 0)
    assert record.decode is not None
    assert not (tmp_path / "save").exists()


def test_one_wrong_kernel_makes_the_job_wrong_and_the_others_run_all_the_same(kernel, tmp_path):
    kernel.reply = too_long
    told = Told()
    record = check(tmp_path, told, problems=30)
    assert (record.verdict, record.exit_code) == ("wrong", 1)
    assert "timing decode" not in told.steps
    smallest = f"(q1 k{SHORT + 1}) d16 b16 "
    for found in record.kernels:
        # Memory does not keep the truth from being asked; of a law nothing new is to be had.
        assert [each.check for each in found.failures] == ["memory", "truth"]
        assert all(each.problem.startswith(smallest) for each in found.failures)
        assert {Path(each.saved_to).parent for each in found.failures} == {tmp_path}
        assert found.complete
    assert told.steps.count("making the failure smaller") == 4


def test_a_failure_is_tried_first_next_time_and_a_corrected_kernel_passes_it(kernel, tmp_path):
    options = {"kernels": ["one"], "timed": None}
    kernel.reply = too_long
    found = check(tmp_path, Told(), problems=30, **options).kernels[0].failure
    saved = Path(found.saved_to).read_text()
    assert saved == f"{found.problem}\n"
    again = check(tmp_path, Told(), problems=3, seed=1, **options).kernels[0]
    assert (again.problems, again.failure.first_problem) == (4, found.problem)
    assert again.failure.seed is None  # it was not drawn
    assert Path(found.saved_to).read_text() == saved
    kernel.reply = lambda *_: PASSED
    corrected = check(tmp_path, Told(), problems=3, **options)
    assert corrected.verdict == "right"
    assert (corrected.kernels[0].problems, corrected.kernels[0].asked) == (4, 4)


def test_a_job_whose_failures_are_expected_is_as_expected_and_warns_of_the_others(
    kernel, tmp_path, monkeypatch
):
    kernel.reply = wrong_in_e5m2
    expected = (
        expects("truth", "kv_dtype=e5m2", kernel="one"),
        expects("truth", "kv_dtype=e5m2", kernel="two"),
        expects("alone", kernel="two"),
        expects("truth", "head_dim=72", kernel="two"),
        expects("truth", kernel="three"),
    )
    monkeypatch.setattr(bench.check.run, "LONG_RUN", 60)
    record = check(tmp_path, Told(), problems=60, expected=expected)
    assert (record.verdict, record.exit_code) == ("as expected", 0)
    assert record.decode is not None
    states = [[expected.state for expected in k.expected] for k in record.kernels]
    assert states == [
        ["failed as expected"],
        ["failed as expected", "no longer fails", "no problem met it"],
    ]
    assert all("https://example.org/issues/12" in k.expected[0].said for k in record.kernels)
    strange, stale, unmet = record.warnings
    assert strange == "three truth is about no kernel of this run: one, two"
    assert stale.startswith("two alone no longer fails: passed on ")
    assert unmet.startswith("two truth [head_dim=72] met no problem: ")
    assert not list(tmp_path.iterdir())  # what is expected is not saved, to be found again
    monkeypatch.setattr(bench.check.run, "LONG_RUN", 61)
    record = check(tmp_path, Told(), problems=60, expected=expected)
    assert record.warnings == [strange, stale]  # so few problems need not meet everything


def test_a_search_that_ends_early_warns_of_no_expected_failure(kernel, tmp_path):
    kernel.reply = too_long
    expected = (expects("alone", "head_dim=72", kernel="one"),)
    record = check(tmp_path, Told(), kernels=["one"], problems=30, expected=expected)
    assert record.verdict == "wrong"
    assert record.warnings == []


def test_a_failure_that_cannot_be_saved_is_reported_all_the_same(kernel, tmp_path):
    (tmp_path / "file").touch()
    kernel.reply = too_long
    record = check(tmp_path / "file" / "failures", Told(), kernels=["one"], problems=30)
    assert record.verdict == "wrong"
    assert record.kernels[0].failure.saved_to is None


class Missing(Child):
    def introduce(self) -> dict:
        return {"error": "no such kernel"}


class Dying(Child):
    def introduce(self) -> dict:
        raise SubjectDied("was killed by SIGSEGV", timed_out=False)


@pytest.mark.parametrize(
    ("other", "message"),
    [(Missing, "no such kernel"), (Dying, "importing two: the process was killed by SIGSEGV")],
)
def test_a_kernel_that_does_not_import_is_told_before_any_other_is_run(
    other, message, kernel, tmp_path, monkeypatch
):
    kinds = {"one": Child, "two": other}
    monkeypatch.setattr(cross_check, "start", lambda name, *_, **__: kinds[name](kernel))
    with pytest.raises(SubjectError, match=message):
        check(tmp_path, Told())
    assert kernel.asked == []


@pytest.mark.parametrize(
    ("step", "problems"), [("one", (1, 0)), ("two", (6, 1)), ("timing", (6, 6))]
)
def test_a_job_that_is_stopped_is_incomplete_and_says_what_was_not_run(
    step, problems, kernel, tmp_path
):
    told = Told()
    told.stop_in = step
    record = check(tmp_path, told)
    assert (record.verdict, record.exit_code) == ("incomplete", 130)
    assert [k.problems for k in record.kernels] == list(problems)
    assert [k.complete for k in record.kernels] == [count == 6 for count in problems]
    assert record.decode is None
    if step == "timing":
        assert told.counts[12:] == [1]  # the first round was the last


def test_a_wrong_kernel_is_wrong_also_in_a_job_that_is_stopped(kernel, tmp_path):
    kernel.reply = too_long
    told = Told()
    told.stop_in = "smaller"
    record = check(tmp_path, told, problems=30)
    assert (record.verdict, record.exit_code) == ("wrong", 1)
    assert [k.failure is None for k in record.kernels] == [False, True]


def test_problems_take_their_lengths_from_all_of_a_stream(monkeypatch):
    monkeypatch.setattr(bench.check.run, "MAX_DRAWN_REQUESTS", 4)
    prompts, outputs = [50, 10, 40, 20, 30, 60, 70], [1, 2, 3, 4, 5, 6, 7]
    requests = RequestStream(
        name="s", source="a test", prompt_tokens=prompts, output_tokens=outputs
    )
    assert stream_lengths(requests) == [(10, 2), (30, 5), (50, 1), (70, 7)]


# What cannot be judged


def kernels_answer(monkeypatch, **replies) -> None:
    """Children whose kernels answer each in their own way."""
    kernels = {name: Kernel(reply) for name, reply in replies.items()}
    monkeypatch.setattr(cross_check, "start", lambda name, *_, **__: kernels[name].start())


def ours(check: str, problem: AttentionProblem) -> dict:
    return {"harness": "Traceback: our own"}


def unable(check: str, problem: AttentionProblem) -> dict:
    return {"status": "not supported", "findings": ["dtype"]}


@pytest.mark.parametrize(
    ("reply", "exit_code", "said"),
    [
        (ours, 4, "one was not checked, the harness itself failed: Traceback"),
        (unable, 2, "one was not checked: one supports none of the 6 problems"),
    ],
)
def test_a_kernel_that_cannot_be_judged_leaves_the_others_theirs(
    reply, exit_code, said, tmp_path, monkeypatch
):
    kernels_answer(monkeypatch, one=reply, two=lambda *_: PASSED)
    record = check(tmp_path, Told())
    assert (record.verdict, record.exit_code) == ("incomplete", exit_code)
    assert [(k.problems, k.complete) for k in record.kernels] == [(0, False), (6, True)]
    assert record.warnings[0].startswith(said)
    kernels_answer(monkeypatch, one=reply, two=too_long)
    assert check(tmp_path, Told(), problems=30).exit_code == 1  # that one is wrong stands


def test_where_no_kernel_can_be_judged_the_job_fails(tmp_path, monkeypatch):
    kernels_answer(monkeypatch, one=ours, two=ours)
    with pytest.raises(children.HarnessError, match="our own"):
        check(tmp_path, Told())


# Cut short


def test_a_job_that_is_stopped_while_a_kernel_is_imported_reports_it(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "GRACE_S", 0.1)
    told = Told()

    class Hanging(Child):
        def introduce(self) -> dict:
            told.stop.set()
            self.killed.wait()
            raise SubjectDied("was killed", timed_out=False)

    monkeypatch.setattr(cross_check, "start", lambda *_, **__: Hanging(Kernel()))
    record = check(tmp_path, told)
    assert (record.verdict, record.exit_code) == ("incomplete", 130)
    assert [k.problems for k in record.kernels] == [0, 0]


@pytest.mark.parametrize("answers", [1, 5])
def test_what_was_found_is_kept_whenever_shrinking_is_stopped(
    answers, kernel, tmp_path, monkeypatch
):
    monkeypatch.setattr(children, "GRACE_S", 0.1)
    told = Told()

    def reply(check: str, problem: AttentionProblem) -> dict | None:
        if "making the failure smaller" not in told.steps:
            return too_long(check, problem)
        counted.append(problem)
        if len(counted) >= answers:
            told.stop.set()
            return None  # and it hangs
        return too_long(check, problem)

    counted: list[AttentionProblem] = []
    kernel.reply = reply
    record = check(tmp_path, told, kernels=["one"], problems=30)
    assert (record.verdict, record.exit_code) == ("wrong", 1)
    failure = record.kernels[0].failure
    assert AttentionProblem.parse(failure.problem).max_seq_len > SHORT
    assert failure.problem in Path(failure.saved_to).read_text()


def test_a_replay_that_is_stopped_shows_what_was_checked(monkeypatch):
    asked = []

    def stopped_at_the_third(child, check, problem):
        asked.append(check)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return Verdict(check, Status.PASSED, ())

    monkeypatch.setattr(cross_check, "start", lambda *_, **__: nullcontext())
    monkeypatch.setattr(cross_check, "_asked", stopped_at_the_third)
    shown = []
    code = replay_problem(
        AttentionProblem.parse("2x(q1 k5) d16 b16 fp32"),
        ["one", "another"],
        "cpu",
        expected=(),
        time_limit_s=5.0,
        python=None,
        show=lambda name, replayed: shown.append((name, replayed)),
    )
    assert code == INTERRUPTED
    ((name, replayed),) = shown
    assert (name, replayed.complete, len(replayed.verdicts)) == ("one", False, 2)
