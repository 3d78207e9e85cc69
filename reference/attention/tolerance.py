"""How far a right answer may be from the truth, row by row.

A row is one (token, head). Its allowance is

    (OUTPUT[dtype] * u(dtype) + u(fp32) * (SCORE * score_bound + ACCUMULATE * sqrt(keys)))
        * max |truth of the row|
    + keys * 2^-126 * max |v| + the smallest subnormal of the working type
    + u(dtype) * max |v|, of a cache in a codec

where u is the unit round-off, half the distance from 1 to the next number. The first term is what
rounding the output and the softmax weights to the working type costs: both errors are proportional
to the largest magnitude of the row and do not grow with the context, because the weights sum to
one. The others are float32's: what a logit loses moves a weight by the same *relative* amount, and
a sum over keys loses in proportion to the root of their number. They matter where the working type
is float32, the logits are far from zero or the context is very long. The last is what rounding a
code times its scale to the working type, as matrix units want it, moves a weighted mean at most;
values that cancel in it are larger than the row.

The log-sum-exp never leaves float32: `LSE * u(fp32) * (1 + score_bound + |lse|)`.

The constants are not chosen: `python -m studies.derive_tolerance` measures what correct kernels
of several designs need, and prints the constants and which planted bugs they reject.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from reference.attention.problem import QUERY_DTYPES, AttentionProblem, torch_dtype
from reference.attention.truth import Truth

UNIT_ROUNDOFF: Final = {name: torch.finfo(torch_dtype(name)).eps / 2 for name in QUERY_DTYPES}
"""u, half an ulp of 1.0: 2^-24, 2^-11, 2^-8."""

OUTPUT: Final = {"fp32": 1.0, "fp16": 2.25, "bf16": 2.5}
"""Units of round-off of the working type."""

SCORE: Final = 12.5
"""Units of float32 round-off for each unit of the score bound."""

ACCUMULATE: Final = 1.0
"""Units of float32 round-off for each square root of the number of keys."""

LSE: Final = 25.25
"""Units of float32 round-off for each unit of magnitude in the log-sum-exp."""


@dataclass(frozen=True, slots=True)
class Excess:
    """The row that is furthest beyond its allowance."""

    what: str
    token: int
    head: int
    error: float
    allowed: float
    got: float
    expected: float

    def __str__(self) -> str:
        where = f"{self.what}[token {self.token}, head {self.head}]"
        return (
            f"{where} is {self.got:.6g}, the truth is {self.expected:.6g}: "
            f"off by {self.error:.3g}, allowed {self.allowed:.3g}"
        )


def out_allowance(problem: AttentionProblem, truth: Truth) -> Tensor:
    """Largest permitted |out - truth|, [num_tokens, num_q_heads] float64."""
    working = OUTPUT[problem.dtype] * UNIT_ROUNDOFF[problem.dtype]
    in_float32 = SCORE * truth.score_bound + ACCUMULATE * truth.keys.sqrt().unsqueeze(1)
    relative = working + UNIT_ROUNDOFF["fp32"] * in_float32
    # Beside a large sink or split, a weight can lie below float32's normal numbers, where it has
    # few bits left or, on a GPU that flushes them, none.
    largest = truth.out.abs().amax(-1) if truth.magnitude is None else truth.magnitude
    flushed = torch.finfo(torch.float32).smallest_normal * truth.keys.unsqueeze(1)
    decoded = UNIT_ROUNDOFF[problem.dtype] if problem.codec else 0.0
    return relative * largest + (flushed + decoded) * truth.value_bound + smallest_step(problem)


def smallest_step(problem: AttentionProblem) -> float:
    """What the output type cannot resolve near zero: its smallest subnormal."""
    return torch.finfo(problem.torch_dtype).smallest_normal * torch.finfo(problem.torch_dtype).eps


def lse_allowance(truth: Truth) -> Tensor:
    """Largest permitted |lse - truth|, [num_tokens, num_q_heads] float64."""
    magnitude = 1 + truth.score_bound + torch.where(truth.lse.isinf(), 0.0, truth.lse).abs()
    return LSE * UNIT_ROUNDOFF["fp32"] * magnitude


def worst_excess(
    problem: AttentionProblem, truth: Truth, out: Tensor, lse: Tensor | None
) -> Excess | None:
    """The worst row of an answer, or None if every row is within its allowance.

    NaN, and an infinity where the truth is finite, count as infinitely far off.
    """
    if not truth.lse.numel():
        return None
    candidates = [_worst("out", truth.out, out.double(), out_allowance(problem, truth))]
    if lse is not None:
        candidates.append(
            _worst("lse", truth.lse.unsqueeze(-1), lse.double().unsqueeze(-1), lse_allowance(truth))
        )
    beyond = [excess for excess in candidates if not excess.error <= excess.allowed]
    return max(beyond, key=lambda excess: excess.error / excess.allowed, default=None)


def errors(truth: Tensor, got: Tensor) -> Tensor:
    """|got - truth|, infinite where one is no number and the other is."""
    error = torch.where(got == truth, 0.0, (got - truth).abs())  # equal infinities are equal
    return torch.nan_to_num(error, nan=torch.inf, posinf=torch.inf)


def _worst(what: str, truth: Tensor, got: Tensor, allowed: Tensor) -> Excess:
    error = errors(truth, got)
    row_error, element = error.max(-1)
    row = int((row_error / allowed).argmax())
    token, head = divmod(row, truth.shape[1])
    at = int(element[token, head])
    return Excess(
        what=what,
        token=token,
        head=head,
        error=float(row_error[token, head]),
        allowed=float(allowed[token, head]),
        got=float(got[token, head, at]),
        expected=float(truth[token, head, at]),
    )
