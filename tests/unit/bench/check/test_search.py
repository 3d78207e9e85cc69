"""The search: what it draws, what it counts, when it ends, and what it makes of a failure.

Most of it runs on children that are Python functions in this process; the last tests run real ones.
"""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import strategies as st

import bench.check.run
from bench.check import search as cross_check
from bench.check import worker
from bench.check.failures import FailureStore
from bench.check.run import CheckPlan, run_check, stream_lengths
from bench.check.search import HarnessError, Outcome, Search, Turns, search, shrink
from bench.workloads.builtin import builtin_stream
from bench.workloads.stream import RequestStream
from helpers.wrong_kernels import NARROW, PATH, SHORT, named
from reference.attention.checks import CHECKS, LAWS
from reference.attention.contract import Capabilities, variants_of
from reference.attention.coverage import CellState
from reference.attention.expected import ExpectedFailure
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict
from subjects.loading import SubjectError
from subjects.process import NotStarted, SubjectDied

LENGTHS = [(100, 10), (300, 60)]
PASSED = {"status": "passed", "findings": []}
FAILED = {"status": "failed", "findings": ["off"]}


class Kernel:
    """Answers in place of a child, and remembers what it was asked.

    A subclass or a test sets `reply`; everything passes until then.
    """

    def __init__(self, capabilities: Capabilities = Capabilities()):  # noqa: B008 - frozen
        self.capabilities = capabilities
        self.asked: list[tuple[str, str]] = []
        self.started = 0

    def reply(self, check: str, problem: AttentionProblem) -> dict:
        return PASSED

    def start(self, *_: object, **__: object) -> "Child":
        self.started += 1
        return Child(self)

    def specs(self) -> list[str]:
        return list(dict.fromkeys(spec for _, spec in self.asked))


class Child:
    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.killed = threading.Event()

    def introduce(self) -> dict:
        return {"capabilities": worker.capabilities_as_json(self.kernel.capabilities)}

    def ask(self, question: dict) -> dict:
        self.kernel.asked.append((question["check"], question["problem"]))
        answer = self.kernel.reply(question["check"], AttentionProblem.parse(question["problem"]))
        if answer is None:  # hangs
            self.killed.wait()
            raise SubjectDied("was killed", timed_out=False)
        return answer

    def kill(self) -> None:
        self.killed.set()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def kernel(monkeypatch):
    kernel = Kernel()
    monkeypatch.setattr(cross_check, "start", kernel.start)
    return kernel


def plan(**changes) -> Search:
    usual = {
        "kernel": "k.py:f",
        "device": "cpu",
        "problems": 30,
        "lengths": LENGTHS,
        "max_len": 256,
        "lanes": 1,
        "seed": 0,
    }
    return Search(**{**usual, **changes})


def run(**changes) -> Outcome:
    return search(plan(**changes), advance=lambda _: None, stop=threading.Event())


# What is drawn


def test_every_problem_is_another_one_and_as_many_run_as_were_asked_for(kernel):
    told = []
    outcome = search(plan(problems=60), advance=told.append, stop=threading.Event())
    assert len(kernel.specs()) == outcome.problems == outcome.asked == 60
    assert sum(told) == 60
    assert outcome.complete
    assert outcome.counts.total() == len(kernel.asked)
    assert outcome.counts["truth", Status.PASSED] == 60
    turns = Turns()
    assert kernel.asked == [
        (check, spec)
        for spec in kernel.specs()
        for check in turns.checks_for(AttentionProblem.parse(spec))
    ]


def test_memory_and_truth_are_held_to_every_problem_and_the_laws_take_turns(kernel):
    outcome = run(problems=150)
    assert outcome.counts["memory", Status.PASSED] == outcome.counts["truth", Status.PASSED] == 150
    turns = [outcome.counts[law.name, Status.PASSED] for law in LAWS]
    assert 140 <= sum(turns) <= 150  # a batch without a query shows no law
    # Some can be shown by few problems only; they have their turn whenever one does.
    assert max(turns) <= 3 * min(turns), turns


