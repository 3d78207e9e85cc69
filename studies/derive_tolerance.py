"""Derives the constants of `reference.attention.tolerance`, and measures what it can see.

    python -m studies.derive_tolerance            # two tables: constants, and power
    python -m studies.derive_tolerance --check    # exit 1 if the committed constants differ

Correct kernels differ in how they round, not in what they compute. Five designs are simulated in
torch, from a plain BLAS to tensor cores that truncate, over context lengths, head sizes and kinds
of inputs. For each term of the allowance the largest need is taken, times `MARGIN`. Then bugs are
planted in the same simulation, and the table says which share of them the result still rejects.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from reference.attention import tolerance
from reference.attention.inputs import Inputs, make_inputs
from reference.attention.problem import FP8_DTYPES, INPUT_KINDS, AttentionProblem
from reference.attention.truth import Truth, attend

MARGIN: Final = 2.0
"""Headroom over the largest need that was simulated, for designs that were not."""

LENGTHS: Final = (1, 2, 17, 64, 500, 4096, 16384)
HEAD_DIMS: Final = (16, 64, 128, 256)
HEADS: Final = 8
SHORT: Final = 64
"""Keys up to which adding up the weighted values is not what costs accuracy."""
SEEDS: Final = 32
"""Draws of each problem in which rare roundings meet."""
MIN_ACCUMULATE: Final = 0.5
"""One rounding for each addition, half a unit each, in a random walk."""
U32: Final = tolerance.UNIT_ROUNDOFF["fp32"]


@dataclass(frozen=True, slots=True)
class Design:
    """How a correct kernel rounds."""

    name: str
    tile: int = 64
    """Keys folded into the running softmax at a time."""
    splits: int = 1
    """Parts of the KV range computed apart and merged by log-sum-exp."""
    narrow_weights: bool = True
    """Whether softmax weights are rounded to the working type before they meet the values."""
    order: str = "blas"
    """`blas`: torch's; `chain`: one float32 accumulator, key after key; `mma`: 16 products at a
    time, exact within, truncated to float32 after each addition, as tensor cores do (Fasi et al.,
    "Numerical behavior of NVIDIA tensor cores", PeerJ CS 2021)."""
    exp_error: float = 0.0
    """Relative error of exp2, in units of 2^-23 (ex2.approx: 2, CUDA programming guide)."""


DESIGNS: Final = (
    Design("torch", tile=256, narrow_weights=False),
    Design("small tiles", tile=16),
    Design("split", tile=128, splits=8),
    Design("scalar", narrow_weights=False, order="chain", exp_error=2.0),
    Design("tensor cores", order="mma", exp_error=2.0),
)


@dataclass(frozen=True, slots=True)
class Bug:
    """A wrong kernel: the right one on altered tensors or with an altered constant."""

    name: str
    scale: float = 1.0
    value_scale: float = 1.0
    weights_dtype: torch.dtype | None = None

    def alter(self, keys: Tensor, values: Tensor, page: int = 16) -> tuple[Tensor, Tensor]:
        """Keys and values as this bug would read them; [n, head_dim]."""
        n = keys.shape[0]
        if self.name == "last token lost":
            return keys[:-1], values[:-1]
        if self.name == "last page lost":
            return keys[: (n - 1) // page * page], values[: (n - 1) // page * page]
        if self.name == "stale slot read":
            rng = torch.Generator().manual_seed(n)
            stale = torch.randn(2, 1, keys.shape[1], generator=rng)
            return torch.cat([keys, stale[0]]), torch.cat([values, stale[1]])
        if self.name == "wrong page":
            middle = n // 2 // page * page
            read = torch.arange(n)
            read[middle : middle + page] -= page
            return keys[read.clamp(min=0)], values[read.clamp(min=0)]
        return keys, values


BUGS: Final = (
    Bug("last token lost"),
    Bug("last page lost"),
    Bug("stale slot read"),
    Bug("wrong page"),
    Bug("scale +1 %", scale=1.01),
    Bug("scale -1 %", scale=0.99),
    Bug("values +2 %", value_scale=1.02),
    Bug("weights in e4m3", weights_dtype=torch.float8_e4m3fn),
)
POWER_LENGTHS: Final = (64, 500, 4096, 16384)


def simulate(inputs: Inputs, design: Design, bug: Bug | None = None) -> tuple[Tensor, Tensor]:
    """One decode step of a kernel of this design: out [1, heads, head_dim], lse [1, heads].

    The problem has one sequence and one KV head.
    """
    problem = inputs.problem
    query = inputs.query[0].float()
    keys, values = inputs.keys[:, 0].float(), inputs.values[:, 0].float()
    if bug is not None:
        keys, values = bug.alter(keys, values)
    scale = problem.softmax_scale * (bug.scale if bug else 1.0)
    parts = [
        _sweep(query, part_k, part_v, scale * math.log2(math.e), design, problem, bug)
        for part_k, part_v in zip(
            keys.tensor_split(design.splits), values.tensor_split(design.splits), strict=True
        )
    ]
    lse = torch.stack([part[1] for part in parts])
    top = lse.amax(0)
    weights = torch.exp2(lse - torch.where(top.isinf(), 0.0, top))
    total = weights.sum(0)
    out = sum(weights[i].unsqueeze(1) * part[0] for i, part in enumerate(parts))
    out = out / total.clamp(min=1e-30).unsqueeze(1) * (bug.value_scale if bug else 1.0)
    lse = (top + total.log2()) * math.log(2)
    return out.to(problem.torch_dtype).unsqueeze(0), lse.unsqueeze(0)


def _sweep(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    factor: float,
    design: Design,
    problem: AttentionProblem,
    bug: Bug | None,
) -> tuple[Tensor, Tensor]:
    heads, head_dim = query.shape
    acc = torch.zeros(heads, head_dim)
    total, top = torch.zeros(heads), torch.full((heads,), -torch.inf)
    noise = torch.Generator().manual_seed(0)
    for tile_k, tile_v in zip(keys.split(design.tile), values.split(design.tile), strict=True):
        if not tile_k.numel():
            continue
        logits = _product(torch.zeros(heads, len(tile_k)), query, tile_k.T, design.order) * factor
        new_top = torch.maximum(top, logits.amax(1))
        weights = torch.exp2(logits - new_top.unsqueeze(1))
        wobble = torch.rand(weights.shape, generator=noise) * 2 - 1
        weights = weights * (1 + wobble * design.exp_error * 2.0**-23)
        rescale = torch.exp2(top - new_top)
        total = total * rescale + weights.sum(1)
        if design.narrow_weights:
            weights = weights.to(problem.torch_dtype).float()
        if bug is not None and bug.weights_dtype is not None:
            weights = weights.to(bug.weights_dtype).float()
        acc = _product(acc * rescale.unsqueeze(1), weights, tile_v, design.order)
        top = new_top
    return acc / total.clamp(min=1e-30).unsqueeze(1), top + total.log2()


def _product(acc: Tensor, a: Tensor, b: Tensor, order: str) -> Tensor:
    """Return acc + a @ b in float32, added up in the given order."""
    if order == "blas":
        return acc + a @ b
    if order == "chain":
        for k in range(a.shape[1]):
            acc = torch.addcmul(acc, a[:, k : k + 1], b[k : k + 1])
        return acc
    for k in range(0, a.shape[1], 16):
        exact = acc.double() + a[:, k : k + 16].double() @ b[k : k + 16].double()
        rounded = exact.float()
        # Round towards zero: one step back where rounding went away from it.
        beyond = rounded.double().abs() > exact.abs()
        acc = torch.where(beyond, torch.nextafter(rounded, torch.zeros(())), rounded)
    return acc


@dataclass(frozen=True, slots=True)
class Need:
    """What one simulated call needed, in the units of the allowance's terms."""

    dtype: str
    inputs: str
    keys: int
    out: float
    lse: float
    score_bound: float


