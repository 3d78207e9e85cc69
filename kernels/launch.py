"""Tile sizes and split counts: choices that change the speed and never the answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
import triton

from reference.contract import PagedBatch

MIN_TILES_A_SPLIT: Final = 4
"""A split shorter than this spends more on starting and merging than on reading keys."""

MAX_SPLITS: Final = 128

GOOD_EFFICIENCY: Final = 0.85
"""Among split counts within this share of the best wave efficiency the smallest is taken, as
FlashAttention-3's heuristic does (hopper/heuristics.h): fewer partial results to merge."""

INTERPRETED_PROCESSORS: Final = 64
"""Multiprocessors that are assumed where there is no GPU, so that splits occur there too."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Launch parameters of the attention kernels.

    Attributes
    ----------
    block_n
        Keys in a tile, a power of two from 16.
    block_m
        Rows (token, query head) in a tile of queries, a power of two from 16.
    num_warps, num_stages
        As Triton's launch options.
    """

    block_n: int
    block_m: int
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True, slots=True)
class Launch:
    """How a batch is launched.

    Attributes
    ----------
    tiles
        Tile sizes and Triton's options.
    num_splits
        Programs that share one sequence's KV range; 1 in prefill.
    """

    tiles: Tiles
    num_splits: int


def choose_launch(
    batch: PagedBatch, *, num_splits: int | None = None, tiles: Tiles | None = None
) -> Launch:
    """The launch of a batch; what is given is kept, the rest is chosen."""
    group_size, head_dim = batch.group_size, batch.query.shape[2]
    is_float32 = batch.query.dtype == torch.float32
    if batch.max_query_len > 1:
        tiles = tiles or prefill_tiles(
            group_size=group_size,
            head_dim=head_dim,
            max_query_len=batch.max_query_len,
            is_float32=is_float32,
        )
        return Launch(tiles, num_splits=1)
    tiles = tiles or decode_tiles(group_size=group_size, head_dim=head_dim, is_float32=is_float32)
    if num_splits is None:
        span = min(batch.max_seq_len, batch.window or batch.max_seq_len)
        num_splits = choose_splits(
            programs=batch.seq_lens.shape[0] * batch.num_kv_heads,
            tiles=triton.cdiv(span, tiles.block_n),
            processors=processors_of(batch.query.device),
        )
    return Launch(tiles, num_splits)


def decode_tiles(*, group_size: int, head_dim: int, is_float32: bool) -> Tiles:
    """Tiles of the decode kernel.

    Without spills on sm_80, sm_90, sm_100 and sm_120 (`pagedbench compile`):
    float32 runs on the ordinary cores, where only narrow tiles over many warps fit the registers.
    """
    block_m = max(16, triton.next_power_of_2(group_size))
    if is_float32:
        return Tiles(block_n=32, block_m=block_m, num_warps=8, num_stages=2)
    block_n = 32 if head_dim > 128 or block_m > 64 else 64
    return Tiles(block_n=block_n, block_m=block_m)


def prefill_tiles(*, group_size: int, head_dim: int, max_query_len: int, is_float32: bool) -> Tiles:
    """Tiles of the prefill kernel."""
    widest = 32 if is_float32 else 64 if head_dim > 128 else 128
    wanted = triton.next_power_of_2(group_size * max_query_len)
    block_m = max(16, triton.next_power_of_2(group_size), min(wanted, widest))
    if is_float32:
        return Tiles(block_n=16, block_m=block_m, num_warps=8, num_stages=2)
    num_warps = 8 if block_m >= 128 or head_dim > 128 else 4
    return Tiles(block_n=32 if head_dim > 128 else 64, block_m=block_m, num_warps=num_warps)


def choose_splits(*, programs: int, tiles: int, processors: int) -> int:
    """How many programs share the KV range of one (sequence, KV head).

    Parameters
    ----------
    programs
        Programs of a launch with one split.
    tiles
        Key tiles of the longest sequence.
    processors
        Multiprocessors of the device.
    """
    if programs >= 0.8 * processors or tiles < 2 * MIN_TILES_A_SPLIT:
        return 1
    most = min(MAX_SPLITS, tiles // MIN_TILES_A_SPLIT)
    waves = [programs * splits / processors for splits in range(1, most + 1)]
    efficiency = [wave / -(-wave // 1) for wave in waves]
    good = GOOD_EFFICIENCY * max(efficiency)
    return 1 + next(index for index, value in enumerate(efficiency) if value >= good)


@cache
def processors_of(device: torch.device) -> int:
    """Multiprocessors of a device."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
