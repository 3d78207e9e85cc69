"""One check of one kernel in this process: what is drawn, counted and made small."""

import pytest

from bench.check import trial as trials
from bench.check.trial import Trial, TrialOutcome, run_trial
from helpers.wrong_kernels import NARROW, SHORT
from paged.attention import paged_attention
from reference.attention.checks import CHECKS
from reference.attention.contract import Capabilities, PagedBatch, declares
from reference.attention.expected import Expectations, ExpectedFailure
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status

BY_NAME = {check.name: check for check in CHECKS}
SMALL = Capabilities(
    dtypes=frozenset({"fp32", "bf16"}),
    kv_dtypes=frozenset(),
    head_dims=frozenset({16}),
    block_sizes=frozenset({4}),
)


@declares(SMALL)
def right(batch: PagedBatch) -> None:
    paged_attention(batch)


@declares(SMALL)
def wrong_if_long(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.max_seq_len > SHORT:
        batch.out.mul_(1.5)


def tried(kernel, check: str = "truth", *waivers: ExpectedFailure, **changes) -> TrialOutcome:
    usual = {"kernel": kernel, "check": BY_NAME[check], "problems": 30}
    return run_trial(Trial(**{**usual, **changes}), Expectations.of(waivers, "k"))


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
        assert BY_NAME[check].applies(problem)
        assert SMALL.refusal(problem) is None


def test_the_same_seed_draws_the_same_problems_and_another_one_others(asked):
    drawn = []
    for seed in (3, 3, 4):
        asked.clear()
        tried(right, problems=8, seed=seed)
        drawn.append([str(problem) for _, problem in asked])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0]) & set(drawn[2])) <= 3


def test_what_fails_is_made_small():
    failure = tried(wrong_if_long).failure
    assert failure.check == "truth"
    assert failure.status is Status.FAILED
    problem = AttentionProblem.parse(failure.problem)
    assert [(r.query_len, r.seq_len) for r in problem.requests] == [(1, SHORT + 1)]
    assert AttentionProblem.parse(failure.first_problem).max_seq_len > SHORT
    assert failure.findings[0].startswith("out[token 0, head 0] is ")


def test_shrinking_ends_after_so_many_attempts_or_seconds_with_a_true_failure(asked, monkeypatch):
    tried(wrong_if_long)
    unlimited = len(asked)
    for limit, value in (("MAX_SHRINKS", 3), ("SHRINK_LIMIT_S", 0.0)):
        with monkeypatch.context() as patch:
            patch.setattr(trials, limit, value)
            asked.clear()
            failure = tried(wrong_if_long).failure
        assert len(asked) < unlimited
        assert AttentionProblem.parse(failure.problem).max_seq_len > SHORT


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


def test_a_failure_by_chance_is_said_to_be_one():
    calls = []

    @declares(SMALL)
    def wrong_once(batch: PagedBatch) -> None:
        paged_attention(batch)
        calls.append(batch)
        if len(calls) == 9:
            batch.out.zero_()

    assert "did not fail again" in tried(wrong_once).failure.findings[-1]


def test_an_expected_failure_is_counted_and_shrinking_does_not_end_in_it():
    waiver = ExpectedFailure(
        kernel="k", check="truth", when=("dtype=fp32",), reason="https://example.org/issues/12"
    )

    @declares(SMALL)
    def wrong_in_float32_and_if_long(batch: PagedBatch) -> None:
        wrong_if_long(batch)
        if batch.out.element_size() == 4:
            batch.out.mul_(1.5)

    failure = tried(wrong_in_float32_and_if_long, "truth", waiver).failure
    problem = AttentionProblem.parse(failure.problem)
    assert (problem.dtype, problem.max_seq_len) == ("bf16", SHORT + 1)

    @declares(SMALL)
    def wrong_in_float32(batch: PagedBatch) -> None:
        paged_attention(batch)
        if batch.out.element_size() == 4:
            batch.out.mul_(1.5)

    outcome = tried(wrong_in_float32, "truth", waiver)
    assert outcome.failure is None
    assert outcome.counts[Status.EXPECTED] > 5
    assert outcome.counts.total() == 31


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
