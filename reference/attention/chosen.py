"""What a query sees beside its position: a mask among the tokens of a step, and chosen keys.

Both follow from the problem's seed, by a stream of their own: the tensors of a problem without them
are what they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from reference.attention.problem import AttentionProblem

_STREAM: Final = 2**61
"""What the seed is moved by, for numbers that are independent of the tensors'."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the queries of a batch see besides what their position allows."""

    query_mask: Tensor | None = None
    """[num_tokens, max_query_len] bool, of the tokens of this step; or None."""
    indices: Tensor | None = None
    """[num_tokens, 1, topk] int32, positions in the sequence and -1; or None."""
    causal_of: Tensor | None = None
    """[num_seqs] bool, which sequences are causal; or None."""

    def seen_instead(self, problem: AttentionProblem, index: int, target: Tensor) -> Tensor:
        """Positions of keys, [query_len, ...], and for those that a query of the sequence does not
        see the one that it sees and that is next: in the indices, or its own.
        """
        request = problem.requests[index]
        rows = slice(problem.query_starts[index], problem.query_starts[index + 1])
        flat = target.flatten(1)
        if self.query_mask is not None:
            before = request.seq_len - request.query_len
            step = (flat - before).clamp(min=0)
            sees = (flat < before) | self.query_mask[rows].gather(1, step)
            own = before + torch.arange(request.query_len).unsqueeze(1)
            flat = torch.where(sees, flat, own)
        if self.indices is not None:
            chosen = self.indices[rows, 0].long()
            apart = (chosen.unsqueeze(1) - flat.unsqueeze(2)).abs()
            apart = apart.masked_fill((chosen < 0).unsqueeze(1), 2**40)
            nearest = chosen.gather(1, apart.argmin(-1))
            flat = torch.where(nearest < 0, flat, nearest)  # nothing was chosen
        return flat.view(target.shape)


def choose(problem: AttentionProblem) -> Chosen:
    """The mask and the indices of a problem."""
    rng = torch.Generator().manual_seed((problem.seed + _STREAM) % 2**64)
    mask = _mask(problem, rng) if problem.query_mask else None
    indices = None if problem.topk is None else _indices(problem, problem.topk, rng)
    causal = torch.rand(len(problem.requests), generator=rng) < 0.5 if problem.causal_each else None
    return Chosen(mask, indices, causal)


def _mask(problem: AttentionProblem, rng: torch.Generator) -> Tensor:
    width = problem.max_query_len
    rows = []
    for request in problem.requests:
        count = request.query_len
        sees = torch.zeros(count, width, dtype=torch.bool)
        for token in range(count):
            parent = token - 1
            if problem.query_mask == "tree":
                # Half of them go on where the last ended; the others branch off before.
                parent = max(token - 1 - int(torch.randint(0, 4, (1,), generator=rng)) // 2, -1)
            if parent >= 0:
                sees[token] = sees[parent]
            sees[token, token] = True
        rows.append(sees)
    return torch.cat(rows)


def _indices(problem: AttentionProblem, topk: int, rng: torch.Generator) -> Tensor:
    rows = torch.full((problem.num_tokens, 1, topk), -1, dtype=torch.int32)
    token = 0
    for request in problem.requests:
        for position in range(request.seq_len - request.query_len, request.seq_len):
            seen = max(position + 1, 0)
            most = min(seen, topk)
            # As many as there are room or keys for, some, or none at all.
            share = int(torch.randint(0, 8, (1,), generator=rng))
            count = most if share < 5 else 0 if share == 5 else most * share // 8
            keys = torch.randperm(seen, generator=rng)[:count].int()
            if share % 2:
                keys = keys.sort().values
            # At the front, as engines pad, or anywhere: a leading -1 too.
            places = torch.arange(count)
            if share not in (0, 1):
                places = torch.randperm(topk, generator=rng)[:count]
            rows[token, 0, places] = keys
            token += 1
    return rows


def all_indices(problem: AttentionProblem) -> Tensor:
    """Indices that leave no key out, in a shuffled order, [num_tokens, 1, max_seq_len] int32."""
    rng = torch.Generator().manual_seed((problem.seed + _STREAM) % 2**64)
    topk = max(problem.max_seq_len, 1)
    rows = torch.full((problem.num_tokens, 1, topk), -1, dtype=torch.int32)
    token = 0
    for request in problem.requests:
        for position in range(request.seq_len - request.query_len, request.seq_len):
            places = torch.randperm(topk, generator=rng)[: max(position + 1, 0)]
            rows[token, 0, places] = torch.arange(len(places), dtype=torch.int32)
            token += 1
    return rows
