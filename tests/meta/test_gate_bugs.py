"""Wrong gates, each of which the checks beside them must reject.

A bug of the tests or of the verdicts is one change to the text of a module, listed in
gate_bugs.toml. The text is then run as a module of its own and held to rates on simulated launches,
or to records whose verdicts are known. A biased order is planted in a real schedule, between two
identical trees whose time depends on who was prepared first.
"""

import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bench.gate.contestant import Contestant, standing
from bench.gate.record import BenchmarkRecord, Design, GateRecord
from bench.gate.statistics import p_slower
from bench.gate.turns import SIDES, Schedule, Workplace, launch, random_order
from bench.machine.facts import ROOT
from helpers import gate_records, gate_toys
from helpers.planted import bugs_beside, changed_module

BUGS = {name: (mutant, fields["by"]) for name, (mutant, fields) in bugs_beside(__file__).items()}

TRIALS = 4000
SPREAD = 0.02


@cache
def launches(slowdown: float, seed: int) -> tuple[Any, Any]:
    """Screening and confirmation of many gates, by a runner whose launches spread by 2 %."""
    rng = np.random.default_rng(seed)
    centre = math.log1p(slowdown)
    return rng.normal(centre, SPREAD, (TRIALS, 40)), rng.normal(centre, SPREAD, (TRIALS, 20))


def too_often(found: Any, rate: float) -> bool:
    count = int(np.sum(found))
    return bool(stats.binomtest(count, TRIALS, rate, alternative="greater").pvalue < 1e-4)


def suspects_at_the_margin(module: Any) -> bool:
    design = Design()
    screen, _ = launches(design.margin, 1)
    certain = np.full((TRIALS, 20), 1.0)
    return too_often(module.decide_many(screen, certain, design).failed, design.alpha)


def fails_at_the_margin(module: Any) -> bool:
    design = Design()
    failed = module.decide_many(*launches(design.margin, 2), design).failed
    return too_often(failed, design.alpha * design.confirm_alpha)


def passes_at_the_bound(module: Any) -> bool:
    design = Design()
    passed = module.decide_many(*launches(design.equivalence, 3), design).passed
    return too_often(passed, design.alpha)


def slowdowns_are_found(module: Any) -> bool:
    found = [
        float(module.decide_many(*launches(slowdown, 4), Design()).failed.mean())
        for slowdown in (0.03, 0.05)
    ]
    return found[0] < 0.85 or found[1] < 0.95


def identical_code_passes(module: Any) -> bool:
    screen, confirm = launches(0.0, 5)
    identical = module.decide_many(screen, confirm, Design())
    faster = module.decide_many(screen - 0.05, confirm - 0.05, Design())
    return float(identical.passed.mean()) < 0.99 or float(faster.passed.mean()) < 0.99


def errors_of_the_family(module: Any) -> bool:
    """Uniform p-values of 14 benchmarks: how often one of them is rejected at 5 %."""
    p = np.random.default_rng(6).uniform(size=(TRIALS, 14))
    return too_often([float(np.min(module.holm(row))) <= 0.05 for row in p], 0.05)


def bounds_hold_the_centre(module: Any) -> bool:
    screen, _ = launches(0.0, 7)
    outside = []
    for row in screen:
        _, low, high = module.hodges_lehmann(row[:13])
        outside.append(not low <= 0.0 <= high)
    return too_often(outside, 0.05)


def a_launch_gone_astray(module: Any) -> bool:
    d = np.append(np.random.default_rng(8).normal(0.0, 0.01, 12), 0.7)
    return abs(module.hodges_lehmann(d)[0]) > 0.02


def steady(centre: float, count: int, *, wall: float | None = None, spread: float = 0.004) -> Any:
    """Launches of the screening around a ratio."""
    return [("screen", centre, wall, spread)] * count


def fresh(centre: float, count: int, *, wall: float | None = None) -> Any:
    return [("confirm", centre, wall, 0.004)] * count


def benchmark(key: str, launches: Sequence[Any]) -> BenchmarkRecord:
    rng = np.random.default_rng(sum(map(ord, key)))
    samples = []
    for index, (stage, centre, wall, spread) in enumerate(launches):
        d = math.log1p(centre) + rng.normal(0.0, spread)
        waits = d if wall is None else math.log1p(wall) + rng.normal(0.0, spread)
        samples.append(gate_records.sample(d, stage=stage, launch=index, d_wall=waits))
    return gate_records.benchmark(key, samples=samples, verdict="not run")


def record(*benchmarks: BenchmarkRecord, **changes: Any) -> GateRecord:
    usual = {"benchmarks": list(benchmarks), "counters": [], "outputs": []}
    return gate_records.gate_record(**{**usual, **changes})


WORSE = gate_records.counter("a", "bytes", head=1010, change=0.01, verdict="worse", fails=True)
DIFFERS = gate_records.output("differs", note="1 of 3")

