"""The merge of our split kernels as one that anybody may call: see `kernels.merge`."""

from __future__ import annotations

import math

import torch
import triton

from kernels.attention import SPLITS_AT_ONCE
from kernels.merge import merge_kernel
from reference.attention.contract import Capabilities, MergeBatch, declares


@declares(Capabilities(kind="merge", promises=frozenset({"deterministic"})))
def merge_states(batch: MergeBatch) -> None:
    """Fill `batch.out` and `batch.lse`. The parts are first copied to where splits leave theirs."""
    parts, tokens, heads, size = batch.part_out.shape
    if parts == 1:  # which the kernel leaves alone: a single split writes the answer itself
        batch.out.copy_(batch.part_out[0])
        if batch.lse is not None:
            batch.lse.copy_(batch.part_lse[0])
        return
    if not batch.out.numel():
        return
    token = torch.arange(tokens + 1, dtype=torch.int32, device=batch.out.device)
    plan = torch.stack([token[:-1] * parts, torch.full_like(token[:-1], parts)], 1)
    lse = batch.lse
    merge_kernel[(tokens, heads)](
        batch.part_out.float().transpose(0, 1).contiguous(),
        (batch.part_lse / math.log(2)).transpose(0, 1).contiguous(),
        plan,
        token,
        batch.out,
        lse,
        None,
        *batch.out.stride()[:2],
        *((0, 0) if lse is None else lse.stride()),
        HEAD_DIM=size,
        BLOCK_D=triton.next_power_of_2(size),
        BLOCK_SPLITS=SPLITS_AT_ONCE,
        SINKS=False,
        WITH_LSE=lse is not None,
        EMPTY=True,
    )
