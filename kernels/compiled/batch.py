"""A batch as an engine has it: what a host function is given to compile its launches for.

`placement.place` lays a problem out as badly as the contract allows, for finding bugs. Here the
strides are those of a serving engine, because they decide what the compiler may do: a stride that
is divisible by 16 is what makes 16-byte loads.
"""

from __future__ import annotations

from typing import Final

import torch

from reference.attention.contract import PagedBatch, options_of
from reference.attention.problem import AttentionProblem
from reference.attention.size import check_call

MAX_CONTEXT: Final = 131_072
"""Tokens for which a row of the block table has room, as in an engine that serves such a model."""

SPARE_BLOCKS: Final = 16
"""Blocks of the pool that no sequence has: copies go there."""


def engine_batch(problem: AttentionProblem, *, with_lse: bool = True) -> PagedBatch:
    """Tensors of a problem on the CPU, of the right shapes, strides and alignment.

    The query is the first part of a fused projection, keys and values lie together as [num_blocks,
    2, block_size, num_kv_heads, head_dim], the outputs are contiguous. Queries, keys and values are
    not written, and cost no memory.

    Raises InvalidProblem: it is too large; see `reference.attention.size.check_call`.
    """
    check_call(problem)
    heads, dim = problem.num_q_heads, problem.head_dim
    fused = torch.empty(
        (problem.num_tokens, heads + 2 * problem.num_kv_heads, dim), dtype=problem.torch_dtype
    )
    blocks = [-(-request.seq_len // problem.block_size) for request in problem.requests]
    num_blocks = sum(blocks) + SPARE_BLOCKS
    width = max(MAX_CONTEXT // problem.block_size, *blocks)
    table = torch.zeros((len(blocks), width), dtype=torch.int32)
    first = 0
    for row, count in enumerate(blocks):
        table[row, :count] = torch.arange(first, first + count, dtype=torch.int32)
        first += count
    cache = torch.empty(
        (num_blocks, 2, problem.block_size, problem.num_kv_heads, dim), dtype=problem.torch_kv_dtype
    )
    keys, values = cache.unbind(1)
    return PagedBatch(
        query=fused[:, :heads],
        key_cache=keys,
        value_cache=values,
        block_table=table,
        seq_lens=torch.tensor([r.seq_len for r in problem.requests], dtype=torch.int32),
        query_start_loc=torch.tensor(problem.query_starts, dtype=torch.int32),
        out=torch.empty((problem.num_tokens, heads, dim), dtype=problem.torch_dtype),
        lse=torch.empty((problem.num_tokens, heads), dtype=torch.float32) if with_lse else None,
        alibi_slopes=torch.ones(heads) if problem.alibi else None,
        sinks=torch.ones(heads) if problem.sinks else None,
        **options_of(problem),
    )
