"""What the answers of a point have to be.

A point is timed on several inputs, each with keys, values, queries and pages of its own: a call
that reads another one's is wrong, and inputs in turn find the cache cold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from bench.machine.timing import copies_needed
from bench.throughput.points import Point
from reference.attention.contract import PagedBatch
from reference.attention.inputs import Inputs
from reference.attention.layout import tokens_of, usual
from reference.attention.problem import AttentionProblem, Request
from reference.attention.tolerance import worst_excess
from reference.attention.truth import Truth, attend

CHECKED_TOKENS: Final = {"cpu": 2**14, "cuda": 2**17}
"""Keys of the sequences whose answers are held against float64, over all copies, where the shortest
sequence of each copy does not have more. In float64 the larger number takes 2 GiB at 8 heads of
128."""

CHECKED_QUERIES: Final = 16
"""Last queries of a prompt that are checked; as many of the prompt's first half."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of a call's output, and the truth about them."""

    problem: AttentionProblem
    truth: Truth
    rows: Tensor

    def finding(self, out: Tensor) -> str:
        """What is wrong with these rows of an answer; empty if nothing is seen."""
        excess = worst_excess(self.problem, self.truth, out.to(self.rows.device), None)
        return "" if excess is None else str(excess)


def copies_that_fit(point: Point, *, cache_bytes: int, most_bytes: int) -> int:
    """Inputs that find the cache cold in turn, or as many as fit `most_bytes`, at least one."""
    wanted = copies_needed(point.kv_bytes, cache_bytes)
    return max(1, min(wanted, most_bytes // max(point.kv_bytes, 1)))


def make_samples(point: Point, copies: int, *, device: str) -> tuple[Sample, ...]:
    """What is checked of each input: some sequences, all heads; inputs by the point's seeds."""
    problem, budget = point.problem, CHECKED_TOKENS[device] // copies
    samples = []
    for seed in range(problem.seed, problem.seed + copies):
        samples.append(_sample(problem, usual(problem, device=device, seed=seed), budget=budget))
    if device == "cuda":
        torch.cuda.empty_cache()  # the other process needs it
    return tuple(samples)


def _sample(problem: AttentionProblem, batch: PagedBatch, *, budget: int) -> Sample:
    starts = problem.query_starts
    picks: list[tuple[int, Request]] = []
    rows: list[int] = []
    for index in _checked(problem, budget):
        request = problem.requests[index]
        for part in _parts(request):
            picks.append((index, part))
            last = starts[index + 1] - (request.seq_len - part.seq_len)
            rows += range(last - part.query_len, last)
    part_problem = problem.replace(requests=tuple(part for _, part in picks))
    at = torch.tensor(rows, device=batch.query.device)
    tokens = [
        torch.cat([_numbers(tokens_of(cache, batch, index, part.seq_len)) for index, part in picks])
        for cache in (batch.key_cache, batch.value_cache)
    ]
    inputs = Inputs(part_problem, batch.query[at], tokens[0], tokens[1], None, None)
    return Sample(part_problem, attend(inputs), at)


def _numbers(tokens: Tensor) -> Tensor:
    # float8 is exact in bfloat16, and torch joins no float8.
    return tokens.bfloat16() if tokens.element_size() == 1 else tokens


def _checked(problem: AttentionProblem, budget: int) -> Iterator[int]:
    """Sequences to check: the shortest, the longest, and others, as long as the budget lasts."""
    order = sorted(range(len(problem.requests)), key=lambda s: problem.requests[s].seq_len)
    rng = torch.Generator().manual_seed(problem.seed)
    middle = [order[1:-1][i] for i in torch.randperm(len(order[1:-1]), generator=rng).tolist()]
    left = budget
    for place, index in enumerate(dict.fromkeys([order[0], order[-1], *middle])):
        left -= problem.requests[index].seq_len
        if place and left < 0:
            continue
        yield index


def _parts(request: Request) -> Iterator[Request]:
    """What is checked of a sequence: its only query, or some of its last and of its first half."""
    if request.query_len == 1:
        yield request
        return
    last = min(CHECKED_QUERIES, request.query_len)
    yield Request(last, request.seq_len)
    first = request.query_len - request.query_len // 2 - last
    if first > 0:
        yield Request(last, request.seq_len - request.query_len // 2)
