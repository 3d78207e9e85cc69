"""What both searches make of a failure: all checks in children, and one check in this process.

One table of scenarios for the two; what only one of them does is in `test_search` and below.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bench.check import trial as trials
from bench.check.children import CHECK_BY_NAME
from bench.check.trial import Trial, TrialOutcome, run_trial
from bench.search import shrink
from helpers.check_scenarios import (
    FAILED,
    PASSED,
    InChildren,
    InProcess,
    Reply,
    expects,
    too_long,
    wrong_in_e5m2,
)
from helpers.wrong_kernels import NARROW, SHORT
from paged.attention import paged_attention
from reference.attention.contract import Capabilities, PagedBatch, declares
from reference.attention.expected import Expectations, ExpectedFailure
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status


@pytest.fixture(params=[InChildren, InProcess])
def way(request, monkeypatch):
    return request.param(monkeypatch)


def lengths(problem: AttentionProblem) -> list[tuple[int, int]]:
    return [(request.query_len, request.seq_len) for request in problem.requests]


@dataclass(frozen=True)
class Scenario:
    check: str
    reply: Reply
    smallest: Callable[[AttentionProblem], bool]
    status: Status = Status.FAILED
    expected: tuple[ExpectedFailure, ...] = ()
    problems: int = 60


def crashes(check: str, problem: AttentionProblem) -> dict:
    return {**too_long(check, problem), "status": "crashed"} if problem.window else PASSED


def wrong_in_float32_and_if_long(check: str, problem: AttentionProblem) -> dict:
    return FAILED if problem.dtype == "fp32" else too_long(check, problem)


SCENARIOS = {
    "the smallest problem that shows it": Scenario(
        "truth",
        too_long,
        # Neither a dtype nor inputs are changed: that might be another bug.
        lambda p: str(p).startswith(f"(q1 k{SHORT + 1}) d16 b16 "),
    ),
    "a law keeps what it needs to be shown": Scenario(
        "alone",
        too_long,
        lambda p: [q for q, _ in lengths(p)] == [1, 1] and p.max_seq_len == SHORT + 1,
        problems=300,
    ),
    "a crash is a failure like any other": Scenario(
        "truth",
        crashes,
        lambda p: len(p.requests) == 1 and p.window is not None,
        status=Status.CRASHED,
    ),
    # With float32, the simplest type, it always fails, which is known: shrinking would go there.
    "not what is expected": Scenario(
        "truth",
        wrong_in_float32_and_if_long,
        lambda p: p.dtype != "fp32" and lengths(p) == [(1, SHORT + 1)],
        expected=(expects("truth", "dtype=fp32"),),
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_fails_shrinks_to(name, way):
    scenario = SCENARIOS[name]
    result = way.run(
        scenario.check,
        scenario.reply,
        problems=scenario.problems,
        expected=scenario.expected,
    )
    small = result.small
    problem = AttentionProblem.parse(small.problem)
    assert (small.check, small.status) == (scenario.check, scenario.status)
    assert scenario.smallest(problem), problem
    assert small.findings == tuple(scenario.reply(scenario.check, problem)["findings"])
    first = AttentionProblem.parse(small.first_problem)
    assert scenario.reply(scenario.check, first)["status"] == scenario.status
    # Only the check that failed was asked about again.
    assert {check for check, spec in way.kernel.asked if spec == small.problem} == {scenario.check}


@pytest.mark.parametrize(("limit", "value"), [("MAX_SHRINKS", 3), ("SHRINK_LIMIT_S", 0.0)])
def test_shrinking_ends_after_so_many_attempts_or_seconds_with_a_true_failure(
    limit, value, way, monkeypatch
):
    way.run("truth", too_long)
    unlimited = len(way.kernel.asked)
    way.kernel.asked.clear()
    monkeypatch.setattr(shrink, limit, value)
    small = way.run("truth", too_long).small
    assert len(way.kernel.asked) < unlimited
    assert too_long("truth", AttentionProblem.parse(small.problem)) != PASSED
    assert small.findings == (f"saw {small.problem}",)


def test_a_failure_by_chance_is_reported_and_said_to_be_one(way):
    asked = []

    def once(check: str, problem: AttentionProblem) -> dict:
        asked.append(problem)
        return FAILED if len(asked) == 3 else PASSED

    small = way.run("truth", once).small
    assert small.problem == small.first_problem == str(asked[2])
    assert small.findings[0] == "off"
    assert "did not fail again" in small.findings[-1]


def test_a_failure_that_comes_and_goes_while_it_shrinks_is_said_to(way):
    failed = []

    def now_and_then(check: str, problem: AttentionProblem) -> dict:
        failed.append(too_long(check, problem) != PASSED)
        return too_long(check, problem) if sum(failed) < 5 else PASSED

    small = way.run("truth", now_and_then).small
    assert "did not fail again" in small.findings[-1]
    assert too_long("truth", AttentionProblem.parse(small.problem)) != PASSED


@pytest.mark.parametrize("status", ["failed", "crashed"])
def test_an_expected_failure_is_counted_and_the_search_goes_on(status, way):
    def reply(check: str, problem: AttentionProblem) -> dict:
        said = wrong_in_e5m2(check, problem)
        return said if said == PASSED else {**said, "status": status}

    result = way.run("truth", reply, problems=60, expected=[expects("truth", "kv_dtype=e5m2")])
    assert result.small is None
    in_e5m2 = [spec for check, spec in way.kernel.asked if check == "truth" and "kv=e5m2" in spec]
    assert result.counts[Status.EXPECTED] == len(in_e5m2) > 3
    assert sum(result.counts.values()) in (60, 61)  # in process the simplest comes on top


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
def test_what_is_not_quite_expected_ends_the_search(expected, way):
    result = way.run("truth", wrong_in_e5m2, problems=60, expected=[expected])
    assert result.small.check == "truth"
    assert "kv=e5m2" in result.small.problem
    assert Status.EXPECTED not in result.counts


# In this process only


SMALL = Capabilities(
    dtypes=frozenset({"fp32", "bf16"}),
    kv_dtypes=frozenset(),
    head_dims=frozenset({16}),
    block_sizes=frozenset({4}),
)


@declares(SMALL)
def right(batch: PagedBatch) -> None:
    paged_attention(batch)


def tried(kernel, check: str = "truth", **changes) -> TrialOutcome:
    usual = {"kernel": kernel, "check": CHECK_BY_NAME[check], "problems": 30}
    return run_trial(Trial(**{**usual, **changes}), Expectations())


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, AttentionProblem]]:
    """What the kernel is asked, as it is."""
    found = []
    run_check = trials.run_check

    def listen(check, kernel, problem, **options):
        found.append((check.name, problem))
        return run_check(check, kernel, problem, **options)

    monkeypatch.setattr(trials, "run_check", listen)
    return found


@pytest.mark.parametrize("check", ["truth", "growth", "shared-prefix"])
def test_as_many_problems_as_asked_for_are_run_and_each_shows_the_check(check, asked):
    outcome = tried(right, check, problems=12)
    # And the simplest usual one, so that none at all is never a pass.
    assert outcome.counts == {Status.PASSED: 13}
    assert {name for name, _ in asked} == {check}
    assert len({str(problem) for _, problem in asked}) == 13
    for _, problem in asked:
        assert CHECK_BY_NAME[check].applies(problem)
        assert SMALL.refusal(problem) is None


def test_the_same_seed_draws_the_same_problems_and_another_one_others(asked):
    drawn = []
    for seed in (3, 3, 4):
        asked.clear()
        tried(right, problems=8, seed=seed)
        drawn.append([str(problem) for _, problem in asked])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0]) & set(drawn[2])) <= 3


def test_what_only_the_simplest_problem_shows_is_found_too():
    # `alone` at exactly its lengths: nothing that is drawn has them.
    simplest = []

    @declares(NARROW)
    def wrong_there(batch: PagedBatch) -> None:
        paged_attention(batch)
        if batch.seq_lens.tolist() == [35]:
            simplest.append(batch)
            batch.out.mul_(1.5)

    outcome = tried(wrong_there, problems=1)
    assert simplest
    assert AttentionProblem.parse(outcome.failure.problem).max_seq_len == 35


def test_what_a_check_cannot_see_is_counted_with_the_reason():
    outcome = tried(right, "memory", problems=4)
    assert outcome.counts == {Status.NOT_RUN: 5}
    assert outcome.unseen == {"only Triton kernels in the interpreter can be watched": 5}


def test_a_check_that_nothing_within_the_capabilities_shows_runs_nothing(asked):
    @declares(NARROW)
    def decode_only(batch: PagedBatch) -> None:
        raise AssertionError

    assert tried(decode_only, "growth") == TrialOutcome()
    assert asked == []
