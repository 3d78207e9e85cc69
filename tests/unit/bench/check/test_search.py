"""The search in children: what it draws, what it counts, when it ends, and how crashes are told.

Most of it runs on children that are Python functions in this process; the last tests run real ones.
"""

import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import strategies as st

from bench.check import search as cross_check
from bench.check import worker
from bench.check.children import JudgeProcess
from bench.check.record import Failure, replay_command
from bench.check.run import stream_lengths
from bench.check.search import Turns, drawn, search, shrink
from bench.search import lanes as children
from bench.search.lanes import HarnessError
from bench.workloads.builtin import builtin_stream
from helpers.apart import apart_here
from helpers.check_scenarios import (
    PASSED,
    Kernel,
    expects,
    plan,
    run,
    too_long,
    wrong_in_e5m2,
)
from helpers.wrong_kernels import NARROW, PATH, SHORT, named
from reference.attention.catalogue import CHECKS, LAWS
from reference.attention.contract import Capabilities, variants_of
from reference.attention.coverage import CellState
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict
from subjects import starting
from subjects.loading import SubjectError
from subjects.process import SubjectDied


@pytest.fixture
def kernel(monkeypatch):
    kernel = Kernel()
    monkeypatch.setattr(cross_check, "start", kernel.start)
    return kernel


SEEN = "(q1 k9) d16 b16 bf16"

# What is drawn


def test_every_problem_is_another_one_and_as_many_run_as_were_asked_for(kernel):
    told = []
    record = search(plan(problems=60), advance=told.append, stopped=lambda: False)
    assert len(kernel.specs()) == record.problems == record.asked == 60
    assert sum(told) == 60
    assert record.complete
    assert record.count("passed") == len(kernel.asked)
    assert record.checks["truth"] == {"passed": 60}
    turns = Turns(Capabilities())
    assert kernel.asked == [
        (check, spec)
        for spec in kernel.specs()
        for check in turns.checks_for(AttentionProblem.parse(spec))
    ]


def test_memory_and_truth_are_held_to_every_problem_and_the_laws_take_turns(kernel):
    record = run(problems=150)
    assert record.checks["memory"] == record.checks["truth"] == {"passed": 150}
    turns = [record.checks[law.name]["passed"] for law in LAWS if law.concerns(Capabilities())]
    assert 140 <= sum(turns) <= 150  # a batch without a query shows no law
    # Some can be shown by few problems only; they have their turn whenever one does.
    assert max(turns) <= 3 * min(turns), turns


def test_a_law_that_can_be_shown_with_something_new_comes_first():
    turns = Turns(Capabilities())
    seen, new = SEEN, f"{SEEN} window=3"
    laws = {law.name for law in LAWS if law.applies(AttentionProblem.parse(seen))}
    assert len(laws) > 2
    first = [turns.checks_for(AttentionProblem.parse(seen))[-1] for _ in laws]
    assert set(first) == laws
    # Every law was shown once. With a window none was, and each is before any is shown again.
    of_new = {law.name for law in LAWS if law.applies(AttentionProblem.parse(new))}
    first = [turns.checks_for(AttentionProblem.parse(new))[-1] for _ in of_new]
    assert set(first) == of_new


def test_long_contexts_have_windows_as_models_have():
    plain = {"dtypes": frozenset({"bf16"}), "kv_dtypes": frozenset(), "head_dims": frozenset({64})}
    able = Capabilities(**plain)
    lengths = [(900, 50), (450, 9)]
    asked = plan(problems=60, max_len=1024, capabilities=able, lengths=lengths)
    windows = {problem.window for problem in drawn(asked, 1) if problem.max_seq_len > 256} - {None}
    # Beyond a byte, and multiples of a tile: a tile is then cut by no window.
    assert any(window > 255 for window in windows)
    assert any(window % 64 == 0 for window in windows)


