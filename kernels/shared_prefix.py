"""Which sequences of a batch begin alike, and whether it pays to read that part once.

`PrefixGroups` is what `kernels.cascade.cascade_attention` takes. An engine says who shares what, or
`find_prefix_groups` looks for it in the block table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import numpy as np
import torch
import triton
from torch import Tensor

from kernels.launch import Tiles, choose_launch, prefill_tiles, processors_of
from reference.attention.contract import PagedBatch

LAUNCH_BYTES: Final = 8 * 2**20
"""What one more launch costs, as the bytes that memory moves meanwhile: 2 us at 4 TB/s. Assumed,
not measured."""

EXTRA_LAUNCHES: Final = 2
"""Launches of the cascade beyond the one that plain attention needs."""


MIN_TILES_A_SPLIT: Final = 4
"""A split shorter than this spends more on starting and merging than on reading keys."""

MAX_SPLITS: Final = 128

GOOD_EFFICIENCY: Final = 0.85
"""Among split counts within this share of the best wave efficiency the smallest is taken, as
FlashAttention-3's heuristic does (hopper/heuristics.h): fewer partial results to merge."""


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Sequences that begin with the same blocks."""

    members: tuple[int, ...]
    """Rows of the block table, two at least."""
    num_blocks: int
    """Whole blocks that all of them begin with, one at least."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixGroups:
    """The shared prefixes of a batch, as `cascade_attention` takes them. `PrefixGroups.of` makes
    them.
    """

    tokens: Tensor
    """[stacked] int32, the query tokens of all members, group after group."""
    sequences: Tensor
    """[stacked] int32, the sequence of each."""
    starts: Tensor
    """[num_groups + 1] int32, where each group begins in `tokens`."""
    prefix_lens: Tensor
    """[num_seqs] int32, tokens of its group's prefix for each sequence; 0 for one without a group.
    """
    query_lens: tuple[tuple[int, ...], ...]
    """For each group the query lengths of its members, on the host."""
    prefixes: tuple[int, ...]
    """For each group the length of its prefix in tokens, on the host."""
    longest_suffix: int
    """Most tokens of a sequence behind its prefix, on the host."""

    @classmethod
    def of(
        cls,
        shared: Sequence[SharedPrefix],
        *,
        seq_lens: Sequence[int],
        query_lens: Sequence[int],
        block_size: int,
        device: torch.device | str = "cpu",
    ) -> PrefixGroups:
        """What an engine knows of its batch, made into tensors where the batch lies.

        Lengths are those of every sequence, tokens; a sequence is a member of one group at most.

        Raises ValueError: if there is no group, if a group is of one sequence or shares no block,
        if a sequence is in two, if it is not in the batch, or if a query lies within the prefix.
        """
        if not shared:
            raise ValueError("no group: call paged_attention where nothing is shared")
        prefix_lens = [0] * len(seq_lens)
        for group in shared:
            prefix = group.num_blocks * block_size
            if len(group.members) < 2 or group.num_blocks < 1:
                raise ValueError(f"{group}: two sequences or more share one block or more")
            for member in group.members:
                if not 0 <= member < len(seq_lens):
                    raise ValueError(f"{group}: sequence {member} is not one of {len(seq_lens)}")
                if prefix_lens[member]:
                    raise ValueError(f"{group}: sequence {member} is in a group already")
                if prefix > seq_lens[member] - query_lens[member]:
                    raise ValueError(
                        f"{group}: the {query_lens[member]} query tokens of sequence {member} are "
                        f"the last of {seq_lens[member]}, and a prefix of {prefix} reaches into "
                        f"them; share fewer blocks"
                    )
                prefix_lens[member] = prefix
        first = [0, *accumulate(query_lens)]
        tokens: list[int] = []
        sequences: list[int] = []
        starts = [0]
        for group in shared:
            for member in group.members:
                tokens += range(first[member], first[member + 1])
                sequences += [member] * query_lens[member]
            starts.append(len(tokens))
        return cls(
            tokens=_int32(tokens, device),
            sequences=_int32(sequences, device),
            starts=_int32(starts, device),
            prefix_lens=_int32(prefix_lens, device),
            query_lens=tuple(tuple(query_lens[m] for m in group.members) for group in shared),
            prefixes=tuple(group.num_blocks * block_size for group in shared),
            longest_suffix=max(
                length - prefix for length, prefix in zip(seq_lens, prefix_lens, strict=True)
            ),
        )


