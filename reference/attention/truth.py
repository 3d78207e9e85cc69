"""Attention over contiguous keys and values in float64: the truth for kernels.

The formulas are written out in `docs/contract.md`; this file is their plainest form. Nothing is
rounded to the working type, not even at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from reference.attention.inputs import Inputs
from reference.attention.problem import AttentionProblem, Request


@dataclass(frozen=True, slots=True)
class Truth:
    """The exact answer, as far as float64 carries."""

    out: Tensor
    """[num_tokens, num_q_heads, value_dim] float64. A row that sees no key is zero."""
    lse: Tensor
    """[num_tokens, num_q_heads] float64, natural log of the softmax's denominator, the sink
    counted; -inf where there is nothing to sum."""
    score_bound: Tensor
    """[num_tokens, num_q_heads] float64, a bound of the magnitudes that meet in one logit: scale *
    |q| * max |k|, plus the bias, plus the soft-cap. Rounding errors of a logit are proportional to
    it."""
    keys: Tensor
    """[num_tokens] float64, how many keys a query sees."""
    value_bound: Tensor
    """[num_tokens, num_q_heads] float64, largest magnitude of a value in the sequence and head."""
    magnitude: Tensor | None = None
    """[num_tokens, num_q_heads] float64, the largest that is summed in a row, where the output may
    be smaller: parts can cancel each other. None: the output's."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a merge is given: attention to each share of the keys, rounded as kernels give it."""

    out: Tensor
    """[parts, num_tokens, num_q_heads, value_dim], the problem's dtype."""
    lse: Tensor
    """[parts, num_tokens, num_q_heads] float32, natural log."""


def attend(inputs: Inputs) -> Truth:
    """Answer a problem; of a merge, what its rounded parts give."""
    return attend_to(inputs) if inputs.problem.parts is None else merged(parts_of(inputs))


def attend_to(inputs: Inputs) -> Truth:
    """Attention to all keys."""
    return attend_to_each(inputs, torch.zeros(inputs.problem.cache_tokens), 1)[0]


def attend_to_each(inputs: Inputs, part_of: Tensor, parts: int) -> list[Truth]:
    """Attention to each part of the keys, which `part_of` [cache_tokens] numbers."""
    part_of = part_of.to(inputs.keys.device)
    starts = inputs.problem.cache_starts
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in range(parts)]
    for index, (start, end) in enumerate(pairwise(starts)):
        scores = _scores(inputs, index)
        for part, rows in enumerate(found):
            rows.append(_weigh(inputs, index, *scores, part_of[start:end] == part))
    return [Truth(*map(torch.cat, zip(*rows, strict=True))) for rows in found]


def parts_of(inputs: Inputs) -> Parts:
    """Attention to each share of the keys."""
    problem = inputs.problem
    assert problem.parts is not None
    rng = torch.Generator().manual_seed(problem.seed)
    part_of = []
    for request in problem.requests:
        key_at = torch.arange(request.seq_len)
        cuts = torch.randint(0, request.seq_len + 1, (problem.parts - 1,), generator=rng)
        in_runs = (key_at.unsqueeze(1) >= cuts).sum(1)
        part_of.append(key_at % problem.parts if problem.interleave else in_runs)
    each = attend_to_each(inputs, torch.cat(part_of), problem.parts)
    out = torch.stack([part.out for part in each]).to(problem.torch_dtype)
    lse = torch.stack([part.lse for part in each]).float()
    return Parts(out.masked_fill(_none(lse), torch.nan) if problem.unwritten else out, lse)


def written(parts: Parts) -> Tensor:
    """Their outputs, 0 where a part saw no key."""
    return parts.out.masked_fill(_none(parts.lse), 0.0)


def _none(lse: Tensor) -> Tensor:
    return lse.isneginf().unsqueeze(-1)


def merged(parts: Parts) -> Truth:
    """One answer of several, each weighted with its share of the softmax's denominator."""
    out, part_lse = written(parts).double(), parts.lse.double()
    lse = torch.logsumexp(part_lse, 0)
    weights = torch.exp(part_lse - torch.where(lse.isinf(), 0.0, lse))
    largest = out.abs().amax(-1)
    return Truth(
        out=(weights.unsqueeze(-1) * out).sum(0),
        lse=lse,
        score_bound=torch.where(part_lse.isinf(), 0.0, part_lse).abs().amax(0),
        keys=torch.full(lse.shape[:1], float(len(out)), dtype=torch.float64, device=out.device),
        value_bound=largest.amax(0),
        magnitude=(weights * largest).sum(0),
    )


