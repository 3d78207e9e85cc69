"""Launches drawn anew: rates come out as planted, and recordings of other code are refused."""

import numpy as np
import pytest

from bench.gate.record import Design
from helpers.gate_records import benchmark, contestant, gate_record, samples
from studies.resample import ResampleError, holm_spares, resample

DESIGN = Design()
SAME = {"base": contestant("b" * 40), "head": contestant("b" * 40)}


def recorded(*, spread, mean=0.0, wall=None, launches=40, key="decode", seed=0, **changes):
    """A run on identical code whose launches are normal with this mean and spread."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(mean, spread, launches)
    walls = drawn if wall is None else rng.normal(wall, spread, launches)
    some = [
        sample.model_copy(update={"d_timer": float(cpu), "d_wall": float(elapsed)})
        for sample, cpu, elapsed in zip(samples(count=launches), drawn, walls, strict=True)
    ]
    return gate_record(**{**SAME, "benchmarks": [benchmark(key, samples=some)], **changes})


def rates(records, **options):
    usual = {"trials": 400, "seed": 1, "slowdowns": (0.0, 0.03, 0.05)}
    drawn = resample(records, DESIGN, **{**usual, **options})
    return {(p.benchmark or p.of, p.slowdown): p for p in drawn.power}, drawn


def test_quiet_runner_alarms_never_and_finds_the_slowdowns():
    found, drawn = rates([recorded(spread=0.01)])
    assert found["decode", 0.0].failed.found == 0
    assert found["decode", 0.0].passed.share > 0.95
    assert found["decode", 0.03].failed.share > 0.85
    assert found["decode", 0.05].failed.share > 0.99
    assert found["decode", 0.05].median_launches <= 15
    assert drawn.pools[0].launches == 40


def test_bias_of_the_recording_shows_with_its_own_signs():
    biased = recorded(spread=0.005, mean=0.03)
    random, _ = rates([biased])
    as_it_was, _ = rates([biased], signs="recorded")
    assert random["decode", 0.0].failed.share < 0.05
    assert as_it_was["decode", 0.0].failed.share > 0.8


def test_benchmark_in_quarantine_lowers_what_is_found_of_all():
    records = [recorded(spread=0.005), recorded(spread=0.1, key="noisy", seed=1)]
    found, _ = rates(records)
    assert found["decode", 0.05].failed.share == 1.0
    assert found["all", 0.05].failed.share == 0.5
    assert found["all", 0.05].failed.trials == 2 * 400
    assert found["suite", 0.0].passed.found == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "plant"},
        {"head": contestant("a" * 40)},
        {"base": contestant(None), "head": contestant(None)},
        {"head": contestant("b" * 40, dirty=True)},
    ],
)
def test_run_on_other_code_is_refused(changes):
    with pytest.raises(ResampleError, match="identical code"):
        resample([recorded(spread=0.01, **changes)], DESIGN, trials=10, seed=0)


def test_holm_takes_nothing_from_a_suite_of_ours_and_would_from_a_large_one():
    # alpha * confirm / looks = 0.01 * 0.05 / 3; 0.05 over two clocks of so many.
    assert holm_spares(DESIGN, 150)
    assert not holm_spares(DESIGN, 151)
