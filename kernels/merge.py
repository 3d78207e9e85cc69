"""Joins the partial results of the splits of one row by their log-sum-exp."""

import triton
import triton.language as tl


@triton.jit
def merge_kernel(
    partial_out,
    partial_lse,
    out,
    lse,
    sinks,
    num_splits,
    stride_token_o,
    stride_head_o,
    stride_token_l,
    stride_head_l,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    SINKS: tl.constexpr,
    WITH_LSE: tl.constexpr,
):
    """Program (token, query head).

    `partial_out` [num_tokens, num_q_heads, num_splits, head_dim] and `partial_lse` [num_tokens,
    num_q_heads, num_splits] are contiguous float32, the latter in units of log 2. The sink is
    counted here, once, and not in the splits.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = token * tl.num_programs(1) + head
    split = tl.arange(0, BLOCK_SPLITS)
    dim = tl.arange(0, BLOCK_D)
    lses = tl.load(
        partial_lse + row * num_splits + split, mask=split < num_splits, other=float("-inf")
    )
    maximum = tl.max(lses, 0)
    if SINKS:
        sink = tl.load(sinks + head) * 1.4426950408889634
        maximum = tl.maximum(maximum, sink)
    reference = tl.where(maximum == float("-inf"), 0.0, maximum)
    weights = tl.exp2(lses - reference)
    denominator = tl.sum(weights, 0)
    if SINKS:
        denominator += tl.exp2(sink - reference)
    empty = denominator == 0.0
    weights = weights / tl.where(empty, 1.0, denominator)
    partial_at = partial_out + (row * num_splits + split)[:, None] * HEAD_DIM + dim[None, :]
    real = (split < num_splits)[:, None] & (dim < HEAD_DIM)[None, :]
    parts = tl.load(partial_at, mask=real, other=0.0)
    result = tl.sum(parts * weights[:, None], 0)
    tl.store(
        out + token * stride_token_o + head * stride_head_o + dim,
        result.to(out.dtype.element_ty),
        mask=dim < HEAD_DIM,
    )
    if WITH_LSE:
        joined = tl.where(
            empty, float("-inf"), reference + tl.log2(tl.where(empty, 1.0, denominator))
        )
        tl.store(lse + token * stride_token_l + head * stride_head_l, joined * 0.6931471805599453)
