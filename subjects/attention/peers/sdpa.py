"""torch's `scaled_dot_product_attention`, on the tokens of one sequence after the other.

It knows no pages: each sequence's keys and values are gathered first. `is_causal` aligns the mask
at the first key, which is right for a whole prefill only; decode needs no mask, and the rest gets
one. What it has no argument for is not declared: a soft-cap, sinks, the log-sum-exp, float8. ALiBi
neither: a mask of numbers must be of the query's type, and in bfloat16 a distance has eight bits.
"""

from __future__ import annotations

from torch.nn.functional import scaled_dot_product_attention

from reference.attention.contract import Capabilities, PagedBatch, declares
from reference.attention.layout import tokens_of
from subjects.attention.peers.sequences import sequences, visible


@declares(
    Capabilities(kv_dtypes=frozenset(), variants=frozenset({"prefill", "noncausal", "window"}))
)
def attention(batch: PagedBatch) -> None:
    """Fill `batch.out`."""
    grouped = batch.group_size > 1
    for sequence in sequences(batch):
        if sequence.seq_len == 0:
            batch.out[sequence.rows] = 0.0  # a padding row: there is nothing to ask torch about
            continue
        mask = visible(batch, sequence)
        whole = sequence.query_len == sequence.seq_len and batch.window is None
        is_causal = mask is not None and whole
        keys, values = (
            tokens_of(cache, batch, sequence.index, sequence.seq_len)
            for cache in (batch.key_cache, batch.value_cache)
        )
        query, keys, values = (
            tokens.transpose(0, 1).unsqueeze(0)
            for tokens in (batch.query[sequence.rows], keys, values)
        )
        answer = scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=None if is_causal else mask,
            is_causal=is_causal,
            scale=batch.scale,
            enable_gqa=grouped,
        )
        batch.out[sequence.rows] = answer[0].transpose(0, 1)
