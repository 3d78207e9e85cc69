"""Paged attention on Triton kernels, under the attention contract.

`paged_attention` is a subject like any other: it takes a `PagedBatch` and fills `out` and `lse`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from kernels.decode import decode_kernel
from kernels.launch import Tiles, choose_launch
from kernels.merge import merge_kernel
from kernels.prefill import prefill_kernel
from reference.contract import Capabilities, PagedBatch, declares

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)


@declares(Capabilities())
def paged_attention(
    batch: PagedBatch, *, num_splits: int | None = None, tiles: Tiles | None = None
) -> None:
    """Fill `batch.out` and `batch.lse`.

    Batches whose queries are all one token long go to the decode kernel, others to the prefill
    kernel. Nothing is read back from the device.

    Parameters
    ----------
    batch
        The call. `batch.lse` may be None.
    num_splits
        Programs that share one sequence's KV range in decode; chosen by `launch` if None.
    tiles
        Launch parameters; chosen by `launch` if None.

    Raises
    ------
    ValueError
        For tensors that break the contract: the shape or dtype at fault is in the message.
    """
    _check(batch, num_splits, tiles)
    if batch.query.shape[0] == 0:
        return
    launch = choose_launch(batch, num_splits=num_splits, tiles=tiles)
    if batch.max_query_len <= 1:
        _decode(batch, launch.num_splits, launch.tiles)
    else:
        _prefill(batch, launch.tiles)


def _decode(batch: PagedBatch, num_splits: int, tiles: Tiles) -> None:
    num_tokens, num_q_heads, head_dim = batch.query.shape
    num_seqs = batch.seq_lens.shape[0]
    direct = num_splits == 1
    out, lse = batch.out, batch.lse
    if not direct:
        shape = (num_tokens, num_q_heads, num_splits)
        out = torch.empty((*shape, head_dim), dtype=torch.float32, device=batch.query.device)
        lse = torch.empty(shape, dtype=torch.float32, device=batch.query.device)
    decode_kernel[(num_seqs, batch.num_kv_heads, num_splits)](
        **_shared_arguments(batch),
        out=out,
        lse=lse,
        value_scale=batch.v_scale,
        lse_factor=LN_2 if direct else 1.0,
        stride_token_o=out.stride(0),
        stride_head_o=out.stride(1),
        stride_split_o=0 if direct else out.stride(2),
        stride_token_l=lse.stride(0) if lse is not None else 0,
        stride_head_l=lse.stride(1) if lse is not None else 0,
        stride_split_l=0 if direct or lse is None else lse.stride(2),
        SINKS=direct and batch.sinks is not None,
        WITH_LSE=lse is not None,
        **_tile_arguments(batch, tiles),
    )
    if direct:
        return
    merge_kernel[(num_tokens, num_q_heads)](
        out,
        lse,
        batch.out,
        batch.lse,
        batch.sinks,
        num_splits,
        batch.out.stride(0),
        batch.out.stride(1),
        batch.lse.stride(0) if batch.lse is not None else 0,
        batch.lse.stride(1) if batch.lse is not None else 0,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_SPLITS=triton.next_power_of_2(num_splits),
        SINKS=batch.sinks is not None,
        WITH_LSE=batch.lse is not None,
    )


def _prefill(batch: PagedBatch, tiles: Tiles) -> None:
    num_tokens, num_seqs = batch.query.shape[0], batch.seq_lens.shape[0]
    query_tiles = num_tokens // (tiles.block_m // batch.group_size) + num_seqs
    lse = batch.lse
    prefill_kernel[(query_tiles, batch.num_kv_heads)](
        **_shared_arguments(batch),
        out=batch.out,
        lse=lse,
        num_seqs=num_seqs,
        value_scale=batch.v_scale,
        stride_token_o=batch.out.stride(0),
        stride_head_o=batch.out.stride(1),
        stride_token_l=lse.stride(0) if lse is not None else 0,
        stride_head_l=lse.stride(1) if lse is not None else 0,
        BLOCK_SEQS=triton.next_power_of_2(num_seqs),
        CAUSAL=batch.causal,
        SINKS=batch.sinks is not None,
        WITH_LSE=lse is not None,
        **_tile_arguments(batch, tiles),
    )


def _shared_arguments(batch: PagedBatch) -> dict[str, Any]:
    logit_factor = batch.scale * batch.k_scale * LOG2_E
    cap_factor = 0.0
    if batch.softcap is not None:
        # The kernel evaluates cap tanh(x) as exp2 of 2 log2(e) x: see `attend_tile`.
        logit_factor, cap_factor = 2.0 * logit_factor / batch.softcap, batch.softcap * LOG2_E
    keys, values = batch.key_cache, batch.value_cache
    return {
        "query": batch.query,
        "key_cache": keys,
        "value_cache": values,
        "block_table": batch.block_table,
        "seq_lens": batch.seq_lens,
        "query_start_loc": batch.query_start_loc,
        "slopes": batch.alibi_slopes,
        "sinks": batch.sinks,
        "logit_factor": logit_factor,
        "cap_factor": cap_factor,
        "stride_token_q": batch.query.stride(0),
        "stride_head_q": batch.query.stride(1),
        "stride_block_k": keys.stride(0),
        "stride_slot_k": keys.stride(1),
        "stride_head_k": keys.stride(2),
        "stride_block_v": values.stride(0),
        "stride_slot_v": values.stride(1),
        "stride_head_v": values.stride(2),
        "stride_seq_t": batch.block_table.stride(0),
    }


def _tile_arguments(batch: PagedBatch, tiles: Tiles) -> dict[str, Any]:
    return {
        "GROUP": batch.group_size,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_SIZE": batch.block_size,
        "HEAD_DIM": batch.query.shape[2],
        "BLOCK_D": triton.next_power_of_2(batch.query.shape[2]),
        "WINDOW": batch.window or 0,
        "SOFTCAP": batch.softcap is not None,
        "ALIBI": batch.alibi_slopes is not None,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


def _check(batch: PagedBatch, num_splits: int | None, tiles: Tiles | None) -> None:
    query, keys, values = batch.query, batch.key_cache, batch.value_cache
    if tiles is not None and tiles.block_m < batch.group_size:
        raise ValueError(
            f"block_m={tiles.block_m}: a tile holds the {batch.group_size} query heads of a group"
        )
    if num_splits is not None and num_splits < 1:
        raise ValueError(f"num_splits={num_splits}: at least one program reads the keys")
    if keys.shape != values.shape or keys.dtype != values.dtype:
        raise ValueError(
            f"key cache {tuple(keys.shape)} {keys.dtype} and value cache {tuple(values.shape)} "
            f"{values.dtype} must have the same shape and dtype"
        )
    if query.shape[1] % keys.shape[2]:
        raise ValueError(
            f"{query.shape[1]} query heads over {keys.shape[2]} KV heads: not a whole group"
        )
    if batch.block_size & (batch.block_size - 1):
        raise ValueError(f"block size {batch.block_size}: must be a power of two")
    for name, tensor in (("query", query), ("key_cache", keys), ("value_cache", values)):
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} has stride {tensor.stride(-1)} within a head: must be 1")
    for name in ("block_table", "seq_lens", "query_start_loc"):
        if getattr(batch, name).dtype != torch.int32:
            raise ValueError(f"{name} is {getattr(batch, name).dtype}: must be int32")
