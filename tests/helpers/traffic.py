"""How many bytes attention has to move, and how many the kernels here move: closed forms.

What is counted in the interpreter is compared with these for equality: a key that is loaded twice,
or a query that is loaded again in every turn of the loop, gives no wrong number anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.launch import Launch
from reference.attention.contract import PagedBatch


@dataclass(frozen=True, slots=True)
class AttentionBytes:
    """Bytes of one attention call: query, keys and values loaded, output stored."""

    query: int
    keys: int
    values: int
    out: int


def needed_bytes(batch: PagedBatch) -> AttentionBytes:
    """What any kernel has to move: each row once, and each slot that some query sees once."""
    seen = np.zeros(batch.key_cache.shape[0] * batch.block_size, np.bool_)
    table = batch.block_table.numpy()
    for index, (query_len, seq_len) in enumerate(_lengths(batch)):
        if query_len:
            first, end = _visible(batch, seq_len, seq_len - query_len, seq_len - 1)
            token = np.arange(first, end)
            block = table[index, token // batch.block_size].astype(np.int64)
            seen[block * batch.block_size + token % batch.block_size] = True
    return _in_bytes(batch, rows=batch.query.shape[0], keys=int(np.count_nonzero(seen)))


def launched_bytes(batch: PagedBatch, launch: Launch) -> AttentionBytes:
    """What the kernels here move in a launch.

    Keys and values are loaded once for each tile of queries that sees any of the tile's, so once in
    decode; the query of a row once for each split. Partial results of splits are not counted.
    """
    if batch.max_query_len <= 1:
        asking = [seq_len for query_len, seq_len in _lengths(batch) if query_len]
        seen = [_visible(batch, seq_len, seq_len - 1, seq_len - 1) for seq_len in asking]
        size = launch.tiles.block_n
        splits = launch.splits.of([-(-end // size) - first // size for first, end in seen])
        keys = sum(end - first for first, end in seen)
        return _in_bytes(batch, rows=sum(splits), keys=keys)
    block_q = launch.tiles.block_m // batch.group_size
    keys = 0
    for query_len, seq_len in _lengths(batch):
        for start in range(0, query_len, block_q):
            position = seq_len - query_len + start
            last = seq_len - query_len + min(start + block_q, query_len) - 1
            first, end = _visible(batch, seq_len, position, last)
            keys += end - first
    return _in_bytes(batch, rows=batch.query.shape[0], keys=keys)


def _visible(batch: PagedBatch, seq_len: int, first: int, last: int) -> tuple[int, int]:
    """Keys `begin` <= n < `end` that queries at the positions from `first` to `last` see."""
    end = last + 1 if batch.causal else seq_len
    begin = max(first - batch.window + 1, 0) if batch.window else 0
    return begin, max(end, begin)


def _in_bytes(batch: PagedBatch, *, rows: int, keys: int) -> AttentionBytes:
    num_tokens, num_q_heads, head_dim = batch.query.shape
    row = num_q_heads * head_dim * batch.query.element_size()
    slot = batch.num_kv_heads * batch.key_cache.shape[3] * batch.key_cache.element_size()
    of_values = batch.num_kv_heads * batch.value_cache.shape[3] * batch.value_cache.element_size()
    # A latent record is key and value at once.
    values = 0 if batch.rope is not None else keys * of_values
    out = num_tokens * num_q_heads * batch.value_dim * batch.out.element_size()
    return AttentionBytes(query=rows * row, keys=keys * slot, values=values, out=out)


def _lengths(batch: PagedBatch) -> list[tuple[int, int]]:
    query_lens = np.diff(batch.query_start_loc.numpy()).tolist()
    return list(zip(query_lens, batch.seq_lens.tolist(), strict=True))
