"""Which keys a wrong row has lost, told from the row, or from the one figure that a finding holds.

Without keys of weight w = sum w_j a row is (out - sum w_j v_j) / (1 - w), and its log-sum-exp is
log(1 - w) more, which is less: so it is in every variant of attention, since the others' weights
only grow in proportion. Where exactly one key explains what was seen, within what rounding may come
to, it is named; and where the whole row is known exactly one run of keys: a block, a tile, or some
of the first or of the last.
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

TILES: Final = (16, 32, 64, 128)
"""Keys that kernels take at once: runs of so many, from a multiple on, are tried."""

PRINTED: Final = 1e-6
"""A figure of a finding is rounded by up to so much of it."""

_SEEN: Final = re.compile(
    r"(out|lse)\[token (\d+), head (\d+)\] is (-?[\d.e+-]+), the truth is (-?[\d.e+-]+): off"
    r".*?allowed ([\d.e+-]+)"
)


def lost_keys(
    problem: AttentionProblem, findings: Sequence[str], answer: Tensor | None = None
) -> tuple[int, int, int] | None:
    """(sequence, first, last position) of keys without which a row is what was seen; or None.

    `answer` is all of the output that findings are of: where it is known, the whole row has to fit,
    and there may be several keys.
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
    values = inputs.values[:, head // problem.group_size].double() * problem.v_scale
    share = (weights.unsqueeze(-1) * values).cumsum(0)
    ends = _runs(request.seq_len, problem.block_size) if answer is not None else []
    runs = torch.tensor([(key, key + 1) for key in range(request.seq_len)] + ends)
    gone = _between(weights.cumsum(0), runs)
    if said[1] == "lse":
        without = (lse + torch.log1p(-gone)).unsqueeze(-1)
    else:
        without = (out - _between(share, runs)) / (1 - gone).unsqueeze(-1)
    if answer is not None:
        seen = answer[token, head].cpu().double().reshape(-1)
    else:
        column = 0 if said[1] == "lse" else int((out - expected).abs().argmin())
        without, seen = without[:, [column]], torch.tensor([got], dtype=torch.float64)
    close = 3 * allowed + PRINTED * max(abs(got), abs(expected))
    fits = (without - seen).abs().amax(-1) < close
    # Keys without weight, as those outside of a window, explain nothing, nor at the ends of a run.
    fits &= (weights[runs[:, 0]] > 0) & (weights[runs[:, 1] - 1] > 0)
    for chosen in (fits[: request.seq_len], fits):
        these: list[list[int]] = runs[: len(chosen)][chosen].tolist()
        if these:
            first, end = these[0]
            return (sequence, first, end - 1) if len(these) == 1 else None
    return None


def _runs(seq_len: int, block_size: int) -> list[tuple[int, int]]:
    """Runs of two keys or more that a kernel may lose at once, each once; not all there are."""
    found = {(0, end) for end in range(2, seq_len)} | {(at, seq_len) for at in range(1, seq_len)}
    for size in (block_size, *TILES):
        found |= {(at, min(at + size, seq_len)) for at in range(0, seq_len, size)}
    return sorted((a, b) for a, b in found if 1 < b - a < seq_len)


def _between(sums: Tensor, runs: Tensor) -> Tensor:
    """Of running sums what each run adds."""
    before = sums[(runs[:, 0] - 1).clamp(min=0)].clone()
    before[runs[:, 0] == 0] = 0
    return sums[runs[:, 1] - 1] - before
