"""Solve for the constants of `FITS`: `python -m studies.derive_fits` prints them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.workloads.fits import Gamma, LengthLaw, Lognormal
from studies.length_moments import moments

_Unknowns = NDArray[np.float64]


def sharegpt() -> LengthLaw:
    """Meet both means of the paper's figure 11, and what its figure 2 implies.

    That is E[o^2] / E[o] = 598 and E[i o] / E[o] = 159.6. The paper says nothing of the prompts'
    spread: 1.39 is the CV of the first turns in the public ShareGPT lengths, cut off at 1024 tokens
    as here.
    """

    def law(x: _Unknowns) -> LengthLaw:
        return LengthLaw(
            prompt=Lognormal(float(x[0]), math.exp(x[1]), 1, 1024),
            output=Gamma(math.exp(x[2]), math.exp(x[3]), 1, 2047),
            max_tokens=2048,
            link=float(x[4]),
        )

    def misses(x: _Unknowns) -> list[float]:
        got = moments(law(x))
        return [
            got.prompt_mean / 161.31 - 1,
            got.output_mean / 337.99 - 1,
            got.output_weighted_output / 598 - 1,
            got.output_weighted_prompt / 159.6 - 1,
            got.prompt_cv / 1.39 - 1,
        ]

    return law(_solved(misses, [4.5, 0.9, 0.2, 5.6, 0.0]))


def alpaca() -> LengthLaw:
    """Meet both means of the paper's figure 11, with CVs of 0.6 and 1 after cutting off."""

    def law(x: _Unknowns) -> LengthLaw:
        return LengthLaw(
            prompt=Lognormal(float(x[0]), math.exp(x[1]), 1, 512),
            output=Gamma(math.exp(x[2]), math.exp(x[3]), 1, 1024),
        )

    def misses(x: _Unknowns) -> list[float]:
        got = moments(law(x))
        return [
            got.prompt_mean / 19.31 - 1,
            got.prompt_cv / 0.6 - 1,
            got.output_mean / 58.45 - 1,
            got.output_cv - 1,
        ]

    return law(_solved(misses, [2.8, -0.6, 0.0, 4.1]))


def azure_conversation() -> LengthLaw:
    """Meet the trace's means, CVs and E[io] / E[o]."""

    def law(x: _Unknowns) -> LengthLaw:
        return LengthLaw(
            prompt=Gamma(math.exp(x[0]), math.exp(x[1]), 2, 14050),
            output=Gamma(math.exp(x[2]), math.exp(x[3]), 7, 1000),
            link=float(x[4]),
        )

    def misses(x: _Unknowns) -> list[float]:
        got = moments(law(x))
        return [
            got.prompt_mean / 1154.70 - 1,
            got.prompt_cv / 0.9602 - 1,
            got.output_mean / 211.13 - 1,
            got.output_cv / 0.7714 - 1,
            got.output_weighted_prompt / 1058.6 - 1,
        ]

    return law(_solved(misses, [0.1, 7.0, 0.3, 5.0, -0.4]))


def azure_code() -> LengthLaw:
    """Meet the trace's means and CVs; prompt and output are unrelated there, too."""

    def law(x: _Unknowns) -> LengthLaw:
        return LengthLaw(
            prompt=Gamma(math.exp(x[0]), math.exp(x[1]), 3, 7437),
            output=Lognormal(float(x[2]), math.exp(x[3]), 6, 1899),
        )

    def misses(x: _Unknowns) -> list[float]:
        got = moments(law(x))
        return [
            got.prompt_mean / 2047.85 - 1,
            got.prompt_cv / 0.9638 - 1,
            got.output_mean / 27.883 - 1,
            got.output_cv / 2.1468 - 1,
        ]

    return law(_solved(misses, [-0.5, 8.2, 2.0, 0.3]))


def _solved(misses: Callable[[_Unknowns], list[float]], start: list[float]) -> _Unknowns:
    """Find the root by Newton's method, with differences for the derivatives and short steps."""
    x = np.array(start)
    for _ in range(200):
        missed = np.array(misses(x))
        if np.abs(missed).max() < 1e-11:
            return x
        columns = [(np.array(misses(x + step)) - missed) / 1e-6 for step in 1e-6 * np.eye(x.size)]
        x = x + np.clip(np.linalg.solve(np.array(columns).T, -missed), -0.2, 0.2)
    raise ArithmeticError(f"no root from {start}: at {x.tolist()} it misses by {misses(x)}")


SOLVED: Final = {
    "sharegpt-fit": sharegpt,
    "alpaca-fit": alpaca,
    "azure-fit": azure_conversation,
    "azure-code-fit": azure_code,
}
"""What gives the law of each of `FITS`."""


def main() -> None:
    """Print each law with its moments."""
    for name, solve in SOLVED.items():
        law = solve()
        sys.stdout.write(f"{name}\n    {law}\n    {moments(law)}\n")


if __name__ == "__main__":
    main()
