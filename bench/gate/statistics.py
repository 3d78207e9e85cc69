"""Exact tests at fixed looks: when is it slower, when is it not, and when is it not known.

A launch gives one number, d = the median over its pairs of log(head / base). Where nothing changed
the random order makes the sides exchangeable, so d is as likely positive as negative, whatever the
shape of the noise: Wilcoxon's signed-rank test is exact, and the launch, not the turn, is its unit.

Screening looks after `Design.looks` launches, each look at alpha divided by their number (union
bound): *suspect* if "no slower than the margin" is rejected, *pass* if "slower by the equivalence
bound or more" is. A suspect is confirmed on launches of its own, begun after it was suspected.

The two stages give one p-value: that of the screening where that found nothing, and alpha times
that of the confirmation where it did. It is a p-value: for x below alpha, P(p <= x) is at most
P(suspect) * P(p_confirm <= x / alpha) <= alpha * x / alpha = x, since the launches are different
ones. Holm's procedure over the suite takes these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.gate.record import Design

Floats = NDArray[np.float64]

FEWEST_FOR_BOUNDS: Final = 6
"""Launches: with 5, even the extremes bound nothing at 95 %, since 2 / 2^5 > 0.05."""


def p_slower(d: ArrayLike, margin: float) -> Any:
    """p-value of "head is no slower than by `margin`", over the last axis of `d`."""
    return _signed_rank(np.asarray(d) - math.log1p(margin), "greater")


def p_not_slower(d: ArrayLike, equivalence: float) -> Any:
    """p-value of "head is slower by `equivalence` or more", over the last axis of `d`."""
    return _signed_rank(np.asarray(d) - math.log1p(equivalence), "less")


def p_faster(d: ArrayLike, margin: float) -> Any:
    """p-value of "base is no slower than head by `margin`", over the last axis of `d`."""
    return _signed_rank(np.asarray(d) + math.log1p(margin), "less")


def _signed_rank(shifted: Floats, alternative: str) -> Any:
    """Exact p-value, given how many differences are zero: those speak for neither side."""
    from scipy import stats  # a second to import, which a report of a record does not need

    if shifted.ndim == 1:
        shifted = shifted[shifted != 0]
        if not len(shifted):
            return 1.0
        return float(stats.wilcoxon(shifted, alternative=alternative, method="exact").pvalue)
    result = stats.wilcoxon(shifted, alternative=alternative, method="exact", axis=-1)
    return np.asarray(result.pvalue, np.float64)


def robust_sd(d: ArrayLike) -> float:
    """Standard deviation over launches that one launch gone astray does not move."""
    from scipy import stats

    return float(stats.iqr(np.asarray(d), scale="normal"))


def hodges_lehmann(d: ArrayLike) -> tuple[float, float | None, float | None]:
    """Estimate of the centre of `d`, and the 95 % bounds that belong to the signed-rank test.

    `d` is [launches], logarithms. The estimate is the median of the means of all pairs of launches,
    each with itself included; the bounds are two of these means. None from fewer than 6 launches.
    """
    values = np.asarray(d, np.float64)
    first, second = np.triu_indices(len(values))
    walsh = np.sort((values[first] + values[second]) / 2)
    estimate = float(np.median(walsh))
    # Number of means below the centre is the signed-rank statistic: count its orderings.
    counts = np.ones(1)
    for rank in range(1, len(values) + 1):
        larger = np.zeros(len(counts) + rank)
        larger[: len(counts)] += counts / 2
        larger[rank:] += counts / 2
        counts = larger
    outside = int(np.count_nonzero(np.cumsum(counts) <= 0.05 / 2))
    if not outside:
        return estimate, None, None
    return estimate, float(walsh[outside - 1]), float(walsh[-outside])


def holm(p: ArrayLike) -> Floats:
    """p-values adjusted by Holm's step-down procedure; one below x is rejected at level x."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def two_stage_p(screen: float, confirm: float | None, *, alpha: float) -> float:
    """The p-value of both stages, each corrected for its looks; see the module's text."""
    if screen > alpha:
        return min(screen, 1.0)
    return alpha * (1.0 if confirm is None else min(confirm, 1.0))


@dataclass(frozen=True, slots=True)
class Trials:
    """What many gates on one benchmark came to; arrays of [trials]."""

    failed: NDArray[np.bool_]
    passed: NDArray[np.bool_]
    """Verdicts; what is neither is inconclusive."""
    launches: NDArray[np.int64]
    """That each gate took, the confirmation's included."""


def decide_many(
    screen: Floats, confirm: Floats, design: Design, *, most: int | None = None
) -> Trials:
    """Judge many gates at once, one a row, by CPU time, each as if its benchmark were the suite.

    There are no looks at the screening after `most` launches.
    """
    trials = len(screen)
    suspect = np.zeros(trials, np.bool_)
    passed = np.zeros(trials, np.bool_)
    looks = [look for look in design.looks if most is None or look <= most]
    launches = np.full(trials, looks[-1] if looks else 0, np.int64)
    for look in looks:
        waiting = np.flatnonzero(~(suspect | passed))
        if not len(waiting):
            break
        seen = screen[waiting, :look]
        level = design.alpha / len(design.looks)
        slow = p_slower(seen, design.margin) <= level
        same = (p_not_slower(seen, design.equivalence) <= level) & ~slow
        suspect[waiting] = slow
        passed[waiting] = same
        launches[waiting[slow | same]] = look
    failed = np.zeros(trials, np.bool_)
    extra = np.where(suspect, design.confirm_looks[-1], 0)
    for look in design.confirm_looks:
        waiting = np.flatnonzero(suspect & ~failed)
        if not len(waiting):
            break
        p = p_slower(confirm[waiting, :look], design.margin)
        confirmed = p <= design.confirm_alpha / len(design.confirm_looks)
        failed[waiting] = confirmed
        extra[waiting[confirmed]] = look
    return Trials(failed, passed, launches + extra)


def resampled(
    d: ArrayLike,
    slowdown: float,
    design: Design,
    *,
    trials: int,
    rng: np.random.Generator,
    most: int | None = None,
) -> Trials:
    """Gates over launches of identical code, drawn anew, with head slowed by `slowdown`.

    Each is given a random sign: the exchangeability that the random order provides.
    """
    recorded = np.abs(np.asarray(d, np.float64))

    def draw(launches: int) -> Floats:
        picks = rng.choice(recorded, size=(trials, launches))
        picks *= rng.choice((-1.0, 1.0), size=picks.shape)
        return picks + math.log1p(slowdown)

    return decide_many(draw(design.looks[-1]), draw(design.confirm_looks[-1]), design, most=most)
