"""Our allocator, cache and attention as one object, under the contract of a system."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from paged import attention, cache
from paged.allocator import PagedAllocator
from paged.cache import KVCache
from paged.subject import PagedSubject
from reference.allocator.contract import AllocatorCapabilities, declares_allocator
from reference.attention.contract import AttentionKernel, PagedBatch
from reference.system.contract import HEAD_DIM, NUM_KV_HEADS, Rows


class PagedSystem(PagedSubject):
    """An engine's step, one operation at a time. Blocks that belong to nobody hold NaN, so that
    whoever reads them shows. Subclasses name other kernels.
    """

    attention: AttentionKernel = staticmethod(attention.paged_attention)
    write_slots: Callable[..., object] = staticmethod(cache.write_slots)
    copy_blocks: Callable[..., object] = staticmethod(cache.copy_blocks)

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool) -> None:
        super().__init__(PagedAllocator(num_blocks, block_size, prefix_caching=prefix_caching))
        self.cache = KVCache.allocate(
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=NUM_KV_HEADS,
            head_dim=HEAD_DIM,
            dtype=torch.float32,
        )

    def write(self, sequence: str, *, start: int, keys: Rows, values: Rows) -> None:
        """Carry out the copies that are due, then store the keys and values of new tokens."""
        self._copy()
        slots = torch.from_numpy(self.allocator.slots(sequence, start=start))
        new = torch.tensor(keys), torch.tensor(values)
        self.write_slots(self.cache.key_cache, self.cache.value_cache, *new, slots)

    def attend(self, sequences: Sequence[str], *, queries: Rows) -> Tensor:
        """Attention of one query of each sequence, read through its block table."""
        self._copy()
        self._poison_free_blocks()
        query = torch.tensor(queries)
        lengths = [self.allocator.num_tokens(sequence) for sequence in sequences]
        outside = self.allocator.num_blocks + 5
        batch = PagedBatch(
            query=query,
            key_cache=self.cache.key_cache,
            value_cache=self.cache.value_cache,
            block_table=torch.from_numpy(self.allocator.block_table(sequences, fill=outside)),
            seq_lens=torch.tensor(lengths, dtype=torch.int32),
            query_start_loc=torch.arange(len(lengths) + 1, dtype=torch.int32),
            out=torch.full_like(query, torch.nan),
            lse=None,
            max_query_len=1,
            max_seq_len=max(lengths),
            scale=HEAD_DIM**-0.5,
        )
        self.attention(batch)
        return batch.out

    def _copy(self) -> None:
        pairs = cache.as_pairs(self.take_copies(), torch.device("cpu"))
        self.copy_blocks(self.cache.key_cache, self.cache.value_cache, pairs)

    def _poison_free_blocks(self) -> None:
        pool = self.allocator.pool
        kept = set(pool.eviction_order())
        free = [
            block
            for block, owners in enumerate(pool.reference_counts)
            if owners == 0 and block not in kept
        ]
        self.cache.key_cache[free] = torch.nan
        self.cache.value_cache[free] = torch.nan


CAPABILITIES = AllocatorCapabilities(
    system=True, salt=True, fork=True, chunked_prefill=True, reset=True
)


@declares_allocator(CAPABILITIES)
def paged_system(
    num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
) -> PagedSystem:
    """Make an empty one."""
    return PagedSystem(num_blocks, block_size, prefix_caching=prefix_caching)
