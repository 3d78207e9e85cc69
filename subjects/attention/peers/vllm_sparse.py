"""vLLM's conversion of chosen positions to slots, `triton_convert_req_index_to_global_index`.

A sparse latent backend of vLLM converts what its indexer chose through the block table, and reads
the cache at what comes out (vllm/v1/attention/backends/mla/sparse_utils.py). The conversion is
vLLM's; each slot is compared with the table, exactly, and what is then read is multiplied in torch.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from reference.attention.contract import Capabilities, PagedBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.vllm_wheel import check_gpu, load_sparse_utils, minor_release

TILE: Final = 128
"""Columns of a program, of which the indices must be a multiple."""

_convert: Any = None


def _prepare(device: str) -> None:
    check_gpu("vllm-sparse", device)
    global _convert  # noqa: PLW0603 - one kernel in one process
    minor_release()
    _convert = load_sparse_utils().triton_convert_req_index_to_global_index


@prepared_by(_prepare)
@declares(
    Capabilities(
        kind="latent",
        kv_dtypes=frozenset(),
        variants=frozenset({"prefill", "lse"}),
        also=frozenset({"sparse"}),
        declines=frozenset({"dense", "empty", "pool"}),
        promises=frozenset({"deterministic", "relabelling"}),
    )
)
def attention(batch: PagedBatch) -> None:
    """Fill `batch.out` and `batch.lse`.

    Raises ArithmeticError: a slot is not what the table says.
    """
    assert batch.indices is not None
    chosen = batch.indices[:, 0]
    chosen = torch.nn.functional.pad(chosen, (0, -chosen.shape[1] % TILE), value=-1)
    counts = batch.query_start_loc.diff()
    sequence = torch.repeat_interleave(counts).int()
    # Without counts the columns stay in place, with them those that are chosen move to the front.
    options = {"BLOCK_SIZE": batch.block_size, "NUM_TOPK_TOKENS": chosen.shape[1], "BLOCK_N": TILE}
    slots = _convert(sequence, batch.block_table, chosen, **options)
    front, counted = _convert(
        sequence, batch.block_table, chosen, **options, return_valid_counts=True
    )
    _compare(batch, sequence, chosen, slots)
    for row, (of_row, count) in enumerate(zip(front, counted.tolist(), strict=True)):
        wanted = slots[row][slots[row] >= 0].sort().values
        if not torch.equal(of_row[:count].sort().values, wanted) or (of_row[count:] != -1).any():
            raise ArithmeticError(f"row {row}: slots in front are {of_row[:count].tolist()}")
    _attend(batch, slots.long())


def _compare(batch: PagedBatch, sequence: Tensor, chosen: Tensor, slots: Tensor) -> None:
    size = batch.block_size
    for row, (index, of_row) in enumerate(zip(sequence.tolist(), chosen.tolist(), strict=True)):
        table = batch.block_table[index].tolist()
        wanted = [-1 if at < 0 else table[at // size] * size + at % size for at in of_row]
        if wanted != slots[row].tolist():
            raise ArithmeticError(f"row {row}: {slots[row].tolist()}, of the table {wanted}")


def _attend(batch: PagedBatch, slots: Tensor) -> None:
    real, at = slots >= 0, slots.clamp(min=0)
    records = batch.key_cache[at // batch.block_size, at % batch.block_size, 0].float()
    # What stands for -1 is nobody's.
    records = records.masked_fill(~real.unsqueeze(-1), 0.0)
    logits = torch.matmul(batch.query.float(), records.transpose(1, 2)) * batch.scale
    logits = logits.masked_fill(~real.unsqueeze(1), -torch.inf)
    lse = torch.logsumexp(logits, -1)
    weights = torch.exp(logits - lse.nan_to_num(neginf=0.0).unsqueeze(-1))
    batch.out.copy_(torch.matmul(weights, records[..., : batch.value_dim]))
    if batch.lse is not None:
        batch.lse.copy_(lse)
