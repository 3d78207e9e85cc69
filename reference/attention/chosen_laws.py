"""Laws of what a query sees beside its position: masks among a step's tokens, and chosen keys."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reference.attention.chosen import all_indices
from reference.attention.comparing import Findings, close, rows_of, same, to_device
from reference.attention.inputs import Inputs, make_inputs
from reference.attention.tolerance import worst_excess
from reference.attention.truth import attend

if TYPE_CHECKING:
    from reference.attention.checks import Subject
    from reference.attention.problem import AttentionProblem


def chain_mask(subject: Subject, problem: AttentionProblem) -> Findings:
    """A chain is what causal attention sees."""
    chain = make_inputs(problem.replace(query_mask="chain"), device=subject.device)
    causal = replace(chain, problem=problem.replace(query_mask=""), query_mask=None)
    masked, plain = subject.answer(chain).batch, subject.answer(causal).batch
    what = "a chain mask and causal attention"
    return close(causal, masked.out, masked.lse, plain.out, plain.lse, what)


def siblings(subject: Subject, problem: AttentionProblem) -> Findings:
    """The tokens of each step in another order in which ancestors come first."""
    inputs = make_inputs(problem, device=subject.device)
    order = _other_order(inputs)
    one, other = subject.answer(inputs).batch, subject.answer(_reordered(inputs, order)).batch
    lse = None if one.lse is None else one.lse[order]
    what = "the tokens of a tree in another order"
    return close(_reordered(inputs, order), other.out, other.lse, one.out[order], lse, what)


def causal_each(subject: Subject, problem: AttentionProblem) -> Findings:
    """The rows of a batch that is causal throughout, or nowhere, as far as the kernel does that."""
    inputs = make_inputs(problem, device=subject.device)
    mixed, findings = subject.answer(inputs).batch, []
    assert inputs.causal_of is not None
    counts = mixed.query_start_loc.diff().long()
    causal_rows = inputs.causal_of.repeat_interleave(counts)
    for causal, what in ((True, "causal"), (False, "not causal")):
        uniform = problem.replace(causal_each=False, causal=causal)
        rows = (causal_rows == causal).nonzero().flatten()
        if subject.able.refusal(uniform) is not None or not len(rows):
            continue
        plain = subject.answer(replace(inputs, problem=uniform, causal_of=None)).batch
        out, lse = plain.out.clone(), None if plain.lse is None else plain.lse.clone()
        out[rows] = mixed.out[rows]
        if lse is not None and mixed.lse is not None:
            lse[rows] = mixed.lse[rows]
        said = f"sequences that are {what}, beside others and among their like"
        findings += close(
            replace(inputs, problem=uniform, causal_of=None), out, lse, plain.out, plain.lse, said
        )
    return findings


def chosen_order(subject: Subject, problem: AttentionProblem) -> Findings:
    """The same chosen keys, and what is between them, the other way around."""
    inputs = make_inputs(problem, device=subject.device)
    assert inputs.indices is not None
    turned = replace(inputs, indices=inputs.indices.flip(-1))
    one, other = subject.answer(inputs), subject.answer(turned)
    return same(inputs, one, other, "when the chosen keys came in another order")


def all_chosen(subject: Subject, problem: AttentionProblem) -> Findings:
    """Where all keys are chosen the answer is that of a dense call."""
    inputs = make_inputs(problem.replace(topk=None), device=subject.device)
    indices = all_indices(problem)
    whole = replace(
        inputs,
        problem=problem.replace(topk=indices.shape[-1]),
        indices=indices.to(subject.device),
    )
    batch = subject.answer(whole).batch
    truth = attend(to_device(inputs, "cpu"))
    lse = None if batch.lse is None else batch.lse.cpu()
    excess = worst_excess(problem, truth, batch.out.cpu(), lse)
    return [f"with all keys chosen {excess}"] if excess else []


def _other_order(inputs: Inputs) -> Tensor:
    """Tokens of the batch, the last of a step as early as its ancestors let it, [num_tokens]."""
    problem, mask = inputs.problem, inputs.query_mask
    assert mask is not None
    order: list[int] = []
    for start, request in zip(problem.query_starts, problem.requests, strict=False):
        left = list(range(request.query_len))
        done: set[int] = set()
        while left:
            sees = [set(mask[start + token].nonzero().flatten().tolist()) for token in left]
            ready = [t for t, seen in zip(left, sees, strict=True) if seen <= done | {t}]
            done.add(ready[-1])
            left.remove(ready[-1])
            order.append(start + ready[-1])
    return torch.tensor(order, device=mask.device)


def _reordered(inputs: Inputs, order: Tensor) -> Inputs:
    """The tokens of this step in another order, with their keys and values in the cache."""
    problem, mask = inputs.problem, inputs.query_mask
    assert mask is not None
    keys_at = torch.arange(problem.cache_tokens, device=order.device)
    turned = torch.zeros_like(mask)
    for index, request in enumerate(problem.requests):
        rows = slice(problem.query_starts[index], problem.query_starts[index + 1])
        within = order[rows] - problem.query_starts[index]
        turned[rows, : len(within)] = mask[order[rows]][:, within]
        if request.seq_len:
            end = problem.cache_starts[index + 1]
            keys_at[end - request.query_len : end] = end - request.query_len + within
    keys, values = (rows_of(each, keys_at) for each in (inputs.keys, inputs.values))
    # What is in another order is no longer what a neighbour has, so no block of it is shared.
    before = min(request.seq_len - request.query_len for request in problem.requests)
    problem = problem.replace(shared_prefix=min(problem.shared_prefix, max(before, 0)))
    query = inputs.query[order]
    return replace(
        inputs, problem=problem, query=query, keys=keys, values=values, query_mask=turned
    )
