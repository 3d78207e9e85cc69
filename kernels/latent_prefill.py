"""Latent prefill, chunked prefill and mixed batches: several query tokens over latent records.

Rows of a tile are (token, query head) pairs, heads fastest, of one sequence: as many tokens as fit,
or a part of one token's heads. What a row sees is where its keys begin and end, and for a tree of
tokens a mask besides, so that causal, windowed and local attention are one.
"""

import triton
import triton.language as tl

from kernels.latent import latent_sweep
from kernels.sweep import add_sink, finish


@triton.jit
def latent_prefill_kernel(
    query,
    cache,
    block_table,
    indices,
    seq_lens,
    query_start_loc,
    query_mask,
    causal_of,
    out,
    lse,
    slopes,
    sinks,
    factors,
    num_seqs,
    num_heads,
    token_rows,
    topk,
    query_strides,
    cache_strides,
    stride_seq_t,
    stride_token_i,
    stride_token_m,
    answer_strides,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    widths: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    WITH_LSE: tl.constexpr,
    CHOSEN: tl.constexpr,
    HALF: tl.constexpr,
    encoded=None,
    RUNS: tl.constexpr = 0,
):
    """Program (tile of rows); a token has `token_rows`, of which the first `num_heads` are heads.

    Tiles are numbered as in `kernels.prefill`, without knowing the lengths on the host. With CHOSEN
    a tile is of one token, whose rows fill whole tiles. `query_mask` [num_tokens, tokens of a step]
    and `causal_of` [num_seqs], which may be None, are those of the contract; other parameters are
    as in `latent_decode_kernel`.
    """
    LATENT: tl.constexpr = widths[0]
    BLOCK_D: tl.constexpr = widths[1]
    MASKED: tl.constexpr = query_mask is not None
    tile = tl.program_id(0)
    candidate = tl.arange(0, BLOCK_SEQS)
    starts = tl.load(query_start_loc + candidate, mask=candidate < num_seqs, other=0)
    mine = (candidate < num_seqs) & (starts * token_rows // BLOCK_H + candidate <= tile)
    sequence = tl.sum(mine.to(tl.int32), 0) - 1
    first_token = tl.load(query_start_loc + sequence)
    query_len = tl.load(query_start_loc + sequence + 1) - first_token
    first_row = (tile - (first_token * token_rows // BLOCK_H + sequence)) * BLOCK_H
    if first_row >= query_len * token_rows:
        return

    seq_len = tl.load(seq_lens + sequence)
    row = first_row + tl.arange(0, BLOCK_H)
    in_sequence = row // token_rows
    head = row % token_rows
    real = (in_sequence < query_len) & (head < num_heads)
    first_query = seq_len - query_len
    query_at = first_query + in_sequence
    first_at = first_query + first_row // token_rows
    last_at = first_query + tl.minimum((first_row + BLOCK_H - 1) // token_rows, query_len - 1)

    row_from = query_at * 0
    row_until = row_from + seq_len
    first_key = 0
    end_key = seq_len
    if CHOSEN:
        end_key = topk
    elif CAUSAL:
        row_until = query_at + 1
        end_key = last_at + 1
        if causal_of is not None:
            causal = tl.load(causal_of + sequence)
            row_until = tl.where(causal, row_until, seq_len)
            end_key = tl.where(causal, end_key, seq_len)
    if WINDOW > 0:
        row_from = query_at - WINDOW + 1
        first_key = tl.maximum(first_at - WINDOW + 1, 0)
    if CHUNK > 0:
        row_from = query_at // CHUNK * CHUNK
        first_key = first_at // CHUNK * CHUNK

    token = (first_token + in_sequence).to(tl.int64)
    rows_at = query + (token * query_strides[0] + head * query_strides[1])[:, None]
    slope = tl.zeros([BLOCK_H], dtype=tl.float32)
    if ALIBI:
        slope = tl.load(slopes + head, mask=real, other=0.0) * 1.4426950408889634
    only = (first_token + first_row // token_rows).to(tl.int64)
    acc, denominator, maximum, value_scale = latent_sweep(
        rows_at,
        real,
        slope,
        first_at if CHOSEN else query_at,
        (row_from, row_until, query_mask + token * stride_token_m if MASKED else None, first_query),
        factors,
        (first_key // BLOCK_N, tl.cdiv(end_key, BLOCK_N)),
        (first_key, end_key),
        cache,
        block_table + sequence.to(tl.int64) * stride_seq_t,
        indices + only * stride_token_i if CHOSEN else None,
        cache_strides,
        encoded,
        (BLOCK_N, BLOCK_SIZE),
        widths,
        (not CHOSEN, MASKED, WINDOW > 0 or CHUNK > 0, SOFTCAP, ALIBI, CHOSEN, HALF, RUNS),
    )
    if SINKS:
        sink = tl.load(sinks + head, mask=real, other=0.0) * 1.4426950408889634
        acc, denominator, maximum = add_sink(acc, denominator, maximum, sink)
    result, row_lse = finish(acc, denominator, maximum, value_scale)
    stride_token_o, stride_head_o, stride_token_l, stride_head_l = answer_strides
    dim = tl.arange(0, BLOCK_D)
    result_at = out + (token * stride_token_o + head * stride_head_o)[:, None] + dim[None, :]
    inner = real[:, None] & (dim < LATENT)[None, :]
    tl.store(result_at, result.to(out.dtype.element_ty), mask=inner)
    if WITH_LSE:
        lse_at = lse + token * stride_token_l + head * stride_head_l
        tl.store(lse_at, row_lse * 0.6931471805599453, mask=real)
