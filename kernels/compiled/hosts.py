"""Host functions of our kernels, each as a function of one batch, for compiling what they launch.

The number of splits is fixed: it depends on the device's multiprocessors otherwise, and only
whether it is 1 changes what is compiled.
"""

from __future__ import annotations

import torch

from kernels.attention import paged_attention
from kernels.cache_ops import copy_blocks, write_slots
from reference.contract import PagedBatch

SPLITS = 8


def decode(batch: PagedBatch) -> None:
    """Decode in one split: the decode kernel writes the caller's output."""
    paged_attention(batch, num_splits=1)


def split_decode(batch: PagedBatch) -> None:
    """Decode in several splits: the decode kernel, then the merge of its partial results."""
    paged_attention(batch, num_splits=SPLITS)


def prefill(batch: PagedBatch) -> None:
    """Prefill, chunked prefill and mixed batches."""
    paged_attention(batch)


def write(batch: PagedBatch) -> None:
    """Store one step's keys and values, which lie behind the query in the fused projection."""
    tokens, query_heads, dim = batch.query.shape
    heads = batch.num_kv_heads
    fused = batch.query.as_strided(
        (tokens, query_heads + 2 * heads, dim), batch.query.stride(), batch.query.storage_offset()
    )
    keys, values = fused[:, query_heads:].split(heads, dim=1)
    slots = torch.arange(tokens, dtype=torch.int64)
    scales = {"k_scale": batch.k_scale, "v_scale": batch.v_scale}
    write_slots(batch.key_cache, batch.value_cache, keys, values, slots, **scales)


def copy(batch: PagedBatch) -> None:
    """Copy blocks, as copy-on-write does."""
    spare = len(batch.key_cache) - torch.arange(1, 5, dtype=torch.int64)
    pairs = torch.stack([torch.arange(4, dtype=torch.int64), spare], dim=1)
    copy_blocks(batch.key_cache, batch.value_cache, pairs)