def needs(*, lengths: tuple[int, ...], head_dims: tuple[int, ...]) -> Iterator[Need]:
    """Run every design on every problem; one `Need` a row."""
    for problem in _problems(lengths, head_dims):
        inputs = make_inputs(problem)
        truth = attend(inputs)
        largest = truth.out.abs().amax(-1)
        for design in DESIGNS:
            if design.order == "mma" and problem.dtype == "fp32":
                continue  # float32 does not run on tensor cores, or it would be tf32
            out, lse = simulate(inputs, design)
            error = ((out.double() - truth.out).abs().amax(-1) / largest)[0]
            gap = (lse.double() - truth.lse).abs()[0] / U32
            magnitude = 1 + truth.score_bound[0] + truth.lse[0].abs()
            for head in range(HEADS):
                yield Need(
                    dtype=problem.dtype,
                    inputs=problem.inputs,
                    keys=problem.max_seq_len,
                    out=float(error[head]),
                    lse=float(gap[head] / magnitude[head]),
                    score_bound=float(truth.score_bound[0, head]),
                )


def _problems(lengths: tuple[int, ...], head_dims: tuple[int, ...]) -> Iterator[AttentionProblem]:
    for dtype in tolerance.UNIT_ROUNDOFF:
        for seed, length in enumerate(lengths):
            for head_dim in head_dims:
                for kind in INPUT_KINDS:
                    spec = f"(q1 k{length}) g{HEADS} d{head_dim} b16 {dtype} inputs={kind}"
                    problem = AttentionProblem.parse(spec).replace(seed=seed)
                    yield problem
                    if dtype == "fp32":
                        # Few bits make few different products, whose roundings go the same way:
                        # rare, so it takes many draws to see it.
                        rare = length <= SHORT and kind in {"needle", "sunken"}
                        for number in range(SEEDS if rare else 1):
                            drawn = problem.replace(seed=seed + number)
                            yield from (drawn.replace(kv_dtype=narrow) for narrow in FP8_DTYPES)


