"""Gates over recorded launches, drawn anew: false alarms and power, with confidence intervals.

A real run takes minutes and gives one verdict for each benchmark; the launches that it recorded
give thousands. Each trial draws launches of identical code with replacement, the CPU's and the wall
clock's figure of one launch together, gives both a random sign (which is what the random order
within a launch provides), adds the planted slowdown to both, and judges them as the gate does.

What that rests on, and what it leaves out:

* Launches stand for launches of this runner in this weather, as many as were recorded.
* With `signs="recorded"` the signs stay as they were, so that a bias of the recording is not
  averaged away; the two answers should agree.
* Holm's procedure over the suite is left out. It can only turn a fail into inconclusive, and does
  not while alpha * confirm_alpha / looks is below family_alpha / hypotheses: `holm_spares`.
* Benchmarks are drawn apart from each other, as if bad weather hit one at a time: over a suite that
  gives more false alarms, not fewer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest

from bench.gate.record import Design, GateRecord
from bench.gate.statistics import Trials, decide_many, robust_sd

Signs = Literal["random", "recorded"]

SLOWDOWNS: Final = (0.0, 0.03, 0.05)

CLOCKS: Final = 2
"""Hypotheses of one benchmark: the CPU's clock and the wall's."""

Floats = NDArray[np.float64]


class ResampleError(ValueError):
    """There is nothing to draw from; the message says what is missing."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Share(_Record):
    """How often something happened, with exact (Clopper-Pearson) bounds at 95 %."""

    found: int
    trials: int
    share: float
    low: float
    high: float


class Power(_Record):
    """Trials at one slowdown."""

    of: Literal["benchmark", "all", "suite"]
    """`benchmark`: one of them. `all`: every trial on every benchmark, of which those in quarantine
    find nothing. `suite`: a trial is a run, fails if any benchmark does, and passes if all do."""
    benchmark: str | None
    """Its key; None for the others."""
    slowdown: float
    """Planted in each: 0.05 is 5 %."""
    failed: Share
    passed: Share
    """The rest is inconclusive."""
    median_launches: float
    """That a trial took, confirmation included; of a suite, the most that a benchmark took."""


class Pool(_Record):
    """Recorded launches of one benchmark."""

    benchmark: str
    launches: int
    launch_sd: float
    """Robust standard deviation of `d_timer` over the launches."""
    mean: float
    """Of `d_timer`; far from 0 beside `launch_sd / sqrt(launches)` it shows a bias."""
    quarantined: bool


class Resampled(_Record):
    """What drawing anew came to."""

    trials: int
    seed: int
    signs: Signs
    holm_spares: bool
    pools: list[Pool]
    power: list[Power]


@dataclass(frozen=True, slots=True)
class _Launches:
    """Figures of one benchmark's launches: [launches]."""

    timer: Floats
    wall: Floats


def share(found: int, trials: int) -> Share:
    """A share with its exact bounds."""
    interval = binomtest(found, trials).proportion_ci(confidence_level=0.95, method="exact")
    return Share(
        found=found,
        trials=trials,
        share=found / trials,
        low=float(interval.low),
        high=float(interval.high),
    )


def said(rate: Share) -> str:
    """A share and its bounds, in per cent."""
    return f"{100 * rate.share:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f} %)"


def holm_spares(design: Design, benchmarks: int) -> bool:
    """Whether every confirmed suspect is rejected by Holm's procedure, whatever the others are."""
    confirmed = design.alpha * design.confirm_alpha / len(design.confirm_looks)
    return confirmed <= design.family_alpha / (CLOCKS * benchmarks)


