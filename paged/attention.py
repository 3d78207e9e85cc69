"""Paged attention in plain torch: the default without a GPU, and the second opinion with one."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.chunked import CHUNK_TOKENS, attend_in_chunks
from reference.contract import Capabilities, PagedBatch, declares


@declares(Capabilities())
def paged_attention(batch: PagedBatch) -> None:
    """Fill `batch.out` and `batch.lse`, vectorised over the batch, in float32.

    The blocks of a chunk are gathered with one `index_select` for all sequences. Spare columns of
    the block table are never used as an index.
    """
    block_size = batch.block_size
    keys, values = _gatherable(batch.key_cache), _gatherable(batch.value_cache)

    def fetch(sequences: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        columns = torch.arange(start // block_size, -(-stop // block_size), device=keys.device)
        table = batch.block_table[sequences][:, columns]
        has = columns * block_size < batch.seq_lens[sequences].unsqueeze(1)
        # A column that the sequence does not use becomes one that it does: its tokens are masked.
        blocks = torch.where(has, table, table[:, :1]).flatten()
        n, length = len(sequences), stop - start
        skip = start - int(columns[0]) * block_size
        gathered = (
            cache.index_select(0, blocks)
            .view(n, -1, *cache.shape[2:])[:, skip : skip + length]
            .view(batch.key_cache.dtype)
            for cache in (keys, values)
        )
        return next(gathered), next(gathered)

    chunk = max(CHUNK_TOKENS, block_size)  # whole blocks: none is gathered twice
    attend_in_chunks(batch, fetch, num_kv_heads=batch.num_kv_heads, chunk=chunk)


def _gatherable(cache: Tensor) -> Tensor:
    # torch gathers no float8, but its bytes.
    return cache.view(torch.uint8) if cache.element_size() == 1 else cache
