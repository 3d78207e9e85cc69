"""The contiguous cache: every sequence has one reserved piece, as long as the longest may become.

What paging replaced, and what its time is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from reference.attention.chunked import attend_in_chunks
from reference.attention.contract import AttentionCall


@dataclass(frozen=True, slots=True, kw_only=True)
class ContiguousBatch(AttentionCall):
    """One call over a contiguous cache."""

    key_cache: Tensor
    value_cache: Tensor
    """[num_seqs, max_len, num_kv_heads, head_dim or value_dim]; sequence s is row s. Of a latent
    cache the values are a view of the keys."""


def contiguous_attention(batch: ContiguousBatch) -> None:
    """Fill `batch.out` and `batch.lse`; keys are read where they lie if the batch is sorted."""
    keys, values = batch.key_cache, batch.value_cache
    same = values.data_ptr() == keys.data_ptr()  # a latent cache

    def fetch(sequences: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
        rows: Tensor | slice = sequences
        if bool((sequences.diff() == 1).all()):
            # Neighbours, as in a batch that is sorted by length: a slice of the cache, no copy.
            rows = slice(int(sequences[0]), int(sequences[-1]) + 1)
        if same:
            return (keys[rows, start:stop],)
        return keys[rows, start:stop], values[rows, start:stop]

    attend_in_chunks(batch, fetch, num_kv_heads=keys.shape[2])
