"""Tile sizes and splits: choices that change the speed, and the answer within rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
import triton

from kernels.prefill import multiplies_from_shared_memory
from reference.attention.contract import PagedBatch
from reference.attention.records import CODECS

LEAST_TILES: Final = 2
"""Key tiles of a split at least. A shorter one spends more on starting and merging than on keys."""

MOST_SPLITS: Final = 128
"""Splits of one sequence at most: one program merges them one after another."""

PROGRAMS_A_PROCESSOR: Final = 12
"""Splits that a decode batch is cut into, for each multiprocessor. Four programs are resident on
one at once, so those that follow even out what the first leave uneven. Chosen with the model in
`tests/unit/kernels/test_split_choice.py`, not on a GPU."""

WIDEST_QUERY: Final = 1024
"""A query length from which the tiles of prefill no longer depend on it."""

INVARIANT_LEAST_TILES: Final = 4
INVARIANT_PROGRAMS: Final = 256
"""Where splits may depend on nothing but the sequence: key tiles of a split at least, and programs
that a single long sequence is to be shared by, over its KV heads."""

INTERPRETED_PROCESSORS: Final = 64
"""Multiprocessors that are assumed where there is no GPU, so that splits occur there too."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Launch parameters of the attention kernels."""

    block_n: int
    """Keys in a tile, a power of two from 16."""
    block_m: int
    """Rows (token, query head) in a tile of queries, a power of two from 16."""
    num_warps: int = 4
    num_stages: int = 3
    """As Triton's launch options."""


