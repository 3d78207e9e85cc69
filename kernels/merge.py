"""Joins partial results by their log-sum-exp: those of splits, and those that anybody has."""

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


@triton.jit
def merge_states_kernel(
    part_out,
    part_lse,
    out,
    lse,
    num_parts,
    num_rows,
    num_heads,
    part_strides,
    answer_strides,
    SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    WITH_LSE: tl.constexpr,
):
    """Program (rows): BLOCK_ROWS of the rows (token, head), heads fastest, and all of their parts.

    `part_strides` are those of part, token and head, of the outputs and then of the log-sum-exps;
    `answer_strides` those of token and head, of `out` and then of `lse`. A part that saw no key is
    not read: what is there may be NaN.
    """
    stride_part_o, stride_part_token_o, stride_part_head_o = part_strides[:3]
    stride_part_l, stride_part_token_l, stride_part_head_l = part_strides[3:]
    stride_token_o, stride_head_o, stride_token_l, stride_head_l = answer_strides
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    dim = tl.arange(0, BLOCK_D)
    real = row < num_rows
    token = (row // num_heads).to(tl.int64)
    head = row % num_heads
    lses_at = part_lse + token * stride_part_token_l + head * stride_part_head_l
    rows_at = part_out + token * stride_part_token_o + head * stride_part_head_o
    acc = tl.zeros([BLOCK_ROWS, BLOCK_D], dtype=tl.float32)
    denominator = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
    maximum = tl.full([BLOCK_ROWS], float("-inf"), dtype=tl.float32)
    for part in range(num_parts):
        part_at = tl.cast(part, tl.int64)
        found = tl.load(lses_at + part_at * stride_part_l, mask=real, other=float("-inf"))
        held = (found != float("-inf"))[:, None] & (dim < SIZE)[None, :]
        values_at = (rows_at + part_at * stride_part_o)[:, None] + dim[None, :]
        values = tl.load(values_at, mask=held, other=0.0).to(tl.float32)
        new_maximum = tl.maximum(maximum, found)
        # A row that has seen nothing yet: exp(-inf - 0) is the zero that it needs, not NaN.
        reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weight = tl.exp(found - reference)
        rescale = tl.exp(maximum - reference)
        denominator = denominator * rescale + weight
        acc = acc * rescale[:, None] + values * weight[:, None]
        maximum = new_maximum
    denominator = tl.where(denominator == 0.0, 1.0, denominator)
    result_at = (out + token * stride_token_o + head * stride_head_o)[:, None] + dim[None, :]
    inner = real[:, None] & (dim < SIZE)[None, :]
    tl.store(result_at, (acc / denominator[:, None]).to(out.dtype.element_ty), mask=inner)
    if WITH_LSE:
        lse_at = lse + token * stride_token_l + head * stride_head_l
        tl.store(lse_at, maximum + tl.log(denominator), mask=real)
