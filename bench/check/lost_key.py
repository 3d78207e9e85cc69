"""Which key a wrong row has lost, told from the row, or from the one figure that a finding holds.

Without key j a row is (out - w_j v_j) / (1 - w_j), and its log-sum-exp is log(1 - w_j) more, which
is less: so it is in every variant of attention, since the others' weights only grow in proportion.
Where exactly one key explains what was seen, within what rounding may come to, it is named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reference.attention.problem import AttentionProblem

if TYPE_CHECKING:
    from torch import Tensor

MAX_KEYS: Final = 1024
"""Keys of a sequence up to which it is tried."""

PRINTED: Final = 1e-6
"""A figure of a finding is rounded by up to so much of it."""

_SEEN: Final = re.compile(
    r"(out|lse)\[token (\d+), head (\d+)\] is (-?[\d.e+-]+), the truth is (-?[\d.e+-]+): off"
    r".*?allowed ([\d.e+-]+)"
)


def lost_key(
    problem: AttentionProblem, findings: Sequence[str], answer: Tensor | None = None
) -> tuple[int, int] | None:
    """(sequence, position) of the one key without which a row is what was seen; or None.

    `answer` is all of the output that findings are of: where it is known, the whole row has to fit.
    """
    said = _SEEN.search(" ".join(findings))
    if said is None or problem.kind not in {"attention", "latent"}:
        return None
    token, head = int(said[2]), int(said[3])
    got, expected, allowed = float(said[4]), float(said[5]), float(said[6])
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
        without = (lse + torch.log1p(-weights)).unsqueeze(-1)
    else:
        values = inputs.values[:, head // problem.group_size].double() * problem.v_scale
        without = (out - weights.unsqueeze(-1) * values) / (1 - weights.unsqueeze(-1))
    if answer is not None:
        seen = answer[token, head].cpu().double().reshape(-1)
    else:
        column = 0 if said[1] == "lse" else int((out - expected).abs().argmin())
        without, seen = without[:, [column]], torch.tensor([got], dtype=torch.float64)
    close = 3 * allowed + PRINTED * max(abs(got), abs(expected))
    fits = ((without - seen).abs().amax(-1) < close) & (weights > 0)
    keys: list[int] = fits.nonzero().flatten().tolist()
    return (sequence, keys[0]) if len(keys) == 1 else None
