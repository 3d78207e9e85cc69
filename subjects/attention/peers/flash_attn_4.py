"""flash-attention 4 over a paged cache, on a GPU.

Arguments, limits and the shape of the log-sum-exp are those that the docstring of
`flash_attn_varlen_func` in flash_attn/cute/interface.py says (flash-attn-4 4.0.0b36): pages of any
size, sinks, no ALiBi and no float8 cache. It says, too, that rows behind a sequence's end have to
be finite where its last page is loaded whole: the checks ask, as of everybody.
"""

from __future__ import annotations

from typing import Any, Final

from reference.attention.contract import Capabilities, PagedBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.gpu_package import import_for_gpu

DISTRIBUTION: Final = "flash-attn-4"

_package: Any = None


def _prepare(device: str) -> None:
    global _package  # noqa: PLW0603 - one kernel in one process
    _package = import_for_gpu("flash_attn.cute", distribution=DISTRIBUTION, device=device)


@prepared_by(_prepare)
@declares(
    Capabilities(
        dtypes=frozenset({"fp16", "bf16"}),
        kv_dtypes=frozenset(),
        head_dims=frozenset({64, 96, 128}),
        variants=frozenset({"prefill", "noncausal", "window", "softcap", "sinks", "lse"}),
        declines=frozenset({"strides=table"}),
    )
)
def attention(batch: PagedBatch) -> None:
    """Fill `batch.out` and `batch.lse`."""
    out, lse = _package.flash_attn_varlen_func(
        batch.query,
        batch.key_cache,
        batch.value_cache,
        cu_seqlens_q=batch.query_start_loc,
        max_seqlen_q=batch.max_query_len,
        seqused_k=batch.seq_lens,
        page_table=batch.block_table,
        softmax_scale=batch.scale,
        causal=batch.causal,
        window_size=(None, None) if batch.window is None else (batch.window - 1, 0),
        learnable_sink=batch.sinks,
        softcap=batch.softcap or 0.0,
        num_splits=0,
        return_lse=True,
    )
    batch.out.copy_(out)
    if batch.lse is not None:
        batch.lse.copy_(lse.transpose(0, 1))  # the log-sum-exp is [num_q_heads, num_tokens]
