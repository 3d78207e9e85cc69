"""FlashInfer's wrappers for a paged cache, on a GPU.

Batches of causal decode go to `BatchDecodeWithPagedKVCacheWrapper`, all others to
`BatchPrefillWithPagedKVCacheWrapper`, in the NHD layout. Arguments and shapes are those of
flashinfer-python 0.7.2.post1. Its log-sum-exp is to the base 2. ALiBi is not declared, since
FlashInfer computes slopes of its own; sinks neither, which have a wrapper to themselves.

The cache is copied into the one tensor that is documented for both halves, [num_blocks, 2,
block_size, num_kv_heads, head_dim], because two tensors have to have equal strides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from reference.attention.contract import Capabilities, PagedBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.gpu_package import import_for_gpu

DISTRIBUTION: Final = "flashinfer-python"

WORKSPACE_BYTES: Final = 128 * 2**20
"""What FlashInfer's documentation recommends."""

CUDA_CORE_GROUPS: Final = frozenset({1, 2, 3, 4, 6, 8, 16})
"""Group sizes that decode without tensor cores is compiled for (`DISPATCH_GQA_GROUP_SIZE` in
FlashInfer's utils.cuh); with them it takes any."""

_package: Any = None


def _prepare(device: str) -> None:
    global _package  # noqa: PLW0603 - one kernel in one process
    _package = import_for_gpu("flashinfer", distribution=DISTRIBUTION, device=device)


@dataclass(frozen=True, slots=True)
class Pages:
    """A block table in compressed rows."""

    starts: Tensor
    """[num_seqs + 1] int32, index of each sequence's first block in `blocks`."""
    blocks: Tensor
    """[starts[-1]] int32, the sequences' blocks, one sequence after the other."""
    last_lens: Tensor
    """[num_seqs] int32, tokens in the last block, 1 to block size; 0 where there is no block."""

    @classmethod
    def of(cls, batch: PagedBatch) -> Pages:
        """Those of a batch: its spare columns are left out."""
        size = batch.block_size
        counts = (batch.seq_lens + size - 1) // size
        starts = torch.zeros_like(batch.query_start_loc)
        starts[1:] = counts.cumsum(0)
        column = torch.arange(batch.block_table.shape[1], device=counts.device)
        blocks = batch.block_table[column < counts.unsqueeze(1)]
        last_lens = (batch.seq_lens - 1) % size + 1
        return cls(starts, blocks, torch.where(counts > 0, last_lens, 0).int())


@prepared_by(_prepare)
@declares(
    Capabilities(
        dtypes=frozenset({"fp16", "bf16"}),
        head_dims=frozenset({64, 128, 256}),
        variants=frozenset({"prefill", "noncausal", "window", "softcap", "lse"}),
        declines=frozenset({"pool"}),
    )
)
def attention(batch: PagedBatch) -> None:
    """Fill `batch.out` and `batch.lse`."""
    decode = batch.max_query_len == 1 and batch.query.shape[0] == batch.seq_lens.shape[0]
    wrapper = decode_wrapper(batch) if decode else prefill_wrapper(batch)
    quantised = batch.key_cache.element_size() == 1
    out, lse = wrapper.run(
        batch.query.contiguous(),
        both_halves(batch),
        k_scale=batch.k_scale if quantised else None,
        v_scale=batch.v_scale if quantised else None,
        return_lse=True,
    )
    batch.out.copy_(out)
    if batch.lse is not None:
        batch.lse.copy_(lse * math.log(2.0))


def decode_wrapper(batch: PagedBatch) -> Any:
    """FlashInfer's decode, planned for a batch."""
    wrapper = _package.BatchDecodeWithPagedKVCacheWrapper(
        _workspace(batch), "NHD", use_tensor_cores=batch.group_size not in CUDA_CORE_GROUPS
    )
    wrapper.plan(*_pages_and_sizes(batch), **_variant(batch))
    return wrapper


def prefill_wrapper(batch: PagedBatch) -> Any:
    """FlashInfer's prefill, planned for a batch."""
    wrapper = _package.BatchPrefillWithPagedKVCacheWrapper(_workspace(batch), "NHD")
    pages_and_sizes = _pages_and_sizes(batch)
    wrapper.plan(batch.query_start_loc, *pages_and_sizes, causal=batch.causal, **_variant(batch))
    return wrapper


def _pages_and_sizes(batch: PagedBatch) -> tuple[Any, ...]:
    """What both plans take in this order: the pages, query and KV heads, head and block size."""
    pages = Pages.of(batch)
    heads = batch.query.shape[1], batch.num_kv_heads
    sizes = batch.query.shape[2], batch.block_size
    return pages.starts, pages.blocks, pages.last_lens, *heads, *sizes


def _variant(batch: PagedBatch) -> dict[str, Any]:
    return {
        "sm_scale": batch.scale,
        "window_left": -1 if batch.window is None else batch.window - 1,
        "logits_soft_cap": batch.softcap,
        "q_data_type": batch.query.dtype,
        "kv_data_type": batch.key_cache.dtype,
    }


def _workspace(batch: PagedBatch) -> Tensor:
    # Zeros: split decode counts in it, and asks for that the first time.
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=batch.query.device)


def both_halves(batch: PagedBatch) -> Tensor:
    """[num_blocks, 2, block_size, num_kv_heads, head_dim]: keys and values in one tensor."""
    caches = (batch.key_cache, batch.value_cache)
    if batch.key_cache.element_size() == 1:
        # As bytes: not every release of torch stacks float8.
        stacked = torch.stack([cache.view(torch.uint8) for cache in caches], dim=1)
        return stacked.view(batch.key_cache.dtype)
    return torch.stack(caches, dim=1)
