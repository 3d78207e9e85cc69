"""What must hold of cache writes and block copies: the truth, and laws that need none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from torch import Tensor

from reference.attention.caches import bytes_or_self
from reference.attention.comparing import Findings, close, to_device
from reference.attention.contract import PagedBatch, WriteBatch
from reference.attention.inputs import Inputs, make_inputs
from reference.attention.stores import Stored, stored_rows
from reference.attention.truth import Truth, attend_to

if TYPE_CHECKING:
    from reference.attention.checks import Subject
    from reference.attention.problem import AttentionProblem


def stored(subject: Subject, problem: AttentionProblem) -> Findings:
    """One call, and all memory after it."""
    return _called(subject, problem, subject.place_stores(problem))


def other_order(subject: Subject, problem: AttentionProblem) -> Findings:
    """The tokens, or pairs, in an order in which nobody's stand together."""
    placement = subject.place_stores(problem, order_seed=problem.seed + 1)
    seen = _called(subject, problem, placement)
    return _unless_plain(subject, problem, seen, "in another order")


def written_over(subject: Subject, problem: AttentionProblem) -> Findings:
    """Other numbers first, where they are given, and then the right ones twice."""
    placement = subject.place_stores(problem)
    batch = placement.batch
    given = [batch.keys, batch.values] if isinstance(batch, WriteBatch) else []
    for each in given:
        each.neg_()
    _call(subject, problem, placement)
    for each in given:
        each.neg_()
    _call(subject, problem, placement)
    return _unless_plain(
        subject, problem, _called(subject, problem, placement), "written over twice"
    )


def read_back(subject: Subject, problem: AttentionProblem) -> Findings:
    """Stored in two calls and read through the table: what attention to contiguous keys gives."""
    inputs = make_inputs(problem, device=subject.device)
    placement = subject.place_stores(problem)
    batch, half = placement.batch, -(-problem.num_tokens // 2)
    assert isinstance(batch, WriteBatch)
    # A single token has no second half, and a call without tokens may be declined.
    for rows in [slice(half), slice(half, None)][: problem.num_tokens]:
        names = ("keys", "values", "slot_mapping")
        some = {name: getattr(batch, name)[rows] for name in names}
        _call(subject, problem, replace(placement, batch=replace(batch, **some)))
    at = stored_rows(problem)
    at = at[at >= 0].to(subject.device)
    read, whole = [], []
    for target, contents in zip(placement.targets, (inputs.keys, inputs.values), strict=False):
        there, after = bytes_or_self(contents.clone()), bytes_or_self(target.after)
        there[at] = after
        whole.append(there.view(contents.dtype))
        found = bytes_or_self(replace(target, slots=placement.owned_slots).now())
        found[at] = after.where(~target.wrong().any(-1, keepdim=True), found[at])
        read.append(found.view(contents.dtype))
    of_cache, of_tokens = (_attention(inputs, each) for each in (read, whole))
    what = "the cache, written in two calls, and the tokens"
    return close(inputs, of_cache.out, of_cache.lse, of_tokens.out, of_tokens.lse, what)


def _attention(inputs: Inputs, cached: list[Tensor]) -> Truth:
    keys = cached[0].cpu()
    of_keys = keys[..., : inputs.problem.stored_sizes[1]]
    values = cached[1].cpu() if len(cached) > 1 else of_keys
    return attend_to(to_device(replace(inputs, keys=keys, values=values), "cpu"))


def _call(subject: Subject, problem: AttentionProblem, placement: Stored) -> None:
    subject.call(cast("PagedBatch", placement.batch), far=problem.pool is not None)


def _called(subject: Subject, problem: AttentionProblem, placement: Stored) -> Findings:
    _call(subject, problem, placement)
    return placement.findings()


def _unless_plain(
    subject: Subject, problem: AttentionProblem, seen: Findings, when: str
) -> Findings:
    """What is wrong by itself is no matter of how it was called."""
    if not seen or stored(subject, problem):
        return []
    return [f"{when}: {finding}" for finding in seen]