@dataclass(frozen=True, slots=True)
class Constants:
    """The constants of `reference.attention.tolerance`."""

    output: dict[str, float]
    score: float
    accumulate: float
    lse: float


def derive(measured: list[Need]) -> Constants:
    """The smallest constants, times `MARGIN`, that cover every need.

    The score term is read off short float32 rows, where little is added up; the accumulation
    term off what it leaves of the long ones; the output term off what both leave.
    """
    exact = [need for need in measured if need.dtype == "fp32"]
    score = max((n.out / U32 - 1) / n.score_bound for n in exact if n.keys <= SHORT)
    accumulate = max(
        (n.out / U32 - score * n.score_bound) / math.sqrt(n.keys) for n in exact if n.keys > SHORT
    )
    accumulate = max(accumulate, MIN_ACCUMULATE)
    output = {}
    for dtype, unit in tolerance.UNIT_ROUNDOFF.items():
        rest = [
            (n.out - U32 * (score * n.score_bound + accumulate * math.sqrt(n.keys))) / unit
            for n in measured
            if n.dtype == dtype
        ]
        output[dtype] = max(*rest, 0.5)  # rounding the output alone costs half a unit
    return Constants(
        output={dtype: _round_up(MARGIN * value) for dtype, value in output.items()},
        score=_round_up(MARGIN * score),
        accumulate=_round_up(MARGIN * accumulate),
        lse=_round_up(MARGIN * max(n.lse for n in measured)),
    )


def committed() -> Constants:
    """What `reference.attention.tolerance` holds."""
    return Constants(dict(tolerance.OUTPUT), tolerance.SCORE, tolerance.ACCUMULATE, tolerance.LSE)


def _round_up(value: float) -> float:
    """To the next quarter: finer digits would be noise."""
    return math.ceil(value * 4) / 4


def power(*, lengths: tuple[int, ...] = POWER_LENGTHS, seeds: int = 4) -> dict[str, dict[str, str]]:
    """Share of planted bugs rejected: {bug: {dtype: "killed/cases"}}, and of right kernels."""
    table: dict[str, dict[str, str]] = {}
    for bug in (None, *BUGS):
        row = {}
        for dtype in tolerance.UNIT_ROUNDOFF:
            cases = killed = 0
            for length in lengths:
                for seed in range(seeds):
                    spec = f"(q1 k{length}) g{HEADS} d128 b16 {dtype}"
                    inputs = make_inputs(AttentionProblem.parse(spec).replace(seed=seed))
                    killed += rejected(inputs, attend(inputs), bug)
                    cases += 1
            row[dtype] = f"{killed}/{cases}"
        table["(right kernel)" if bug is None else bug.name] = row
    return table


def rejected(inputs: Inputs, truth: Truth, bug: Bug | None) -> bool:
    """Whether the committed tolerance rejects a simulated kernel."""
    design = replace(DESIGNS[2], splits=1)
    out, lse = simulate(inputs, design, bug)
    return tolerance.worst_excess(inputs.problem, truth, out, lse) is not None


def main() -> int:
    """Print both tables; with --check compare with what is committed."""
    parser = argparse.ArgumentParser(prog="python -m studies.derive_tolerance")
    parser.add_argument("--check", action="store_true", help="exit 1 if the constants differ")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    measured = list(needs(lengths=LENGTHS, head_dims=HEAD_DIMS))
    derived, held = derive(measured), committed()
    print(f"{len(measured)} rows of right kernels; margin {MARGIN}")
    for name in ("output", "score", "accumulate", "lse"):
        print(
            f"  {name:<11} derived {getattr(derived, name)!s:<50} committed {getattr(held, name)}"
        )
    print("planted bugs rejected (cases: 4 lengths x 4 seeds, head size 128)")
    for bug, row in power().items():
        print(f"  {bug:<16} " + "  ".join(f"{dtype} {share}" for dtype, share in row.items()))
    if check and derived != held:
        print("The committed constants are not the derived ones: edit tolerance.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