# A record, the exit code that it must have, and the verdict of its first benchmark.
KNOWN: list[tuple[str, Callable[[], GateRecord], int, str]] = [
    ("identical", lambda: record(benchmark("a", steady(0.0, 9))), 0, "pass"),
    ("faster", lambda: record(benchmark("a", steady(-0.1, 9))), 0, "pass"),
    ("slower", lambda: record(benchmark("a", steady(0.05, 9) + fresh(0.05, 6))), 1, "fail"),
    ("suspect", lambda: record(benchmark("a", steady(0.05, 9))), 3, "inconclusive"),
    (
        "cleared",
        lambda: record(benchmark("a", steady(0.05, 9) + fresh(0.0, 20))),
        3,
        "inconclusive",
    ),
    (
        "waits",
        lambda: record(benchmark("a", steady(0.0, 9, wall=0.5) + fresh(0.0, 6, wall=0.5))),
        1,
        "fail",
    ),
    ("noisy", lambda: record(benchmark("a", steady(0.02, 13, spread=0.3))), 3, "inconclusive"),
    ("open", lambda: record(benchmark("a", steady(0.02, 8))), 3, "inconclusive"),
    ("counted", lambda: record(benchmark("a", steady(0.0, 9)), counters=[WORSE]), 1, "fail"),
    ("differs", lambda: record(benchmark("a", steady(0.0, 9)), outputs=[DIFFERS]), 5, "pass"),
    ("nothing", lambda: record(benchmark("a", [])), 4, "not run"),
]


def verdicts_of_records(module: Any) -> bool:
    for name, make, code, verdict in KNOWN:
        judged = module.judge(make())
        if (judged.exit_code, judged.benchmarks[0].verdict) != (code, verdict):
            return True
        # Noise is named as what it is, not as a lack of launches.
        if name == "noisy" and not judged.benchmarks[0].quarantined:
            return True
    return False


CHECKS: dict[str, Callable[[Any], bool]] = {
    "suspects at the margin": suspects_at_the_margin,
    "fails at the margin": fails_at_the_margin,
    "passes at the bound": passes_at_the_bound,
    "slowdowns are found": slowdowns_are_found,
    "identical code passes": identical_code_passes,
    "errors of the family": errors_of_the_family,
    "bounds hold the centre": bounds_hold_the_centre,
    "a launch gone astray": a_launch_gone_astray,
    "verdicts of records": verdicts_of_records,
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_gate_as_it_is_passes_every_check(check: str) -> None:
    module = "verdict" if check == "verdicts of records" else "statistics"
    assert not CHECKS[check](changed_module(f"bench.gate.{module}", None))


@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_gate_is_found(bug: str) -> None:
    mutant, check = BUGS[bug]
    assert CHECKS[check](changed_module(mutant.file, mutant))


# Who is prepared second in a launch is slower throughout it, as a second process may be that finds
# the machine's memory in another state.
SECOND_IS_SLOWER = """
import os
from pathlib import Path

FIRST = Path({folder!r}, os.environ["PYTHONHASHSEED"])
COST_US = 103.0 if FIRST.exists() else 100.0
FIRST.touch()
"""


def differences(folder: Path, order_of: Callable[[random.Random], Sequence[str]]) -> list[float]:
    """d of a toy benchmark of two identical trees, over launches."""
    change = SECOND_IS_SLOWER.format(folder=str(folder))
    found = []
    with ExitStack() as stack:
        sides = {
            role: stack.enter_context(
                standing(Contestant(asked=str(gate_toys.tree(folder, role, change))))
            )
            for role in SIDES
        }
        schedule = Schedule(
            pairs=4,
            cores=(min(os.sched_getaffinity(0)),),
            place=Workplace(home=ROOT, time_limit_s=20.0, suite=gate_toys.SUITE),
            seed=5,
            order_of=order_of,
        )
        for index in range(9):
            _, samples = launch(
                index,
                sides,
                {"toy/work": {"base": 10, "head": 10}},
                schedule,
                began=time.monotonic(),
                advance=lambda _: None,
                stop=threading.Event(),
            )
            found.append(samples["toy/work"].d_timer)
    return found


def test_a_biased_order_makes_identical_code_differ(tmp_path: Path) -> None:
    """Base is always prepared first: what was seen as -2 to -3 % between identical trees."""
    biased = differences(tmp_path, lambda _: SIDES)
    assert min(biased) > 0
    assert p_slower(biased, 0.01) <= Design().alpha / len(Design().looks)


def test_a_random_order_turns_the_bias_into_noise(tmp_path: Path) -> None:
    unbiased = differences(tmp_path, random_order)
    assert min(unbiased) < -0.01
    assert max(unbiased) > 0.01
    assert p_slower(unbiased, 0.01) > 0.1
