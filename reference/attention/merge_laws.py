"""Laws of a merge: one part, their order, some of them first, and all keys at once."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reference.attention.comparing import Findings, changed_bits, close, rows_of, to_device
from reference.attention.inputs import Inputs, make_inputs
from reference.attention.placement import unwritten
from reference.attention.truth import Parts, attend_to, merged, parts_of, written

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
    itself = written(part)[0]
    findings = changed_bits("out", itself, out, "where it is all there is to merge")
    return findings + close(inputs, out, lse, itself, part.lse[0], "one part and itself")


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


def shards(subject: Subject, problem: AttentionProblem) -> Findings:
    """A kernel's answers to the keys of each of two, merged in float64: a prefix and what follows,
    or the ranks of a parallel context.
    """
    inputs = make_inputs(problem, device=subject.device)
    whole = subject.answer(inputs).batch
    assert whole.lse is not None
    if bool(unwritten(whole.out).any() or unwritten(whole.lse).any()):
        return []  # which is for `truth` to say
    number = torch.cat([torch.arange(request.seq_len) for request in problem.requests])
    half = torch.cat([torch.full((r.seq_len,), r.seq_len // 3) for r in problem.requests])
    first = number % 2 == 0 if problem.seed % 2 else number < half
    parts = [shard for own in (first, ~first) if (shard := _shard(subject, inputs, own))]
    if len(parts) < 2:
        return []
    outs, lses = zip(*parts, strict=True)
    together = merged(Parts(torch.stack(outs).cpu(), torch.stack(lses).cpu()))
    what = "two shares of the keys, merged, and all of them"
    # What the shares lost when they were rounded is in proportion to them: they may cancel out.
    truth = replace(attend_to(to_device(inputs, "cpu")), magnitude=together.magnitude)
    return close(inputs, together.out, together.lse, whole.out, whole.lse, what, truth=truth)


def _shard(subject: Subject, inputs: Inputs, own: Tensor) -> tuple[Tensor, Tensor] | None:
    """What a kernel answers to some of the keys, [cache_tokens] bool; None where it declines."""
    problem = inputs.problem
    starts = problem.cache_starts
    held = [int(own[start:end].sum()) for start, end in pairwise(starts)]
    requests = [replace(r, seq_len=n) for r, n in zip(problem.requests, held, strict=True)]
    fewer = problem.replace(requests=tuple(requests), shared_prefix=0)
    if subject.able.refusal(fewer) is not None:
        return None
    at = own.nonzero().flatten().to(inputs.keys.device)
    keys, values = (rows_of(each, at) for each in (inputs.keys, inputs.values))
    batch = subject.answer(replace(inputs, problem=fewer, keys=keys, values=values)).batch
    return None if batch.lse is None else (batch.out, batch.lse)


def _with(first: Tensor, last: Tensor) -> Tensor:
    return torch.cat([first.cpu().unsqueeze(0), last])
