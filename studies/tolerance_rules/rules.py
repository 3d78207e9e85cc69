"""The rules by which released harnesses accept the output of an attention kernel, and ours.

Each rule is a function of the output and of what its source holds the output against. The functions
are written from the files that their docstrings name, at the commit that was read; thresholds and
the handling of NaN are the source's. `RULES` is all of them, `Yardsticks` what they need to know
about a problem.

Where a source compares with a kernel of its own in the working type, the truth rounded to the
working type takes its place: the best answer that such a kernel could give. So no rule is charged
with a poor reference, only with its own idea of close.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from reference.attention.inputs import Inputs
from reference.attention.problem import AttentionProblem
from reference.attention.tolerance import worst_excess
from reference.attention.truth import Truth, attend, positions, visible

# What an output is held against

Arithmetic = Literal["float32", "working", "mixed"]
"""How eager attention rounds.

`float32`: everything in float32, the output rounded to the working type. `working`: every result
rounded to the working type, keys scaled before the product. `mixed`: working-type operands, logits,
softmax and sums in float32, weights rounded to the working type."""


def eager_attention(inputs: Inputs, *, arithmetic: Arithmetic) -> Tensor:
    """Attention with the whole matrix of weights, as the sources' references compute it.

    `float32` is `attention_ref(upcast=True)` and `working` is `attention_ref(upcast=False,
    reorder_ops=True)` of Dao-AILab/flash-attention, hopper/test_util.py at 1076c675; ALiBi is added
    in float32, as its `attn_bias`. `mixed` is the schedule that meta-pytorch/attention-gym's test
    demands of its eager backend ("FP32 QK/softmax/PV accumulation and BF16 dot operands",
    test/test_selected_attention_semantics.py at 0e69c737). Sinks are one more float32 logit.

    Returns Tensor: [num_tokens, num_q_heads, head_dim] in the problem's dtype. A row without a key
    is zero.
    """
    problem = inputs.problem
    parts = [_eager_one(inputs, index, arithmetic) for index in range(len(problem.requests))]
    return torch.cat(parts)


def _eager_one(inputs: Inputs, index: int, arithmetic: Arithmetic) -> Tensor:
    problem = inputs.problem
    request = problem.requests[index]
    heads, group = problem.num_kv_heads, problem.group_size
    rows = slice(problem.query_starts[index], problem.query_starts[index + 1])
    slots = slice(problem.cache_starts[index], problem.cache_starts[index + 1])
    operand = torch.float32 if arithmetic == "float32" else problem.torch_dtype
    result = problem.torch_dtype if arithmetic == "working" else torch.float32
    query = inputs.query[rows].to(result).unflatten(1, (heads, group))
    keys = (inputs.keys[slots].float() * problem.k_scale).to(operand).to(result)
    values = (inputs.values[slots].float() * problem.v_scale).to(operand).to(result)
    if arithmetic == "working":
        keys = keys * problem.softmax_scale
    else:
        query = query * problem.softmax_scale
    logits = torch.einsum("qhgd,khd->hgqk", query, keys)
    if problem.softcap is not None:
        logits = torch.tanh(logits / problem.softcap) * problem.softcap
    hidden = ~visible(problem, request, logits.device)
    logits = logits.masked_fill(hidden, -torch.inf)
    if inputs.alibi_slopes is not None:
        query_at, key_at = positions(request, logits.device)
        distance = (query_at.unsqueeze(1) - key_at).abs()
        logits = logits - inputs.alibi_slopes.view(heads, group, 1, 1) * distance
    if inputs.sinks is not None:
        sink = inputs.sinks.view(heads, group, 1, 1).expand(*logits.shape[:3], 1)
        logits = torch.cat([logits.float(), sink], dim=-1)
    weights = torch.softmax(logits, dim=-1)[..., : request.seq_len]
    nothing = hidden.all(dim=-1)  # NaN in every weight: there is nothing to divide
    weights = weights.masked_fill(nothing.unsqueeze(-1), 0.0).to(operand).to(result)
    out = torch.einsum("hgqk,khd->qhgd", weights, values)
    return out.flatten(1, 2).to(problem.torch_dtype)


@dataclass(frozen=True, slots=True)
class Yardsticks:
    """What the rules hold an output against, for one problem."""

    problem: AttentionProblem
    """What was asked."""
    truth: Truth
    """Attention in float64."""
    rounded: Tensor
    """[num_tokens, num_q_heads, head_dim], the truth rounded to the working type."""
    reference: Tensor
    eager: Tensor
    mixed: Tensor
    """Eager attention in `float32`, `working` and `mixed` arithmetic, shaped as `rounded`."""


def yardsticks(inputs: Inputs) -> Yardsticks:
    """Compute them all."""
    truth = attend(inputs)
    return Yardsticks(
        problem=inputs.problem,
        truth=truth,
        rounded=truth.out.to(inputs.problem.torch_dtype),
        reference=eager_attention(inputs, arithmetic="float32"),
        eager=eager_attention(inputs, arithmetic="working"),
        mixed=eager_attention(inputs, arithmetic="mixed"),
    )


# The rules. Each returns whether the output is accepted.


def flash_attention(
    out: Tensor, *, reference: Tensor, eager: Tensor, softcap: float | None
) -> bool:
    """At most twice the error of eager attention, thrice with a soft-cap.

    max|o - r| <= m max|e - r| + 2 max|(r + 0.3 - 0.3) - r|, all in the working type: r in float32
    and then rounded, e every step rounded. NaN is rejected because NaN <= x is false; NaN in e
    rejects whatever is right.

    Dao-AILab/flash-attention, hopper/test_flash_attn.py at 01afd16d (`test_flash_attn_output`) and
    `check_tensor_vs_ref` in tests/cute/test_flash_attn.py at 008e6366. Its tests use float16 and
    bfloat16.
    """
    multiple = 2 if softcap is None else 3
    floor = 2 * (reference + 0.3 - 0.3 - reference).abs().max().item()
    error = (out - reference).abs().max().item()
    return error <= multiple * (eager - reference).abs().max().item() + floor


FLASHINFER: Final = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
"""atol and rtol. The float16 and bfloat16 rows are those of flashinfer-ai/flashinfer,
tests/attention/test_attention_sink.py at 140cd848 and test_batch_decode_kernels.py at 003c125d; all
three are `default_tolerances` in flashinfer/trace/template.py at 00c6ba87."""

MIN_COSINE: Final = 1.0 - 1e-3
"""`min_cos_sim` of FlashInfer's `default_check`."""


