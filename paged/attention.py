"""Paged attention in plain torch: the default without a GPU, and the second opinion with one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from reference.attention.chunked import CHUNK_TOKENS, attend_in_chunks
from reference.attention.codecs import decode, unswizzled_pages
from reference.attention.contract import Capabilities, PagedBatch, declares, everything
from reference.attention.records import CODECS


@declares(
    Capabilities(
        promises=frozenset({"deterministic", "relabelling"}),
        max_head_dim=576,
        also=frozenset({"value_size", "cross", "chunk", "query_mask", "causal_each"}),
        codecs=everything().codecs,
    )
)
def paged_attention(batch: PagedBatch) -> None:
    """Fill `batch.out` and `batch.lse`, vectorised over the batch, in float32.

    The blocks of a chunk are gathered with one `index_select` for all sequences. Spare columns of
    the block table are never used as an index.
    """
    attend_to(batch, batch.key_cache, batch.value_cache)


def attend_to(batch: PagedBatch, *paged: Tensor) -> None:
    """The same over these caches: keys and values, or a latent one that is both."""
    block_size = batch.block_size
    caches = [_gatherable(cache) for cache in paged]
    table = _without_spare_columns(batch)

    def fetch(sequences: Tensor, start: int, stop: int) -> Iterator[Tensor]:
        blocks = table[sequences, start // block_size : -(-stop // block_size)].flatten()
        n, length, skip = len(sequences), stop - start, start % block_size
        for cache in caches:
            pages = cache.index_select(0, blocks)
            if batch.codec and CODECS[batch.codec].swizzled and cache is caches[-1]:
                pages = unswizzled_pages(batch.codec, pages, batch.value_dim)
            gathered = pages.view(n, -1, *cache.shape[2:])[:, skip : skip + length]
            if not batch.codec:
                yield gathered.view(batch.key_cache.dtype)
            elif cache is caches[0]:
                yield decoded(batch, gathered, batch.query.shape[2], batch.k_scales)
            else:
                yield decoded(batch, gathered, batch.value_dim, batch.v_scales)

    chunk = max(CHUNK_TOKENS, block_size)  # whole blocks: none is gathered twice
    attend_in_chunks(batch, fetch, num_kv_heads=batch.num_kv_heads, chunk=chunk)


def decoded(batch: PagedBatch, records: Tensor, size: int, by_head: Tensor | None) -> Tensor:
    """What records stand for in float32, but for a scale of the whole cache."""
    scale = 1.0 if by_head is None else by_head
    return decode(
        batch.codec, records, size, scale=scale, rope=batch.rope or 0, dtype=torch.float32
    )


def _without_spare_columns(batch: PagedBatch) -> Tensor:
    """The block table, where an unused column becomes a used one; its tokens are masked."""
    table = batch.block_table
    column = torch.arange(table.shape[1], device=table.device)
    has = column * batch.block_size < batch.seq_lens.unsqueeze(1)
    return torch.where(has, table, table[:, :1])


def _gatherable(cache: Tensor) -> Tensor:
    # torch gathers no float8, but its bytes.
    return cache.view(torch.uint8) if cache.element_size() == 1 else cache
