"""The inner loop of decode and prefill: online softmax over tiles of a paged KV range.

Rows of a tile of queries are (token, query head) pairs of one KV head, so that a group of query
heads reads each key once. A tile of keys has its own size, whatever the block size; where a block
holds whole tiles, one table entry and one pointer serve a tile (the fast path).

Logits are kept in units of log 2: `exp2` is the hardware's, and the factor log2(e) is folded into
the softmax scale on the host.

Both products are taken in the query's dtype, but for a float8 cache under bfloat16 queries: those
are taken in float16. Every float8 number is one of float16 as well, and the hardware converts two
at once, while to bfloat16 it goes one by one through float32. `as_half` brings the queries over.
"""

import triton
import triton.language as tl

WEIGHT_SCALE = tl.constexpr(32768.0)
"""Softmax weights are multiplied by 2^15 before they become float16. The largest is 1, and one of
2^-25 would be rounded to zero, of which a long context may hold enough to be seen; so is 2^-40."""


@triton.jit
def as_half(query):
    """Rows in float16, and the factors [BLOCK_M] that undo their scaling.

    A row is multiplied by the power of two that brings its largest element to 2^14 or above, below
    2^15. The 8 bits of a bfloat16 fit into the 11 of a float16 down to 2^-17; what is smaller
    than that is rounded by 2^-39 of the row's largest element at most, far below the round-off of
    the float32 sum that it goes into. Infinity and NaN stay what they are.
    """
    largest = tl.max(tl.abs(query.to(tl.float32)), 1)
    # The exponent field of a float32; a row of zeros counts as a tiny one.
    exponent = tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 15)
    scale = ((127 + 14 + 127 - exponent) << 23).to(tl.float32, bitcast=True)
    undo = ((exponent - 14) << 23).to(tl.float32, bitcast=True)
    return (query.to(tl.float32) * scale[:, None]).to(tl.float16), undo