def flashinfer(out: Tensor, *, expected: Tensor) -> bool:
    """|o - r| <= t + t|r| for every element; t by type. NaN is rejected."""
    tolerance = FLASHINFER[out.dtype]
    return _close(out, expected, rtol=tolerance, atol=tolerance)


def flashinfer_trace(out: Tensor, *, expected: Tensor) -> bool:
    """The same thresholds, chosen by the type of the output and in float32, and cos(o, r) >= 0.999.

    The cosine is over the whole tensor and leaves out what is not finite.

    flashinfer-ai/flashinfer, `default_check` in flashinfer/trace/template.py at 00c6ba87.
    """
    tolerance = FLASHINFER[out.dtype]
    got, wanted = out.float(), expected.float()
    if not torch.isclose(got, wanted, rtol=tolerance, atol=tolerance).all():
        return False
    return _cosine(got, wanted) >= MIN_COSINE


def _cosine(got: Tensor, wanted: Tensor) -> float:
    finite = got.isfinite() & wanted.isfinite()
    got, wanted = got[finite], wanted[finite]
    if not got.numel():
        return 1.0
    lengths = torch.linalg.vector_norm(got) * torch.linalg.vector_norm(wanted)
    if lengths == 0:
        return 1.0 if torch.equal(got, wanted) else 0.0
    return float((got * wanted).sum() / lengths)


def vllm(out: Tensor, *, expected: Tensor, quantised: bool) -> bool:
    """|o - r| <= 0.015 + 0.01|r| for every element; 0.15 and 0.15 with float8. NaN is rejected.

    vllm-project/vllm, tests/kernels/attention/test_flash_attn.py at 0001b995. There float8 means
    query, keys and values, and the reference is not quantised: the rule has to forgive more.
    """
    atol, rtol = (1.5e-1, 1.5e-1) if quantised else (1.5e-2, 1e-2)
    return _close(out, expected, rtol=rtol, atol=atol)


FLASHINFER_BENCH: Final = 1e-2
"""`atol` and `rtol` of BenchmarkConfig, flashinfer_bench/bench/config.py at 1039e39d."""


def flashinfer_bench(out: Tensor, *, expected: Tensor, matched_ratio: float) -> bool:
    """Share of elements with |o - r| <= 0.01 or |o - r| / (|r| + 1e-8) <= 0.01, in float32.

    What is not finite is rejected before, by the evaluator. The ratio is 1 by default, and 0.95
    for the op types `moe` and `lowbit`.

    flashinfer-ai/flashinfer-bench, `compute_error_stats` in flashinfer_bench/bench/utils.py at
    00a1ec88, evaluators/default.py at 06323a42, eval_config.yaml at 3c8bc1b3.
    """
    if not out.isfinite().all():
        return False
    got, wanted = out.float(), expected.float()
    error = (got - wanted).abs()
    beyond = (error > FLASHINFER_BENCH) & (error / (wanted.abs() + 1e-8) > FLASHINFER_BENCH)
    return 1.0 - float(beyond.sum()) / beyond.numel() >= matched_ratio


