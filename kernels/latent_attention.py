"""Attention over a paged latent cache on Triton kernels, to all of it or to chosen records."""

from __future__ import annotations

from typing import Any, Final

import torch
import triton

from kernels.attention import SPLITS_AT_ONCE, answer_arguments, shared_arguments
from kernels.latent import latent_decode_kernel
from kernels.latent_prefill import latent_prefill_kernel
from kernels.launch import LEAST_TILES, MOST_SPLITS, Splits, Tiles, processors_of, shared_splits
from kernels.merge import merge_kernel
from reference.attention.contract import Capabilities, PagedBatch, declares
from reference.attention.records import CODECS

SMALLEST: Final = 16
"""Rows, and elements, that a product of tiles has at least."""

MOST_ROWS: Final = 128
"""Of a tile, where nothing but the interpreter limits it."""

ROOM: Final = 64.0
"""A factor that brings the largest float8 number, 448, near the largest of float16."""

ROOMY: Final = (90, 100, 103)
"""Architectures of NVIDIA whose programs may have 112 KiB of shared memory, and spill nothing then.
"""


@declares(
    Capabilities(
        kind="latent",
        also=frozenset({"cross", "chunk", "query_mask", "causal_each", "sparse"}),
        codecs=frozenset({"fp8-ds-mla"}),
        promises=frozenset({"deterministic", "relabelling"}),
    )
)
def paged_latent_attention(
    batch: PagedBatch, *, num_splits: int | None = None, tiles: Tiles | None = None
) -> None:
    """Fill `batch.out` and `batch.lse`, which may be None.

    Batches whose queries are all one token long go to the decode kernel, others, and those with
    masks of their own, to the prefill kernel, which cuts no KV range. Nothing is read back from the
    device, and grids depend on shapes and maxima alone, as those of
    `kernels.attention.paged_attention`; splits are those of its decode, over tiles of heads
    instead of KV heads. Of chosen keys each sequence is cut by itself.

    Raises ValueError: for tensors that break the contract, with the shape or dtype at fault.
    """
    check_latent(batch, num_splits)
    if batch.query.shape[0] == 0:
        return
    tiles = tiles or latent_tiles(batch)
    if _is_decode(batch):
        _decode(batch, tiles, num_splits)
    else:
        _prefill(batch, tiles)


def _is_decode(batch: PagedBatch) -> bool:
    """Whether all that there is to see for the only query of a sequence is the end of its keys."""
    return batch.max_query_len <= 1 and batch.chunk is None and batch.query_mask is None


def _decode(batch: PagedBatch, tiles: Tiles, num_splits: int | None) -> None:
    """Decode, and a merge where sequences can have several splits."""
    num_heads, latent, num_seqs = batch.query.shape[1], batch.value_dim, batch.seq_lens.shape[0]
    head_tiles = triton.cdiv(num_heads, tiles.block_m)
    splits = _splits(batch, tiles, head_tiles, num_splits)
    items = splits.items(num_seqs)
    partial_out = partial_lse = plan = None
    if splits.needed:
        partial_out = batch.query.new_empty((items, num_heads, latent), dtype=torch.float32)
        partial_lse = batch.query.new_empty((items, num_heads), dtype=torch.float32)
        plan = batch.seq_lens.new_empty((num_seqs, 2))
    partial = {"partial_out": partial_out, "partial_lse": partial_lse, "plan": plan}
    latent_decode_kernel[(items, head_tiles)](
        **_arguments(batch, tiles),
        **partial,
        splits=(num_seqs, splits.parts, splits.least_tiles, splits.most_splits),
        BLOCK_SEQS=triton.next_power_of_2(num_seqs) if splits.shared else 1,
        SPLIT=splits.needed,
        SHARED=splits.needed and splits.shared,
    )
    if splits.needed:
        merge_kernel[(num_seqs, num_heads)](
            **partial,
            **answer_arguments(batch),
            query_start_loc=batch.query_start_loc,
            sinks=batch.sinks,
            HEAD_DIM=latent,
            BLOCK_D=triton.next_power_of_2(latent),
            BLOCK_SPLITS=SPLITS_AT_ONCE,
            EMPTY=batch.indices is not None,
        )


