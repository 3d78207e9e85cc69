"""A batch as an engine has it: what a host function is given to compile its launches for.

`placement.place` lays a problem out as badly as the contract allows, for finding bugs. Here the
strides are those of a serving engine, because they decide what the compiler may do: a stride that
is divisible by 16 is what makes 16-byte loads.
"""

from __future__ import annotations

from typing import Final

import torch

from reference.attention.chosen import choose
from reference.attention.contract import PagedBatch, options_of
from reference.attention.problem import AttentionProblem
from reference.attention.records import CODECS
from reference.attention.size import check_call

MAX_CONTEXT: Final = 131_072
"""Tokens for which a row of the block table has room, as in an engine that serves such a model."""

SPARE_BLOCKS: Final = 16
"""Blocks of the pool that no sequence has: copies go there."""


def engine_batch(problem: AttentionProblem, *, with_lse: bool = True) -> PagedBatch:
    """Tensors of a problem on the CPU, of the right shapes, strides and alignment.

    The query is the first part of a fused projection, keys and values lie together as [num_blocks,
    2, block_size, num_kv_heads, head_dim], or are one latent record, the outputs are contiguous.
    Queries, keys and values are not written, and cost no memory.

    Raises InvalidProblem: it is too large; see `reference.attention.size.check_call`.
    """
    check_call(problem)
    heads, dim, latent = problem.num_q_heads, problem.head_dim, problem.kind == "latent"
    fused = torch.empty(
        (problem.num_tokens, heads + (0 if latent else 2 * problem.num_kv_heads), dim),
        dtype=problem.torch_dtype,
    )
    blocks = [-(-request.seq_len // problem.block_size) for request in problem.requests]
    num_blocks = sum(blocks) + SPARE_BLOCKS
    width = max(MAX_CONTEXT // problem.block_size, *blocks)
    table = torch.zeros((len(blocks), width), dtype=torch.int32)
    first = 0
    for row, count in enumerate(blocks):
        table[row, :count] = torch.arange(first, first + count, dtype=torch.int32)
        first += count
    chosen = choose(problem)
    keys, values = _caches(problem, num_blocks)
    outer = CODECS[problem.codec].outer if problem.codec else ""
    by_head = torch.ones(problem.num_kv_heads) if outer == "head" else None
    return PagedBatch(
        query=fused[:, :heads],
        key_cache=keys,
        value_cache=values,
        block_table=table,
        seq_lens=torch.tensor([r.seq_len for r in problem.requests], dtype=torch.int32),
        query_start_loc=torch.tensor(problem.query_starts, dtype=torch.int32),
        out=torch.empty((problem.num_tokens, heads, problem.value_size), dtype=problem.torch_dtype),
        lse=torch.empty((problem.num_tokens, heads), dtype=torch.float32) if with_lse else None,
        alibi_slopes=torch.ones(heads) if problem.alibi else None,
        sinks=torch.ones(heads) if problem.sinks else None,
        query_mask=chosen.query_mask,
        indices=chosen.indices,
        k_scales=by_head,
        v_scales=by_head,
        causal_of=chosen.causal_of,
        **options_of(problem),
    )


def _caches(problem: AttentionProblem, num_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as an engine has them; of a latent cache records, and their first part."""
    dtype, (key_size, value_size) = problem.torch_kv_dtype, problem.stored_sizes
    page = (problem.block_size, problem.num_kv_heads)
    if problem.kind == "latent":
        records = torch.empty((num_blocks, *page, key_size), dtype=dtype)
        return records, records[..., :value_size]
    both = torch.empty((num_blocks, 2, *page, max(key_size, value_size)), dtype=dtype)
    keys, values = both.unbind(1)
    return keys[..., :key_size], values[..., :value_size]
