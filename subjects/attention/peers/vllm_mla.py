"""vLLM's Triton kernel for latent decode: splits, and a reduction after them.

The launcher, `decode_attention_fwd`, is called as `TritonMLAImpl.forward_mqa` does
(vllm/v1/attention/backends/mla/triton_mla.py), and what that class supports is declared here: one
query token for each sequence, float16 or bfloat16, a float8 cache with one scale, and no window,
soft-cap or ALiBi. The values are a view of the cache's first columns.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from reference.attention.contract import Capabilities, PagedBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.vllm_wheel import check_gpu, load_decode_attention, minor_release

MIN_WORK_PER_SPLIT: Final = 512
SPLITS_AT_MOST: Final = 264
"""Of vLLM's backend, with the 132 multiprocessors of an H100."""

_launcher: Any = None


def _prepare(device: str) -> None:
    check_gpu("vllm-mla", device)
    global _launcher  # noqa: PLW0603 - one kernel in one process
    minor_release()
    _launcher = load_decode_attention().decode_attention_fwd


@prepared_by(_prepare)
@declares(
    Capabilities(
        kind="latent",
        dtypes=frozenset({"fp16", "bf16"}),
        kv_dtypes=frozenset({"e4m3"}),
        head_dims=frozenset({576}),
        value_dims=frozenset({512}),
        block_sizes=frozenset({16, 32, 64, 128, 256}),
        variants=frozenset({"lse"}),
        declines=frozenset({"waiting", "empty", "strides=table"}),
        promises=frozenset({"deterministic", "relabelling"}),
    )
)
def attention(batch: PagedBatch) -> None:
    """Fill `batch.out` and `batch.lse`; the log-sum-exp is made in any case."""
    num_tokens, heads, _ = batch.query.shape
    latent, device = batch.value_dim, batch.query.device
    ideal = 1 << (max(1, batch.max_seq_len // MIN_WORK_PER_SPLIT) - 1).bit_length()
    splits = min(ideal, SPLITS_AT_MOST)
    lse = torch.empty((num_tokens, heads), dtype=torch.float32, device=device)
    scale = torch.tensor(batch.k_scale, dtype=torch.float32, device=device)
    _launcher(
        batch.query,
        batch.key_cache,
        batch.value_cache,
        batch.out,
        lse,
        batch.block_table,
        batch.seq_lens,
        torch.empty((num_tokens, heads, splits, latent + 1), dtype=torch.float32, device=device),
        splits,
        batch.scale,
        batch.block_size,
        k_scale=scale,
        v_scale=scale,
        is_mla=True,
    )
    if batch.lse is not None:
        batch.lse.copy_(lse)
