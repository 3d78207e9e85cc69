"""What a wrong answer is the right answer to: known constants, where the error fits one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from torch import Tensor

from reference.attention.comparing import to_device
from reference.attention.contract import PagedBatch
from reference.attention.inputs import Inputs
from reference.attention.tolerance import lse_allowance, out_allowance
from reference.attention.truth import Truth, attend

TF32_ROUNDOFF: Final = 2.0**-11
"""tf32 keeps ten bits after the first."""

MAX_COST: Final = 2**22
"""Products of a query and a key up to which another truth is worked out for a hint."""


def hints(inputs: Inputs, truth: Truth, batch: PagedBatch) -> list[str]:
    """What explains all of a wrong answer, if something known does: one sentence, or none."""
    if not truth.lse.numel():
        return []
    out, lse = batch.out.cpu().double(), None if batch.lse is None else batch.lse.cpu().double()
    right = _within(out, truth.out, out_allowance(inputs.problem, truth))
    if right and lse is not None:
        for factor, name in ((1 / math.log(2), "1 / log 2"), (math.log(2), "log 2")):
            if _within(lse, truth.lse * factor, 2 * factor * lse_allowance(truth)):
                base = (
                    "in base 2, and `lse_base` says e" if factor > 1 else "`lse_base` says 2 of e"
                )
                return [f"the log-sum-exp is the right one times {factor:.4f} ({name}): {base}"]
    if right or inputs.problem.kind == "merge":
        return []
    for factor, name in _factors(inputs):
        if _fits(inputs, truth, out, factor):
            return [f"it is the right answer to logits times {factor:.4g} ({name})"]
    if inputs.problem.dtype == "fp32" and _tf32(inputs, truth, out):
        return [
            "the error is of the size of tf32: ask for float32 products with "
            "input_precision='ieee', or set TRITON_F32_DEFAULT=ieee"
        ]
    return []


def _factors(inputs: Inputs) -> Iterator[tuple[float, str]]:
    root = math.sqrt(inputs.problem.head_dim)
    yield root, "the root of the head size: no scale"
    yield 1 / root, "one by the root of the head size: scaled twice"
    yield 1 / math.log(2), "1 / log 2"
    yield math.log(2), "log 2"


def _fits(inputs: Inputs, truth: Truth, out: Tensor, factor: float) -> bool:
    problem = inputs.problem
    cost = sum(r.query_len * r.seq_len for r in problem.requests) * problem.num_q_heads
    if cost > MAX_COST:
        return False
    scaled = replace(inputs, problem=problem.replace(scale=problem.softmax_scale * factor))
    other = attend(to_device(scaled, "cpu"))
    allowed = out_allowance(scaled.problem, other)
    # Where both truths allow it, as where one weight is all, it says nothing.
    return _within(out, other.out, allowed) and not _within(out, truth.out, allowed)


def _tf32(inputs: Inputs, truth: Truth, out: Tensor) -> bool:
    largest = truth.out.abs().amax(-1)
    return _within(out, truth.out, TF32_ROUNDOFF * (4 + 2 * truth.score_bound) * largest)


def _within(got: Tensor, expected: Tensor, allowed: Tensor) -> bool:
    error = (got - expected).abs().where(got != expected, got.new_zeros(()))
    return bool((error <= (allowed if got.dim() == allowed.dim() else allowed.unsqueeze(-1))).all())