def attention_gym(
    out: Tensor, *, truth: Tensor, eager: Tensor, reduction_sizes: Iterable[int]
) -> bool:
    """Mean and largest error at most eager's, plus rounding of the truth's mean and largest.

    mean|o - r| <= mean|e - r| + eps mean|r| and the same with max, where r is float64 and
    eps = (sum of sqrt(reduction size)) eps(fp32) + eps(type). Not finite is rejected.

    meta-pytorch/attention-gym, `assert_matches_low_precision_eager` in
    test/test_selected_attention_semantics.py at 0e69c737.
    """
    if not out.isfinite().all():
        return False
    error, yardstick = (out.double() - truth).abs(), (eager.double() - truth).abs()
    summing = sum(math.sqrt(size) for size in reduction_sizes) * torch.finfo(torch.float32).eps
    eps = summing + torch.finfo(out.dtype).eps
    return bool(
        error.mean() <= yardstick.mean() + eps * truth.abs().mean()
        and error.max() <= yardstick.max() + eps * truth.abs().max()
    )


def assert_close_defaults(out: Tensor, *, expected: Tensor) -> bool:
    """`torch.testing.assert_close` as it comes: rtol by type, atol 1e-5. NaN is rejected.

    meta-pytorch/tritonbench, `accuracy` in tritonbench/utils/triton_op.py at 05c69ce2, whose rtol
    and atol are None unless given.
    """
    return _close(out, expected)


def _close(
    out: Tensor, expected: Tensor, *, rtol: float | None = None, atol: float | None = None
) -> bool:
    try:
        torch.testing.assert_close(out, expected, rtol=rtol, atol=atol)
    except AssertionError:
        return False
    return True


# All of them


@dataclass(frozen=True, slots=True)
class Answer:
    """What a kernel gave: `out` in the working type, and the log-sum-exp in float32."""

    out: Tensor
    lse: Tensor


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule by its name in docs/tolerance-rules.md."""

    name: str
    """As in the tables."""
    accepts: Callable[[Answer, Yardsticks], bool]
    """Whether an answer to the problem of the yardsticks passes."""


FINITE: Final = Rule("finite, nothing else", lambda got, _: bool(got.out.isfinite().all()))
"""The control: what it rejects, no threshold was needed for."""

OURS: Final = Rule(
    "pagedbench",
    lambda got, held: worst_excess(held.problem, held.truth, got.out, got.lse) is None,
)

OURS_WITHOUT_LSE: Final = Rule(
    "pagedbench, `out` only",
    lambda got, held: worst_excess(held.problem, held.truth, got.out, None) is None,
)

RULES: Final = (
    FINITE,
    Rule(
        "flash-attention, 2 × eager",
        lambda got, held: flash_attention(
            got.out, reference=held.reference, eager=held.eager, softcap=held.problem.softcap
        ),
    ),
    Rule("FlashInfer", lambda got, held: flashinfer(got.out, expected=held.rounded)),
    Rule(
        "FlashInfer, `default_check`",
        lambda got, held: flashinfer_trace(got.out, expected=held.rounded),
    ),
    Rule(
        "vLLM",
        lambda got, held: vllm(got.out, expected=held.rounded, quantised=held.problem.quantised),
    ),
    Rule(
        "flashinfer-bench",
        lambda got, held: flashinfer_bench(got.out, expected=held.rounded, matched_ratio=1.0),
    ),
    Rule(
        "flashinfer-bench, 95 %",
        lambda got, held: flashinfer_bench(got.out, expected=held.rounded, matched_ratio=0.95),
    ),
    Rule(
        "attention-gym",
        lambda got, held: attention_gym(
            got.out, truth=held.truth.out, eager=held.mixed, reduction_sizes=_reductions(held)
        ),
    ),
    Rule(
        "`assert_close` defaults",
        lambda got, held: assert_close_defaults(got.out, expected=held.rounded),
    ),
    OURS_WITHOUT_LSE,
    OURS,
)


def _reductions(held: Yardsticks) -> tuple[int, int, int]:
    """Terms of a logit, of the denominator and of the weighted sum, as in the source's forward."""
    return held.problem.head_dim, held.problem.max_seq_len, held.problem.max_seq_len


def rejecting(got: Answer, held: Yardsticks) -> frozenset[str]:
    """The names of the rules that reject an answer."""
    return frozenset(rule.name for rule in RULES if not rule.accepts(got, held))