@triton.jit
def widen(values, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Float8 values [BLOCK_N, BLOCK_D] in float16, the same numbers.

    In halves, because the compiler would move the conversion of a whole tile behind the exchange
    of data between threads: it then fetches the bytes one by one, 8 at once from the cache, and
    needs half as many registers again.
    """
    halves = tl.permute(tl.reshape(values, [2, BLOCK_N // 2, BLOCK_D]), (1, 2, 0))
    first, second = tl.split(halves)
    wide = tl.join(first.to(tl.float16), second.to(tl.float16))
    return tl.reshape(tl.permute(wide, (2, 0, 1)), [BLOCK_N, BLOCK_D])


@triton.jit
def load_keys_and_values(
    key_cache,
    value_cache,
    table_row,
    start,
    first_key,
    end_key,
    stride_block_k,
    stride_slot_k,
    stride_block_v,
    stride_slot_v,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Keys as [BLOCK_D, BLOCK_N] and values as [BLOCK_N, BLOCK_V] of the tokens from `start`.

    `key_cache` and `value_cache` point at the KV head. MASKED tiles read first_key <= n < end_key
    only and are zero elsewhere: what lies there may be NaN, which a weight of zero keeps.
    """
    lane = tl.arange(0, BLOCK_N)
    dim = tl.arange(0, BLOCK_D)
    value_dim = tl.arange(0, BLOCK_V)
    token = start + lane
    inside = (token >= first_key) & (token < end_key)
    if BLOCK_SIZE % BLOCK_N == 0:
        block = tl.load(table_row + start // BLOCK_SIZE).to(tl.int64)
        key_cache += block * stride_block_k
        value_cache += block * stride_block_v
        offset = start % BLOCK_SIZE + lane
        key_at = offset * stride_slot_k
        value_at = offset * stride_slot_v
    else:
        if MASKED:
            block = tl.load(table_row + token // BLOCK_SIZE, mask=inside, other=0)
        else:
            block = tl.load(table_row + token // BLOCK_SIZE)
        # A cache of more than 2^31 elements: the product must be 64 bits wide.
        block = block.to(tl.int64)
        offset = token % BLOCK_SIZE
        key_at = block * stride_block_k + offset * stride_slot_k
        value_at = block * stride_block_v + offset * stride_slot_v
    keys_at = key_cache + key_at[None, :] + dim[:, None]
    values_at = value_cache + value_at[:, None] + value_dim[None, :]
    key_mask = dim[:, None] < HEAD_DIM
    value_mask = value_dim[None, :] < VALUE_DIM
    if MASKED:
        key_mask = inside[None, :] if HEAD_DIM == BLOCK_D else inside[None, :] & key_mask
        value_mask = inside[:, None] if VALUE_DIM == BLOCK_V else inside[:, None] & value_mask
    if MASKED or HEAD_DIM != BLOCK_D:
        keys = tl.load(keys_at, mask=key_mask, other=0.0)
    else:
        keys = tl.load(keys_at)
    if MASKED or VALUE_DIM != BLOCK_V:
        values = tl.load(values_at, mask=value_mask, other=0.0)
    else:
        values = tl.load(values_at)
    return keys, values


@triton.jit
def load_scales(
    scales,
    table_row,
    start,
    first_key,
    end_key,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Scales of the keys and of the values from `start`, [BLOCK_N] float32; zero outside.

    `scales` are pointers to those of the KV head, and strides of a block and of a slot.
    """
    key_scales, value_scales, stride_block_k, stride_slot_k, stride_block_v, stride_slot_v = scales
    token = start + tl.arange(0, BLOCK_N)
    real = (token >= first_key) & (token < end_key)
    block = tl.load(table_row + token // BLOCK_SIZE, mask=real, other=0).to(tl.int64)
    offset = token % BLOCK_SIZE
    keys_at = key_scales + block * stride_block_k + offset * stride_slot_k
    values_at = value_scales + block * stride_block_v + offset * stride_slot_v
    return tl.load(keys_at, mask=real, other=0.0), tl.load(values_at, mask=real, other=0.0)


@triton.jit
def unpacked(pairs, scale, KEYS: tl.constexpr):
    """Two codes of a byte, the low one first, less the zero point that the scale hides; the scale.

    Keys are [BLOCK_D / 2, BLOCK_N], values [BLOCK_N, BLOCK_D / 2].
    """
    bits = scale.to(tl.int32, bitcast=True)
    zero = (bits & 15).to(tl.int8)
    both = tl.join((pairs & 15).to(tl.int8), (pairs >> 4).to(tl.int8))
    if KEYS:
        both = tl.permute(both, (0, 2, 1))
        codes = tl.reshape(both, [2 * pairs.shape[0], pairs.shape[1]]) - zero[None, :]
    else:
        codes = tl.reshape(both, [pairs.shape[0], 2 * pairs.shape[1]]) - zero[:, None]
    return codes, (bits & -16).to(tl.float32, bitcast=True)


@triton.jit
def chunk_start(position, WINDOW: tl.constexpr):
    """First key of the chunk of -WINDOW keys that a position lies in."""
    return tl.maximum(position, 0) // -WINDOW * -WINDOW


@triton.jit
def seen_of_step(token, step):
    """Which keys the rows see as the query mask says: of the tokens before the step all.

    `step` has where the mask of each row begins, which rows there are, and the first position and
    the tokens of the step.
    """
    mask_at, valid, before, query_len = step
    column = token - before
    of_step = (column >= 0) & (column < query_len)
    real = valid[:, None] & of_step[None, :]
    sees = tl.load(mask_at[:, None] + column[None, :], mask=real, other=0) != 0
    return sees | (column < 0)[None, :]


@triton.jit
def attend_tile(
    state,
    rows,
    factors,
    start,
    span,
    places,
    strides,
    sizes,
    MASKED: tl.constexpr,
    variant,
    scales,
    SCALES: tl.constexpr,
    step,
):
    """Fold one tile of keys into the running softmax of every row.

    `state` is what it returns, `span` are `first_key` and `end_key`, `places` where the KV head's
    keys and values and the table's row lie. The rest is as `sweep` has it.
    """
    acc, denominator, maximum = state
    query, query_at, slope = rows
    logit_factor, cap_factor = factors
    first_key, end_key = span
    key_cache, value_cache, table_row = places
    stride_block_k, stride_slot_k, stride_block_v, stride_slot_v = strides
    BLOCK_N: tl.constexpr = sizes[0]
    BLOCK_SIZE: tl.constexpr = sizes[1]
    HEAD_DIM: tl.constexpr = sizes[2]
    VALUE_DIM: tl.constexpr = sizes[3]
    BLOCK_D: tl.constexpr = query.shape[1]
    BLOCK_V: tl.constexpr = acc.shape[1]
    CAUSAL: tl.constexpr = variant[0]
    WINDOW: tl.constexpr = variant[1]
    SOFTCAP: tl.constexpr = variant[2]
    ALIBI: tl.constexpr = variant[3]
    STEP: tl.constexpr = variant[4]
    PACKED: tl.constexpr = 2 if SCALES == 3 else 1
    keys, values = load_keys_and_values(
        key_cache,
        value_cache,
        table_row,
        start,
        first_key,
        end_key,
        stride_block_k,
        stride_slot_k,
        stride_block_v,
        stride_slot_v,
        BLOCK_N,
        BLOCK_SIZE,
        HEAD_DIM // PACKED,
        BLOCK_D // PACKED,
        VALUE_DIM // PACKED,
        BLOCK_V // PACKED,
        MASKED,
    )
    if SCALES > 1:
        key_scale, value_scale = load_scales(
            scales, table_row, start, first_key, end_key, BLOCK_N, BLOCK_SIZE
        )
        if SCALES == 3:
            keys, key_scale = unpacked(keys, key_scale, True)
            values, value_scale = unpacked(values, value_scale, False)
    # float32 in the tensor cores would be tf32, with 10 bits of mantissa.
    logits = tl.dot(query, keys.to(query.dtype), input_precision="ieee") * logit_factor
    if SCALES > 1:
        logits *= key_scale[None, :]
    if SOFTCAP:
        # logits are 2 log2(e) x here: cap tanh(x) = cap - 2 cap / (1 + exp2(2 log2(e) x)).
        logits = cap_factor - 2.0 * cap_factor / (1.0 + tl.exp2(logits))
    token = start + tl.arange(0, BLOCK_N)
    if ALIBI:
        distance = tl.abs(query_at[:, None] - token[None, :])
        logits -= slope[:, None] * distance.to(tl.float32)
    if MASKED:
        seen = (token >= first_key)[None, :] & (token < end_key)[None, :]
        if CAUSAL:
            seen = seen & (token[None, :] <= query_at[:, None])
        if WINDOW > 0:
            seen = seen & (token[None, :] > query_at[:, None] - WINDOW)
        if WINDOW < 0:
            seen = seen & (token[None, :] >= chunk_start(query_at, WINDOW)[:, None])
        if STEP:
            seen = seen & seen_of_step(token, step)
        logits = tl.where(seen, logits, float("-inf"))
    new_maximum = tl.maximum(maximum, tl.max(logits, 1))
    if MASKED:
        # A row that has seen nothing yet: exp2(-inf - 0) is the zero that it needs, not NaN.
        reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    else:
        reference = new_maximum
    weights = tl.exp2(logits - reference[:, None])
    rescale = tl.exp2(maximum - reference)
    denominator = denominator * rescale + tl.sum(weights, 1)
    if query.dtype == tl.float16:
        weights *= WEIGHT_SCALE
    if SCALES > 1:
        if query.dtype == tl.float16:
            # A weight times a scale may be more than float16 holds; a value is not.
            values = (values.to(tl.float32) * value_scale[:, None]).to(tl.float16)
        else:
            weights *= value_scale[None, :]
    elif values.dtype.primitive_bitwidth == 8 and query.dtype == tl.float16:
        values = widen(values, BLOCK_N, BLOCK_V)
    acc = acc * rescale[:, None]
    acc += tl.dot(weights.to(query.dtype), values.to(query.dtype), input_precision="ieee")
    return acc, denominator, new_maximum


@triton.jit
def sweep(
    rows,
    factors,
    begin,
    end,
    all_see_from,
    all_see_until,
    places,
    strides,
    span,
    sizes,
    BOUNDED_LEFT: tl.constexpr,
    variant,
    scales=None,
    SCALES: tl.constexpr = 0,
    step=None,
):
    """Attend to the key tiles `begin` <= t < `end`.

    Every row sees every key in all_see_from <= n < all_see_until: the tiles within need no mask
    and form the main loop. Those before (only with a window) and after it are peeled.

    `rows` are the queries, their positions and their slopes; `factors` those of the logits and of
    the soft-cap; `places` where the KV head's keys and values and the table's row lie; `strides`
    those of a block and of a slot, of keys and then of values; `span` the first key of all, and
    the one behind the last. `sizes` (BLOCK_N, BLOCK_SIZE, HEAD_DIM, VALUE_DIM) and `variant`
    (CAUSAL, WINDOW, SOFTCAP, ALIBI, STEP) are constants. A negative WINDOW is a chunk of as many
    keys. With STEP `step` is as `seen_of_step` has it. `SCALES` is 2 where each token and head has
    one, 3 where two codes are a byte, and `scales` then as `load_scales` has them.

    Returns acc [BLOCK_M, BLOCK_V], the weighted sum of values; denominator and maximum [BLOCK_M],
    the latter in units of log 2.
    """
    query, query_at, slope = rows
    logit_factor, cap_factor = factors
    BLOCK_M: tl.constexpr = query.shape[0]
    BLOCK_N: tl.constexpr = sizes[0]
    BLOCK_V: tl.constexpr = triton.next_power_of_2(sizes[3])
    CAUSAL: tl.constexpr = variant[0]
    if (
        places[0].dtype.element_ty.primitive_bitwidth == 8
        and query.dtype == tl.bfloat16
        and SCALES < 2
    ):
        query, undo = as_half(query)
        logit_factor = (logit_factor * undo)[:, None]
    rows = (query, query_at, slope)
    factors = (logit_factor, cap_factor)
    acc = tl.zeros([BLOCK_M, BLOCK_V], dtype=tl.float32)
    denominator = tl.zeros([BLOCK_M], dtype=tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    main_begin = begin
    if BOUNDED_LEFT:
        main_begin = tl.minimum(tl.maximum(tl.cdiv(all_see_from, BLOCK_N), begin), end)
        for tile in range(begin, main_begin):
            acc, denominator, maximum = attend_tile(
                (acc, denominator, maximum),
                rows,
                factors,
                tile * BLOCK_N,
                span,
                places,
                strides,
                sizes,
                True,
                variant,
                scales,
                SCALES,
                step,
            )
    main_end = tl.minimum(tl.maximum(all_see_until // BLOCK_N, main_begin), end)
    for tile in range(main_begin, main_end):
        acc, denominator, maximum = attend_tile(
            (acc, denominator, maximum),
            rows,
            factors,
            tile * BLOCK_N,
            span,
            places,
            strides,
            sizes,
            False,
            variant,
            scales,
            SCALES,
            step,
        )
    # Unless causal, at most one tile is left, and nothing to prefetch: a pipeline would only take
    # registers from the main loop. In float32 it takes fewer than it saves.
    STAGES: tl.constexpr = 1 if not CAUSAL and query.dtype != tl.float32 else None
    for tile in tl.range(main_end, end, num_stages=STAGES):
        acc, denominator, maximum = attend_tile(
            (acc, denominator, maximum),
            rows,
            factors,
            tile * BLOCK_N,
            span,
            places,
            strides,
            sizes,
            True,
            variant,
            scales,
            SCALES,
            step,
        )
    if query.dtype == tl.float16:
        acc *= 1.0 / WEIGHT_SCALE
    return acc, denominator, maximum


@triton.jit
def add_sink(acc, denominator, maximum, sink):
    """Count one more logit, in units of log 2, whose value is zero."""
    new_maximum = tl.maximum(maximum, sink)
    rescale = tl.exp2(maximum - new_maximum)
    denominator = denominator * rescale + tl.exp2(sink - new_maximum)
    return acc * rescale[:, None], denominator, new_maximum


@triton.jit
def finish(acc, denominator, maximum, value_scale):
    """Rows of the output, and their log-sum-exp in units of log 2. Rows without a key are zero."""
    empty = denominator == 0.0
    out = acc * (value_scale / tl.where(empty, 1.0, denominator))[:, None]
    lse = tl.where(empty, float("-inf"), maximum + tl.log2(tl.where(empty, 1.0, denominator)))
    return out, lse


@triton.jit
def factors_of_head(scales, kv_head, logit_factor, value_scale, SCALES: tl.constexpr):
    """Factors of logits and values; with SCALES 1 `scales` are pointers to those of each head."""
    if SCALES == 1:
        logit_factor *= tl.load(scales[0] + kv_head)
        value_scale *= tl.load(scales[1] + kv_head)
    return logit_factor, value_scale


@triton.jit
def scales_of_head(scales, kv_head):
    """Where the scales of a KV head's tokens lie, as `load_scales` has them.

    `scales` are pointers to those of keys and values, and strides of a block, a slot and a head, of
    keys and then of values. Not one function with the factors: Triton 3.6 returns no None.
    """
    return (
        scales[0] + kv_head * scales[4],
        scales[1] + kv_head * scales[7],
        scales[2],
        scales[3],
        scales[5],
        scales[6],
    )
