"""Latent decode, and the loop that it shares with prefill, over records: key and value at once.

A tile of records is loaded once: its first elements are multiplied by the query for the logits and
by the weights for the output, and the rotary part counts for the logits alone. Rows of a tile are
query heads, in prefill of several tokens; all read the same records. One loop over masked tiles: to
peel the last one, as `kernels.sweep` does, costs registers that a tile so wide does not leave.

With HALF a float8 cache under bfloat16 queries is multiplied in float16, as in `kernels.sweep`.
Where runs of a record's elements have scales of their own, elements are taken in units of the
record's largest scale, which goes into the logits and, in units of the largest one so far, into the
weights. That loses what is below 2^-30 of the record's largest element, and of weights 2^-40; a
scale that is no power of two is rounded to the 11 bits of a float16.
"""

import triton
import triton.language as tl

from kernels.decode import key_tiles, share_out
from kernels.sweep import WEIGHT_SCALE, add_sink, as_half, finish

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""Of float32. A maximum that starts here, and not at -inf, leaves no NaN where nothing is seen."""


@triton.jit
def places(
    position,
    inside,
    start,
    table_row,
    strides,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHOSEN: tl.constexpr,
):
    """Where the records at positions lie in the cache, [BLOCK_N] elements from its first."""
    stride_block, stride_slot = strides
    if not CHOSEN and BLOCK_SIZE % BLOCK_N == 0:
        block = tl.load(table_row + start // BLOCK_SIZE).to(tl.int64)
        return block * stride_block + (start % BLOCK_SIZE + tl.arange(0, BLOCK_N)) * stride_slot
    block = tl.load(table_row + position // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
    # Rounded down, a position of -1 would have an offset before the block.
    return block * stride_block + (position % BLOCK_SIZE) * stride_slot


@triton.jit
def scaled_runs(codes, scales, room, dtype: tl.constexpr):
    """Codes [BLOCK_N, BLOCK_D] of runs that have `scales` [BLOCK_N, RUNS], in units of one for each
    record, and those units, [BLOCK_N] float32.

    `room` times a float8 number is one of float16. It is a factor by itself, and no constant, lest
    the compiler exchange bytes between threads and convert them behind that, twice as many.
    """
    RUNS: tl.constexpr = scales.shape[1]
    largest = tl.maximum(tl.max(scales, 1), 1e-30)
    shares = (scales * (1.0 / largest)[:, None]).to(dtype)
    wide = codes.to(dtype) * tl.cast(room, dtype)
    runs = tl.reshape(wide, [codes.shape[0], RUNS, codes.shape[1] // RUNS])
    return tl.reshape(runs * shares[:, :, None], codes.shape), largest * (1.0 / room)


@triton.jit
def latent_sweep(
    rows_at,
    real,
    slope,
    query_at,
    seen,
    factors,
    tiles,
    keys,
    cache,
    table_row,
    chosen_at,
    cache_strides,
    encoded,
    sizes,
    widths: tl.constexpr,
    variant,
):
    """Attend to the tiles begin <= t < end of the keys first_key <= n < end_key.

    `rows_at` [BLOCK_H, 1] are pointers to the queries that are `real`, `query_at` their positions,
    or one for all. `tiles` are (begin, end) and `keys` (first_key, end_key); with CHOSEN keys are
    places in the list at `chosen_at`. `seen` is, with BY_ROW, what is seen by each row: from which
    key until which, and with MASKED a pointer to its mask of the step's tokens, and the position of
    the first of those. `factors`, `cache_strides`, `encoded` and `widths` are those of
    `latent_decode_kernel`; `sizes` (BLOCK_N, BLOCK_SIZE) and `variant` (BY_ROW, MASKED, WINDOW,
    SOFTCAP, ALIBI, CHOSEN, HALF, RUNS) are constants.

    Returns acc [BLOCK_H, BLOCK_D], denominator and maximum [BLOCK_H], and the factor of values.
    """
    BLOCK_N: tl.constexpr = sizes[0]
    BLOCK_SIZE: tl.constexpr = sizes[1]
    LATENT: tl.constexpr = widths[0]
    BLOCK_D: tl.constexpr = widths[1]
    ROPE: tl.constexpr = widths[2]
    BLOCK_R: tl.constexpr = widths[3]
    BY_ROW: tl.constexpr = variant[0]
    MASKED: tl.constexpr = variant[1]
    WINDOW: tl.constexpr = variant[2]
    SOFTCAP: tl.constexpr = variant[3]
    ALIBI: tl.constexpr = variant[4]
    CHOSEN: tl.constexpr = variant[5]
    HALF: tl.constexpr = variant[6]
    RUNS: tl.constexpr = variant[7]
    BLOCK_H: tl.constexpr = rows_at.shape[0]
    logit_factor, cap_factor, value_scale = factors
    begin, end = tiles
    first_key, end_key = keys
    dim = tl.arange(0, BLOCK_D)
    turned = tl.arange(0, BLOCK_R)
    inner = real[:, None] & (dim < LATENT)[None, :]
    rows = tl.load(rows_at + dim[None, :], mask=inner, other=0.0)
    if ROPE > 0:
        rope_real = (turned < ROPE)[None, :]
        rope_rows = tl.load(
            rows_at + LATENT + turned[None, :], mask=real[:, None] & rope_real, other=0.0
        )
    if HALF:
        rows, undo = as_half(rows)
    acc = tl.zeros([BLOCK_H, BLOCK_D], dtype=tl.float32)
    denominators = tl.zeros([BLOCK_H, BLOCK_N], dtype=tl.float32)
    maximum = tl.full([BLOCK_H], LOWEST, dtype=tl.float32)
    value_unit = 1e-30
    for tile in range(begin, end):
        start = tile * BLOCK_N
        lane = tl.arange(0, BLOCK_N)
        position = start + lane
        # Lanes that are kept in registers save instructions, where nothing else needs those: bounds
        # of rows, or a second program.
        SHORT: tl.constexpr = BLOCK_H == 16 and cache.dtype.element_ty.primitive_bitwidth == 16
        if RUNS == 0 and (BY_ROW or SHORT):
            inside = position < end_key
        else:
            inside = lane < end_key - start
        if WINDOW and not CHOSEN:
            inside = inside & (position >= first_key)
        if CHOSEN:
            position = tl.load(chosen_at + position, mask=inside, other=-1)
            inside = position >= 0
        place = places(
            position, inside, start, table_row, cache_strides, BLOCK_N, BLOCK_SIZE, CHOSEN
        )
        at = cache + place[:, None]
        if LATENT == BLOCK_D:
            records = tl.load(at + dim[None, :], mask=inside[:, None], other=0.0)
        else:
            held = inside[:, None] & (dim < LATENT)[None, :]
            records = tl.load(at + dim[None, :], mask=held, other=0.0)
        if RUNS > 0:
            run = tl.arange(0, RUNS)
            scaled = inside[:, None] & (run * (BLOCK_D // RUNS) < LATENT)[None, :]
            scales_at = encoded[0] + (place >> 2)[:, None] + run[None, :]
            scales = tl.load(scales_at, mask=scaled, other=0.0)
            records, unit = scaled_runs(records, scales, encoded[2], rows.dtype)
        records = records.to(rows.dtype)
        logits = tl.dot(rows, tl.trans(records), input_precision="ieee")
        if HALF:
            logits *= undo[:, None]
        if RUNS > 0:
            logits *= unit[None, :]
        if ROPE > 0:
            held = inside[:, None] & rope_real
            if RUNS > 0:
                rope_at = encoded[1] + (place >> 1)[:, None]
            else:
                rope_at = at + LATENT
            rope = tl.load(rope_at + turned[None, :], mask=held, other=0.0).to(rope_rows.dtype)
            logits = tl.dot(rope_rows, tl.trans(rope), logits, input_precision="ieee")
        logits *= logit_factor
        if SOFTCAP:
            logits = cap_factor - 2.0 * cap_factor / (1.0 + tl.exp2(logits))
        if ALIBI:
            if BY_ROW:
                distance = tl.abs(query_at[:, None] - position[None, :])
            else:
                distance = tl.abs(query_at - position)[None, :]
            logits -= slope[:, None] * distance.to(tl.float32)
        if BY_ROW:
            row_from, row_until, masks_at, first_query = seen
            sees = (position[None, :] >= row_from[:, None]) & inside[None, :]
            sees = sees & (position[None, :] < row_until[:, None])
            if MASKED:
                of_step = position - first_query
                asked = real[:, None] & ((of_step >= 0) & inside)[None, :]
                at_mask = masks_at[:, None] + of_step[None, :]
                sees = sees & tl.load(at_mask, mask=asked, other=1).to(tl.int1)
            logits = tl.where(sees, logits, float("-inf"))
        else:
            logits += tl.where(inside, 0.0, float("-inf"))[None, :]
        new_maximum = tl.maximum(maximum, tl.max(logits, 1))
        weights = tl.exp2(logits - new_maximum[:, None])
        rescale = tl.exp2(maximum - new_maximum)
        denominators = denominators * rescale[:, None] + weights
        maximum = new_maximum
        if RUNS > 0:
            new_unit = tl.maximum(value_unit, tl.max(unit, 0))
            weights *= (unit * (1.0 / new_unit))[None, :]
            rescale *= value_unit / new_unit
            value_unit = new_unit
        if rows.dtype == tl.float16:
            weights *= WEIGHT_SCALE
        acc = acc * rescale[:, None]
        acc = tl.dot(weights.to(rows.dtype), records, acc, input_precision="ieee")
    if rows.dtype == tl.float16:
        acc *= 1.0 / WEIGHT_SCALE
    denominator = tl.sum(denominators, 1)
    if RUNS > 0:
        value_scale *= value_unit
    return acc, denominator, maximum, value_scale


@triton.jit
def latent_decode_kernel(
    query,
    cache,
    block_table,
    indices,
    seq_lens,
    query_start_loc,
    out,
    lse,
    partial_out,
    partial_lse,
    plan,
    slopes,
    sinks,
    factors,
    splits,
    num_heads,
    topk,
    query_strides,
    cache_strides,
    stride_seq_t,
    stride_token_i,
    answer_strides,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    widths: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    WITH_LSE: tl.constexpr,
    CHOSEN: tl.constexpr,
    SPLIT: tl.constexpr,
    SHARED: tl.constexpr,
    HALF: tl.constexpr,
    encoded=None,
    RUNS: tl.constexpr = 0,
):
    """Program (item, tile of heads); items and splits are those of `kernels.decode`.

    With CHOSEN the keys are those that `indices` [num_tokens, 1, topk] name, and splits are of
    those. `factors` are those of the logits, of the soft-cap and of the values; `splits`
    (num_seqs, parts, least_tiles, most_splits); strides of the query and of the cache are those of
    the first two dimensions, `answer_strides` those of `out` and then of `lse`. `widths`
    (LATENT, BLOCK_D, ROPE, BLOCK_R) are constants: elements of a value and of the rotary part, and
    the powers of two that hold them. With RUNS a record is codes, of which so many runs in BLOCK_D
    have scales of their own, and `encoded` are pointers to the scales and to the rotary part of the
    first record, and the room of `scaled_runs`. Strides are then those of the codes, in bytes.
    """
    LATENT: tl.constexpr = widths[0]
    BLOCK_D: tl.constexpr = widths[1]
    num_seqs, parts, least_tiles, most_splits = splits
    stride_token_q, stride_head_q = query_strides
    stride_token_o, stride_head_o, stride_token_l, stride_head_l = answer_strides
    item = tl.program_id(0)
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

    seq_len = tl.load(seq_lens + sequence)
    if CHOSEN:
        end_key = topk
        first_key, first_tile, end_tile = key_tiles(end_key, BLOCK_N, 0)
    else:
        end_key = seq_len
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

    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    real = head < num_heads
    dim = tl.arange(0, BLOCK_D)
    token = first_token.to(tl.int64)
    inner = real[:, None] & (dim < LATENT)[None, :]
    slope = tl.zeros([BLOCK_H], dtype=tl.float32)
    if ALIBI:
        slope = tl.load(slopes + head, mask=real, other=0.0) * 1.4426950408889634
    acc, denominator, maximum, value_scale = latent_sweep(
        query + token * stride_token_q + head[:, None] * stride_head_q,
        real,
        slope,
        seq_len - 1,
        None,
        factors,
        (begin, end),
        (first_key, end_key),
        cache,
        block_table + sequence.to(tl.int64) * stride_seq_t,
        indices + token * stride_token_i if CHOSEN else None,
        cache_strides,
        encoded,
        (BLOCK_N, BLOCK_SIZE),
        widths,
        (False, False, WINDOW > 0, SOFTCAP, ALIBI, CHOSEN, HALF, RUNS),
    )

    if SPLIT:
        num_splits = tl.maximum(tl.cdiv(end_tile - first_tile, split_tiles), 1)
        if (split == 0) & (tl.program_id(1) == 0):
            tl.store(plan + 2 * sequence, item)
            tl.store(plan + 2 * sequence + 1, num_splits)
        if num_splits > 1:
            part, part_lse = finish(acc, denominator, maximum, value_scale)
            row = item.to(tl.int64) * num_heads + head
            tl.store(partial_out + row[:, None] * LATENT + dim[None, :], part, mask=inner)
            tl.store(partial_lse + row, part_lse, mask=real)
            return
    if SINKS:
        sink = tl.load(sinks + head, mask=real, other=0.0) * 1.4426950408889634
        acc, denominator, maximum = add_sink(acc, denominator, maximum, sink)
    result, row_lse = finish(acc, denominator, maximum, value_scale)
    result_at = out + token * stride_token_o + head[:, None] * stride_head_o + dim[None, :]
    tl.store(result_at, result.to(out.dtype.element_ty), mask=inner)
    if WITH_LSE:
        lse_at = lse + token * stride_token_l + head * stride_head_l
        tl.store(lse_at, row_lse * 0.6931471805599453, mask=real)
