"""What a page shows of a finding's problem, computed where torch is: blocks, keys, rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from bench.check.lost_keys import lost_keys
from bench.check.record import Drawing
from reference.attention.contract import AttentionCall, MergeBatch
from reference.attention.inputs import Inputs, make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.tolerance import errors, lse_allowance, out_allowance
from reference.attention.truth import attend, seen_keys

MAX_TOKENS: Final = 4096
"""Tokens in the cache of a problem, and rows of its batch, up to which it is drawn."""

MAX_BLOCKS: Final = 512
"""Blocks of a problem up to which they are drawn."""

_ROW: Final = re.compile(r"\b(out|lse)\[token (\d+), head (\d+)\]")


def drawing(
    problem: AttentionProblem,
    findings: Sequence[str],
    answer: AttentionCall | MergeBatch | None = None,
) -> Drawing | None:
    """What findings are about, and the errors of an answer; None where the problem is too large."""
    if max(problem.cache_tokens, problem.num_tokens) > MAX_TOKENS:
        return None
    if problem.num_blocks > MAX_BLOCKS:
        return None
    inputs = make_inputs(problem)
    truth = attend(inputs)
    said = _ROW.search(" ".join(findings))
    of = said[1] if said is not None else "out"
    allowed = out_allowance(problem, truth) if of == "out" else lse_allowance(truth)
    got = None if answer is None else getattr(answer, of)
    off = None
    if got is not None and allowed.numel():
        off = errors(getattr(truth, of), got.cpu().double())
        off = off.amax(-1) if of == "out" else off
    token, head = (int(said[2]), int(said[3])) if said is not None else (None, 0)
    if said is None and off is not None:
        head = int((off / allowed).argmax()) % off.shape[1]
    lost = lost_keys(problem, findings, got)
    return Drawing(
        blocks=[] if problem.kind == "merge" else _blocks(inputs),
        token=token,
        head=head,
        sees=[] if token is None or problem.kind == "merge" else _sees(inputs, token),
        lost=lost and lost[:2],
        lost_last=lost and lost[2],
        of=of,
        allowed=[each or 0.0 for each in _short(allowed, head)],
        errors=[] if off is None else _short(off, head),
    )


def _blocks(inputs: Inputs) -> list[list[int]]:
    problem = inputs.problem
    table = place(inputs).batch.block_table
    return [
        table[number, : -(-request.seq_len // problem.block_size)].tolist()
        for number, request in enumerate(problem.requests)
    ]


def _sees(inputs: Inputs, token: int) -> list[tuple[int, int]]:
    """Runs of the positions that a row of the batch sees, in its own sequence."""
    starts = inputs.problem.query_starts
    number = next((at for at, end in enumerate(starts[1:]) if token < end), None)
    if number is None:
        return []
    seen = seen_keys(inputs, number)[token - starts[number]].int()
    edges = torch.diff(seen, prepend=seen.new_zeros(1), append=seen.new_zeros(1))
    firsts, ends = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
    return list(zip(firsts.tolist(), (ends - 1).tolist(), strict=True))


def _short(rows: Tensor, head: int) -> list[float | None]:
    """Rows of one head in three digits; None where it is no number."""
    return [
        float(f"{value:.3g}") if value != float("inf") else None for value in rows[:, head].tolist()
    ]
