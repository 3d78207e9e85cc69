"""What is told apart: checks, lines, kinds, and what a smaller problem turns out to need."""

import itertools
import threading

import pytest

import bench.check.run
from bench.check import findings
from bench.check import search as cross_check
from bench.check.findings import Found, kind_of, plainest_first, told_apart
from bench.check.minimise import shrunk
from bench.check.record import Failure, KernelRecord
from bench.command.progress import Silence
from helpers.check_scenarios import PASSED, Kernel, expects, plan, run
from reference.attention.catalogue import FREE_SLOTS
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict

OFF = "out[token 0, head 3] is 1.25, the truth is 1: off by 0.25, allowed 0.0098"
UNMASKED = "outside the tensor: load of block_table in theirs.py:429, attend program (0, 0, 0), 1"
RACE = "race between programs: store of out in theirs.py:512, attend program (0, 0, 0), 1 lane"
THROUGH = f"out[token 0, head 0] is nan, of NaN {FREE_SLOTS}: with finite numbers there it is not"


def failing(spec: str, *findings: str, check: str = "truth", **changes: object) -> Failure:
    verdict = Verdict(check, Status.FAILED, findings or (OFF,))
    return Failure.of(AttentionProblem.parse(spec), verdict).model_copy(update=changes)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(cross_check, "start", kernel.start)
    return kernel


def found_by(**changes: object) -> KernelRecord:
    """A search, and what it found made smaller."""
    asked = plan(**changes)
    record = run(**changes)
    smaller, others = bench.check.run._made_smaller(
        asked, record.failures, Silence(), threading.Event()
    )
    return record.model_copy(update={"failures": smaller, "others": dict(others)})


@pytest.mark.parametrize(
    ("finding", "kind"),
    [
        (OFF, "out"),
        ("out[token 7, head 0] is nan, the truth is 1: off by nan", "out is nan"),
        (UNMASKED, "outside the tensor: load of block_table in theirs.py:429"),
        ("raised ValueError: no tile for 41 (at k.py:12)", "raised ValueError at k.py:12"),
        ("the kernel's process was killed by SIGSEGV: Fatal", "the kernel's process was killed by"),
        (THROUGH, f"NaN {FREE_SLOTS}"),
        ("", ""),
    ],
)
def test_a_kind_has_the_line_and_no_numbers(finding: str, kind: str) -> None:
    assert kind_of([finding]).startswith(kind)
    assert kind_of([finding.replace("41", "7").replace("0.25", "3")]) == kind_of([finding])


def test_each_line_and_what_lies_in_free_slots_is_told_apart_and_the_rest_is_one() -> None:
    hint = "it is the right answer to logits times 0.6931 (log 2)"
    seen = (UNMASKED, OFF, THROUGH, hint, RACE, "wrote to `query`")
    parts = [part.findings for part in told_apart(Verdict("truth", Status.FAILED, seen))]
    assert parts == [(UNMASKED,), (THROUGH, hint), (RACE,), (OFF, "wrote to `query`")]
    assert told_apart(Verdict("truth", Status.PASSED)) == []


def test_a_failure_is_explained_by_a_known_one_unless_it_lacks_what_that_needs() -> None:
    found = Found()
    assert found.add(failing("(q1 k9) d16 b16 bf16 window=3"))
    assert not found.add(failing("(q4 k90) d64 b16 fp32 window=9 sinks"))
    assert found.add(failing("(q1 k9) d16 b16 bf16 softcap=3.0"))
    assert found.add(failing("(q1 k0) d16 b16 bf16", check="alone"))
    assert found.add(failing("(q1 k9) d16 b16 bf16 window=3", UNMASKED))
    # A line says what it is, whatever its problem needs.
    assert not found.add(failing("(q1 k9) d256 b16 bf16 softcap=3.0", UNMASKED))
    assert [each.seen for each in found.failures] == [2, 1, 1, 2]
    assert found.kinds == 3
    assert found.add(failing("(q1 k9) d16 b32 bf16 alibi"))
    assert not found.add(failing("(q1 k9) d16 b64 bf16 alibi"))
    assert found.add(failing("(q1 k9) d16 b16 bf16 alibi"))
    # One that there was no time to make smaller may need nothing of what it has.
    cut = Found()
    cut.add(failing("(q1 k9) d16 b16 bf16 window=3", cut_short=True))
    assert cut.explain(failing("(q1 k9) d16 b16 bf16"))


def test_a_float8_cache_that_no_shrink_takes_away_makes_no_finding_of_its_own() -> None:
    float8, plain = (
        failing("(q1 k9) d16 b16 bf16 kv=e4m3 window=3"),
        failing("(q1 k9) d16 b16 bf16 window=3"),
    )
    found = Found()
    found.add(float8)
    assert not found.add(plain)
    assert [each.problem for each in found.failures] == [plain.problem]
    assert plainest_first([float8, plain]) == [plain, float8]