def test_a_law_that_can_be_shown_with_something_new_comes_first():
    turns = Turns()
    seen, new = "(q1 k9) d16 b16 bf16", "(q1 k9) d16 b16 bf16 window=3"
    laws = {law.name for law in LAWS if law.applies(AttentionProblem.parse(seen))}
    assert len(laws) > 2
    first = [turns.checks_for(AttentionProblem.parse(seen))[-1] for _ in laws]
    assert set(first) == laws
    # Every law was shown once. With a window none was, and each is before any is shown again.
    first = [turns.checks_for(AttentionProblem.parse(new))[-1] for _ in laws]
    assert set(first) == laws


def test_what_no_law_can_show_is_held_to_memory_and_truth():
    assert Turns().checks_for(AttentionProblem.parse("(q0 k9) d16 b16 bf16")) == ["memory", "truth"]


@pytest.mark.parametrize(("problems", "lanes"), [(1, 1), (1, 4), (3, 8), (25, 2), (25, 3)])
def test_lanes_change_neither_the_problems_nor_their_number(kernel, problems, lanes):
    outcome = run(problems=problems, lanes=lanes)
    several = kernel.specs()
    assert outcome.problems == len(several) == problems
    assert outcome.complete
    assert kernel.started == 1 + min(lanes, problems)  # and the one that was asked what it can do
    kernel.asked.clear()
    run(problems=problems, lanes=1)
    assert set(kernel.specs()) == set(several)


def test_the_same_seed_draws_the_same_problems_and_another_seed_others(kernel):
    drawn = []
    for seed in (7, 7, 8):
        kernel.asked.clear()
        run(seed=seed)
        drawn.append(kernel.specs())
    assert drawn[0] == drawn[1]
    # The simplest problem comes first whatever the seed.
    assert len(set(drawn[0]) & set(drawn[2])) < 10


