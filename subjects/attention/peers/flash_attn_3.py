"""flash-attention 3 over a paged cache, on a Hopper GPU.

All batches go to `flash_attn_with_kvcache` with the queries in a row. Arguments, limits and the
shape of the log-sum-exp are those that the docstrings of hopper/flash_attn_interface.py say
(Dao-AILab/flash-attention, package `flash_attn_interface`): pages of any size, no ALiBi, no sinks.
A float8 cache wants a float8 query there, and is not asked.
"""

from __future__ import annotations

from typing import Any, Final

from reference.attention.contract import Capabilities, PagedBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.gpu_package import import_for_gpu

DISTRIBUTION: Final = "flash-attn-3"

_package: Any = None


def _prepare(device: str) -> None:
    global _package  # noqa: PLW0603 - one kernel in one process
    _package = import_for_gpu("flash_attn_interface", distribution=DISTRIBUTION, device=device)


@prepared_by(_prepare)
@declares(
    Capabilities(
        dtypes=frozenset({"fp16", "bf16"}),
        kv_dtypes=frozenset(),
        head_dims=frozenset({64, 96, 128, 192, 256}),
        variants=frozenset({"prefill", "noncausal", "window", "softcap", "lse"}),
        declines=frozenset({"strides=table"}),
    )
)
def attention(batch: PagedBatch) -> None:
    """Fill `batch.out` and `batch.lse`."""
    out, lse, *_ = _package.flash_attn_with_kvcache(
        batch.query,
        batch.key_cache,
        batch.value_cache,
        cache_seqlens=batch.seq_lens,
        page_table=batch.block_table,
        cu_seqlens_q=batch.query_start_loc,
        max_seqlen_q=batch.max_query_len,
        softmax_scale=batch.scale,
        causal=batch.causal,
        window_size=(-1, -1) if batch.window is None else (batch.window - 1, 0),
        softcap=batch.softcap or 0.0,
        return_softmax_lse=True,
    )
    batch.out.copy_(out)
    if batch.lse is not None:
        batch.lse.copy_(lse.transpose(0, 1))  # the log-sum-exp is [num_q_heads, num_tokens]
