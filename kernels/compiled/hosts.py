"""Host functions of our kernels, each a function of one batch: what `variants` compiles."""

from __future__ import annotations

from dataclasses import replace

import torch

from kernels.attention import batch_invariant_attention, paged_attention
from kernels.cache_ops import copy_blocks, write_slots
from kernels.cascade import cascade_attention
from kernels.latent_attention import paged_latent_attention
from kernels.shared_prefix import PrefixGroups, SharedPrefix, choose_cascade
from reference.attention.contract import PagedBatch, capabilities_of, declares

SPLITS = 8

_as_attention = declares(capabilities_of(paged_attention))
_as_latent = declares(capabilities_of(paged_latent_attention))


@_as_attention
def decode(batch: PagedBatch) -> None:
    """Decode in one split: the decode kernel writes the caller's output."""
    paged_attention(batch, num_splits=1)


def split_decode(batch: PagedBatch) -> None:
    """Decode in so many splits of each sequence, and the merge of their partial results."""
    paged_attention(batch, num_splits=SPLITS)


def ragged_decode(batch: PagedBatch) -> None:
    """Decode as it is launched by default: splits of one length for the whole batch, and merge."""
    paged_attention(batch)


def invariant_decode(batch: PagedBatch) -> None:
    """Decode whose bits depend on no other sequence."""
    batch_invariant_attention(batch)


@_as_attention
def prefill(batch: PagedBatch) -> None:
    """Prefill, chunked prefill and mixed batches."""
    paged_attention(batch)


def cascade(batch: PagedBatch) -> None:
    """All sequences share the first half of the shortest one, in eight splits."""
    seq_lens, query_lens = batch.seq_lens.tolist(), batch.query_start_loc.diff().tolist()
    blocks = min(seq_lens) // 2 // batch.block_size
    groups = PrefixGroups.of(
        [SharedPrefix(tuple(range(len(seq_lens))), blocks)],
        seq_lens=seq_lens,
        query_lens=query_lens,
        block_size=batch.block_size,
    )
    launch = replace(choose_cascade(batch, groups), prefix_splits=SPLITS, suffix_splits=1)
    cascade_attention(batch, groups=groups, launch=launch)


@_as_latent
def latent(batch: PagedBatch) -> None:
    """Latent prefill, or decode in one split."""
    paged_latent_attention(batch, num_splits=1)


@_as_latent
def ragged_latent(batch: PagedBatch) -> None:
    """Latent decode as it is launched by default, and the merge of its splits."""
    paged_latent_attention(batch)


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
