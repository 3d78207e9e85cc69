"""Joins the partial results of the splits of one row by their log-sum-exp."""

import triton
import triton.language as tl


@triton.jit
def merge_kernel(
    partial_out,
    partial_lse,
    plan,
    query_start_loc,
    out,
    lse,
    sinks,
    stride_token_o,
    stride_head_o,
    stride_token_l,
    stride_head_l,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    SINKS: tl.constexpr,
    WITH_LSE: tl.constexpr,
    EMPTY: tl.constexpr,
):
    """Program (sequence, query head); ends at once where the sequence has one split or no query.

    `partial_out` [items, num_q_heads, head_dim] and `partial_lse` [items, num_q_heads] are
    contiguous float32, the latter in units of log 2; `plan` [num_seqs, 2] int32 has the first item
    of each sequence and how many there are. The sink is counted here, once, and not in the splits.

    BLOCK_SPLITS of them are read at once, whatever their number: so the order of the sum depends
    on nothing but the sequence. With EMPTY all of the splits may have seen no key.
    """
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    token = tl.load(query_start_loc + sequence).to(tl.int64)
    if tl.load(query_start_loc + sequence + 1) - token != 1:
        return
    first_item = tl.load(plan + 2 * sequence).to(tl.int64)
    num_splits = tl.load(plan + 2 * sequence + 1)
    if num_splits == 1:
        return

    dim = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], dtype=tl.float32)
    denominator = 0.0
    maximum = float("-inf")
    if SINKS:
        maximum = tl.load(sinks + head) * 1.4426950408889634
        denominator = 1.0
    for start in range(0, num_splits, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        row = (first_item + split) * num_heads + head
        real = split < num_splits
        lses = tl.load(partial_lse + row, mask=real, other=float("-inf"))
        parts_at = partial_out + row[:, None] * HEAD_DIM + dim[None, :]
        parts = tl.load(parts_at, mask=real[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
        new_maximum = tl.maximum(maximum, tl.max(lses, 0))
        reference = new_maximum
        if EMPTY:
            reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        rescale = tl.exp2(maximum - reference)
        weights = tl.exp2(lses - reference)
        denominator = denominator * rescale + tl.sum(weights, 0)
        acc = acc * rescale + tl.sum(parts * weights[:, None], 0)
        maximum = new_maximum
    result_at = out + token * stride_token_o + head * stride_head_o + dim
    if EMPTY:
        denominator = tl.where(denominator == 0.0, 1.0, denominator)
    result = acc / denominator
    tl.store(result_at, result.to(out.dtype.element_ty), mask=dim < HEAD_DIM)
    if WITH_LSE:
        joined = (maximum + tl.log2(denominator)) * 0.6931471805599453
        tl.store(lse + token * stride_token_l + head * stride_head_l, joined)