@dataclass(frozen=True, slots=True)
class Splits:
    """How the KV ranges of a decode batch are cut into splits, each of which is a program's.

    Lengths are in key tiles. The device applies the rule to the lengths that it finds, in
    `kernels.decode`; `of` is the same rule on the host.
    """

    parts: int
    """Splits that are wanted: of the whole batch if `shared`, else of each sequence."""
    least_tiles: int = 1
    """Length of a split at least, but for a sequence's last one."""
    most_splits: int = 1
    """Splits of one sequence at most."""
    shared: bool = False
    """Whether splits are equally long throughout the batch, so that no program has more to do than
    another. Else a sequence is cut by its own length alone."""

    @property
    def needed(self) -> bool:
        """Whether any sequence can have more than one."""
        return self.most_splits > 1

    def items(self, num_seqs: int) -> int:
        """Programs that are launched for each KV head: as many as any lengths can need."""
        most = num_seqs * self.most_splits
        return min(most, self.parts + num_seqs) if self.shared else most

    def lengths(self, tiles: Sequence[int]) -> list[int]:
        """Tiles of a split, for sequences of so many tiles."""
        wanted = [-(-count // self.parts) for count in tiles]
        if self.shared:
            whole, longest = -(-sum(tiles) // self.parts), max(tiles, default=0)
            wanted = [max(whole, -(-longest // self.most_splits))] * len(tiles)
        return [max(length, self.least_tiles) for length in wanted]

    def of(self, tiles: Sequence[int]) -> list[int]:
        """How many splits sequences of so many tiles have."""
        lengths = self.lengths(tiles)
        return [max(-(-count // n), 1) for count, n in zip(tiles, lengths, strict=True)]


@dataclass(frozen=True, slots=True)
class Launch:
    """How a batch is launched."""

    tiles: Tiles
    """Tile sizes and Triton's options."""
    splits: Splits
    """How KV ranges are cut in decode; nothing is cut in prefill."""


def choose_launch(
    batch: PagedBatch, *, num_splits: int | None = None, tiles: Tiles | None = None
) -> Launch:
    """The launch of a batch; what is given is kept, the rest is chosen.

    With `num_splits` each sequence is cut into as many splits by itself.
    """
    if batch.max_query_len > 1:
        tiles = tiles or prefill_tiles(**_layer(batch), max_query_len=batch.max_query_len)
        return Launch(tiles, Splits(1))
    tiles = tiles or decode_tiles(**_layer(batch))
    most_tiles = _most_tiles(batch, tiles)
    if num_splits is not None:
        return Launch(tiles, Splits(num_splits, most_splits=min(num_splits, most_tiles)))
    splits = shared_splits(
        num_kv_heads=batch.num_kv_heads,
        most_tiles=most_tiles,
        processors=processors_of(batch.query.device),
    )
    return Launch(tiles, splits)


def shared_splits(*, num_kv_heads: int, most_tiles: int, processors: int) -> Splits:
    """Splits of one length for a whole batch; each KV head has its own programs."""
    return Splits(
        parts=max(PROGRAMS_A_PROCESSOR * processors // num_kv_heads, 1),
        least_tiles=LEAST_TILES,
        most_splits=min(MOST_SPLITS, triton.cdiv(most_tiles, LEAST_TILES)),
        shared=True,
    )


def invariant_launch(batch: PagedBatch, *, tiles: Tiles | None = None) -> tuple[Launch, Tiles]:
    """A launch under which the bits of a sequence depend on nothing but the sequence.

    Tiles and the rule for splits follow from the layer alone: heads, head size and dtypes, neither
    the lengths of others nor the device. Returned are the launch of the decode kernel, for queries
    of one token, and the tiles of the prefill kernel, for longer ones.
    """
    layer = _layer(batch)
    decode = tiles or decode_tiles(**layer)
    parts = min(max(INVARIANT_PROGRAMS // batch.num_kv_heads, 8), MOST_SPLITS)
    most_splits = min(parts, triton.cdiv(_most_tiles(batch, decode), INVARIANT_LEAST_TILES))
    splits = Splits(parts, least_tiles=INVARIANT_LEAST_TILES, most_splits=most_splits)
    # The tile for long queries serves short ones, too.
    return Launch(decode, splits), tiles or prefill_tiles(**layer, max_query_len=WIDEST_QUERY)


def _layer(batch: PagedBatch) -> dict[str, Any]:
    """What tiles are chosen by, the same for every batch of a layer."""
    return {
        "group_size": batch.group_size,
        "head_dim": max(batch.query.shape[2], batch.value_dim),
        "is_float32": batch.query.dtype == torch.float32,
        "scaled": bool(batch.codec) and bool(CODECS[batch.codec].scales),
    }


def _most_tiles(batch: PagedBatch, tiles: Tiles) -> int:
    """Key tiles that the last token of a sequence may see, one at least."""
    most = -(-batch.max_seq_len // tiles.block_n)
    if local := batch.window or batch.chunk:
        most = min(most, -(-local // tiles.block_n) + 1)  # it may begin within one
    return max(most, 1)


def decode_tiles(
    *, group_size: int, head_dim: int, is_float32: bool, scaled: bool = False
) -> Tiles:
    """Tiles of the decode kernel with which no main loop spills on any target of `pagedbench
    compile`.

    Float32 runs on the ordinary cores, where only narrow tiles over many warps fit the registers.
    Of a cache that is `scaled` for each token, codes and what they become are in registers at once.
    """
    block_m = max(16, triton.next_power_of_2(group_size))
    if is_float32:
        return Tiles(block_n=32, block_m=block_m, num_warps=8, num_stages=2)
    block_n = 32 if head_dim > 128 or block_m > 64 or scaled else 64
    return Tiles(block_n=block_n, block_m=block_m)


def prefill_tiles(
    *,
    group_size: int,
    head_dim: int,
    max_query_len: int,
    is_float32: bool,
    scaled: bool = False,
) -> Tiles:
    """Tiles of the prefill kernel, without spills on every target of `pagedbench compile`.

    Where operands go through registers, 64 keys beside 64 rows or more do not fit them; 32 do.
    """
    widest = 32 if is_float32 else 64 if head_dim > 128 else 128
    wanted = triton.next_power_of_2(group_size * max_query_len)
    block_m = max(16, triton.next_power_of_2(group_size), min(wanted, widest))
    if is_float32:
        return Tiles(block_n=16, block_m=block_m, num_warps=8, num_stages=2)
    num_warps = 8 if block_m >= 128 or head_dim > 128 else 4
    fits = head_dim <= 128 and (block_m < 64 or multiplies_from_shared_memory()) and not scaled
    return Tiles(block_n=64 if fits else 32, block_m=block_m, num_warps=num_warps)


@cache
def processors_of(device: torch.device) -> int:
    """Multiprocessors of a device."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
