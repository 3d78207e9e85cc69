"""Decode: one query token a sequence, the KV range split over programs."""

import triton
import triton.language as tl

from kernels.sweep import add_sink, finish, sweep


@triton.jit
def decode_kernel(
    query,
    key_cache,
    value_cache,
    block_table,
    seq_lens,
    query_start_loc,
    out,
    lse,
    slopes,
    sinks,
    logit_factor,
    cap_factor,
    value_scale,
    lse_factor,
    stride_token_q,
    stride_head_q,
    stride_block_k,
    stride_slot_k,
    stride_head_k,
    stride_block_v,
    stride_slot_v,
    stride_head_v,
    stride_seq_t,
    stride_token_o,
    stride_head_o,
    stride_split_o,
    stride_token_l,
    stride_head_l,
    stride_split_l,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    WITH_LSE: tl.constexpr,
):
    """Program (sequence, KV head, split); rows are the query heads of the group.

    With one split, `out` and `lse` are the caller's and `lse_factor` is ln 2. With several they
    are float32 partial results that `merge_kernel` joins; their lse stays in units of log 2.
    """
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    num_splits = tl.num_programs(2)
    first_token = tl.load(query_start_loc + sequence)
    if tl.load(query_start_loc + sequence + 1) == first_token:
        return

    end_key = tl.load(seq_lens + sequence)
    first_key = 0
    if WINDOW > 0:
        first_key = tl.maximum(end_key - WINDOW, 0)
    first_tile = first_key // BLOCK_N
    end_tile = tl.cdiv(end_key, BLOCK_N)
    tiles_a_split = tl.cdiv(end_tile - first_tile, num_splits)
    begin = first_tile + split * tiles_a_split
    end = tl.minimum(begin + tiles_a_split, end_tile)

    row = tl.arange(0, BLOCK_M)
    dim = tl.arange(0, BLOCK_D)
    head = kv_head * GROUP + row
    token = first_token.to(tl.int64)
    real = (row < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    query_at = query + token * stride_token_q + head[:, None] * stride_head_q + dim[None, :]
    rows = tl.load(query_at, mask=real, other=0.0)
    slope = tl.zeros([BLOCK_M], dtype=tl.float32)
    if ALIBI:
        slope = tl.load(slopes + head, mask=row < GROUP, other=0.0) * 1.4426950408889634
    acc, denominator, maximum = sweep(
        rows,
        tl.zeros([BLOCK_M], dtype=tl.int32) + (end_key - 1),
        slope,
        begin,
        end,
        first_key,
        end_key,
        first_key,
        end_key,
        key_cache + kv_head * stride_head_k,
        value_cache + kv_head * stride_head_v,
        block_table + sequence.to(tl.int64) * stride_seq_t,
        stride_block_k,
        stride_slot_k,
        stride_block_v,
        stride_slot_v,
        logit_factor,
        cap_factor,
        BLOCK_M,
        BLOCK_N,
        BLOCK_SIZE,
        HEAD_DIM,
        BLOCK_D,
        False,  # the only query is the last token: it sees every key before end_key
        0,  # and first_key is its window
        WINDOW > 0,
        SOFTCAP,
        ALIBI,
    )
    if SINKS:
        sink = tl.load(sinks + head, mask=row < GROUP, other=0.0) * 1.4426950408889634
        acc, denominator, maximum = add_sink(acc, denominator, maximum, sink)
    result, row_lse = finish(acc, denominator, maximum, value_scale)
    result_at = out + token * stride_token_o + split * stride_split_o
    result_at += head[:, None] * stride_head_o + dim[None, :]
    tl.store(result_at, result.to(out.dtype.element_ty), mask=real)
    if WITH_LSE:
        lse_at = lse + token * stride_token_l + split * stride_split_l + head * stride_head_l
        tl.store(lse_at, row_lse * lse_factor, mask=row < GROUP)
