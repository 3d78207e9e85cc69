"""Exact moments of a law of request lengths: what the fits are solved for, and held against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bench.workloads.fits import LengthLaw


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Moments of a length law, in tokens; the CVs are plain numbers."""

    prompt_mean: float
    output_mean: float
    """Mean lengths."""
    prompt_cv: float
    output_cv: float
    """Coefficients of variation."""
    output_weighted_output: float
    """E[o^2] / E[o]: twice the tokens that a running request has still to produce. Requests are
    resident for a step per output token, so what is seen at a moment is weighted with `o`."""
    output_weighted_prompt: float
    """E[i o] / E[o]: prompt tokens of a running request."""


def moments(law: LengthLaw) -> Moments:
    """Compute the moments of a law, exactly."""
    prompt, output = law.prompt.weights(), law.output.weights()
    i = np.arange(law.prompt.shortest, law.prompt.longest + 1.0)
    o = np.arange(law.output.shortest, law.output.longest + 1.0)
    if law.max_tokens is None:
        # Hoeffding's identity, with this copula's distribution function put in.
        covariance = law.link * math.prod(
            float(np.sum(levels * (1 - levels))) for levels in map(np.cumsum, (prompt, output))
        )
        product = float(prompt @ i) * float(output @ o) + covariance
    else:
        # What the copula puts on each pair of steps of the two distribution functions.
        tilt = np.outer(*(1 - 2 * np.cumsum(weights) + weights for weights in (prompt, output)))
        joint = np.outer(prompt, output) * (1 + law.link * tilt)
        joint[i[:, None] + o > law.max_tokens] = 0
        joint /= joint.sum()
        prompt, output = joint.sum(axis=1), joint.sum(axis=0)
        product = float(i @ joint @ o)
    prompt_mean, output_mean = float(prompt @ i), float(output @ o)
    output_square = float(output @ o**2)
    return Moments(
        prompt_mean=prompt_mean,
        output_mean=output_mean,
        prompt_cv=math.sqrt(float(prompt @ i**2) / prompt_mean**2 - 1),
        output_cv=math.sqrt(output_square / output_mean**2 - 1),
        output_weighted_output=output_square / output_mean,
        output_weighted_prompt=product / output_mean,
    )
