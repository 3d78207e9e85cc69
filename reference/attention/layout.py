"""Batches as a server has them: usual numbers in shuffled pages, nothing hostile.

They are for timing. What a kernel is judged by is placed by `reference.attention.placement`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.attention.contiguous import ContiguousBatch
from reference.attention.contract import PagedBatch
from reference.attention.problem import AttentionProblem
from reference.attention.size import shared_blocks


def usual(problem: AttentionProblem, *, device: str, seed: int) -> PagedBatch:
    """Normal numbers in shuffled pages, the same tokens whatever the size of a page.

    What sequences share of `shared_prefix` lies in blocks of the longest. Slots of no sequence are
    zero, `out` is not filled, `lse` not asked for.
    """
    rng = torch.Generator(device=device).manual_seed(seed)
    size = problem.block_size
    lens = [request.seq_len for request in problem.requests]
    counts = [-(-seq_len // size) for seq_len in lens]

    def normal(*shape: int) -> Tensor:
        numbers = torch.empty(shape, dtype=problem.torch_dtype, device=device)
        return numbers.normal_(generator=rng)

    query = normal(problem.num_tokens, problem.num_q_heads, problem.head_dim)
    heads, latent = problem.num_kv_heads, problem.kind == "latent"
    sizes = [problem.head_dim] if latent else [problem.head_dim, problem.value_size]
    tokens = [normal(sum(lens), heads, each) for each in sizes]
    physical = torch.randperm(sum(counts), generator=rng, device=device)
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32, device=device)
    slots = []
    for row, (blocks, seq_len) in enumerate(zip(physical.split(counts), lens, strict=True)):
        table[row, : len(blocks)] = blocks
        within = torch.arange(size, device=device)
        slots.append((blocks[:, None] * size + within).flatten()[:seq_len])

    longest = lens.index(max(lens))
    for row, count in enumerate(shared_blocks(problem)):
        table[row, :count] = table[longest, :count]
    pages = (sum(counts), size, problem.num_kv_heads)
    caches = [
        _placed(each.to(problem.torch_kv_dtype), slots, (*pages, each.shape[-1])) for each in tokens
    ]
    return PagedBatch(
        query=query,
        key_cache=caches[0],
        value_cache=caches[-1][..., : problem.value_size],
        block_table=table,
        seq_lens=torch.tensor(lens, dtype=torch.int32, device=device),
        query_start_loc=torch.tensor(problem.query_starts, dtype=torch.int32, device=device),
        out=query.new_empty((*query.shape[:2], problem.value_size)),
        lse=None,
        max_query_len=problem.max_query_len,
        max_seq_len=problem.max_seq_len,
        scale=problem.softmax_scale,
        rope=problem.rope,
    )


def _placed(tokens: Tensor, slots: list[Tensor], pages: tuple[int, ...]) -> Tensor:
    """A cache of so many pages that holds the tokens in these slots."""
    cache = torch.zeros(pages, dtype=tokens.dtype, device=tokens.device)
    # torch scatters no float8, but its bytes.
    by_slot, moved = cache.flatten(0, 1).view(torch.uint8), tokens.view(torch.uint8)
    by_slot[torch.cat(slots)] = moved
    return cache


def tokens_of(cache: Tensor, batch: PagedBatch, sequence: int, seq_len: int) -> Tensor:
    """A sequence's first tokens, [seq_len, num_kv_heads, head_dim], copied out of their blocks."""
    count = -(-seq_len // batch.block_size)
    blocks = batch.block_table[sequence, :count].long()
    return cache[blocks].flatten(0, 1)[:seq_len]


def contiguous_of(batch: PagedBatch) -> ContiguousBatch:
    """The same tokens, each sequence in a row of its own."""
    caches = []
    for cache in [batch.key_cache, batch.value_cache][: 2 if batch.rope is None else 1]:
        shape = (len(batch.seq_lens), batch.max_seq_len, *cache.shape[2:])
        rows = torch.zeros(shape, dtype=cache.dtype, device=cache.device)
        for index, seq_len in enumerate(batch.seq_lens.tolist()):
            rows[index, :seq_len] = tokens_of(cache, batch, index, seq_len)
        caches.append(rows)
    return ContiguousBatch(
        query=batch.query,
        key_cache=caches[0],
        value_cache=caches[-1][..., : batch.value_dim],
        seq_lens=batch.seq_lens,
        query_start_loc=batch.query_start_loc,
        out=batch.out,
        lse=None,
        scale=batch.scale,
    )
