"""Paged attention on Triton kernels, under the attention contract.

`paged_attention` is a subject like any other: it takes a `PagedBatch` and fills `out` and `lse`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from kernels.decode import decode_kernel
from kernels.launch import Launch, Tiles, choose_launch, invariant_launch
from kernels.merge import merge_kernel
from kernels.prefill import prefill_kernel
from reference.attention.codecs import views_of
from reference.attention.contract import Capabilities, PagedBatch, declares

LOG2_E = math.log2(math.e)
SPLITS_AT_ONCE = 16
"""Partial results that the merge reads at once."""


MASKS_AND_SIZES = frozenset({"value_size", "cross", "chunk", "query_mask", "causal_each"})
"""What the kernels can do besides what every kernel is asked."""

CODECS_READ = {
    "e4m3-head": 1, "e4m3-token-head": 2, "int8-token-head": 2, "int4-token-head": 3,
}  # fmt: skip
"""Codecs of caches that the kernels read, and what `SCALES` is of them."""


@declares(
    Capabilities(
        promises=frozenset({"deterministic", "relabelling"}),
        also=MASKS_AND_SIZES,
        codecs=frozenset(CODECS_READ),
    )
)
def paged_attention(
    batch: PagedBatch, *, num_splits: int | None = None, tiles: Tiles | None = None
) -> None:
    """Fill `batch.out` and `batch.lse`, which may be None.

    Batches whose queries are all one token long go to the decode kernel, others to the prefill
    kernel. Nothing is read back from the device, and grids depend on nothing but shapes and the two
    maxima of the batch: a CUDA graph of a call is right for whatever lengths lie below them when it
    is replayed.

    The same call gives the same bits every time. What a sequence gets may differ in its last bits
    beside other sequences, since splits are sized by the whole batch; under
    `batch_invariant_attention` it does not.

    `num_splits` programs share the KV range of each sequence in decode; if None all share that of
    the batch evenly (`kernels.decode.share_out`). Tiles are chosen by `launch` if None.

    Raises ValueError: for tensors that break the contract, with the shape or dtype at fault.
    """
    check_batch(batch, num_splits, tiles)
    if batch.query.shape[0] == 0:
        return
    launch = choose_launch(batch, num_splits=num_splits, tiles=tiles)
    if batch.max_query_len <= 1:
        _decode(batch, launch)
    else:
        _prefill(batch, launch.tiles)


@declares(
    Capabilities(
        promises=frozenset({"deterministic", "relabelling", "batch_invariant"}),
        also=MASKS_AND_SIZES,
        codecs=frozenset(CODECS_READ),
    )
)
def batch_invariant_attention(batch: PagedBatch, *, tiles: Tiles | None = None) -> None:
    """Fill `batch.out` and `batch.lse`; what a sequence gets depends on no other sequence.

    A sequence with the same queries, keys and values gets the same bits alone and in any batch,
    whatever the number, lengths and query lengths of the others, `max_query_len` and `max_seq_len`,
    and on any device that runs the same compiled code. What is not promised: the same bits for a
    prompt in one piece and in chunks, or as from `paged_attention`.

    Queries of one token go to the decode kernel also where the batch has longer ones. The price:
    splits do not adapt to the batch, so a small one may leave multiprocessors idle; their merge is
    always launched; short chunks have the tile of long ones; and a mixed batch takes both kernels.
    Partial results take up to `num_seqs * num_q_heads * splits * (head_dim + 1)` float32 (splits:
    `invariant_launch`).

    Raises ValueError: as `paged_attention`.
    """
    check_batch(batch, None, tiles)
    if batch.query.shape[0] == 0:
        return
    launch, prefill_tiles = invariant_launch(batch, tiles=tiles)
    if batch.max_query_len > 1:
        # Here a sequence with one query token has no keys, and so costs nothing; its row is
        # overwritten by decode.
        longer = batch.query_start_loc.diff() > 1
        _prefill(batch.replace(seq_lens=batch.seq_lens * longer), prefill_tiles)
    _decode(batch, launch, always_split=True)


def _decode(batch: PagedBatch, launch: Launch, *, always_split: bool = False) -> None:
    """Decode, and a merge where sequences can have several splits, or have to be able to."""
    num_q_heads, value_dim = batch.out.shape[1:]
    num_seqs = batch.seq_lens.shape[0]
    splits = launch.splits
    split = splits.needed or always_split
    items = splits.items(num_seqs)
    partial_out = partial_lse = plan = None
    if split:
        partial_out = batch.query.new_empty((items, num_q_heads, value_dim), dtype=torch.float32)
        partial_lse = batch.query.new_empty((items, num_q_heads), dtype=torch.float32)
        plan = batch.seq_lens.new_empty((num_seqs, 2))
    partial = {"partial_out": partial_out, "partial_lse": partial_lse, "plan": plan}
    decode_kernel[(items, batch.num_kv_heads)](
        **(shared_arguments(batch) | codec_arguments(batch)),
        **answer_arguments(batch),
        **partial,
        num_seqs=num_seqs,
        parts=splits.parts,
        least_tiles=splits.least_tiles,
        most_splits=splits.most_splits,
        BLOCK_SEQS=triton.next_power_of_2(num_seqs) if splits.shared else 1,
        SPLIT=split,
        SHARED=split and splits.shared,
        **tile_arguments(batch, launch.tiles),
        **size_arguments(batch),
    )
    if split:
        merge_kernel[(num_seqs, num_q_heads)](
            **partial,
            **answer_arguments(batch),
            query_start_loc=batch.query_start_loc,
            sinks=batch.sinks,
            HEAD_DIM=value_dim,
            BLOCK_D=triton.next_power_of_2(value_dim),
            BLOCK_SPLITS=SPLITS_AT_ONCE,
            EMPTY=False,
        )


def _prefill(batch: PagedBatch, tiles: Tiles) -> None:
    num_tokens, num_seqs = batch.query.shape[0], batch.seq_lens.shape[0]
    query_tiles = num_tokens // (tiles.block_m // batch.group_size) + num_seqs
    prefill_kernel[(query_tiles, batch.num_kv_heads)](
        **(shared_arguments(batch) | codec_arguments(batch)),
        **answer_arguments(batch),
        num_seqs=num_seqs,
        BLOCK_SEQS=triton.next_power_of_2(num_seqs),
        **({"CAUSAL": batch.causal} | mask_arguments(batch)),
        **tile_arguments(batch, tiles),
        **size_arguments(batch),
    )


def answer_arguments(batch: PagedBatch) -> dict[str, Any]:
    """What every kernel takes that writes the answer, by the name of its parameter."""
    out, lse = batch.out, batch.lse
    return {
        "out": out,
        "lse": lse,
        "stride_token_o": out.stride(0),
        "stride_head_o": out.stride(1),
        "stride_token_l": lse.stride(0) if lse is not None else 0,
        "stride_head_l": lse.stride(1) if lse is not None else 0,
        "SINKS": batch.sinks is not None,
        "WITH_LSE": lse is not None,
    }


def shared_arguments(batch: PagedBatch) -> dict[str, Any]:
    """What every attention kernel takes of a batch, by the name of its parameter."""
    logit_factor = batch.scale * batch.k_scale * LOG2_E
    cap_factor = 0.0
    if batch.softcap is not None:
        # The kernel evaluates cap tanh(x) as exp2 of 2 log2(e) x: see `attend_tile`.
        logit_factor, cap_factor = 2.0 * logit_factor / batch.softcap, batch.softcap * LOG2_E
    keys, values, table = batch.key_cache, batch.value_cache, batch.block_table
    if table.stride(1) != 1:
        table = table.contiguous()  # kernels step from column to column by one
    return {
        "query": batch.query,
        "key_cache": keys,
        "value_cache": values,
        "block_table": table,
        "seq_lens": batch.seq_lens,
        "query_start_loc": batch.query_start_loc,
        "slopes": batch.alibi_slopes,
        "sinks": batch.sinks,
        "logit_factor": logit_factor,
        "cap_factor": cap_factor,
        "value_scale": batch.v_scale,
        "stride_token_q": batch.query.stride(0),
        "stride_head_q": batch.query.stride(1),
        **cache_strides(keys, values),
        "stride_seq_t": table.stride(0),
    }


def codec_arguments(batch: PagedBatch) -> dict[str, Any]:
    """What the decode and the prefill kernel take of a codec: codes as numbers, and the scales.

    Records that end in a float32 lie at multiples of 4 bytes, and of no more: the kernels multiply
    their strides by it, which tells the compiler, or it would load byte by byte.
    """
    if not batch.codec:
        return {}
    keys, k_scales = views_of(batch.codec, batch.key_cache, batch.query.shape[2])
    values, v_scales = views_of(batch.codec, batch.value_cache, batch.value_dim)
    scales: tuple[Any, ...] = (k_scales, v_scales, *k_scales.stride(), *v_scales.stride())
    if batch.k_scales is not None:
        scales = (batch.k_scales, batch.v_scales)
    given = cache_strides(keys, values) | {"key_cache": keys, "value_cache": values}
    if CODECS_READ[batch.codec] > 1:
        given |= {name: stride // 4 for name, stride in cache_strides(keys, values).items()}
    return given | {"scales": scales, "SCALES": CODECS_READ[batch.codec]}


def cache_strides(keys: torch.Tensor, values: torch.Tensor) -> dict[str, int]:
    """Of a block, a slot and a head, in elements."""
    of_keys = zip(("block", "slot", "head"), keys.stride()[:3], strict=True)
    of_values = zip(("block", "slot", "head"), values.stride()[:3], strict=True)
    found = {f"stride_{name}_k": stride for name, stride in of_keys}
    return found | {f"stride_{name}_v": stride for name, stride in of_values}


def mask_arguments(batch: PagedBatch) -> dict[str, Any]:
    """What the prefill kernel takes of masks that positions do not tell: bytes, 0 or 1."""
    if batch.causal_of is not None:
        return {"causal_of": batch.causal_of.view(torch.uint8)}
    if batch.query_mask is not None:
        mask = batch.query_mask.view(torch.uint8)
        return {"query_mask": mask, "stride_token_m": mask.stride(0), "CAUSAL": False}
    return {}


def size_arguments(batch: PagedBatch) -> dict[str, int]:
    """What the decode and the prefill kernel take where values have another size than keys."""
    same = batch.value_dim == batch.query.shape[2]
    return {} if same else {"VALUE_DIM": batch.value_dim}


def tile_arguments(batch: PagedBatch, tiles: Tiles) -> dict[str, Any]:
    """The constants that a kernel is compiled for, and its launch options."""
    return {
        "GROUP": batch.group_size,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_SIZE": batch.block_size,
        "HEAD_DIM": batch.query.shape[2],
        "BLOCK_D": triton.next_power_of_2(batch.query.shape[2]),
        "WINDOW": batch.window or -(batch.chunk or 0),
        "SOFTCAP": batch.softcap is not None,
        "ALIBI": batch.alibi_slopes is not None,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


def check_batch(batch: PagedBatch, num_splits: int | None, tiles: Tiles | None) -> None:
    """Raise ValueError for tensors that break the contract."""
    query, keys, values = batch.query, batch.key_cache, batch.value_cache
    if tiles is not None and tiles.block_m < batch.group_size:
        raise ValueError(
            f"block_m={tiles.block_m}: a tile holds the {batch.group_size} query heads of a group"
        )
    if num_splits is not None and num_splits < 1:
        raise ValueError(f"num_splits={num_splits}: at least one program reads the keys")
    if keys.shape[:3] != values.shape[:3] or keys.dtype != values.dtype:
        raise ValueError(
            f"key cache {tuple(keys.shape)} {keys.dtype} and value cache {tuple(values.shape)} "
            f"{values.dtype} must have the same blocks, slots, heads and dtype"
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
