"""Attention of sequences that begin alike: a shared prefix once for a group, then each one's rest.

Decode reads the whole context of every sequence. Where several begin with the same blocks, as all
do that follow one system prompt, those blocks need to be read once. Three launches:

`prefix_kernel`  the queries of all members of a group, stacked as rows of one tile, over the prefix
`suffix_kernel`  the queries of each sequence over what follows its prefix
`join_kernel`    both partial results of a row, joined by their log-sum-exp

Every query lies behind its group's prefix, so all rows of the stack see all of the prefix and no
causal mask touches it. The answer is that of `kernels.attention.paged_attention` within rounding,
not to the bit: keys are summed in another order. Who shares what, and whether the cascade pays, is
`kernels.shared_prefix`'s.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.attention import (
    answer_arguments,
    check_batch,
    paged_attention,
    shared_arguments,
    tile_arguments,
)
from kernels.launch import Tiles
from kernels.shared_prefix import (
    LAUNCH_BYTES,
    CascadeLaunch,
    PrefixGroups,
    SharedPrefix,  # noqa: F401 - was documented to be found here
    cascade_bytes,
    choose_cascade,
    find_prefix_groups,
)
from kernels.sweep import finish, sweep
from reference.attention.contract import Capabilities, PagedBatch, declares

# The kernels


@triton.jit
def prefix_kernel(
    query,
    key_cache,
    value_cache,
    block_table,
    seq_lens,
    query_start_loc,
    partial_out,
    partial_lse,
    slopes,
    tokens,
    sequences,
    group_starts,
    prefix_lens,
    num_groups,
    num_parts,
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
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
):
    """Program (row tile, KV head, split of the prefix); rows are (stacked token, query head) pairs.

    Row tiles are numbered as in `prefill_kernel`: group g owns the numbers from
    `group_starts[g] // BLOCK_Q + g` on. The prefix is read through the table row of the tile's
    first member. `partial_out` [num_tokens, num_q_heads, num_parts, head_dim] and `partial_lse`
    [num_tokens, num_q_heads, num_parts] are contiguous float32, the latter in units of log 2; the
    splits of the prefix are the first parts.
    """
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    candidate = tl.arange(0, BLOCK_GROUPS)
    starts = tl.load(group_starts + candidate, mask=candidate < num_groups, other=0)
    mine = (candidate < num_groups) & (starts // BLOCK_Q + candidate <= tile)
    group = tl.sum(mine.to(tl.int32), 0) - 1
    group_start = tl.load(group_starts + group)
    group_end = tl.load(group_starts + group + 1)
    first_row = group_start + (tile - (group_start // BLOCK_Q + group)) * BLOCK_Q
    if first_row >= group_end:
        return

    leader = tl.load(sequences + first_row)
    prefix = tl.load(prefix_lens + leader)
    end_tile = tl.cdiv(prefix, BLOCK_N)
    tiles_a_split = tl.cdiv(end_tile, tl.num_programs(2))
    begin = split * tiles_a_split
    end = tl.minimum(begin + tiles_a_split, end_tile)

    row = tl.arange(0, BLOCK_M)
    dim = tl.arange(0, BLOCK_D)
    stacked = first_row + row // GROUP
    valid = (stacked < group_end) & (row < BLOCK_Q * GROUP)
    head = kv_head * GROUP + row % GROUP
    token = tl.load(tokens + stacked, mask=valid, other=0).to(tl.int64)
    real = valid[:, None] & (dim < HEAD_DIM)[None, :]
    rows_at = query + (token * stride_token_q + head * stride_head_q)[:, None] + dim[None, :]
    rows = tl.load(rows_at, mask=real, other=0.0)
    slope = tl.zeros([BLOCK_M], dtype=tl.float32)
    if ALIBI:
        slope = tl.load(slopes + head, mask=valid, other=0.0) * 1.4426950408889634
    query_at = tl.zeros([BLOCK_M], dtype=tl.int32)
    if ALIBI:
        sequence = tl.load(sequences + stacked, mask=valid, other=0)
        behind = tl.load(query_start_loc + sequence + 1, mask=valid, other=0) - token.to(tl.int32)
        query_at = tl.load(seq_lens + sequence, mask=valid, other=0) - behind
    acc, denominator, maximum = sweep(
        (rows, query_at, slope),
        (logit_factor, cap_factor),
        begin,
        end,
        0,
        prefix,
        (
            key_cache + kv_head * stride_head_k,
            value_cache + kv_head * stride_head_v,
            block_table + leader.to(tl.int64) * stride_seq_t,
        ),
        (stride_block_k, stride_slot_k, stride_block_v, stride_slot_v),
        (0, prefix),
        (BLOCK_N, BLOCK_SIZE, HEAD_DIM, HEAD_DIM),
        False,
        (False, 0, SOFTCAP, ALIBI, False),  # every query lies behind the prefix
    )
    result, row_lse = finish(acc, denominator, maximum, value_scale)
    part = (token * (tl.num_programs(1) * GROUP) + head) * num_parts + split
    tl.store(partial_out + part[:, None] * HEAD_DIM + dim[None, :], result, mask=real)
    tl.store(partial_lse + part, row_lse, mask=valid)


@triton.jit
def suffix_kernel(
    query,
    key_cache,
    value_cache,
    block_table,
    seq_lens,
    query_start_loc,
    partial_out,
    partial_lse,
    slopes,
    prefix_lens,
    num_seqs,
    num_prefix_parts,
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
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_TOKEN: tl.constexpr,
    CAUSAL: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
):
    """Program (query tile, KV head, split of the suffix); rows are (token, query head) pairs.

    With ONE_TOKEN a query tile is a sequence, else tiles are numbered as in `prefill_kernel`. The
    splits of the suffix are the last parts of the partial results. A sequence without a prefix gets
    a log-sum-exp of -inf in the parts that the prefix has for others.
    """
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    if ONE_TOKEN:
        sequence = tile
        first_token = tl.load(query_start_loc + sequence)
        first_query = 0
    else:
        candidate = tl.arange(0, BLOCK_SEQS)
        starts = tl.load(query_start_loc + candidate, mask=candidate < num_seqs, other=0)
        mine = (candidate < num_seqs) & (starts // BLOCK_Q + candidate <= tile)
        sequence = tl.sum(mine.to(tl.int32), 0) - 1
        first_token = tl.load(query_start_loc + sequence)
        first_query = (tile - (first_token // BLOCK_Q + sequence)) * BLOCK_Q
    query_len = tl.load(query_start_loc + sequence + 1) - first_token
    if first_query >= query_len:
        return

    seq_len = tl.load(seq_lens + sequence)
    prefix = tl.load(prefix_lens + sequence)
    row = tl.arange(0, BLOCK_M)
    dim = tl.arange(0, BLOCK_D)
    in_sequence = first_query + row // GROUP
    valid = (in_sequence < query_len) & (row < BLOCK_Q * GROUP)
    query_at = seq_len - query_len + in_sequence
    end_key = seq_len
    all_see_until = seq_len
    if CAUSAL:
        end_key = seq_len - query_len + tl.minimum(first_query + BLOCK_Q, query_len)
        all_see_until = seq_len - query_len + first_query + 1
    first_tile = prefix // BLOCK_N
    end_tile = tl.cdiv(end_key, BLOCK_N)
    tiles_a_split = tl.cdiv(end_tile - first_tile, tl.num_programs(2))
    begin = first_tile + split * tiles_a_split
    end = tl.minimum(begin + tiles_a_split, end_tile)

    head = kv_head * GROUP + row % GROUP
    token = (first_token + in_sequence).to(tl.int64)
    real = valid[:, None] & (dim < HEAD_DIM)[None, :]
    rows_at = query + (token * stride_token_q + head * stride_head_q)[:, None] + dim[None, :]
    rows = tl.load(rows_at, mask=real, other=0.0)
    slope = tl.zeros([BLOCK_M], dtype=tl.float32)
    if ALIBI:
        slope = tl.load(slopes + head, mask=valid, other=0.0) * 1.4426950408889634
    acc, denominator, maximum = sweep(
        (rows, query_at, slope),
        (logit_factor, cap_factor),
        begin,
        end,
        prefix,
        all_see_until,
        (
            key_cache + kv_head * stride_head_k,
            value_cache + kv_head * stride_head_v,
            block_table + sequence.to(tl.int64) * stride_seq_t,
        ),
        (stride_block_k, stride_slot_k, stride_block_v, stride_slot_v),
        (prefix, end_key),
        (BLOCK_N, BLOCK_SIZE, HEAD_DIM, HEAD_DIM),
        True,  # a prefix may end within a tile
        (CAUSAL, 0, SOFTCAP, ALIBI, False),
    )
    result, row_lse = finish(acc, denominator, maximum, value_scale)
    num_parts = num_prefix_parts + tl.num_programs(2)
    first_part = (token * (tl.num_programs(1) * GROUP) + head) * num_parts
    part = first_part + num_prefix_parts + split
    tl.store(partial_out + part[:, None] * HEAD_DIM + dim[None, :], result, mask=real)
    tl.store(partial_lse + part, row_lse, mask=valid)
    if (prefix == 0) & (split == 0):
        for absent in range(num_prefix_parts):
            nothing = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
            tl.store(partial_lse + first_part + absent, nothing, mask=valid)


@triton.jit
def join_kernel(
    partial_out,
    partial_lse,
    out,
    lse,
    sinks,
    num_parts,
    stride_token_o,
    stride_head_o,
    stride_token_l,
    stride_head_l,
    GROUP: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    SINKS: tl.constexpr,
    WITH_LSE: tl.constexpr,
):
    """Program (token, KV head): all query heads of the group.

    A part whose log-sum-exp is -inf saw no key; what it holds is not read, and need not be written.
    """
    token = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BLOCK_HEADS)
    head = tl.program_id(1) * GROUP + row
    here = row < GROUP
    dim = tl.arange(0, BLOCK_D)
    part = tl.arange(0, BLOCK_PARTS)
    first_part = (token * (tl.num_programs(1) * GROUP) + head) * num_parts
    lses = tl.load(
        partial_lse + first_part[:, None] + part[None, :],
        mask=here[:, None] & (part < num_parts)[None, :],
        other=float("-inf"),
    )
    maximum = tl.max(lses, 1)
    sink = tl.full([BLOCK_HEADS], float("-inf"), dtype=tl.float32)
    if SINKS:
        sink = tl.load(sinks + head, mask=here, other=0.0) * 1.4426950408889634
        maximum = tl.maximum(maximum, sink)
    # A row that saw nothing: exp2(-inf - 0) is the zero that it needs, not NaN.
    reference = tl.where(maximum == float("-inf"), 0.0, maximum)
    denominator = tl.sum(tl.exp2(lses - reference[:, None]), 1) + tl.exp2(sink - reference)
    empty = denominator == 0.0
    divisor = tl.where(empty, 1.0, denominator)
    real = here[:, None] & (dim < HEAD_DIM)[None, :]
    result = tl.zeros([BLOCK_HEADS, BLOCK_D], dtype=tl.float32)
    for index in range(num_parts):
        part_lse = tl.load(partial_lse + first_part + index, mask=here, other=float("-inf"))
        saw = real & (part_lse > float("-inf"))[:, None]
        part_at = partial_out + (first_part + index)[:, None] * HEAD_DIM + dim[None, :]
        weight = tl.exp2(part_lse - reference) / divisor
        result += weight[:, None] * tl.load(part_at, mask=saw, other=0.0)
    result_at = out + token * stride_token_o + head[:, None] * stride_head_o + dim[None, :]
    tl.store(result_at, result.to(out.dtype.element_ty), mask=real)
    if WITH_LSE:
        joined = tl.where(empty, float("-inf"), reference + tl.log2(divisor))
        lse_at = lse + token * stride_token_l + head * stride_head_l
        tl.store(lse_at, joined * 0.6931471805599453, mask=here)


# The host side


def cascade_attention(
    batch: PagedBatch, *, groups: PrefixGroups, launch: CascadeLaunch | None = None
) -> None:
    """Fill `batch.out` and `batch.lse`, reading each group's prefix once for a tile of its rows.

    The batch is decode, prefill or mixed, any variant but what is `beyond` a cascade. Tensors of
    the groups lie where the batch lies. They are believed: whether the block table agrees is not
    looked at, because that would wait for the device. Tiles and splits are chosen if no `launch` is
    given.

    Raises ValueError: for what is `beyond` a cascade, for groups of another batch or on another
    device, and as `paged_attention`.
    """
    if what := beyond(batch):
        raise ValueError(f"{what}: a cascade has none; call paged_attention")
    if groups.prefix_lens.shape != batch.seq_lens.shape:
        raise ValueError(
            f"groups of {groups.prefix_lens.shape[0]} sequences for a batch of "
            f"{batch.seq_lens.shape[0]}: make them from this batch"
        )
    if groups.prefix_lens.device != batch.query.device:
        raise ValueError(
            f"groups on {groups.prefix_lens.device}, the batch on {batch.query.device}: "
            f"give PrefixGroups.of the batch's device"
        )
    launch = launch or choose_cascade(batch, groups)
    check_batch(batch, launch.prefix_splits, launch.prefix_tiles)
    check_batch(batch, launch.suffix_splits, launch.suffix_tiles)
    num_tokens, num_q_heads, head_dim = batch.query.shape
    num_seqs, num_groups = batch.seq_lens.shape[0], len(groups.prefixes)
    kv_heads, group_size = batch.num_kv_heads, batch.group_size
    shape = (num_tokens, num_q_heads, launch.num_parts)
    partial = {
        "partial_out": batch.query.new_empty((*shape, head_dim), dtype=torch.float32),
        "partial_lse": batch.query.new_empty(shape, dtype=torch.float32),
    }
    shared = shared_arguments(batch) | partial
    del shared["sinks"]  # counted once, when parts are joined

    block_q = launch.prefix_tiles.block_m // group_size
    row_tiles = groups.tokens.shape[0] // block_q + num_groups
    prefix_kernel[(row_tiles, kv_heads, launch.prefix_splits)](
        **shared,
        tokens=groups.tokens,
        sequences=groups.sequences,
        group_starts=groups.starts,
        prefix_lens=groups.prefix_lens,
        num_groups=num_groups,
        num_parts=launch.num_parts,
        BLOCK_GROUPS=triton.next_power_of_2(num_groups),
        **_tiles(batch, launch.prefix_tiles),
    )
    one_token = batch.max_query_len <= 1
    query_tiles = num_seqs
    if not one_token:
        query_tiles += num_tokens // (launch.suffix_tiles.block_m // group_size)
    suffix_kernel[(query_tiles, kv_heads, launch.suffix_splits)](
        **shared,
        prefix_lens=groups.prefix_lens,
        num_seqs=num_seqs,
        num_prefix_parts=launch.prefix_splits,
        BLOCK_SEQS=triton.next_power_of_2(num_seqs),
        ONE_TOKEN=one_token,
        # One token is the last: it sees every key, and needs no mask.
        CAUSAL=batch.causal and not one_token,
        **_tiles(batch, launch.suffix_tiles),
    )
    join_kernel[(num_tokens, kv_heads)](
        **partial,
        **answer_arguments(batch),
        sinks=batch.sinks,
        num_parts=launch.num_parts,
        GROUP=group_size,
        BLOCK_HEADS=triton.next_power_of_2(group_size),
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_PARTS=triton.next_power_of_2(launch.num_parts),
    )


@declares(Capabilities(promises=frozenset({"deterministic"})))
def paged_attention_with_cascade(batch: PagedBatch, *, groups: PrefixGroups | None = None) -> None:
    """Attention by the cascade where it pays, and by `paged_attention` elsewhere.

    If no groups are given they are looked for in the block table where that is on the host; where
    it is on a device nothing is shared, because reading it would wait. Raises as `paged_attention`.
    """
    on_device = batch.query.device.type == "cuda"
    _attend(batch, groups, launch_bytes=LAUNCH_BYTES if on_device else 0)


@declares(Capabilities(promises=frozenset({"deterministic"})))
def cascade_wherever_shared(batch: PagedBatch) -> None:
    """The cascade wherever two sequences share a block, whatever it costs: for tests of it."""
    _attend(batch, None, launch_bytes=None)


def beyond(batch: PagedBatch) -> str:
    """What of a batch no cascade can do; empty: nothing.

    With a window or a chunk a prefix is seen in part or not at all; the rest is not in its kernels.
    """
    there = {
        f"window={batch.window}": batch.window is not None,
        f"chunk={batch.chunk}": batch.chunk is not None,
        "query_mask": batch.query_mask is not None,
        "causal_of": batch.causal_of is not None,
        f"values of {batch.value_dim} elements": batch.value_dim != batch.query.shape[2],
    }
    return next((what for what, is_so in there.items() if is_so), "")


def _attend(batch: PagedBatch, groups: PrefixGroups | None, *, launch_bytes: int | None) -> None:
    """By the cascade if it pays, or whenever it can if `launch_bytes` is None."""
    if not beyond(batch):
        groups = groups or _groups_on_the_host(batch)
        if groups is not None:
            launch = choose_cascade(batch, groups)
            cost = cascade_bytes(batch, groups, launch, launch_bytes=launch_bytes or 0)
            if launch_bytes is None or cost.pays:
                cascade_attention(batch, groups=groups, launch=launch)
                return
    paged_attention(batch)


def _groups_on_the_host(batch: PagedBatch) -> PrefixGroups | None:
    """The groups of a batch whose block table is on the host; None if there are none."""
    if batch.block_table.device.type != "cpu":
        return None
    lengths: dict[str, Any] = {
        "seq_lens": batch.seq_lens.tolist(),
        "query_lens": batch.query_start_loc.diff().tolist(),
        "block_size": batch.block_size,
    }
    shared = find_prefix_groups(batch.block_table, **lengths)
    return PrefixGroups.of(shared, **lengths) if shared else None


def _tiles(batch: PagedBatch, tiles: Tiles) -> dict[str, Any]:
    arguments = tile_arguments(batch, tiles)
    del arguments["WINDOW"]  # refused
    return arguments