def test_a_fault_of_prefills_and_of_decodes_is_one_where_both_need_the_same() -> None:
    found = Found()
    far = "d32 b16 fp32 pool=2359296"
    found.add(failing(f"(q4 k4) {far}"))
    assert not found.add(failing(f"4x(q1 k1) {far} kv=e5m2"))
    # Nothing in common: two faults.
    apart = Found()
    apart.add(failing("(q4 k4) d32 b16 fp32"))
    assert apart.add(failing("(q1 k1) d32 b16 fp32 kv=e5m2"))


def test_nan_from_free_slots_is_one_finding_whichever_check_noticed() -> None:
    found = Found()
    found.add(failing("(q1 k1) d32 b32 fp32", THROUGH))
    through = f"NaN {FREE_SLOTS} comes through: with finite numbers there the law holds"
    assert not found.add(failing("(q2 k16) d32 b32 fp16", through, check="growth"))


def padding_and_windows(check: str, problem: AttentionProblem) -> dict:
    """Two faults that look alike: of padding rows, and of windows."""
    wrong = any(request.seq_len == 0 for request in problem.requests) or problem.window
    said = OFF.replace("1.25", str(1 + problem.max_seq_len))
    return {"status": "failed", "findings": [said]} if wrong and check == "truth" else PASSED


def test_what_lies_behind_the_first_finding_is_found_and_each_shrinks_to_itself(kernel) -> None:
    kernel.reply = padding_and_windows
    record = found_by(problems=60)
    assert record.complete
    assert record.problems == 60
    first, second = sorted(record.failures, key=lambda each: "window" in each.problem)
    assert first.problem.startswith("(q1 k0) d16 b16 ")
    assert "window" not in first.problem
    assert AttentionProblem.parse(second.problem).window is not None
    assert "k0" not in second.problem
    assert first.seen + second.seen == record.checks["truth"]["failed"]
    assert {each.seed for each in record.failures} == {0}


def two_lines(check: str, problem: AttentionProblem) -> dict:
    findings = [UNMASKED] + ([RACE] if problem.max_query_len > 1 else [])
    return {"status": "failed", "findings": findings} if check == "memory" else PASSED


def test_a_waiver_of_one_line_leaves_the_other_line_a_finding(kernel) -> None:
    kernel.reply = two_lines
    assert [kind_of(each.findings)[-13:] for each in found_by().failures] == [
        "theirs.py:429",
        "theirs.py:512",
    ]
    known = expects("memory", line="theirs.py:512")
    record = found_by(expected=(known,))
    assert [each.findings for each in record.failures] == [(UNMASKED,)]
    assert record.checks["memory"].keys() == {"failed"}
    (met,) = record.expected
    assert 0 < met.failed < met.problems == 30
    # Both waived, by line and by message: nothing is left.
    both = (known, expects("memory", message="load of block_table"))
    record = found_by(expected=both)
    assert (record.failures, record.checks["memory"]) == ([], {"failed as expected": 30})


def test_laws_are_asked_where_only_free_slots_came_through(kernel) -> None:
    kernel.reply = lambda check, _: (
        {"status": "failed", "findings": [THROUGH]} if check == "truth" else PASSED
    )
    record = found_by(problems=20)
    assert [each.findings for each in record.failures] == [(THROUGH,)]
    assert record.failures[0].seen == 20
    assert sum("passed" in counts for counts in record.checks.values()) > 5


def raises_as_long_as_it_is(check: str, problem: AttentionProblem) -> dict:
    """As many kinds as there are lengths modulo 8."""
    said = f"raised {'ABCDEFGH'[problem.max_seq_len % 8]}: (at k.py:1)"
    return {"status": "failed", "findings": [said]} if check == "truth" else PASSED


def test_a_search_goes_on_behind_as_many_findings_as_are_shown_and_counts_the_others(kernel):
    kernel.reply = raises_as_long_as_it_is
    record = found_by(problems=60, findings=3)
    assert (record.problems, record.complete) == (60, True)
    assert len(record.failures) == 3
    assert len(record.others) == 5
    assert {name[:15] for name in record.others} == {"truth: raised " + c for c in "ABCDEFGH"} - {
        f"truth: {each.findings[0][:8]}" for each in record.failures
    }
    assert sum(each.seen for each in record.failures) + sum(record.others.values()) == 60


def test_with_enough_to_show_a_search_goes_on_for_a_while_only(kernel, monkeypatch):
    kernel.reply = raises_as_long_as_it_is
    monkeypatch.setattr(cross_check, "AFTERWARDS_S", 0.0)
    record = found_by(problems=60, findings=1)
    assert (record.problems, record.complete) == (1, False)


