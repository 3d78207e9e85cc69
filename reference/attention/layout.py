"""Batches as a server has them: usual numbers in shuffled pages, nothing hostile.

They are for timing. What a kernel is judged by is placed by `reference.attention.placement`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.attention.contiguous import ContiguousBatch
from reference.attention.contract import PagedBatch
from reference.attention.problem import AttentionProblem


def usual(problem: AttentionProblem, *, device: str, seed: int) -> PagedBatch:
    """Normal numbers in shuffled pages; slots that no sequence owns hold finite ones as well.

    Of a problem its sizes, lengths and dtypes are taken. `out` is not filled, `lse` not asked for.
    """
    rng = torch.Generator(device=device).manual_seed(seed)
    counts = [-(-request.seq_len // problem.block_size) for request in problem.requests]
    shape = (sum(counts), problem.block_size, problem.num_kv_heads, problem.head_dim)

    def normal(*size: int) -> Tensor:
        numbers = torch.empty(size, dtype=problem.torch_dtype, device=device)
        return numbers.normal_(generator=rng)

    physical = torch.randperm(sum(counts), generator=rng, device=device).int()
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32, device=device)
    for row, blocks in enumerate(physical.split(counts)):
        table[row, : len(blocks)] = blocks
    query = normal(problem.num_tokens, problem.num_q_heads, problem.head_dim)
    lens = [request.seq_len for request in problem.requests]
    return PagedBatch(
        query=query,
        key_cache=normal(*shape).to(problem.torch_kv_dtype),
        value_cache=normal(*shape).to(problem.torch_kv_dtype),
        block_table=table,
        seq_lens=torch.tensor(lens, dtype=torch.int32, device=device),
        query_start_loc=torch.tensor(problem.query_starts, dtype=torch.int32, device=device),
        out=torch.empty_like(query),
        lse=None,
        max_query_len=problem.max_query_len,
        max_seq_len=problem.max_seq_len,
        scale=problem.softmax_scale,
    )


def tokens_of(cache: Tensor, batch: PagedBatch, sequence: int, seq_len: int) -> Tensor:
    """A sequence's first tokens, [seq_len, num_kv_heads, head_dim], copied out of their blocks."""
    count = -(-seq_len // batch.block_size)
    blocks = batch.block_table[sequence, :count].long()
    return cache[blocks].flatten(0, 1)[:seq_len]


def contiguous_of(batch: PagedBatch) -> ContiguousBatch:
    """The same tokens, each sequence in a row of its own."""
    caches = []
    for cache in (batch.key_cache, batch.value_cache):
        shape = (len(batch.seq_lens), batch.max_seq_len, *cache.shape[2:])
        rows = torch.zeros(shape, dtype=cache.dtype, device=cache.device)
        for index, seq_len in enumerate(batch.seq_lens.tolist()):
            rows[index, :seq_len] = tokens_of(cache, batch, index, seq_len)
        caches.append(rows)
    return ContiguousBatch(
        query=batch.query,
        key_cache=caches[0],
        value_cache=caches[1],
        seq_lens=batch.seq_lens,
        query_start_loc=batch.query_start_loc,
        out=batch.out,
        lse=None,
        scale=batch.scale,
    )
