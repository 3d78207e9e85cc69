"""torch's FlexAttention over a paged cache, by way of its `PagedAttention`.

`PagedAttention` keeps the page table and turns masks and biases of logical positions into those of
physical slots. Here the contract's block table is written into it. The cache that it wants,
[1, num_kv_heads, num_blocks * block_size, head_dim], is a copy of the contract's, slot by slot.

It runs as FlexAttention runs uncompiled, which materialises all scores: on problems of the size
that are drawn a call takes 10 to 150 ms, while compiling would take seconds for each shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reference.attention.contract import Capabilities, PagedBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.sequences import Sequence, sequences

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@functools.cache
def _flex() -> Any:
    """The module, for what is in it; importing it takes a second."""
    from torch.nn.attention import flex_attention

    # It warns of being slow uncompiled, and would hand itself to the compiler all the same.
    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    return flex_attention


def _prepare(_: str) -> None:
    _flex()


@prepared_by(_prepare)
@declares(
    Capabilities(
        kv_dtypes=frozenset(),
        variants=frozenset({"prefill", "noncausal", "window", "softcap", "alibi", "lse"}),
        declines=frozenset({"pool"}),
    )
)
def attention(batch: PagedBatch) -> None:
    """Fill `batch.out` and `batch.lse`, one sequence at a time."""
    keys, values = _by_slot(batch.key_cache), _by_slot(batch.value_cache)
    for sequence in sequences(batch):
        pages = _page_table(batch, sequence)
        mask_mod, score_mod = _mods(batch, sequence)
        length = torch.tensor([sequence.seq_len], device=batch.query.device)
        answer, aux = _flex().flex_attention(
            batch.query[sequence.rows].transpose(0, 1).unsqueeze(0),
            keys,
            values,
            score_mod=pages.get_score_mod(score_mod, length),
            block_mask=_block_mask(pages, mask_mod, length, sequence, batch),
            scale=batch.scale,
            enable_gqa=batch.group_size > 1,
            return_aux=_flex().AuxRequest(lse=True),
        )
        batch.out[sequence.rows] = answer[0].transpose(0, 1)
        if batch.lse is not None:
            batch.lse[sequence.rows] = aux.lse[0].transpose(0, 1)


def _by_slot(cache: Tensor) -> Tensor:
    """[blocks, block_size, heads, head_dim] -> [1, heads, blocks * block_size, head_dim]."""
    return cache.flatten(0, 1).transpose(0, 1).unsqueeze(0).contiguous()


def _page_table(batch: PagedBatch, sequence: Sequence) -> Any:
    """A `PagedAttention` of one row, as `reserve` would leave it had it chosen these pages."""
    from torch.nn.attention.experimental._paged_attention import PagedAttention

    device = batch.query.device
    num_blocks, size = batch.key_cache.shape[0], batch.block_size
    pages = PagedAttention(num_blocks, size, max_batch_size=1, device=str(device))
    count = -(-sequence.seq_len // size)
    blocks = batch.block_table[sequence.index, :count].long()
    pages.page_table[0, :count] = blocks
    pages.physical_to_logical[0, blocks] = torch.arange(count, device=device)
    pages.capacity[0] = count * size
    return pages


def _mods(batch: PagedBatch, sequence: Sequence) -> tuple[MaskMod, ScoreMod | None]:
    """The variant in FlexAttention's terms: functions of logical positions."""
    offset = sequence.seq_len - sequence.query_len
    causal, window, softcap = batch.causal, batch.window, batch.softcap
    slopes = batch.alibi_slopes

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        position = q_idx + offset
        seen = kv_idx <= position if causal else kv_idx >= 0
        return seen if window is None else seen & (kv_idx > position - window)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if slopes is not None:
            score = score - slopes[h] * (q_idx + offset - kv_idx).abs()
        return score

    return mask_mod, None if softcap is None and slopes is None else score_mod


def _block_mask(
    pages: Any, mask_mod: MaskMod, length: Tensor, sequence: Sequence, batch: PagedBatch
) -> Any:
    """The mask of logical positions, made small to pages, and its kv blocks made physical."""
    blocks = max(-(-sequence.seq_len // batch.block_size), 1)
    logical = _flex().create_block_mask(
        mask_mod,
        B=1,
        H=None,
        Q_LEN=sequence.query_len,
        KV_LEN=blocks * batch.block_size,
        device=str(batch.query.device),
        BLOCK_SIZE=(_flex()._DEFAULT_SPARSE_BLOCK_SIZE, batch.block_size),
    )
    return pages.convert_logical_block_mask(logical, kv_len=length)
