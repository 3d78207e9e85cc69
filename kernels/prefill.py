"""Prefill, chunked prefill and mixed batches: ragged queries over `query_start_loc`.

Bound by the products. They take 4 * head_dim operations for each row and each key that it sees, so
65,536 for a tile of 128 rows at head size 128, and in bfloat16 that tile does 128 of them for each
byte of keys and values. Clocks of a multiprocessor for one key of such a tile, from the makers'
dense rates (4,096 operations a clock on H100, 2,048 on A100), and what the other instructions of
the main loop take of the four schedulers' issue slots (`pagedbench compile`, Triton 3.9.0):

| target | instructions for a warp and key | of these products | products, clocks | others, clocks |
| --- | --- | --- | --- | --- |
| sm_90 | 7.0 | 0.2 HGMMA | 16 | 14 |
| sm_80 | 10.8 | 2.0 HMMA | 32 | 18 |

So the matrix units can be kept busy only while other warps are in their softmax. On sm_90 that has
to overlap nearly without a gap, which this kernel does not arrange.
"""

import triton
import triton.language as tl

from kernels.sweep import add_sink, chunk_start, factors_of_head, finish, scales_of_head, sweep


def multiplies_from_shared_memory() -> bool:
    """Whether products take keys and values from shared memory and not through registers.

    So do wgmma (sm_90) and tcgen05 (sm_100). Triton is asked, and not torch, because it also knows
    of a target that is compiled for where there is none. In the interpreter nothing does.
    """
    if triton.knobs.runtime.interpret:
        return False
    target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and target.arch // 10 in (9, 10)


@triton.jit
def prefill_kernel(
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
    num_seqs,
    logit_factor,
    cap_factor,
    value_scale,
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
    stride_token_l,
    stride_head_l,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    WITH_LSE: tl.constexpr,
    scales=None,
    SCALES: tl.constexpr = 0,
    VALUE_DIM: tl.constexpr = None,
    causal_of=None,
    query_mask=None,
    stride_token_m=0,
):
    """Program (query tile, KV head); rows are (token, query head) pairs, heads fastest.

    Query tiles are numbered without knowing the lengths on the host: sequence s owns the numbers
    from `query_start_loc[s] // BLOCK_Q + s` on, which is never fewer than it needs. Values have
    HEAD_DIM elements if VALUE_DIM is None.
    """
    VALUES: tl.constexpr = HEAD_DIM if VALUE_DIM is None else VALUE_DIM
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    candidate = tl.arange(0, BLOCK_SEQS)
    starts = tl.load(query_start_loc + candidate, mask=candidate < num_seqs, other=0)
    mine = (candidate < num_seqs) & (starts // BLOCK_Q + candidate <= tile)
    sequence = tl.sum(mine.to(tl.int32), 0) - 1
    first_token = tl.load(query_start_loc + sequence)
    query_len = tl.load(query_start_loc + sequence + 1) - first_token
    first_query = (tile - (first_token // BLOCK_Q + sequence)) * BLOCK_Q
    if first_query >= query_len:
        return

    seq_len = tl.load(seq_lens + sequence)
    row = tl.arange(0, BLOCK_M)
    dim = tl.arange(0, BLOCK_D)
    in_sequence = first_query + row // GROUP
    valid = (in_sequence < query_len) & (row < BLOCK_Q * GROUP)
    query_at = seq_len - query_len + in_sequence
    first_position = seq_len - query_len + first_query
    last_position = seq_len - query_len + tl.minimum(first_query + BLOCK_Q, query_len) - 1

    first_key = 0
    all_see_from = 0
    end_key = seq_len
    all_see_until = seq_len
    if CAUSAL:
        end_key = last_position + 1
        all_see_until = first_position + 1
    if causal_of is not None:
        # Queries of a sequence that is not causal see what one behind all its keys sees.
        until = tl.where(tl.load(causal_of + sequence) != 0, 0, seq_len)
        query_at = tl.maximum(query_at, until)
        end_key = tl.maximum(end_key, until)
        all_see_until = tl.maximum(all_see_until, until)
    if WINDOW > 0:
        first_key = tl.maximum(first_position - WINDOW + 1, 0)
        all_see_from = tl.maximum(last_position - WINDOW + 1, 0)
    if WINDOW < 0:
        first_key = chunk_start(first_position, WINDOW)
        all_see_from = chunk_start(last_position, WINDOW)

    head = kv_head * GROUP + row % GROUP
    token = (first_token + in_sequence).to(tl.int64)
    real = valid[:, None] & (dim < HEAD_DIM)[None, :]
    rows_at = query + (token * stride_token_q + head * stride_head_q)[:, None] + dim[None, :]
    rows = tl.load(rows_at, mask=real, other=0.0)
    slope = tl.zeros([BLOCK_M], dtype=tl.float32)
    if ALIBI:
        slope = tl.load(slopes + head, mask=valid, other=0.0) * 1.4426950408889634
    logit_factor, value_scale = factors_of_head(scales, kv_head, logit_factor, value_scale, SCALES)
    if SCALES > 1:
        scales = scales_of_head(scales, kv_head)
        stride_block_k, stride_slot_k, stride_head_k = (
            stride_block_k * 4,
            stride_slot_k * 4,
            stride_head_k * 4,
        )
        stride_block_v, stride_slot_v, stride_head_v = (
            stride_block_v * 4,
            stride_slot_v * 4,
            stride_head_v * 4,
        )
    step = None
    if query_mask is not None:
        before = seq_len - query_len
        all_see_until = tl.maximum(before, 0)
        step = (query_mask + token * stride_token_m, valid, before, query_len)
    strides = (stride_block_k, stride_slot_k, stride_block_v, stride_slot_v)
    acc, denominator, maximum = sweep(
        (rows, query_at, slope),
        (logit_factor, cap_factor),
        first_key // BLOCK_N,
        tl.cdiv(end_key, BLOCK_N),
        all_see_from,
        all_see_until,
        (
            key_cache + kv_head * stride_head_k,
            value_cache + kv_head * stride_head_v,
            block_table + sequence.to(tl.int64) * stride_seq_t,
        ),
        strides,
        (first_key, end_key),
        (BLOCK_N, BLOCK_SIZE, HEAD_DIM, VALUES),
        WINDOW != 0,
        (CAUSAL, WINDOW, SOFTCAP, ALIBI, query_mask is not None),
        scales,
        SCALES,
        step,
    )
    if SINKS:
        sink = tl.load(sinks + head, mask=valid, other=0.0) * 1.4426950408889634
        acc, denominator, maximum = add_sink(acc, denominator, maximum, sink)
    result, row_lse = finish(acc, denominator, maximum, value_scale)
    value_dim = tl.arange(0, acc.shape[1])
    result_at = out + (token * stride_token_o + head * stride_head_o)[:, None] + value_dim[None, :]
    written = valid[:, None] & (value_dim < VALUES)[None, :]
    tl.store(result_at, result.to(out.dtype.element_ty), mask=written)
    if WITH_LSE:
        lse_at = lse + token * stride_token_l + head * stride_head_l
        tl.store(lse_at, row_lse * 0.6931471805599453, mask=valid)