def find_prefix_groups(
    block_table: Tensor, *, seq_lens: Sequence[int], query_lens: Sequence[int], block_size: int
) -> list[SharedPrefix]:
    """The groups that save the most reading, found in the block table itself; empty if nothing is
    shared.

    Rows that begin alike stand together once the table is sorted. Sharing `d` blocks among `k` rows
    that follow each other saves `(k - 1) * d`, which is a rectangle under the lengths that
    neighbours share. The largest one is a group; what stands before and after it is searched again.

    `block_table` is [num_seqs, max_blocks_per_seq] on the CPU, the host's copy. Lengths are those
    of every sequence, tokens: only whole blocks before the query count, and a sequence without a
    query has no use for a group.

    Raises ValueError: if the table is on a device: reading it would wait for everything before it.
    """
    if block_table.device.type != "cpu":
        raise ValueError(f"block_table is on {block_table.device}: give the host's copy")
    cached = np.asarray(seq_lens) - np.asarray(query_lens)
    usable = np.where(np.asarray(query_lens) > 0, np.maximum(cached, 0) // block_size, 0)
    rows = np.ascontiguousarray(block_table.numpy()[:, : usable.max(initial=0)])
    # Bytes, because they compare from the first one on; any order does that keeps equals together.
    keys = [row[:count].tobytes() for row, count in zip(rows, usable, strict=True)]
    groups: list[SharedPrefix] = []
    left = set(range(len(keys)))
    while True:
        # Again for what is left: rows before and behind a group may share what it has more of.
        order = sorted(left, key=keys.__getitem__)
        found = [
            SharedPrefix(tuple(sorted(order[begin : end + 1])), depth)
            for begin, end, depth in _rectangles(_common_blocks(rows[order], usable[order]))
        ]
        if not found:
            return groups
        groups += found
        left.difference_update(*(group.members for group in found))


def _common_blocks(rows: np.ndarray[Any, Any], usable: np.ndarray[Any, Any]) -> list[int]:
    """Blocks that each row shares with the next one, [num_rows - 1]."""
    if len(rows) < 2 or not rows.shape[1]:
        return []
    differs = rows[:-1] != rows[1:]
    equal = np.where(differs.any(1), differs.argmax(1), rows.shape[1])
    common: list[int] = np.minimum(equal, np.minimum(usable[:-1], usable[1:])).tolist()
    return common


def _rectangles(heights: list[int]) -> Iterator[tuple[int, int, int]]:
    """Disjoint rectangles (begin, end, height) under a histogram, the largest first.

    Heights stand between rows: the one next to a rectangle belongs to a row of it.
    """
    pieces = [(0, len(heights))]
    while pieces:
        low, high = pieces.pop()
        best, found = 0, None
        growing: list[tuple[int, int]] = []  # (height, where it begins), heights rising
        for at in range(low, high + 1):
            height = heights[at] if at < high else 0
            begin = at
            while growing and growing[-1][0] >= height:
                tall, begin = growing.pop()
                if tall * (at - begin) > best:
                    best, found = tall * (at - begin), (begin, at, tall)
            growing.append((height, begin))
        if found is not None:
            yield found
            pieces += [(low, found[0] - 1), (found[1] + 1, high)]


# The launch


@dataclass(frozen=True, slots=True)
class CascadeLaunch:
    """How a cascade is launched."""

    prefix_tiles: Tiles
    suffix_tiles: Tiles
    """Tile sizes and Triton's options of the two attention kernels."""
    prefix_splits: int = 1
    suffix_splits: int = 1
    """Programs that share the KV range of one prefix, and of one suffix."""

    @property
    def num_parts(self) -> int:
        """Partial results of a row."""
        return self.prefix_splits + self.suffix_splits


def choose_cascade(batch: PagedBatch, groups: PrefixGroups) -> CascadeLaunch:
    """The launch of a cascade: stacked rows are tiled as in prefill, splits fill the device."""
    group_size, kv_heads = batch.group_size, batch.num_kv_heads
    prefix_tiles = prefill_tiles(
        group_size=group_size,
        head_dim=batch.query.shape[2],
        max_query_len=max(sum(lens) for lens in groups.query_lens),
        is_float32=batch.query.dtype == torch.float32,
    )
    suffix_tiles = choose_launch(batch, num_splits=1).tiles
    processors = processors_of(batch.query.device)
    row_tiles = sum(_row_tiles(groups, prefix_tiles.block_m // group_size))
    prefix_splits = choose_splits(
        programs=row_tiles * kv_heads,
        tiles=triton.cdiv(max(groups.prefixes), prefix_tiles.block_n),
        processors=processors,
    )
    suffix_splits = 1
    if batch.max_query_len <= 1:
        suffix_splits = choose_splits(
            programs=batch.seq_lens.shape[0] * kv_heads,
            tiles=triton.cdiv(groups.longest_suffix, suffix_tiles.block_n),
            processors=processors,
        )
    return CascadeLaunch(prefix_tiles, suffix_tiles, prefix_splits, suffix_splits)


def choose_splits(*, programs: int, tiles: int, processors: int) -> int:
    """How many programs share a KV range, if one each gives so many programs of so many tiles."""
    if programs >= 0.8 * processors or tiles < 2 * MIN_TILES_A_SPLIT:
        return 1
    most = min(MAX_SPLITS, tiles // MIN_TILES_A_SPLIT)
    waves = [programs * splits / processors for splits in range(1, most + 1)]
    efficiency = [wave / -(-wave // 1) for wave in waves]
    good = GOOD_EFFICIENCY * max(efficiency)
    return 1 + next(index for index, value in enumerate(efficiency) if value >= good)


@dataclass(frozen=True, slots=True)
class CascadeBytes:
    """What a cascade saves and costs against plain attention, bytes."""

    saved: int
    """Keys and values of prefixes that are not read again."""
    partials: int
    """Partial results, written once and read once."""
    launches: int
    """What memory would move while the additional launches start."""

    @property
    def pays(self) -> bool:
        """Whether it saves more than it costs."""
        return self.saved > self.partials + self.launches


def cascade_bytes(
    batch: PagedBatch, groups: PrefixGroups, launch: CascadeLaunch, *, launch_bytes: int
) -> CascadeBytes:
    """The cost model by which the cascade is chosen. No tensor is looked into.

    Plain attention reads a prefix once for each query tile of each member, the cascade once for
    each tile of stacked rows. In return it writes and reads float32 partial results: of the
    prefix's splits for the stacked tokens, of the suffix's for all. The partial results of plain
    attention, if it splits, are left out, so the cascade is chosen too rarely rather than too
    often. `launch_bytes` is the cost of one launch in bytes, such as `LAUNCH_BYTES`.
    """
    num_tokens, num_q_heads, head_dim = batch.query.shape
    slot = 2 * batch.num_kv_heads * head_dim * batch.key_cache.element_size()
    plain_q = launch.suffix_tiles.block_m // batch.group_size if batch.max_query_len > 1 else 1
    cascade_q = launch.prefix_tiles.block_m // batch.group_size
    plain = [sum(-(-length // plain_q) for length in lens) for lens in groups.query_lens]
    saved = sum(
        (before - after) * prefix * slot
        for before, after, prefix in zip(
            plain, _row_tiles(groups, cascade_q), groups.prefixes, strict=True
        )
    )
    rows = groups.tokens.shape[0] * launch.prefix_splits + num_tokens * launch.suffix_splits
    partials = 2 * rows * num_q_heads * (head_dim + 1) * torch.float32.itemsize
    return CascadeBytes(saved, partials, EXTRA_LAUNCHES * launch_bytes)


def _row_tiles(groups: PrefixGroups, block_q: int) -> list[int]:
    """Tiles of stacked rows of each group, `block_q` tokens in a tile."""
    return [-(-sum(lens) // block_q) for lens in groups.query_lens]


def _int32(numbers: list[int], device: torch.device | str) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)