def test_numbers_in_loaded_sources_do_not_change_what_is_drawn(kernel, monkeypatch, tmp_path):
    def drawn() -> list[str]:
        kernel.asked.clear()
        run(problems=80)
        return kernel.specs()

    monkeypatch.chdir(tmp_path)
    before = drawn()
    source = "\n".join(f"n{n} = {n}" for n in range(101, 151))
    (tmp_path / "numbers_of_ours.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("numbers_of_ours")
    try:
        assert drawn() == before
    finally:
        del sys.modules["numbers_of_ours"]
    assert [path.name for path in tmp_path.iterdir() if path.name == ".hypothesis"] == []


def test_a_third_of_the_contexts_are_the_streams(kernel):
    # Longer than any awkward context, so that they can be told apart.
    run(problems=30, lengths=[(400, 1)], max_len=512, capabilities=NARROW)
    ours = [spec for spec in kernel.specs() if "k401" in spec]
    assert len(ours) == 10
    kernel.asked.clear()
    run(problems=30, lengths=[], capabilities=NARROW)
    assert len(kernel.specs()) == 30
    assert all(AttentionProblem.parse(spec).max_seq_len <= 150 for spec in kernel.specs())


def test_nothing_is_drawn_that_the_kernel_does_not_declare(kernel):
    kernel.capabilities = NARROW
    outcome = run(problems=60)
    problems = [AttentionProblem.parse(spec) for spec in kernel.specs()]
    assert len(problems) == 60
    assert {NARROW.refusal(problem) for problem in problems} == {None}
    assert {(p.dtype, p.kv_dtype, p.head_dim, p.block_size) for p in problems} == {
        ("bf16", "bf16", 32, 16)
    }
    assert {variants_of(problem) for problem in problems} == {frozenset()}
    assert outcome.capabilities == NARROW


def test_all_that_there_is_to_draw_is_a_complete_search(kernel, monkeypatch):
    three = [AttentionProblem.parse(f"(q1 k{n}) d16 b16 bf16") for n in (1, 2, 3)]
    monkeypatch.setattr(cross_check, "problems", lambda **_: st.sampled_from(three))
    outcome = run(problems=100, lanes=2)
    assert outcome.complete
    assert (outcome.problems, outcome.asked) == (3, 100)
    assert Counter(spec for check, spec in kernel.asked if check == "truth") == dict.fromkeys(
        map(str, three), 1
    )


def test_saved_problems_are_run_first_with_every_check_and_counted(kernel):
    saved = AttentionProblem.parse("(q3 k20) (q1 k5) g2 d32 b16 bf16 shared=16")
    outcome = run(problems=5, saved=(saved,))
    applying = [check.name for check in CHECKS if check.applies(saved)]
    assert len(applying) > 5
    assert kernel.asked[: len(applying)] == [(name, str(saved)) for name in applying]
    assert (outcome.problems, outcome.asked, outcome.complete) == (6, 6, True)


# What is no verdict


def test_a_kernel_that_supports_nothing_that_was_drawn_is_not_right(kernel):
    kernel.reply = lambda *_: {"status": "not supported", "findings": ["dtype"]}
    with pytest.raises(SubjectError, match=r"k.py:f supports none of the 30 problems"):
        run()


def test_problems_that_the_kernel_does_not_support_are_not_counted_as_run(kernel):
    kernel.reply = lambda _, problem: (
        PASSED
        if problem.dtype == "bf16"
        else {"status": "not supported", "findings": [f"dtype {problem.dtype}"]}
    )
    outcome = run()
    supported = [spec for spec in kernel.specs() if "bf16" in spec]
    assert outcome.problems == len(supported) > 0
    assert outcome.problems + outcome.counts["truth", Status.NOT_SUPPORTED] == 30
    assert outcome.complete


def test_what_is_ours_to_blame_is_no_verdict(kernel):
    kernel.reply = lambda *_: {"harness": "Traceback: our own"}
    with pytest.raises(HarnessError, match=r"memory on \(.*:\nTraceback: our own"):
        run(lanes=2)


def test_an_error_while_drawing_ends_the_search(kernel, monkeypatch):
    monkeypatch.setattr(cross_check, "problems", lambda **_: st.builds(lambda: 1 // 0))
    with pytest.raises(ZeroDivisionError):
        run(lanes=3)


def test_a_stopped_search_keeps_what_is_done_and_is_not_complete(kernel):
    stop = threading.Event()

    def reply(*_: object) -> dict:
        if len(kernel.asked) == 9:
            stop.set()
        return PASSED

    kernel.reply = reply
    outcome = search(plan(), advance=lambda _: None, stop=stop)
    assert not outcome.complete
    assert outcome.failure is None
    assert 3 <= outcome.problems < 10


def test_a_stopped_search_does_not_wait_for_a_kernel_that_hangs(kernel, monkeypatch):
    monkeypatch.setattr(cross_check, "GRACE_S", 0.1)
    stop = threading.Event()

    def reply(*_: object) -> dict | None:
        if len(kernel.asked) < 7:
            return PASSED
        stop.set()
        return None

    kernel.reply = reply
    outcome = search(plan(), advance=lambda _: None, stop=stop)
    assert not outcome.complete
    assert outcome.failure is None  # it hung, but nobody waited long enough to say so
    assert outcome.counts.total() == 6


# What fails


def too_long(check: str, problem: AttentionProblem) -> dict:
    long = problem.max_seq_len > SHORT
    return {"status": "failed", "findings": [f"saw {problem}"]} if long else PASSED


def shrunk(outcome: Outcome, **changes) -> cross_check.Failure:
    return shrink(plan(**changes), outcome, stop=threading.Event())


def test_the_first_failure_ends_the_search_and_is_kept_as_drawn(kernel):
    kernel.reply = too_long
    outcome = run(lanes=2)
    check, spec = next(
        (c, s) for c, s in kernel.asked if too_long(c, AttentionProblem.parse(s)) != PASSED
    )
    failure = outcome.failure
    assert outcome.wrong
    assert not outcome.complete
    assert failure == cross_check.Failure(spec, check, Status.FAILED, (f"saw {spec}",), spec)
    assert outcome.counts[check, Status.FAILED] >= 1
    assert outcome.problems < 30


def test_a_failure_shrinks_to_the_smallest_problem_that_shows_it(kernel):
    kernel.reply = too_long
    outcome = run()
    kernel.asked.clear()
    smaller = shrunk(outcome)
    assert smaller.problem.startswith(f"(q1 k{SHORT + 1}) d16 b16 fp32")
    assert smaller.first_problem == outcome.failure.problem
    assert smaller.findings == (f"saw {smaller.problem}",)
    # None of those before it again.
    assert kernel.asked[0] == (outcome.failure.check, outcome.failure.problem)


def test_only_the_check_that_failed_is_shrunk(kernel):
    kernel.reply = lambda check, problem: (
        FAILED if check == "alone" and problem.max_seq_len > SHORT else PASSED
    )
    outcome = run(problems=300)
    assert outcome.failure.check == "alone"
    kernel.asked.clear()
    smaller = shrunk(outcome, problems=300)
    assert {check for check, _ in kernel.asked} == {"alone"}
    problem = AttentionProblem.parse(smaller.problem)
    assert smaller.check == "alone"
    assert [r.query_len for r in problem.requests] == [1, 1]  # alone needs two
    assert problem.max_seq_len == SHORT + 1


def test_shrinking_ends_after_so_many_attempts_or_seconds_with_a_true_failure(kernel, monkeypatch):
    kernel.reply = too_long
    outcome = run()
    for limit, value in (("MAX_SHRINKS", 3), ("SHRINK_LIMIT_S", 0.0)):
        with monkeypatch.context() as patch:
            patch.setattr(cross_check, limit, value)
            kernel.asked.clear()
            smaller = shrunk(outcome)
        assert 1 <= len(kernel.asked) <= 3
        assert too_long("truth", AttentionProblem.parse(smaller.problem)) != PASSED
        assert smaller.findings == (f"saw {smaller.problem}",)


def test_shrinking_stops_when_told_to(kernel):
    kernel.reply = too_long
    outcome, stop = run(), threading.Event()
    told = []

    def advance(count: int) -> None:
        told.append(count)
        if sum(told) == 2:
            stop.set()

    smaller = shrink(plan(), outcome, advance=advance, stop=stop)
    assert sum(told) == 2
    assert smaller.first_problem == outcome.failure.problem


def test_shrinking_does_not_wait_for_a_kernel_that_hangs(kernel, monkeypatch):
    monkeypatch.setattr(cross_check, "GRACE_S", 0.1)
    kernel.reply = too_long
    outcome, stop = run(), threading.Event()

    def reply(check: str, problem: AttentionProblem) -> dict | None:
        if len(kernel.asked) < 2:
            return too_long(check, problem)
        stop.set()
        return None

    kernel.asked.clear()
    kernel.reply = reply
    smaller = shrink(plan(), outcome, stop=stop)
    assert smaller == outcome.failure


def test_a_failure_by_chance_is_reported_and_said_to_be_one(kernel):
    kernel.reply = lambda *_: FAILED if len(kernel.asked) == 9 else PASSED
    outcome = run()
    assert outcome.wrong
    smaller = shrunk(outcome)
    assert smaller.problem == outcome.failure.problem
    assert smaller.findings[0] == "off"
    assert "did not fail again" in smaller.findings[-1]


def test_a_failure_that_comes_and_goes_while_it_shrinks_is_said_to(kernel):
    kernel.reply = too_long
    outcome = run()
    kernel.asked.clear()
    kernel.reply = lambda check, problem: (
        too_long(check, problem) if len(kernel.asked) < 4 else PASSED
    )
    smaller = shrunk(outcome)
    assert "did not fail again" in smaller.findings[-1]
    assert too_long("truth", AttentionProblem.parse(smaller.problem)) != PASSED


def test_a_failure_among_saved_problems_needs_no_drawing_to_be_reported(kernel):
    saved = AttentionProblem.parse("(q1 k99) d16 b16 bf16")
    kernel.reply = too_long
    outcome = run(saved=(saved,))
    assert outcome.failure.problem == str(saved)
    kernel.asked.clear()
    assert shrunk(outcome).problem == str(saved)


# What is expected to fail


def expects(check: str = "truth", *when: str, kernel: str = "k.py:f") -> ExpectedFailure:
    return ExpectedFailure(
        kernel=kernel, check=check, when=when, reason="https://example.org/issues/12"
    )


def wrong_in_e5m2(check: str, problem: AttentionProblem) -> dict:
    wrong = check == "truth" and problem.kv_dtype == "e5m2"
    return {"status": "failed", "findings": [f"saw {problem}"]} if wrong else PASSED


def test_an_expected_failure_is_counted_and_the_search_goes_on(kernel):
    kernel.reply = wrong_in_e5m2
    outcome = run(problems=60, lanes=2, expected=(expects("truth", "kv_dtype=e5m2"),))
    assert (outcome.failure, outcome.complete, outcome.problems) == (None, True, 60)
    in_e5m2 = [spec for spec in kernel.specs() if "kv=e5m2" in spec]
    assert outcome.counts["truth", Status.EXPECTED] == len(in_e5m2) > 5
    assert outcome.counts["truth", Status.PASSED] == 60 - len(in_e5m2)
    (met,) = outcome.expectations.met
    assert (met.problems, met.failed) == (len(in_e5m2), len(in_e5m2))
    assert (met.problem, met.finding) in [(spec, f"saw {spec}") for spec in in_e5m2]
    # The checks after the one that failed are run all the same.
    laws = [check for check, spec in kernel.asked if spec == met.problem]
    assert laws[:2] == ["memory", "truth"]
    assert len(laws) == 3


@pytest.mark.parametrize(
    "expected",
    [
        expects("truth", "kv_dtype=e5m2", kernel="other.py:f"),
        expects("truth", "kv_dtype=e4m3"),
        expects("memory", "kv_dtype=e5m2"),
        expects("truth", "kv_dtype=e5m2", "head_dim=72"),
    ],
    ids=str,
)
def test_what_is_not_quite_expected_ends_the_search(expected, kernel):
    kernel.reply = wrong_in_e5m2
    outcome = run(problems=60, expected=(expected,))
    assert outcome.failure.check == "truth"
    assert "kv=e5m2" in outcome.failure.problem
    assert outcome.counts["truth", Status.EXPECTED] == 0


def test_a_crash_that_is_expected_is_no_failure_either(kernel):
    kernel.reply = lambda check, problem: (
        {"status": "crashed", "findings": ["died"]}
        if wrong_in_e5m2(check, problem) != PASSED
        else PASSED
    )
    outcome = run(problems=60, expected=(expects("truth", "kv_dtype=e5m2"),))
    assert outcome.complete
    assert outcome.expectations.met[0].finding == "died"


def test_shrinking_does_not_end_in_what_is_expected(kernel):
    # Wrong if long, which is news, and always with float32, which is known: alone, shrinking would
    # go to float32, which is the simplest type, and to one token.
    kernel.reply = lambda check, problem: (
        FAILED
        if check == "truth" and (problem.dtype == "fp32" or problem.max_seq_len > SHORT)
        else PASSED
    )
    expected = (expects("truth", "dtype=fp32"),)
    outcome = run(expected=expected)
    smaller = shrunk(outcome, expected=expected)
    problem = AttentionProblem.parse(smaller.problem)
    assert problem.dtype != "fp32"
    assert problem.max_seq_len == SHORT + 1


def test_coverage_is_counted_by_feature_with_what_nobody_could_see(kernel):
    def reply(check: str, problem: AttentionProblem) -> dict:
        if check == "memory":
            return {"status": "not run", "findings": ["nobody looks"]}
        return wrong_in_e5m2(check, problem)

    kernel.reply = reply
    outcome = run(problems=60, lanes=2, expected=(expects("truth", "kv_dtype=e5m2"),))
    assert outcome.unseen == {"memory": "nobody looks"}
    rows = {row.feature: row.cells for row in outcome.coverage.matrix(outcome.capabilities)}
    assert {row["memory"].state for row in rows.values()} == {CellState.NOT_RUN}
    specs = [AttentionProblem.parse(spec) for spec in kernel.specs()]
    windows = [problem for problem in specs if problem.window is not None]
    wrong = sum(problem.kv_dtype == "e5m2" for problem in windows)
    assert rows["window"]["truth"].counts == {
        Status.PASSED: len(windows) - wrong,
        Status.EXPECTED: wrong,
    }
    assert rows["kv_dtype=same"]["truth"].state is CellState.PASSED
    assert rows["kv_dtype=e5m2"]["truth"].state is CellState.EXPECTED


# The whole job


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
    assert told.steps.count("making the failure smaller") == 2
    smallest = f"(q1 k{SHORT + 1}) "
    assert [k.failure.problem.startswith(smallest) for k in record.kernels] == [True, True]
    assert {Path(k.failure.saved_to).parent for k in record.kernels} == {tmp_path}


def test_a_job_whose_failures_are_expected_is_as_expected_and_warns_of_the_others(kernel, tmp_path):
    kernel.reply = wrong_in_e5m2
    expected = (
        expects("truth", "kv_dtype=e5m2", kernel="one"),
        expects("truth", "kv_dtype=e5m2", kernel="two"),
        expects("alone", kernel="two"),
        expects("truth", "head_dim=72", kernel="two"),
        expects("truth", kernel="three"),
    )
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


def test_a_kernel_that_does_not_import_is_told_before_any_other_is_run(
    kernel, tmp_path, monkeypatch
):
    class Missing(Child):
        def introduce(self) -> dict:
            return {"error": "no such kernel"}

    kinds = {"one": Child, "two": Missing}
    monkeypatch.setattr(cross_check, "start", lambda name, *_, **__: kinds[name](kernel))
    with pytest.raises(SubjectError, match="no such kernel"):
        check(tmp_path, Told())
    assert kernel.asked == []


def test_a_kernel_that_dies_while_it_is_imported_is_told_so(kernel, tmp_path, monkeypatch):
    class Dying(Child):
        def introduce(self) -> dict:
            raise SubjectDied("was killed by SIGSEGV", timed_out=False)

    monkeypatch.setattr(cross_check, "start", lambda *_, **__: Dying(kernel))
    with pytest.raises(SubjectError, match="importing one: the process was killed by SIGSEGV"):
        check(tmp_path, Told())


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


# The worker's answers, in this process


@pytest.fixture
def asked(monkeypatch):
    """Ask the worker about one of the wrong kernels, as many times as there are specs."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def ask(kernel_name: str, check: str, *specs: str) -> list[dict]:
        subject, said = worker.introduction(named(kernel_name))
        assert worker.capabilities_from_json(said["capabilities"]) == subject.capabilities
        return [worker.answer(subject, {"check": check, "problem": s}, "cpu") for s in specs]

    return ask


@pytest.mark.parametrize(
    ("kernel_name", "spec", "finding"),
    [
        ("scaled", "(q1 k41) d32 b16 bf16", "out[token 0, head 0] is "),
        ("window_off_by_one", "(q1 k41) d32 b16 bf16 window=3", "[token 0, head 0] is "),
        ("writes_nothing", "(q1 k1) d32 b16 bf16", "out[token 0, head 0] is nan, the truth is "),
        ("writes_cache", "(q1 k41) d32 b16 bf16", "wrote to the key or value cache"),
        ("raises", "(q1 k41) d32 b16 bf16", "raised ValueError: no tile for [b] 41 tokens"),
    ],
)
def test_each_way_of_being_wrong_is_said(kernel_name, spec, finding, asked):
    (answer,) = asked(kernel_name, "truth", spec)
    assert answer["status"] == "failed"
    assert finding in answer["findings"][0]


def test_what_is_right_now_and_then_is_wrong_then(asked):
    answers = asked("fails_by_chance", "truth", *["(q1 k9) d32 b16 bf16"] * 12)
    assert [answer["status"] for answer in answers].count("failed") == 1
    assert answers[9]["status"] == "failed"


def test_what_is_outside_its_capabilities_is_not_asked_of_a_kernel(asked):
    (answer,) = asked("narrow", "truth", "(q2 k9) d32 b16 bf16")
    assert answer["status"] == "not supported"
    assert answer["findings"] == ["variant prefill"]


# Real children


def crash_search(kernel_name: str, time_limit_s: float = 60.0) -> tuple[Search, Outcome]:
    the_plan = plan(
        kernel=named(kernel_name),
        capabilities=NARROW,
        problems=20,
        time_limit_s=time_limit_s,
    )
    return the_plan, search(the_plan, advance=lambda _: None, stop=threading.Event())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel_name", "time_limit_s", "how"),
    [
        ("segfaults", 60.0, "was killed by SIGSEGV: about to crash\nFatal Python error"),
        ("exits", 60.0, "ended with code 0"),
        ("hangs", 1.5, "gave no answer within 1.5 s: "),
    ],
)
def test_a_crash_and_a_hang_are_findings_and_shrink(kernel_name, time_limit_s, how, monkeypatch):
    monkeypatch.setattr(cross_check, "MAX_SHRINKS", 2)
    the_plan, outcome = crash_search(kernel_name, time_limit_s)
    assert outcome.failure.status is Status.CRASHED
    smaller = shrink(the_plan, outcome, stop=threading.Event())
    assert smaller.status is Status.CRASHED
    assert len(smaller.problem) <= len(smaller.first_problem)
    assert AttentionProblem.parse(smaller.problem).max_seq_len > SHORT
    (finding, *_) = smaller.findings
    assert finding.startswith(f"the kernel's process {how}")
    if kernel_name != "exits":  # which is no accident: it leaves no traceback
        assert f"in {kernel_name}" in finding
        assert str(PATH) in finding


def test_after_a_hang_no_other_check_is_replayed():
    problem = AttentionProblem.parse(f"(q3 k{SHORT + 9}) d32 b16 bf16")
    verdicts = cross_check.replay(named("hangs"), "cpu", problem, time_limit_s=0.5).verdicts
    assert [(v.check, v.status) for v in verdicts] == [
        ("memory", Status.NOT_RUN),  # without a call: nobody can watch torch
        ("truth", Status.CRASHED),
    ]


def test_a_noisy_kernel_that_reads_standard_input_is_as_right_as_a_quiet_one():
    problem = AttentionProblem.parse("(q1 k20) d32 b16 bf16")
    verdicts = cross_check.replay(named("prints"), "cpu", problem).verdicts
    assert len(verdicts) > 3
    assert verdicts[0].check == "memory"
    assert verdicts[0].status is Status.NOT_RUN
    assert verdicts[1:] == [Verdict(verdict.check, Status.PASSED) for verdict in verdicts[1:]]


def test_a_replay_counts_the_bytes_that_a_triton_kernel_moves():
    problem = AttentionProblem.parse("2x(q1 k20) h2 g2 d32 b16 bf16")
    moved = cross_check.replay("triton", "cpu", problem).moved
    assert moved["key_cache"] == {
        "loaded": 2 * 20 * 2 * 32 * 2,
        "loaded_distinct": 2 * 20 * 2 * 32 * 2,
        "stored": 0,
        "stored_distinct": 0,
    }
    assert moved["out"]["stored"] == 2 * 4 * 32 * 2
    assert cross_check.replay(named("right"), "cpu", problem).moved is None


def test_a_child_whose_own_imports_fail_says_nothing_about_the_kernel(monkeypatch, tmp_path):
    # A package without a worker: an empty folder would leave the one that is installed.
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").touch()
    monkeypatch.setattr(cross_check, "ROOT", tmp_path)
    with pytest.raises(NotStarted, match=r"No module named 'bench\.worker'"):
        cross_check.describe("torch", "cpu")


def test_a_question_that_breaks_the_worker_is_ours_to_blame():
    with (
        cross_check.start(named("right"), "cpu") as child,
        pytest.raises(HarnessError, match="boo"),
    ):
        cross_check.verdict_of(child, "boo", AttentionProblem.parse("(q1 k1) d32 b16 bf16"))


def test_a_worker_ends_with_its_parent_even_in_a_kernel_that_hangs(tmp_path):
    mark = tmp_path / "mark"
    kernel = tmp_path / "hang.py"
    kernel.write_text(
        "import pathlib, time\n"
        f"def attend(batch):\n    pathlib.Path({str(mark)!r}).touch()\n    time.sleep(3600)\n"
    )
    source = (
        "import sys, time; from bench.check.search import start\n"
        f"child = start({str(kernel)!r} + ':attend', 'cpu')\n"
        "child.introduce(); print(child._child.pid, flush=True)\n"
        "child.ask({'check': 'truth', 'problem': '(q1 k1) d32 b16 bf16'})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(cross_check.ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE, text=True
    )
    with parent:
        pid = int(parent.stdout.readline())
        give_up = time.monotonic() + 60
        while not mark.exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        assert mark.exists()
        parent.kill()
    while _is_running(pid) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
