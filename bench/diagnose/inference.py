"""Which causes explain what was found: likelihoods of findings under each, fitted on recordings.

A hypothesis is a set of at most two causes; none is "healthy". Each finding holds under a cause
with a probability that was fitted; two causes together make it hold unless neither does (noisy or),
and a cause that rules it out rules it out. What was not seen speaks neither for nor against.
Findings are not independent as this has it, so the sum of their log likelihood ratios is tempered;
the temper, and from what a probability comes to be the share that is right, are fitted, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from bench.diagnose.findings import FINDINGS
from bench.diagnose.modes import HEALTHY, MODES
from bench.diagnose.observed import Floats
from bench.diagnose.statistics import Stats

FITTED: Final = Path(__file__).with_name("fitted.json")
"""Written by `studies/diagnosis.py`."""

PRIOR_WEIGHT: Final = 4.0
"""Recordings that the roles of a mode count for beside those that were made."""

LEAST: Final = 0.005
"""Least rate of a finding in a healthy server, and of the opposite of one."""

UNUSUAL: Final = 0.02
"""The same under a cause: there are more kinds of servers than were recorded."""

_ROLES: Final = (("requires", 0.95), ("expects", 0.8), ("allows", 0.25), ("forbids", 0.02))
_OTHER: Final = "other"
"""What none of the modes explains: any symptom may hold."""

_HEALTHY_PRIOR: Final = 0.25
_PAIR: Final = 0.15
"""Probability of a pair of causes, beside that of either alone."""


@dataclass(frozen=True)
class Fitted:
    """What the recordings taught."""

    held: Mapping[str, Mapping[str, Sequence[float]]]
    """By mode and finding: in how many recordings it held, of how many that show it."""
    temper: float = 1.0
    calibration: tuple[tuple[float, float], ...] = ()
    """Probability to the share that was right, ascending; empty: as it is."""
    recordings: int = 0

    def confidence(self, probability: float) -> float:
        """The share of verdicts of this probability that were right."""
        if not self.calibration:
            return probability
        said, right = zip(*self.calibration, strict=True)
        return float(np.interp(probability, said, right))

    @cached_property
    def rates(self) -> dict[str, dict[str, float]]:
        """How often each finding holds under each mode, and in a healthy server."""
        result: dict[str, dict[str, float]] = {}
        for mode in [HEALTHY, *MODES]:
            roles: dict[str, float] = {}
            if mode != HEALTHY:
                for role, rate in reversed(_ROLES):
                    roles.update(dict.fromkeys(getattr(MODES[mode], role), rate))
            rows = self.held.get(mode, {})
            result[mode] = {}
            for name, finding in FINDINGS.items():
                held, shown = rows.get(name, (0.0, 0.0))
                prior = roles.get(name, finding.usual)
                rate = (held + PRIOR_WEIGHT * prior) / (shown + PRIOR_WEIGHT)
                least = LEAST if mode == HEALTHY else UNUSUAL
                result[mode][name] = min(max(rate, least), 1 - least)
        result[_OTHER] = {
            name: 0.35 if finding.symptom else max(finding.usual, 0.2)
            for name, finding in FINDINGS.items()
        }
        return result


@lru_cache
def fitted() -> Fitted:
    """What comes with the package."""
    return read_fitted(FITTED) if FITTED.is_file() else Fitted({})


def read_fitted(path: Path) -> Fitted:
    """What a fit was written to."""
    read = json.loads(path.read_text(encoding="utf-8"))
    steps = tuple((row[0], row[1]) for row in read["calibration"])
    return Fitted(read["held"], read["temper"], steps, read["recordings"])


class Posterior(NamedTuple):
    """What the findings make of the causes."""

    causes: dict[str, float]
    """Probability that each is one of the causes, the likeliest first."""
    healthy: float
    other: float
    """Probability that none of the known causes explains what is wrong."""
    best: tuple[str, ...]
    """The likeliest set of causes; empty: healthy, or what is not known."""
    holds: dict[str, float]
    """How sure each finding is that could be seen."""


def seen(stats: Stats) -> dict[str, float]:
    """How sure each finding is, where its figure is known."""
    return {
        name: finding.holds(stats[finding.stat])
        for name, finding in FINDINGS.items()
        if finding.stat in stats
    }


def infer(holds: Mapping[str, float], fit: Fitted) -> Posterior:
    """Weigh all sets of causes."""
    names = list(holds)
    table = fit.rates
    sure = np.array([holds[name] for name in names])
    base = np.array([table[HEALTHY][name] for name in names])
    modes = [mode for mode in MODES if visible(mode, holds)]
    single = {mode: np.array([table[mode][name] for name in names]) for mode in [*modes, _OTHER]}
    sets: list[tuple[str, ...]] = [(), *((mode,) for mode in single)]
    sets += list(combinations(modes, 2))
    scores = []
    for causes in sets:
        expected = base
        prior = _HEALTHY_PRIOR
        if len(causes) == 1:
            expected = single[causes[0]]
            prior = 0.01 if causes == (_OTHER,) else (1 - _HEALTHY_PRIOR) / len(modes)
        elif causes:
            expected = _both(single[causes[0]], single[causes[1]], base)
            prior = _PAIR / len(modes)
        scores.append(math.log(prior) + fit.temper * _log_likelihood(sure, expected))
    weights = np.exp(np.array(scores) - max(scores))
    weights /= weights.sum()
    probabilities = dict.fromkeys(MODES, 0.0)
    for chosen, weight in zip(sets, weights.tolist(), strict=True):
        for cause in chosen:
            if cause != _OTHER:
                probabilities[cause] += weight
    best = sets[int(np.argmax(weights))]
    return Posterior(
        dict(sorted(probabilities.items(), key=lambda each: -each[1])),
        float(weights[0]),
        float(weights[sets.index((_OTHER,))]),
        () if best == (_OTHER,) else best,
        dict(holds),
    )


def hits_open(holds: Mapping[str, float]) -> bool:
    """Whether many prompts are computed anew and nobody can know if they had to be."""
    anew = max(holds.get("missed", 0.0), holds.get("unqueried", 0.0))
    return anew > 0.5 and holds.get("off", 0.0) < 0.5 and "again" not in holds


def proven(mode: str, holds: Mapping[str, float]) -> bool:
    """Whether what makes a mode this one, and no look-alike, could be seen."""
    about = MODES[mode]
    return about.provable and about.requires[0] in holds


def visible(mode: str, holds: Mapping[str, float]) -> bool:
    """Whether anything that a mode requires could be seen; else nothing speaks of it."""
    return not holds.keys().isdisjoint(MODES[mode].requires)


def _log_likelihood(sure: Floats, expected: Floats) -> float:
    return float(np.log(sure * expected + (1 - sure) * (1 - expected)).sum())


def _both(one: Floats, two: Floats, base: Floats) -> Floats:
    """Rates with two causes at once: either makes a finding hold, either may rule it out."""
    raised = 1 - (1 - np.maximum(one, base)) * (1 - np.maximum(two, base)) / (1 - base)
    ruled = np.minimum(one / base, 1) * np.minimum(two / base, 1)
    return np.asarray(np.clip(raised * ruled, 0.005, 0.995))


def ratio(name: str, sure: float, one: str, other: str, fit: Fitted) -> float:
    """By how much a finding makes one cause likelier than another, as a logarithm."""
    table = fit.rates
    first, second = table[one][name], table[other][name]
    return math.log(
        (sure * first + (1 - sure) * (1 - first)) / (sure * second + (1 - sure) * (1 - second))
    )
