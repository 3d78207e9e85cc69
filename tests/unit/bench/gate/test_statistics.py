"""The tests of the gate: exact, at fixed looks, with the error rates that they state."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.gate.record import Design, Sample
from bench.gate.statistics import (
    decide_many,
    hodges_lehmann,
    holm,
    p_faster,
    p_not_slower,
    p_slower,
    resampled,
    robust_sd,
    two_stage_p,
)
from bench.gate.verdict import examine, judge
from helpers.gate_records import benchmark, gate_record, sample, samples
from helpers.profiles import examples

DESIGN = Design()


def below(successes: int, trials: int, rate: float) -> bool:
    """Whether so many successes are compatible with a rate of at most `rate`, at 0.1 %."""
    return bool(stats.binomtest(successes, trials, rate, alternative="greater").pvalue > 0.001)


def test_p_values_are_those_of_the_exact_signed_rank_test() -> None:
    # All of n differences positive: the most extreme of 2^n equally likely signs.
    d = math.log1p(0.01) + np.arange(1, 10) / 100
    assert p_slower(d, 0.01) == pytest.approx(2.0**-9)
    assert p_not_slower(-np.arange(1, 10) / 100, 0.03) == pytest.approx(2.0**-9)
    assert p_faster(-math.log1p(0.01) - np.arange(1, 10) / 100, 0.01) == pytest.approx(2.0**-9)
    # The smallest of nine is negative: 2 of 512 assignments are as extreme.
    d[0] = math.log1p(0.01) - 0.001
    assert p_slower(d, 0.01) == pytest.approx(2 / 512)
    assert p_slower([math.log1p(0.01)] * 9, 0.01) == 1.0, "no difference is no evidence"


def test_a_stack_of_gates_has_the_p_values_of_each() -> None:
    d = np.random.default_rng(0).normal(0.02, 0.02, (20, 13))
    assert p_slower(d, 0.01) == pytest.approx([p_slower(row, 0.01) for row in d])


@pytest.mark.parametrize("launches", [6, 9, 13, 28])
def test_bounds_are_where_the_test_begins_to_reject(launches: int) -> None:
    d = np.random.default_rng(launches).normal(0.03, 0.02, launches)
    estimate, low, high = hodges_lehmann(d)
    assert low is not None
    assert high is not None
    assert low < estimate < high

    def p(centre: float) -> float:
        return float(stats.wilcoxon(d - centre, method="exact").pvalue)

    step = 1e-9
    assert p(low - step) <= 0.05 < p(low + step)
    assert p(high + step) <= 0.05 < p(high - step)


def test_five_launches_have_no_bounds() -> None:
    assert hodges_lehmann([0.1, 0.2, 0.3, 0.4, 0.5]) == (pytest.approx(0.3), None, None)


def test_one_launch_gone_astray_moves_neither_estimate_nor_spread() -> None:
    d = np.random.default_rng(1).normal(0.0, 0.01, 13)
    astray = np.append(d, 0.7)
    assert hodges_lehmann(astray)[0] == pytest.approx(hodges_lehmann(d)[0], abs=0.005)
    assert robust_sd(astray) == pytest.approx(robust_sd(d), abs=0.005)
    assert robust_sd(np.random.default_rng(2).normal(0, 0.02, 100_000)) == pytest.approx(
        0.02, rel=0.02
    )


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


@examples(50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_rejects_what_the_textbook_rejects(p: list[float]) -> None:
    """In order: the smallest at alpha / m, the next at alpha / (m - 1), until one is not."""
    alpha = 0.05
    rejected = set()
    for step, index in enumerate(sorted(range(len(p)), key=lambda at: p[at])):
        if p[index] * (len(p) - step) > alpha:
            break
        rejected.add(index)
    assert {index for index, value in enumerate(holm(p)) if value <= alpha} == rejected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"margin": 0.03}, "margin"),
        ({"looks": (7, 13)}, "begin with 8"),
        ({"looks": (13, 9)}, "increasing"),
        ({"looks": ()}, "increasing"),
        ({"confirm_looks": (4,)}, "begin with 5"),
        ({"alpha": 0.0}, "between 0 and 1"),
    ],
)
def test_a_design_that_could_decide_nothing_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Design(**changes)


NOISES = {
    "normal": lambda rng, size: rng.normal(0.0, 0.02, size),
    "heavy tails": lambda rng, size: 0.01 * rng.standard_t(2, size),
    "two modes": lambda rng, size: rng.choice((-0.03, 0.03), size) + rng.normal(0, 0.004, size),
}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("slowdown", [0.0, 0.01])
def test_screening_and_confirmation_keep_their_error_rates(noise: str, slowdown: float) -> None:
    """At the margin, where it is hardest, a benchmark is suspected in 1 % and fails in 0.05 %."""
    rng, trials = np.random.default_rng(7), 4000
    draw = NOISES[noise]
    screen = draw(rng, (trials, 40)) + math.log1p(slowdown)
    confirm = draw(rng, (trials, 20)) + math.log1p(slowdown)
    found = decide_many(screen, confirm, DESIGN)
    assert below(int(found.failed.sum()), trials, DESIGN.alpha * DESIGN.confirm_alpha)
    # A suspect that is not confirmed took its whole confirmation: what failed to be a pass at a
    # look and went beyond the screening was suspected.
    suspected = decide_many(screen, np.full((trials, 20), 1.0), DESIGN).failed
    assert below(int(suspected.sum()), trials, DESIGN.alpha)


@pytest.mark.parametrize("noise", NOISES)
def test_a_slowdown_as_large_as_the_bound_hardly_ever_passes(noise: str) -> None:
    rng, trials = np.random.default_rng(8), 4000
    screen, confirm = (
        NOISES[noise](rng, (trials, size)) + math.log1p(DESIGN.equivalence) for size in (40, 20)
    )
    passed = decide_many(screen, confirm, DESIGN).passed
    assert below(int(passed.sum()), trials, DESIGN.alpha)


def test_slowdowns_are_found_and_identical_code_passes() -> None:
    """Launches spread by 2 %: as on a shared two-core runner."""
    d = np.random.default_rng(9).normal(0.0, 0.02, 60)
    same, slow, slower = (
        resampled(d, slowdown, DESIGN, trials=2000, rng=np.random.default_rng(10))
        for slowdown in (0.0, 0.03, 0.05)
    )
    assert same.passed.mean() > 0.99
    assert slow.failed.mean() > 0.9
    assert slower.failed.mean() > 0.99
    assert np.median(slower.launches) <= 15


def test_looking_often_without_correction_would_alarm_too_often() -> None:
    """The same looks, each at the whole level: what the correction is for."""
    rng, trials = np.random.default_rng(11), 4000
    d = rng.normal(math.log1p(DESIGN.margin), 0.02, (trials, 40))
    alarmed = np.zeros(trials, np.bool_)
    for look in DESIGN.looks:
        alarmed |= p_slower(d[:, :look], DESIGN.margin) <= 0.05
    assert not below(int(alarmed.sum()), trials, 0.05)


def test_turns_of_one_launch_are_no_launches() -> None:
    """With an effect of the process, a test over turns alarms on identical code."""
    rng, trials = np.random.default_rng(12), 400
    process = rng.normal(0.0, 0.02, (trials, 1))
    turns = process + rng.normal(0.0, 0.01, (trials, 24))
    alarms = int((p_slower(turns, DESIGN.margin) <= DESIGN.alpha).sum())
    assert alarms > 0.15 * trials


def test_the_two_stage_p_value_is_one() -> None:
    """P(p <= x) is at most x, at the margin, for x above and below alpha."""
    rng, trials = np.random.default_rng(13), 4000
    screens, confirms = rng.normal(size=(trials, 40)), rng.normal(size=(trials, 20))
    first, second = (
        len(looks) * np.min([p_slower(d[:, :look], 0.0) for look in looks], axis=0)
        for d, looks in ((screens, DESIGN.looks), (confirms, DESIGN.confirm_looks))
    )
    values = [two_stage_p(a, b, alpha=0.05) for a, b in zip(first, second, strict=True)]
    for x in (0.0005, 0.005, 0.02, 0.05, 0.1, 0.3):
        assert below(int(np.sum(np.asarray(values) <= x)), trials, x), x
    assert two_stage_p(0.01, None, alpha=0.01) == 0.01
    assert two_stage_p(0.004, 0.5, alpha=0.01) == 0.005
    assert two_stage_p(3.0, None, alpha=0.01) == 1.0


@pytest.mark.parametrize("slowdown", [0.0, 0.01, 0.02, 0.05])
def test_many_gates_at_once_are_judged_as_each_alone(slowdown: float) -> None:
    """The vectorised judge of resampled gates is the one of real runs."""
    rng = np.random.default_rng(14)
    trials, design = 8, Design(quarantine_sd=1.0)
    screen = rng.normal(math.log1p(slowdown), 0.02, (trials, 40))
    confirm = rng.normal(math.log1p(slowdown), 0.02, (trials, 20))
    many = decide_many(screen, confirm, design)
    for trial in range(trials):
        taken: list[Sample] = []
        while not (found := examine(taken, design)).over:
            if found.suspect is None:
                size = next(look for look in design.looks if look > len(taken))
                taken = [sample(d) for d in screen[trial, :size]]
            else:
                screened = [each for each in taken if each.stage == "screen"]
                done = len(taken) - len(screened)
                size = next(look for look in design.confirm_looks if look > done)
                taken = screened + [sample(d, stage="confirm") for d in confirm[trial, :size]]
        assert (found.confirmed, found.passed) == (many.failed[trial], many.passed[trial])
        assert len(taken) == many.launches[trial]


def test_one_launch_is_no_launches() -> None:
    record = gate_record(benchmarks=[benchmark(samples=samples(count=1))], complete=False)
    assert judge(record).benchmarks[0].reason == "the run was cut short after 1 launch"
