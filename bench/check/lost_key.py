"""Which key a wrong row has lost, told from the one figure that a finding holds.

Without key j a row is (out - w_j v_j) / (1 - w_j), and its log-sum-exp is log(1 - w_j) more, which
is less: so it is in every variant of attention, since the others' weights only grow in proportion.
Where exactly one key explains what was seen, it is named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from reference.attention.problem import AttentionProblem

MAX_KEYS: Final = 1024
"""Keys of a sequence up to which it is tried."""

_SEEN: Final = re.compile(
    r"(out|lse)\[token (\d+), head (\d+)\] is (-?[\d.e+-]+), the truth is (-?[\d.e+-]+): off"
)


def lost_key(problem: AttentionProblem, findings: Sequence[str]) -> tuple[int, int] | None:
    """(sequence, position) of the one key without which the row is what was seen; or None."""
    said = _SEEN.search(" ".join(findings))
    if said is None or problem.kind not in {"attention", "latent"}:
        return None
    token, head = int(said[2]), int(said[3])
    got, expected = float(said[4]), float(said[5])
    starts = problem.query_starts
    sequence = next(at for at, start in enumerate(starts[1:]) if token < start)
    request = problem.requests[sequence]
    if not 1 < request.seq_len <= MAX_KEYS:
        return None
    import torch

    from reference.attention.inputs import make_inputs
    from reference.attention.truth import attend

    inputs = make_inputs(problem)
    inputs = inputs.select([(sequence, request)])
    row = token - starts[sequence]
    truth = attend(inputs)
    out, lse = truth.out[row, head], truth.lse[row, head]
    width = inputs.values.shape[-1]
    # The values are one key each in turn: what comes out are their weights.
    weights = torch.zeros(request.seq_len, dtype=torch.float64)
    for first in range(0, request.seq_len, width):
        some = range(first, min(first + width, request.seq_len))
        values = torch.zeros(inputs.values.shape, dtype=torch.float64)
        for column, key in enumerate(some):
            values[key, :, column] = 1 / problem.v_scale
        found = attend(replace(inputs, values=values)).out[row, head]
        weights[first : first + len(some)] = found[: len(some)]
    if said[1] == "lse":
        without = lse + torch.log1p(-weights)
    else:
        values = inputs.values[:, head // problem.group_size].double() * problem.v_scale
        column = int((out - expected).abs().argmin())
        without = (out[column] - weights * values[:, column]) / (1 - weights)
    close = 2e-2 if problem.dtype == "bf16" else 2e-3
    off = (without - got).abs() / max(abs(got), abs(expected), 1e-6)
    fits = ((off < close) & (weights > 0)).nonzero().flatten().tolist()
    return (sequence, fits[0]) if len(fits) == 1 else None
