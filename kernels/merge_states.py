"""Attention to several shares of the keys, made attention to all of them, in Triton."""

from __future__ import annotations

from typing import Final

import triton

from kernels.merge import merge_states_kernel
from reference.attention.contract import Capabilities, MergeBatch, declares

ELEMENTS: Final = 4096
"""Of the answer in a program: 32 registers of each of its threads."""


@declares(Capabilities(kind="merge", promises=frozenset({"deterministic"})))
def merge_states(batch: MergeBatch) -> None:
    """Fill `batch.out` and `batch.lse`. Each part is read once, where it lies."""
    parts, tokens, heads, size = batch.part_out.shape
    if not batch.out.numel():
        return
    block_d = triton.next_power_of_2(size)
    block_rows = max(ELEMENTS // block_d, 1)
    lse = batch.lse
    merge_states_kernel[(triton.cdiv(tokens * heads, block_rows),)](
        batch.part_out,
        batch.part_lse,
        batch.out,
        lse,
        parts,
        tokens * heads,
        heads,
        (*batch.part_out.stride()[:3], *batch.part_lse.stride()),
        (*batch.out.stride()[:2], *((0, 0) if lse is None else lse.stride())),
        SIZE=size,
        BLOCK_D=block_d,
        BLOCK_ROWS=block_rows,
        WITH_LSE=lse is not None,
    )