def positions(request: Request, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in the sequence the query tokens, [query_len], and the keys, [seq_len], stand."""
    key_at = torch.arange(request.seq_len, device=device)
    return torch.arange(request.seq_len - request.query_len, request.seq_len, device=device), key_at


def visible(problem: AttentionProblem, request: Request, device: torch.device) -> Tensor:
    """Which keys a query sees by its position: [query_len, seq_len] bool."""
    query_at, key_at = positions(request, device)
    query_at = query_at.unsqueeze(1)
    seen = torch.ones(request.query_len, request.seq_len, dtype=torch.bool, device=device)
    if problem.causal:
        seen &= key_at <= query_at
    if problem.window is not None:
        seen &= key_at > query_at - problem.window
    if problem.chunk is not None:
        seen &= key_at // problem.chunk == query_at // problem.chunk
    return seen


def seen_keys(inputs: Inputs, index: int) -> Tensor:
    """Which keys a query of a sequence sees, [query_len, seq_len] bool."""
    problem = inputs.problem
    request = problem.requests[index]
    if inputs.causal_of is not None:
        problem = problem.replace(causal_each=False, causal=bool(inputs.causal_of[index]))
    seen = visible(problem, request, inputs.query.device)
    rows = slice(problem.query_starts[index], problem.query_starts[index + 1])
    if inputs.query_mask is not None:
        before = request.seq_len - request.query_len
        seen = torch.ones_like(seen)
        # One padding row, q1 k0, has a query and no key.
        seen[:, max(before, 0) :] = inputs.query_mask[rows, : min(request.query_len, seen.shape[1])]
    if inputs.indices is not None:
        chosen = torch.zeros(len(seen), request.seq_len + 1, dtype=torch.bool, device=seen.device)
        at = inputs.indices[rows, 0].long()
        chosen.scatter_(1, torch.where(at < 0, request.seq_len, at), value=1)
        seen &= chosen[:, :-1]
    return seen


def _scores(inputs: Inputs, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a sequence, -inf where a key is not seen, its values, and the logits' bound."""
    problem = inputs.problem
    request = problem.requests[index]
    q_starts, k_starts = problem.query_starts, problem.cache_starts
    heads, group = problem.num_kv_heads, problem.group_size
    shape = (request.query_len, heads, group)
    query = (
        inputs.query[q_starts[index] : q_starts[index + 1]].double().view(*shape, problem.head_dim)
    )
    keys, values = inputs.numbers(slice(k_starts[index], k_starts[index + 1]))
    logits = torch.einsum("qhgd,khd->qhgk", query, keys) * problem.softmax_scale
    bound = query.norm(dim=-1) * problem.softmax_scale
    if request.seq_len:
        bound = bound * keys.norm(dim=-1).amax(0).view(1, heads, 1)
    if problem.softcap is not None:
        logits = problem.softcap * torch.tanh(logits / problem.softcap)
        bound = bound + problem.softcap
    if inputs.alibi_slopes is not None:
        slopes = inputs.alibi_slopes.double().view(1, heads, group, 1)
        query_at, key_at = positions(request, logits.device)
        distance = (query_at.unsqueeze(1) - key_at).abs().to(logits)
        logits = logits - slopes * distance.view(request.query_len, 1, 1, request.seq_len)
        bound = bound + slopes.squeeze(-1) * request.seq_len
    if inputs.sinks is not None:
        bound = bound + inputs.sinks.double().abs().view(1, heads, group)
    hidden = ~seen_keys(inputs, index).view(request.query_len, 1, 1, request.seq_len)
    return logits.masked_fill(hidden, -torch.inf), values, bound


def _weigh(
    inputs: Inputs, index: int, logits: Tensor, values: Tensor, bound: Tensor, some: Tensor
) -> tuple[Tensor, ...]:
    """What the fields of `Truth` are for the rows of a sequence that sees `some` of its keys."""
    problem = inputs.problem
    request = problem.requests[index]
    if not bool(some.all()):
        logits, values = logits[..., some], values[some]
    shape = logits.shape[:3]
    denominator = logits
    if inputs.sinks is not None:
        sink = inputs.sinks.double().view(1, *shape[1:], 1).expand(*shape, 1)
        denominator = torch.cat([logits, sink], dim=-1)
    if denominator.shape[-1]:
        lse = torch.logsumexp(denominator, dim=-1)
    else:
        lse = logits.new_full(shape, -torch.inf)
    # A row without any key has lse = -inf: exp(-inf - 0) is the zero weight that it needs.
    weights = torch.exp(logits - torch.where(lse.isinf(), 0.0, lse).unsqueeze(-1))
    out = torch.einsum("qhgk,khd->qhgd", weights, values)
    rows = (request.query_len, problem.num_q_heads)
    keys_seen = (~logits[:, 0, 0].isneginf()).sum(-1).double()
    largest = torch.zeros(shape, dtype=torch.float64, device=values.device)
    if len(values):
        largest += values.abs().amax((0, 2)).view(1, -1, 1)
    return (
        out.reshape(*rows, problem.value_size),
        lse.reshape(rows),
        bound.reshape(rows),
        keys_seen,
        largest.reshape(rows),
    )
