"""Attention to several shares of the keys, made attention to all of them."""

from __future__ import annotations

import torch

from reference.attention.contract import Capabilities, MergeBatch, declares


@declares(Capabilities(kind="merge", promises=frozenset({"deterministic"})))
def merge_states(batch: MergeBatch) -> None:
    """Fill `batch.out` and `batch.lse`, in float32."""
    largest = batch.part_lse.amax(0)
    # Where no part saw a key: exp(-inf - 0) is the zero weight that it needs.
    weights = torch.exp(batch.part_lse - torch.where(largest.isinf(), 0.0, largest))
    total = weights.sum(0)
    shares = (weights / torch.where(total == 0, 1.0, total)).unsqueeze(-1)
    # What a part without a key holds may be NaN, which a weight of zero does not silence.
    seen = batch.part_out.float().masked_fill(batch.part_lse.isneginf().unsqueeze(-1), 0.0)
    batch.out.copy_((seen * shares).sum(0))
    if batch.lse is not None:
        batch.lse.copy_(largest + total.log())
