"""Figures over several drawings of a stream: their mean, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Final

_T_95: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t by degrees of freedom from 1 on, 95 % between both sides; beyond: the last, which is
on the safe side."""


def margin(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    return _T_95[min(len(values) - 1, len(_T_95)) - 1] * stdev(values) / sqrt(len(values))


def mean_words(values: Sequence[float], write: Callable[[float], str]) -> str:
    """A mean and its margin, as a share: `1.52 s ±3.1%`."""
    middle = mean(values)
    return f"{write(middle)} ±{margin(values) / middle:.1%}" if middle else write(middle)