def _prefill(batch: PagedBatch, tiles: Tiles) -> None:
    num_tokens, num_heads, num_seqs = *batch.query.shape[:2], batch.seq_lens.shape[0]
    rows, mask = num_heads, batch.query_mask
    if batch.indices is not None:
        rows = triton.cdiv(num_heads, tiles.block_m) * tiles.block_m
    latent_prefill_kernel[(num_tokens * rows // tiles.block_m + num_seqs,)](
        **_arguments(batch, tiles),
        query_mask=mask,
        causal_of=batch.causal_of,
        num_seqs=num_seqs,
        token_rows=rows,
        stride_token_m=0 if mask is None else mask.stride(0),
        BLOCK_SEQS=triton.next_power_of_2(num_seqs),
        CAUSAL=mask is None and (batch.causal or batch.causal_of is not None),
        CHUNK=batch.chunk or 0,
    )


def _arguments(batch: PagedBatch, tiles: Tiles) -> dict[str, Any]:
    """What both kernels take, by the name of its parameter, and their launch options."""
    shared, answer = shared_arguments(batch), answer_arguments(batch)
    indices, latent = batch.indices, batch.value_dim
    rope, topk = batch.query.shape[2] - latent, 0 if indices is None else indices.shape[2]
    return {
        **{name: shared[name] for name in _SHARED},
        **{name: answer[name] for name in ("out", "lse", "SINKS", "WITH_LSE")},
        **_cache_arguments(batch),
        "indices": indices,
        "factors": (shared["logit_factor"], shared["cap_factor"], batch.v_scale),
        "num_heads": batch.query.shape[1],
        "topk": topk,
        "query_strides": batch.query.stride()[:2],
        "stride_token_i": topk if indices is None else indices.stride(0),
        "answer_strides": tuple(answer[name] for name in _ANSWER_STRIDES),
        "BLOCK_N": tiles.block_n,
        "BLOCK_SIZE": batch.block_size,
        "BLOCK_H": tiles.block_m,
        "widths": (latent, _holding(latent), rope, _holding(rope)),
        "WINDOW": batch.window or 0,
        "SOFTCAP": batch.softcap is not None,
        "ALIBI": batch.alibi_slopes is not None,
        "CHOSEN": indices is not None,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


_SHARED: Final = (
    "query", "block_table", "seq_lens", "query_start_loc", "slopes", "sinks", "stride_seq_t",
)  # fmt: skip
_ANSWER_STRIDES: Final = ("stride_token_o", "stride_head_o", "stride_token_l", "stride_head_l")


def _cache_arguments(batch: PagedBatch) -> dict[str, Any]:
    """The records; of a codec the codes, and as `encoded` the scales and the rotary parts."""
    cache = batch.key_cache
    half = cache.element_size() == 1 and batch.query.dtype == torch.bfloat16
    given = {"cache": cache, "cache_strides": cache.stride()[:2], "HALF": half}
    if not batch.codec:
        backend, arch = _target()
        # AMD and NVIDIA from sm_100 on convert to bfloat16 in no more instructions, or fewer.
        slow = backend == "interpreter" or (backend == "cuda" and int(arch) < 100)
        return given | {"HALF": half and slow}
    record, latent, rope = CODECS[batch.codec], batch.value_dim, batch.rope or 0
    sizes = record.code_bytes(latent), record.scale_bytes(latent), 2 * rope
    codes, scales, rotary = cache.split(sizes, -1)
    scales = scales.view(torch.float32)
    encoded = (scales, rotary.view(torch.bfloat16) if rope else scales, ROOM)
    runs = max(_holding(latent) // record.run, 1)
    return given | {"cache": codes.view(torch.float8_e4m3fn), "encoded": encoded, "RUNS": runs}


def latent_tiles(batch: PagedBatch) -> Tiles:
    """Tiles that spill on no target of `pagedbench compile`, at a record of 576.

    All rows of a tile read a record once. 32 of them fit where a program may have 112 KiB of
    shared memory and a record need not be converted; 128, whose answer alone takes all registers
    of a processor, fit nowhere but in the interpreter.
    """
    backend, arch = _target()
    rows = batch.query.shape[1]
    if batch.indices is None:
        rows *= max(batch.max_query_len, 1)
    if backend == "interpreter":
        most = min(max(triton.next_power_of_2(rows), SMALLEST), MOST_ROWS)
        return Tiles(block_n=64, block_m=most)
    if batch.query.dtype == torch.float32:
        return Tiles(block_n=16, block_m=16, num_warps=8, num_stages=1)
    if backend == "hip":
        return Tiles(block_n=32, block_m=16, num_warps=4, num_stages=2)
    if batch.codec and arch not in ROOMY:
        return Tiles(block_n=32, block_m=16, num_warps=8, num_stages=1)
    wide = arch in ROOMY and batch.key_cache.element_size() == 2 and rows > SMALLEST
    # Bounds of rows are in registers, too, beside a mask or where each key is looked up.
    wide = wide and (_is_decode(batch) or (batch.query_mask is None and batch.indices is None))
    return Tiles(block_n=64, block_m=32 if wide else 16, num_warps=8, num_stages=2)


def _target() -> tuple[str, int | str]:
    """What it is compiled for: Triton's names of a back end and of an architecture."""
    if triton.knobs.runtime.interpret:
        return "interpreter", 0
    target = triton.runtime.driver.active.get_current_target()
    return target.backend, target.arch


def check_latent(batch: PagedBatch, num_splits: int | None) -> None:
    """Raise ValueError for tensors that break the contract."""
    query, cache = batch.query, batch.key_cache
    if num_splits is not None and num_splits < 1:
        raise ValueError(f"num_splits={num_splits}: at least one program reads the records")
    size, rope = query.shape[2], batch.rope or 0
    stored = CODECS[batch.codec].bytes_of(size, rope) if batch.codec else size
    if cache.shape[2] != 1 or cache.shape[3] != stored:
        raise ValueError(
            f"cache {tuple(cache.shape)}: records of one head and of the query's {size} elements"
            f"{f', {stored} bytes each' if batch.codec else ''}"
        )
    for name, tensor in (("query", query), ("key_cache", cache)):
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} has stride {tensor.stride(-1)} within a head: must be 1")


def _splits(batch: PagedBatch, tiles: Tiles, head_tiles: int, num_splits: int | None) -> Splits:
    most = batch.max_seq_len
    if batch.indices is not None:
        most = batch.indices.shape[2]
    elif batch.window:
        most = min(most, batch.window + tiles.block_n)  # it may begin within a tile
    most_tiles = max(triton.cdiv(most, tiles.block_n), 1)
    if num_splits is not None:
        return Splits(num_splits, most_splits=min(num_splits, most_tiles))
    shared = shared_splits(
        num_kv_heads=head_tiles,
        most_tiles=most_tiles,
        processors=processors_of(batch.query.device),
    )
    if batch.indices is None:
        return shared
    parts = min(max(shared.parts // batch.seq_lens.shape[0], 1), MOST_SPLITS)
    most_splits = min(parts, triton.cdiv(most_tiles, LEAST_TILES))
    return Splits(parts, least_tiles=LEAST_TILES, most_splits=most_splits)


def _holding(size: int) -> int:
    """The power of two that holds so many elements, as a product of tiles wants them."""
    return max(int(triton.next_power_of_2(size)), SMALLEST)
