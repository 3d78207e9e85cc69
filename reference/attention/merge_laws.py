"""Laws of a merge: one part, their order, some of them first, and all keys at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reference.attention.comparing import Findings, changed_bits, close
from reference.attention.inputs import make_inputs
from reference.attention.truth import Parts, attend_to, parts_of

if TYPE_CHECKING:
    from reference.attention.checks import Subject
    from reference.attention.problem import AttentionProblem


def one_part(subject: Subject, problem: AttentionProblem) -> Findings:
    """Its weight is 1, so that nothing is rounded; a base of the log may be, in the log-sum-exp."""
    alone = problem.replace(parts=1)
    inputs = make_inputs(alone)
    part = parts_of(inputs)
    batch = subject.merge(alone, part).batch
    out, lse = batch.out.cpu(), None if batch.lse is None else batch.lse.cpu()
    findings = changed_bits("out", part.out[0], out, "where it is all there is to merge")
    return findings + close(inputs, out, lse, part.out[0], part.lse[0], "one part and itself")


def other_order(subject: Subject, problem: AttentionProblem) -> Findings:
    """The last part first."""
    inputs = make_inputs(problem)
    parts = parts_of(inputs)
    one = subject.merge(problem, parts).batch
    turned = subject.merge(problem, Parts(parts.out.flip(0), parts.lse.flip(0))).batch
    return close(inputs, turned.out, turned.lse, one.out, one.lse, "the parts in another order")


def grouped(subject: Subject, problem: AttentionProblem) -> Findings:
    """All but the last part merged, and the last one with that."""
    inputs = make_inputs(problem)
    parts = parts_of(inputs)
    one = subject.merge(problem, parts).batch
    first = subject.merge(problem, Parts(parts.out[:-1], parts.lse[:-1])).batch
    if first.lse is None:
        return []
    rest = Parts(_with(first.out, parts.out[-1:]), _with(first.lse, parts.lse[-1:]))
    twice = subject.merge(problem, rest).batch
    return close(inputs, twice.out, twice.lse, one.out, one.lse, "merged in two steps and in one")


def as_of_all_keys(subject: Subject, problem: AttentionProblem) -> Findings:
    """What attention to all of the keys gives, with what the parts lost when they were rounded."""
    inputs = make_inputs(problem)
    whole = attend_to(inputs)
    batch = subject.merge(problem, parts_of(inputs)).batch
    return close(inputs, batch.out, batch.lse, whole.out, whole.lse, "merged, and of all keys")


def _with(first: Tensor, last: Tensor) -> Tensor:
    return torch.cat([first.cpu().unsqueeze(0), last])
