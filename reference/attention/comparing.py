"""Two answers of a kernel to problems whose answers are related: the same bits, or near."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from reference.attention.inputs import Inputs
from reference.attention.placement import Placement
from reference.attention.tolerance import lse_allowance, out_allowance
from reference.attention.truth import Truth, attend

Findings = list[str]
"""What is wrong, one sentence each; empty if nothing."""


def to_device(inputs: Inputs, device: str) -> Inputs:
    """The same tensors there."""
    tensors = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    moved = {name: each.to(device) for name, each in tensors.items() if isinstance(each, Tensor)}
    return replace(inputs, **moved)  # type: ignore[arg-type]


def rows_of(tensor: Tensor, at: Tensor) -> Tensor:
    """Some of its rows; of float8, which torch does not gather, by their bytes."""
    if tensor.element_size() == 1:
        return tensor.view(torch.uint8)[at].view(tensor.dtype)
    return tensor[at]


def same(
    inputs: Inputs, one: Placement, other: Placement, when: str, *, promised: str = ""
) -> Findings:
    """Two answers to one problem: the same bits where they are promised, or near each other."""
    answers = [("out", one.batch.out, other.batch.out)]
    if one.batch.lse is not None and other.batch.lse is not None:
        answers.append(("lse", one.batch.lse, other.batch.lse))
    findings = []
    for name, first, second in answers:
        changed = changed_bits(name, first, second, when, promised)
        if changed and not promised:
            near = close_out if name == "out" else close_lse
            changed = changed if near(inputs, first, second, when) else []
        findings += changed
    return findings


def changed_bits(what: str, one: Tensor, other: Tensor, when: str, promised: str = "") -> Findings:
    """NaN is NaN: that it is wrong is for `truth` to say."""
    differ = (one != other) & ~(one.isnan() & other.isnan())
    if not bool(differ.any()):
        return []
    row = differ.reshape(one.shape[0], one.shape[1], -1).any(-1).nonzero()[0].tolist()
    nan = ", which is nan" if bool(other[row[0], row[1]].isnan().any()) else ""
    though = f", though `{promised}` is promised" if promised else ""
    return [
        f"{what} changed {when}{though}: {int(differ.sum())} elements, "
        f"the first in token {row[0]}, head {row[1]}{nan}"
    ]


def close(
    inputs: Inputs,
    out: Tensor,
    lse: Tensor | None,
    other: Tensor,
    other_lse: Tensor | None,
    what: str,
    *,
    truth: Truth | None = None,
) -> Findings:
    """Two answers to one problem may differ by what both are allowed, by its truth or another."""
    findings = close_out(inputs, out, other, what, truth)
    if lse is not None and other_lse is not None:
        findings += close_lse(inputs, lse, other_lse, what, truth)
    return findings


def close_out(
    inputs: Inputs, out: Tensor, other: Tensor, what: str, truth: Truth | None = None
) -> Findings:
    """Two outputs differ by no more than both are allowed."""
    truth = truth or attend(to_device(inputs, "cpu"))
    allowed = 2 * out_allowance(inputs.problem, truth).unsqueeze(-1)
    apart = _gap(out, other)
    if bool((apart <= allowed).all()):
        return []
    worst = float(apart.nan_to_num(nan=torch.inf).max())
    return [f"{what}: outputs differ by {worst:.3g}, more than rounding explains"]


def close_lse(
    inputs: Inputs, lse: Tensor, other: Tensor, what: str, truth: Truth | None = None
) -> Findings:
    """Two log-sum-exps differ by no more than both are allowed."""
    apart = _gap(lse, other)
    if bool((apart <= 2 * lse_allowance(truth or attend(to_device(inputs, "cpu")))).all()):
        return []
    worst = float(apart.nan_to_num(nan=torch.inf).max())
    return [f"{what}: log-sum-exps differ by {worst:.3g}"]


def _gap(one: Tensor, other: Tensor) -> Tensor:
    """How far apart two answers are; infinities and NaN are no distance from themselves."""
    first, second = one.cpu().double(), other.cpu().double()
    same = (first == second) | (first.isnan() & second.isnan())
    return torch.where(same, 0.0, (first - second).abs())
