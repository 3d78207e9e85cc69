"""flash-attention 2 over a paged cache, on a GPU.

Batches of decode go to `flash_attn_with_kvcache`, all others to `flash_attn_varlen_func` with a
block table. Arguments, limits and the shape of the log-sum-exp are those that the docstrings of
flash_attn/flash_attn_interface.py say, flash-attn 2.8.3: blocks of 256 tokens, float16 and
bfloat16, no float8 cache and no sinks.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from reference.attention.contract import Capabilities, PagedBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.gpu_package import import_for_gpu

DISTRIBUTION: Final = "flash-attn"

_package: Any = None


def _prepare(device: str) -> None:
    global _package  # noqa: PLW0603 - one kernel in one process
    _package = import_for_gpu("flash_attn", distribution=DISTRIBUTION, device=device)


@prepared_by(_prepare)
@declares(
    Capabilities(
        dtypes=frozenset({"fp16", "bf16"}),
        kv_dtypes=frozenset(),
        block_sizes=frozenset({256}),
        variants=frozenset({"prefill", "noncausal", "window", "softcap", "alibi", "lse"}),
        declines=frozenset({"strides=table"}),
    )
)
def attention(batch: PagedBatch) -> None:
    """Fill `batch.out` and `batch.lse`."""
    decode = batch.max_query_len == 1 and batch.query.shape[0] == batch.seq_lens.shape[0]
    out, lse = _decode(batch) if decode else _varlen(batch)
    batch.out.copy_(out)
    if batch.lse is not None:
        batch.lse.copy_(lse)


def _decode(batch: PagedBatch) -> tuple[Tensor, Tensor]:
    """One query token for each sequence, [num_seqs, 1, num_q_heads, head_dim]."""
    out, lse = _package.flash_attn_with_kvcache(
        batch.query.unsqueeze(1),
        batch.key_cache,
        batch.value_cache,
        cache_seqlens=batch.seq_lens,
        block_table=batch.block_table,
        return_softmax_lse=True,
        **_variant(batch),
    )
    return out.squeeze(1), lse.squeeze(2)  # the log-sum-exp is [num_seqs, num_q_heads, 1]


def _varlen(batch: PagedBatch) -> tuple[Tensor, Tensor]:
    starts = torch.zeros_like(batch.query_start_loc)
    starts[1:] = batch.seq_lens.cumsum(0)
    out, lse, _ = _package.flash_attn_varlen_func(
        batch.query,
        batch.key_cache,
        batch.value_cache,
        cu_seqlens_q=batch.query_start_loc,
        cu_seqlens_k=starts,
        max_seqlen_q=batch.max_query_len,
        max_seqlen_k=batch.max_seq_len,
        block_table=batch.block_table,
        return_attn_probs=True,
        **_variant(batch),
    )
    return out, lse.transpose(0, 1)  # the log-sum-exp is [num_q_heads, num_tokens]


def _variant(batch: PagedBatch) -> dict[str, Any]:
    return {
        "softmax_scale": batch.scale,
        "causal": batch.causal,
        "window_size": (-1, -1) if batch.window is None else (batch.window - 1, 0),
        "softcap": batch.softcap or 0.0,
        "alibi_slopes": batch.alibi_slopes,
    }
