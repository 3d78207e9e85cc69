"""Attention over a paged latent cache in plain torch, to all of it or to chosen records.

One record of a token is key and value at once: its first elements are the value, and what a query
is multiplied by is the record as a whole (the up-projections are absorbed into query and output).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from paged.attention import attend_to, decoded
from reference.attention.contract import Capabilities, PagedBatch, declares

MOST_GATHERED: Final = 2**18
"""Elements that are gathered at once, in float32: a MiB, which stays in a CPU's cache."""


@declares(
    Capabilities(
        kind="latent",
        promises=frozenset({"deterministic", "relabelling"}),
        also=frozenset({"cross", "chunk", "query_mask", "causal_each", "sparse"}),
        codecs=frozenset({"fp8-ds-mla"}),
    )
)
def paged_latent_attention(batch: PagedBatch) -> None:
    """Fill `batch.out` and `batch.lse`, in float32. Each record is gathered once."""
    if batch.indices is None:
        attend_to(batch, batch.key_cache)
        return
    num_tokens, _, topk = batch.indices.shape
    slots = global_slots(batch)
    at_once = max(MOST_GATHERED // (topk * batch.query.shape[2]), 1)
    for start in range(0, num_tokens, at_once):
        _attend_to_chosen(batch, slots, slice(start, min(start + at_once, num_tokens)))


def global_slots(batch: PagedBatch) -> Tensor:
    """The chosen positions as slots of the pool, [num_tokens, topk] int64; -1 remains -1."""
    assert batch.indices is not None
    chosen = batch.indices[:, 0].long()
    counts = batch.query_start_loc.diff()
    sequence = torch.repeat_interleave(counts).unsqueeze(1)
    if not batch.block_table.shape[1]:
        return torch.full_like(chosen, -1)
    at = chosen.clamp(min=0)
    block = batch.block_table[sequence, at // batch.block_size].long()
    return torch.where(chosen < 0, -1, block * batch.block_size + at % batch.block_size)


def _attend_to_chosen(batch: PagedBatch, slots: Tensor, rows: slice) -> None:
    """Attention of a few tokens to their chosen records."""
    chosen = slots[rows]
    real, at = chosen >= 0, chosen.clamp(min=0)
    cache = batch.key_cache
    as_bytes = cache.view(torch.uint8) if cache.element_size() == 1 else cache
    records = as_bytes[at // batch.block_size, at % batch.block_size, 0]
    if batch.codec:
        records = decoded(batch, records, batch.query.shape[2], None)
    else:
        records = records.view(cache.dtype).float()
    # What stands for -1 is nobody's, and a weight of zero does not silence NaN.
    records.masked_fill_(~real.unsqueeze(-1), 0.0)
    logits = torch.matmul(batch.query[rows].float(), records.transpose(1, 2))
    logits *= batch.scale * batch.k_scale
    if batch.softcap is not None:
        logits = batch.softcap * torch.tanh(logits / batch.softcap)
    if batch.alibi_slopes is not None:
        assert batch.indices is not None
        distance = _positions(batch)[rows].unsqueeze(1) - batch.indices[rows, 0]
        logits -= batch.alibi_slopes.view(1, -1, 1) * distance.abs().unsqueeze(1)
    logits.masked_fill_(~real.unsqueeze(1), -torch.inf)
    denominators = [torch.logsumexp(logits, -1)]
    if batch.sinks is not None:
        denominators.append(batch.sinks.expand_as(denominators[0]))
    lse = torch.logsumexp(torch.stack(denominators), 0)
    weights = torch.exp(logits - torch.where(lse.isinf(), 0.0, lse).unsqueeze(-1))
    out = torch.matmul(weights, records[..., : batch.value_dim]) * batch.v_scale
    batch.out[rows] = out.to(batch.out.dtype)
    if batch.lse is not None:
        batch.lse[rows] = lse


def _positions(batch: PagedBatch) -> Tensor:
    """Where in its sequence each query token stands, [num_tokens]."""
    counts = batch.query_start_loc.diff().long()
    behind = (batch.seq_lens - batch.query_start_loc[1:]).long().repeat_interleave(counts)
    return torch.arange(len(behind), device=behind.device) + behind