def test_what_no_law_can_show_is_held_to_memory_and_truth():
    waits, decodes = map(AttentionProblem.parse, ("(q0 k9) d16 b16 bf16", "(q1 k9) d16 b16 bf16"))
    assert Turns(Capabilities()).checks_for(waits) == ["memory", "truth"]
    turns = Turns(Capabilities(variants=frozenset()))
    shown = {turns.checks_for(decodes)[-1] for _ in range(20)}
    assert shown == {"history", "relabelled-pages", "repeated", "scaled-values"}


@pytest.mark.parametrize(("problems", "lanes"), [(1, 1), (1, 4), (3, 8), (25, 2), (25, 3)])
def test_lanes_change_neither_the_problems_nor_their_number(kernel, problems, lanes):
    record = run(problems=problems, lanes=lanes)
    several = kernel.specs()
    assert record.problems == len(several) == problems
    assert record.complete
    assert 1 <= kernel.started <= min(lanes, problems)  # one that gets nothing to do starts none
    kernel.asked.clear()
    run(problems=problems, lanes=1)
    assert set(kernel.specs()) == set(several)


def test_the_same_seed_draws_the_same_problems_whatever_numbers_stand_in_loaded_sources(
    kernel, monkeypatch, tmp_path
):
    def drawn(seed: int) -> list[str]:
        kernel.asked.clear()
        run(problems=80, seed=seed)
        return kernel.specs()

    monkeypatch.chdir(tmp_path)
    before = drawn(7)
    # The simplest problem comes first whatever the seed.
    assert len(set(before) & set(drawn(8))) < 25
    source = "\n".join(f"n{n} = {n}" for n in range(101, 151))
    (tmp_path / "numbers_of_ours.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("numbers_of_ours")
    try:
        assert drawn(7) == before
    finally:
        del sys.modules["numbers_of_ours"]
    assert not (tmp_path / ".hypothesis").exists()


def test_a_third_of_the_contexts_are_the_streams(kernel):
    # Longer than any awkward context, so that they can be told apart.
    run(problems=30, lengths=[(400, 1)], max_len=512, capabilities=NARROW)
    ours = [spec for spec in kernel.specs() if "k401" in spec]
    assert len(ours) == 10
    kernel.asked.clear()
    run(problems=30, lengths=[], capabilities=NARROW)
    assert len(kernel.specs()) == 30
    assert all(AttentionProblem.parse(spec).max_seq_len <= 150 for spec in kernel.specs())


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_nearly_every_pair_of_what_is_active_meets(kernel, seed):
    lengths = stream_lengths(builtin_stream("azure-conv"))
    record = run(problems=300, max_len=1024, seed=seed, lengths=lengths)
    assert record.pairs.met >= 0.95 * record.pairs.asked > 150, record.pairs.missed


def test_tight_tables_come_first_with_small_blocks_that_fill_no_tile(kernel):
    declared = Capabilities(block_sizes=frozenset({16, 64}), kv_dtypes=frozenset())
    run(problems=100, capabilities=declared)
    first = [AttentionProblem.parse(spec) for spec in kernel.specs()[:10]]
    for problem in first:
        assert (problem.spare, problem.block_size, problem.pool) == (0, 16, None)
        last = problem.requests[-1].seq_len
        assert last == problem.max_seq_len
        assert -(-last // 16) % 2 or not last
    assert sum(problem.max_query_len > 1 for problem in first) > 2


def test_nothing_is_drawn_that_the_kernel_does_not_declare(kernel):
    run(problems=60, capabilities=NARROW)
    problems = [AttentionProblem.parse(spec) for spec in kernel.specs()]
    assert len(problems) == 60
    assert {NARROW.refusal(problem) for problem in problems} == {None}
    assert {(p.dtype, p.kv_dtype, p.head_dim, p.block_size) for p in problems} == {
        ("bf16", "bf16", 32, 16)
    }
    assert {variants_of(problem) for problem in problems} == {frozenset()}


def test_all_that_there_is_to_draw_is_a_complete_search(kernel, monkeypatch):
    three = [AttentionProblem.parse(f"(q1 k{n}) d16 b16 bf16") for n in (1, 2, 3)]
    monkeypatch.setattr(cross_check, "problems", lambda **_: st.sampled_from(three))
    record = run(problems=100, lanes=2)
    assert record.complete
    assert (record.problems, record.asked) == (3, 100)
    assert Counter(spec for check, spec in kernel.asked if check == "truth") == dict.fromkeys(
        map(str, three), 1
    )


def test_saved_problems_are_run_first_with_every_check_and_counted(kernel):
    saved = AttentionProblem.parse("(q3 k20) (q1 k5) g2 d32 b16 bf16 shared=16")
    record = run(problems=5, saved=(saved,))
    applying = [check.name for check in CHECKS if check.applies(saved)]
    assert len(applying) > 5
    assert kernel.asked[: len(applying)] == [(name, str(saved)) for name in applying]
    assert (record.problems, record.asked, record.complete) == (6, 6, True)


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
    record = run()
    supported = [spec for spec in kernel.specs() if "bf16" in spec]
    assert record.problems == len(supported) > 0
    assert record.problems + record.checks["truth"]["not supported"] == 30
    assert record.complete


def test_what_is_ours_to_blame_is_no_verdict(kernel):
    kernel.reply = lambda *_: {"harness": "Traceback: our own"}
    with pytest.raises(HarnessError, match=r"memory on \(.*:\nTraceback: our own"):
        run(lanes=2)


def test_a_question_that_breaks_the_worker_is_ours_to_blame(asked):
    (answer,) = asked("right", "boo", "(q1 k1) d32 b16 bf16")
    assert "KeyError: 'boo'" in answer["harness"]


def test_an_error_while_drawing_ends_the_search(kernel, monkeypatch):
    monkeypatch.setattr(cross_check, "problems", lambda **_: st.builds(lambda: 1 // 0))
    with pytest.raises(ZeroDivisionError):
        run(lanes=3)


def test_a_stopped_search_does_not_wait_for_a_kernel_that_hangs(kernel, monkeypatch):
    monkeypatch.setattr(children, "GRACE_S", 0.1)
    stop = threading.Event()

    def reply(*_: object) -> dict | None:
        if len(kernel.asked) < 7:
            return PASSED
        stop.set()
        return None

    kernel.reply = reply
    record = run(stop)
    assert not record.complete
    assert record.failure is None  # it hung, but nobody waited long enough to say so
    assert record.count("passed") == 6
    assert 2 <= record.problems < 7


# What fails; see `test_trial` for what both searches make of it


def test_what_was_found_first_is_kept_as_drawn(kernel):
    kernel.reply = too_long
    record = run(lanes=2, findings=1)
    check, spec = next(
        (c, s) for c, s in kernel.asked if too_long(c, AttentionProblem.parse(s)) != PASSED
    )
    assert record.failure == Failure(
        problem=spec,
        check=check,
        status=Status.FAILED,
        findings=(f"saw {spec}",),
        first_problem=spec,
        replay=replay_command("k.py:f", "cpu", spec),
        seen=record.failure.seen,
        seed=0,
    )
    assert record.complete
    assert record.checks[check]["failed"] >= 1
    assert record.problems == 30


def test_shrinking_begins_with_the_failure_and_not_with_those_before(kernel):
    kernel.reply = too_long
    failure = run().failure
    kernel.asked.clear()
    shrink(plan(), failure)
    assert kernel.asked[0] == (failure.check, failure.problem)


def test_a_fault_of_ours_while_shrinking_keeps_the_smallest_so_far_and_is_said(kernel):
    kernel.reply = too_long
    failure = run().failure
    kernel.asked.clear()
    kernel.reply = lambda check, problem: (
        too_long(check, problem) if len(kernel.asked) < 3 else {"harness": "Traceback: our own"}
    )
    smaller = shrink(plan(), failure)
    assert too_long("truth", AttentionProblem.parse(smaller.problem)) != PASSED
    assert smaller.findings[-1].startswith("it could not be made smaller: ")
    assert "our own" in smaller.findings[-1]


@pytest.mark.parametrize(
    "answer",
    [{}, {"status": "fine", "findings": []}, {"status": "passed"}, {"status": [], "findings": 3}],
)
def test_an_answer_that_is_no_verdict_is_a_finding(answer, kernel):
    kernel.reply = lambda *_: answer
    failure = run().failure
    assert failure.status is Status.CRASHED
    assert failure.findings[0].startswith("the kernel's process broke the protocol: ")


def test_an_expected_failure_keeps_what_came_of_it_and_the_other_checks_are_run(kernel):
    kernel.reply = wrong_in_e5m2
    record = run(problems=60, lanes=2, expected=(expects("truth", "kv_dtype=e5m2"),))
    assert (record.failure, record.complete, record.problems) == (None, True, 60)
    in_e5m2 = [spec for spec in kernel.specs() if "kv=e5m2" in spec]
    assert record.checks["truth"] == {
        "failed as expected": len(in_e5m2),
        "passed": 60 - len(in_e5m2),
    }
    (met,) = record.expected
    assert (met.problems, met.failed) == (len(in_e5m2), len(in_e5m2))
    assert (met.problem, met.finding) in [(spec, f"saw {spec}") for spec in in_e5m2]
    laws = [check for check, spec in kernel.asked if spec == met.problem]
    assert laws[:2] == ["memory", "truth"]
    assert len(laws) == 3


def test_coverage_is_counted_by_feature_with_what_nobody_could_see(kernel):
    def reply(check: str, problem: AttentionProblem) -> dict:
        if check == "memory":
            return {"status": "not run", "findings": ["nobody looks"]}
        return wrong_in_e5m2(check, problem)

    kernel.reply = reply
    record = run(problems=60, lanes=2, expected=(expects("truth", "kv_dtype=e5m2"),))
    assert record.unseen == {"memory": "nobody looks"}
    rows = {row.feature: row.cells for row in record.coverage}
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


def test_a_check_that_saw_something_now_and_then_is_not_said_to_have_seen_nothing(kernel):
    def reply(check: str, problem: AttentionProblem) -> dict:
        return PASSED if problem.dtype == "fp32" else {"status": "not run", "findings": ["why"]}

    kernel.reply = reply
    record = run()
    assert record.checks["memory"].keys() == {"passed", "not run"}
    assert "memory" not in record.unseen


# The worker's answers, in this process


@pytest.fixture
def asked(monkeypatch):
    """Ask the worker about one of the wrong kernels, as many times as there are specs."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def ask(kernel_name: str, check: str, *specs: str) -> list[dict]:
        with apart_here(named(kernel_name)) as apart:
            return [worker.answer(apart, {"check": check, "problem": s}) for s in specs]

    return ask


@pytest.mark.parametrize(
    ("kernel_name", "spec", "finding"),
    [
        ("scaled", "(q1 k41) d32 b16 bf16", "out[token 0, head 0] is "),
        ("window_off_by_one", "(q1 k41) d32 b16 bf16 window=3", "[token 0, head 0] is "),
        ("writes_nothing", "(q1 k1) d32 b16 bf16", "out is not written: 1 of 1 rows"),
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel_name", "time_limit_s", "how"),
    [
        ("segfaults", 60.0, "was killed by SIGSEGV: about to crash\nFatal Python error"),
        ("hangs", 1.0, "gave no answer within 1 s: "),
    ],
)
def test_a_crash_and_a_hang_of_a_real_child_are_findings(
    kernel_name, time_limit_s, how, monkeypatch
):
    # Each attempt costs the start of another child; that shrinking goes on is tried without any.
    monkeypatch.setattr("bench.search.shrink.MAX_SHRINKS", 2)
    record = run(
        kernel=named(kernel_name), capabilities=NARROW, problems=8, time_limit_s=time_limit_s
    )
    assert record.failure.status is Status.CRASHED
    assert AttentionProblem.parse(record.failure.problem).max_seq_len > SHORT
    (finding,) = record.failure.findings
    assert finding.startswith(f"the kernel's process {how}")
    assert f"in {kernel_name}" in finding
    assert str(PATH) in finding


def test_who_closes_descriptors_is_told_so_without_a_traceback():
    problem = AttentionProblem.parse("(q1 k60) d32 b16 bf16")
    verdict = cross_check.replay(named("closes_descriptors"), "cpu", problem).verdicts[1]
    said = "ended with code 1: a descriptor was closed that is not the subject's own"
    assert verdict.findings == (f"the kernel's process {said}",)


def test_a_kernel_that_ends_its_group_of_processes_ends_no_judge():
    problem = AttentionProblem.parse("(q1 k60) d32 b16 bf16")
    verdict = cross_check.replay(named("ends_its_group"), "cpu", problem).verdicts[1]
    assert verdict.findings == ("the kernel's process was killed by SIGKILL",)


def test_a_judge_that_dies_is_not_taken_for_the_kernel():
    dies = "os.kill(os.getpid(), signal.SIGKILL)"
    code = "import os, signal; answers = open(int(os.environ['PAGEDBENCH_ANSWERS']), 'w');"
    code += f"answers.write('{{}}\\n{{}}\\n'); answers.flush(); input(); {dies}"
    with (
        JudgeProcess([sys.executable, "-S", "-c", code]) as judge,
        pytest.raises(HarnessError, match="the judge's process was killed by SIGKILL"),
    ):
        judge.ask({})


def test_a_judge_that_is_ended_ends_its_kernel_and_what_that_started(monkeypatch, tmp_path):
    left = tmp_path / "left"
    monkeypatch.setenv("LEFT", str(left))

    def end(judge: JudgeProcess) -> None:
        wait_until(left.exists)
        judge.kill()

    with cross_check.start(named("leaves_a_child"), "cpu") as judge:
        threading.Thread(target=end, args=[judge]).start()
        with pytest.raises(HarnessError):
            judge.ask({"check": "truth", "problem": "(q1 k20) d32 b16 bf16"})
    pid = int(left.read_text())
    wait_until(lambda: not _is_running(pid))


def wait_until(holds) -> None:
    give_up = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_after_a_hang_no_other_check_is_replayed(kernel):
    def reply(check: str, problem: AttentionProblem) -> dict:
        if check == "truth":
            raise SubjectDied("gave no answer", timed_out=True)
        return PASSED

    kernel.reply = reply
    verdicts = cross_check.replay("k.py:f", "cpu", AttentionProblem.parse(SEEN)).verdicts
    assert [(v.check, v.status) for v in verdicts] == [
        ("memory", Status.PASSED),
        ("truth", Status.CRASHED),
    ]


def test_a_noisy_kernel_that_reads_standard_input_is_as_right_as_a_quiet_one():
    problem = AttentionProblem.parse("(q1 k20) d32 b16 bf16")
    replayed = cross_check.replay(named("prints"), "cpu", problem)
    verdicts = replayed.verdicts
    assert len(verdicts) > 3
    assert verdicts[0].check == "memory"
    assert verdicts[0].status is Status.NOT_RUN
    assert verdicts[1:] == [Verdict(verdict.check, Status.PASSED) for verdict in verdicts[1:]]
    assert replayed.moved is None


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


@pytest.mark.parametrize("hears", ["ours.listen()", "ours.end_with_parent()"])
def test_a_worker_ends_with_its_parent_even_in_a_kernel_that_hangs(hears, tmp_path):
    """The worker's ways of noticing; what it is to answer takes seconds to import."""
    mark = tmp_path / "mark"
    hangs = f"{hears}; import pathlib, time; "
    hangs += f"pathlib.Path({str(mark)!r}).touch(); time.sleep(3600)"
    command = [sys.executable, "-c", starting.start_of("bench.search.child") + hangs]
    source = (
        "import subprocess, time\n"
        f"child = subprocess.Popen({command!r}, stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(3600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        wait_until(mark.exists)
        parent.kill()
    wait_until(lambda: not _is_running(pid))


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
