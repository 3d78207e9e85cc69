"""Decode: one query token a sequence, its KV range cut into splits, a program for each."""

import triton
import triton.language as tl

from kernels.sweep import add_sink, chunk_start, factors_of_head, finish, scales_of_head, sweep


@triton.jit
def key_tiles(seq_len, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr):
    """First key that the last token sees; first tile that holds such keys, and the tile behind."""
    first_key = seq_len * 0
    if WINDOW > 0:
        first_key = tl.maximum(seq_len - WINDOW, 0)
    if WINDOW < 0:
        first_key = chunk_start(seq_len - 1, WINDOW)
    return first_key, first_key // BLOCK_N, (seq_len + BLOCK_N - 1) // BLOCK_N


@triton.jit
def share_out(
    item,
    seq_lens,
    query_start_loc,
    num_seqs,
    parts,
    least_tiles,
    most_splits,
    BLOCK_N: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """The sequence and split of an item where all sequences have splits of one size.

    Splits are as long as cuts all tiles of the batch into `parts`, but no shorter than
    `least_tiles`, and so long that no sequence has more than `most_splits`. Each sequence has
    one at least, so there are no more than `parts` and one for each sequence.

    Every program works this out for itself from the lengths, which are few and are in the L2 cache:
    the host need not know them, and a captured graph fits whatever they are when it is replayed.

    Returns
    -------
    The sequence, `num_seqs` or more if there is no such item; which of its splits this is; tiles of
    a split.
    """
    candidate = tl.arange(0, BLOCK_SEQS)
    here = candidate < num_seqs
    start = tl.load(query_start_loc + candidate, mask=here, other=0)
    asks = tl.load(query_start_loc + candidate + 1, mask=here, other=0) - start == 1
    _, first_tile, end_tile = key_tiles(
        tl.load(seq_lens + candidate, mask=asks, other=0), BLOCK_N, WINDOW
    )
    tiles = end_tile - first_tile
    split_tiles = tl.maximum(tl.cdiv(tl.sum(tiles, 0), parts), least_tiles)
    split_tiles = tl.maximum(tl.cdiv(tl.max(tiles, 0), most_splits), split_tiles)
    items = tl.where(asks, tl.maximum(tl.cdiv(tiles, split_tiles), 1), 0)
    end_item = tl.cumsum(items, 0)
    sequence = tl.sum((end_item <= item).to(tl.int32), 0)
    first_item = tl.sum(tl.where(candidate == sequence, end_item - items, 0), 0)
    return sequence, item - first_item, split_tiles


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
    partial_out,
    partial_lse,
    plan,
    slopes,
    sinks,
    num_seqs,
    parts,
    least_tiles,
    most_splits,
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
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    WITH_LSE: tl.constexpr,
    SPLIT: tl.constexpr,
    SHARED: tl.constexpr,
    scales=None,
    SCALES: tl.constexpr = 0,
    VALUE_DIM: tl.constexpr = None,
):
    """Program (item, KV head); an item is a split, and rows are the query heads of the group.

    Sequences with a query of another length than 1 are none of this kernel's.

    Without SPLIT there is an item for each sequence. With SPLIT and SHARED items are dealt out by
    `share_out`; with SPLIT alone each sequence is cut by itself, into `parts` splits at most and of
    `least_tiles` at least, and has `most_splits` items, of which the last ones may be idle.

    The only split of a sequence writes `out` and `lse`. The others write float32 partial results
    that `merge_kernel` joins: see there. Values have HEAD_DIM elements if VALUE_DIM is None.
    """
    VALUES: tl.constexpr = HEAD_DIM if VALUE_DIM is None else VALUE_DIM
    item = tl.program_id(0)
    kv_head = tl.program_id(1)
    if SHARED:
        sequence, split, split_tiles = share_out(
            item,
            seq_lens,
            query_start_loc,
            num_seqs,
            parts,
            least_tiles,
            most_splits,
            BLOCK_N,
            BLOCK_SEQS,
            WINDOW,
        )
        if sequence >= num_seqs:
            return
    else:
        sequence = item // most_splits
        split = item % most_splits
    first_token = tl.load(query_start_loc + sequence)
    if tl.load(query_start_loc + sequence + 1) - first_token != 1:
        return

    end_key = tl.load(seq_lens + sequence)
    first_key, first_tile, end_tile = key_tiles(end_key, BLOCK_N, WINDOW)
    begin = first_tile
    end = end_tile
    if SPLIT:
        if not SHARED:
            split_tiles = tl.maximum(tl.cdiv(end_tile - first_tile, parts), least_tiles)
        begin = first_tile + split * split_tiles
        end = tl.minimum(begin + split_tiles, end_tile)
        if (split > 0) & (begin >= end_tile):
            return

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
    strides = (stride_block_k, stride_slot_k, stride_block_v, stride_slot_v)
    acc, denominator, maximum = sweep(
        (rows, tl.zeros([BLOCK_M], dtype=tl.int32) + (end_key - 1), slope),
        (logit_factor, cap_factor),
        begin,
        end,
        first_key,
        end_key,
        (
            key_cache + kv_head * stride_head_k,
            value_cache + kv_head * stride_head_v,
            block_table + sequence.to(tl.int64) * stride_seq_t,
        ),
        strides,
        (first_key, end_key),
        (BLOCK_N, BLOCK_SIZE, HEAD_DIM, VALUES),
        WINDOW != 0,
        # The only query is the last token: it sees every key before end_key, and first_key is its
        # window's.
        (False, 0, SOFTCAP, ALIBI, False),
        scales,
        SCALES,
    )
    value_dim = tl.arange(0, acc.shape[1])
    written = (row < GROUP)[:, None] & (value_dim < VALUES)[None, :]
    if SPLIT:
        num_splits = tl.maximum(tl.cdiv(end_tile - first_tile, split_tiles), 1)
        if (split == 0) & (kv_head == 0):
            tl.store(plan + 2 * sequence, item)
            tl.store(plan + 2 * sequence + 1, num_splits)
        if num_splits > 1:
            part, part_lse = finish(acc, denominator, maximum, value_scale)
            at = item.to(tl.int64) * (tl.num_programs(1) * GROUP) + head
            tl.store(partial_out + at[:, None] * VALUES + value_dim[None, :], part, mask=written)
            tl.store(partial_lse + at, part_lse, mask=row < GROUP)
            return
    if SINKS:
        sink = tl.load(sinks + head, mask=row < GROUP, other=0.0) * 1.4426950408889634
        acc, denominator, maximum = add_sink(acc, denominator, maximum, sink)
    result, row_lse = finish(acc, denominator, maximum, value_scale)
    result_at = out + token * stride_token_o + head[:, None] * stride_head_o + value_dim[None, :]
    tl.store(result_at, result.to(out.dtype.element_ty), mask=written)
    if WITH_LSE:
        lse_at = lse + token * stride_token_l + head * stride_head_l
        tl.store(lse_at, row_lse * 0.6931471805599453, mask=row < GROUP)