def resample(
    records: Sequence[GateRecord],
    design: Design,
    *,
    trials: int,
    seed: int,
    slowdowns: Sequence[float] = SLOWDOWNS,
    signs: Signs = "random",
) -> Resampled:
    """Draw gates from the launches of runs on identical code.

    Parameters
    ----------
    records
        Runs whose base and head are the same code; launches of all are put together.
    design
        The tests.
    trials
        Gates for each benchmark and slowdown.
    seed
        Of the draws.
    slowdowns
        To plant, as fractions.
    signs
        See the module.

    Raises ResampleError where a record is of different code, or no benchmark has launches enough
    for a look.
    """
    pools = _pools(records, design)
    rng = np.random.default_rng(seed)
    judged = {
        key: launches
        for key, launches in pools.items()
        if robust_sd(launches.timer) <= design.quarantine_sd
    }
    power = []
    for slowdown in slowdowns:
        drawn = {
            key: _trials(launches, slowdown, design, trials=trials, rng=rng, signs=signs)
            for key, launches in judged.items()
        }
        power += [_power(each, slowdown, of="benchmark", key=key) for key, each in drawn.items()]
        noisy = _nothing(trials, design)
        every = [drawn.get(key, noisy) for key in pools]
        power.append(_power(_joined(every), slowdown, of="all"))
        power.append(_power(_runs(every), slowdown, of="suite"))
    return Resampled(
        trials=trials,
        seed=seed,
        signs=signs,
        holm_spares=holm_spares(design, len(pools)),
        pools=[
            Pool(
                benchmark=key,
                launches=len(launches.timer),
                launch_sd=robust_sd(launches.timer),
                mean=float(launches.timer.mean()),
                quarantined=key not in judged,
            )
            for key, launches in pools.items()
        ],
        power=power,
    )


def _pools(records: Sequence[GateRecord], design: Design) -> Mapping[str, _Launches]:
    for record in records:
        same = record.mode == "aa" or (
            record.base.commit is not None and record.base.commit == record.head.commit
        )
        if record.mode == "plant" or not same or record.base.dirty != record.head.dirty:
            raise ResampleError(
                f"{record.head.name} against {record.base.name} ({record.mode}): launches must be "
                f"of identical code; take runs of --aa, or of a commit against itself"
            )
    keys = dict.fromkeys(each.key for record in records for each in record.benchmarks)
    pools = {}
    for key in keys:
        samples = [
            sample
            for record in records
            for each in record.benchmarks
            if each.key == key
            for sample in each.samples
        ]
        if len(samples) >= design.looks[0]:
            pools[key] = _Launches(
                np.array([sample.d_timer for sample in samples]),
                np.array([sample.d_wall for sample in samples]),
            )
    if not pools:
        raise ResampleError(
            f"{len(records)} records: no benchmark has {design.looks[0]} launches; record more"
        )
    return pools


def _joined(some: Sequence[Trials]) -> Trials:
    """All trials of all."""
    return Trials(
        np.concatenate([each.failed for each in some]),
        np.concatenate([each.passed for each in some]),
        np.concatenate([each.launches for each in some]),
    )


def _runs(some: Sequence[Trials]) -> Trials:
    """Each a run over all benchmarks; its launches are those of the slowest."""
    return Trials(
        np.any([each.failed for each in some], axis=0),
        np.all([each.passed for each in some], axis=0),
        np.max([each.launches for each in some], axis=0),
    )


def _nothing(trials: int, design: Design) -> Trials:
    """Of a benchmark in quarantine, which is known by the second look."""
    none = np.zeros(trials, np.bool_)
    return Trials(none, none, np.full(trials, design.looks[1], np.int64))


def _trials(
    launches: _Launches,
    slowdown: float,
    design: Design,
    *,
    trials: int,
    rng: np.random.Generator,
    signs: Signs,
) -> Trials:
    """Judge trials by either clock, as the gate does."""
    screen, confirm = design.looks[-1], design.confirm_looks[-1]
    shape = (trials, screen + confirm)
    picks = rng.integers(len(launches.timer), size=shape)
    sign = rng.choice((-1.0, 1.0), size=shape) if signs == "random" else np.ones(shape)
    planted = math.log1p(slowdown)
    timer = launches.timer[picks] * sign + planted
    wall = launches.wall[picks] * sign + planted
    by_timer = decide_many(timer[:, :screen], timer[:, screen:], design)
    # The wall clock only fails what is slower beyond its own margin; it never passes anything.
    wide = {"margin": design.wall_margin, "equivalence": 2 * design.wall_margin}
    lenient = design.model_copy(update=wide)
    by_wall = decide_many(wall[:, :screen], wall[:, screen:], lenient)
    failed = by_timer.failed | by_wall.failed
    return Trials(failed, by_timer.passed & ~failed, by_timer.launches)


def _power(
    drawn: Trials,
    slowdown: float,
    *,
    of: Literal["benchmark", "all", "suite"],
    key: str | None = None,
) -> Power:
    number = len(drawn.failed)
    return Power(
        of=of,
        benchmark=key,
        slowdown=slowdown,
        failed=share(int(drawn.failed.sum()), number),
        passed=share(int(drawn.passed.sum()), number),
        median_launches=float(np.median(drawn.launches)),
    )