def test_one_of_each_kind_comes_first() -> None:
    specs = [f"(q1 k9) d16 b16 bf16{more}" for more in (" kv=e4m3", "", " window=3", " sinks")]
    said = [OFF, OFF, "raised E: (at k.py:1)", OFF]
    failures = [failing(spec, finding) for spec, finding in zip(specs, said, strict=True)]
    assert [failures.index(each) for each in plainest_first(failures)] == [1, 2, 3, 0]


def test_of_one_kind_so_many_are_kept_and_the_others_counted_with_the_first(monkeypatch) -> None:
    monkeypatch.setattr(findings, "MOST_OF_A_KIND", 2)
    found = Found()
    needs = ["window=3", "softcap=3.0", "alibi", "sinks"]
    kept = [found.add(failing(f"(q1 k9) d16 b16 bf16 {need}")) for need in needs]
    assert kept == [True, True, False, False]
    assert [each.seen for each in found.failures] == [3, 1]


def test_a_kernel_that_hangs_again_and_again_ends_the_search(kernel, monkeypatch) -> None:
    crash = {"status": "crashed", "findings": ["the kernel's process was killed by SIGSEGV"]}
    kernel.reply = lambda *_: crash
    monkeypatch.setattr(cross_check, "MAX_CRASHES", 3)
    record = found_by(problems=60)
    assert not record.complete
    assert len(record.failures) == 1
    assert record.problems == 3


def test_a_smaller_problem_is_never_of_another_kind() -> None:
    first = failing("(q1 k40) (q1 k12) d64 b16 bf16 window=3", OFF)

    def look(problem: AttentionProblem) -> list[Failure]:
        nan = OFF.replace("is 1.25", "is nan") if problem.window is None else OFF
        return [failing(str(problem), nan)]

    smallest = shrunk(first, look, asked=lambda _: True)
    assert smallest.problem == "(q1 k1) d16 b16 bf16 window=3"
    assert (smallest.findings, smallest.cut_short) == ((OFF,), False)
    assert smallest.first_problem == first.problem


def test_a_cap_after_the_mask_is_small_after_a_few_runs() -> None:
    """It was shrunk by three steps in 79 s."""
    first = failing(
        "(q7 k140) (q1 k96) (q0 k33) (q150 k150) h2 g4 d192 b64 bf16 kv=e4m3 kscale=0.03 "
        "softcap=5.0 window=40 alibi sinks layout=packed strides=table,lse spare=3 shared=32"
    )
    asked: list[AttentionProblem] = []

    def look(problem: AttentionProblem) -> list[Failure]:
        asked.append(problem)
        masked = any(request.query_len > 1 for request in problem.requests)
        return [failing(str(problem))] if masked and problem.softcap else []

    smallest = shrunk(first, look, asked=lambda _: True)
    assert smallest.problem == "(q2 k2) d16 b16 bf16 kv=e4m3 softcap=5.0"
    assert not smallest.cut_short
    assert len(asked) < 80
    tokens = [sum(request.seq_len for request in problem.requests) for problem in asked]
    assert sum(tokens) < 10 * tokens[0]


def test_a_record_of_the_time_when_a_search_ended_at_its_first_failure_is_read() -> None:
    old = KernelRecord.not_run("k", plan().capabilities, asked=3).model_dump(mode="json")
    del old["failures"]
    assert KernelRecord.model_validate(old).failures == []
    old["failure"] = failing("(q1 k0) d16 b16 bf16").model_dump(
        mode="json", exclude={"seen", "seed", "cut_short"}
    )
    read = KernelRecord.model_validate(old)
    assert read.failure == read.failures[0]
    assert KernelRecord.model_validate_json(read.model_dump_json()) == read


def test_a_campaign_draws_seed_after_seed_and_says_which_shows_a_finding_first(kernel) -> None:
    alone = []
    for seed in range(3):
        kernel.asked.clear()
        run(problems=6, seed=seed)
        alone.append(kernel.specs())
    only = next(spec for spec in alone[2] if spec not in (*alone[0], *alone[1]))
    kernel.asked.clear()
    kernel.reply = lambda check, problem: (
        {"status": "failed", "findings": [OFF]}
        if check == "truth" and str(problem) == only
        else PASSED
    )
    record = run(problems=6, seed=0, last_seed=2, lanes=2)
    assert set(kernel.specs()) == set(itertools.chain(*alone))
    assert (record.asked, record.problems, record.complete) == (18, 18, True)
    (failure,) = record.failures
    assert (failure.problem, failure.seed) == (only, 2)
