"""Splits of a ragged batch: the host's rule is the device's, and programs come out even.

How long a batch takes is modelled: a processor reads key tiles at a fixed rate, which its resident
programs share; a program first waits for what a few tiles take. That is the roofline of a kernel
that waits for memory. It says which choice is uneven, not how long anything takes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from bench.workloads.spec import parse_source
from helpers.profiles import examples
from kernels.decode import share_out
from kernels.launch import MOST_SPLITS, Splits, shared_splits
from kernels.shared_prefix import choose_splits

RESIDENT = 4
"""Programs on a processor at once, as compiled for head size 128."""

START_TILES = 2.0
"""Time before a program's first key has arrived, in tiles: 2 to 3 us on an H100."""

SIZES = (1, 2, 4, 8, 12, 16, 17, 20, 32, 33, 48, 64, 67, 100, 128, 200, 256, 300, 400, 512)
BLOCK_N = 64


def makespan(works: Sequence[int], processors: int) -> float:
    """Time until all programs are done, in tiles of one processor's reading.

    Programs of so many tiles start in the order given, each where one has ended.
    """
    waiting = iter(works)
    reading = [0] * processors
    virtual, since = [0.0] * processors, [0.0] * processors
    ends: list[list[float]] = [[] for _ in range(processors)]
    version, serial, now = [0] * processors, 0, 0.0
    events: list[tuple[float, int, int, float, int]] = []

    def start(processor: int) -> bool:
        nonlocal serial
        work = next(waiting, None)
        if work is None:
            return False
        serial += 1
        heapq.heappush(events, (now + START_TILES, serial, processor, float(work), -1))
        return True

    def next_end(processor: int) -> None:
        nonlocal serial
        version[processor] += 1
        if ends[processor]:
            left = max(0.0, ends[processor][0] - virtual[processor]) * reading[processor]
            serial += 1
            heapq.heappush(events, (now + left, serial, processor, 0.0, version[processor]))

    for slot in range(RESIDENT * processors):
        if not start(slot % processors):
            break
    while events:
        time, _, processor, work, of_version = heapq.heappop(events)
        if of_version not in (-1, version[processor]):
            continue
        now = time
        if reading[processor]:
            virtual[processor] += (now - since[processor]) / reading[processor]
        since[processor] = now
        if of_version == -1:
            reading[processor] += 1
            heapq.heappush(ends[processor], virtual[processor] + work)
        else:
            heapq.heappop(ends[processor])
            reading[processor] -= 1
            start(processor)
        next_end(processor)
    return now


def programs(tiles: Sequence[int], lengths: Sequence[int], kv_heads: int) -> list[int]:
    """Tiles of each program, where sequences of so many tiles have splits of such lengths."""
    works = []
    for total, length in zip(tiles, lengths, strict=True):
        works += [min(length, total - begin) for begin in range(0, total, length)]
    return works * kv_heads


def shared(tiles: Sequence[int], kv_heads: int, processors: int) -> list[int]:
    """Programs as they are launched."""
    splits = shared_splits(num_kv_heads=kv_heads, most_tiles=max(tiles), processors=processors)
    return programs(tiles, splits.lengths(tiles), kv_heads)


def by_number(tiles: Sequence[int], kv_heads: int, processors: int) -> list[int]:
    """Programs where every sequence has as many splits as suits the longest."""
    count = choose_splits(programs=len(tiles) * kv_heads, tiles=max(tiles), processors=processors)
    return programs(tiles, [-(-total // count) for total in tiles], kv_heads)


def efficiency(works: Sequence[int], processors: int) -> float:
    """Share of the time in which all processors read."""
    return sum(works) / (processors * makespan(works, processors))


@cache
def azure_lengths() -> list[int]:
    """Lengths of requests that are half done, tokens."""
    lengths: list[int] = []
    for chunk in parse_source("azure-conv:requests=512").chunks():
        lengths += (chunk.prompt_tokens + chunk.output_tokens // 2).tolist()
    return lengths


def batch_of(kind: str, size: int) -> list[int]:
    """Key tiles of a batch's sequences."""
    lengths = {
        "uniform": [2000] * size,
        "ragged": azure_lengths()[:size],
        "one long": [30_000] + [500] * (size - 1),
    }[kind]
    return [math.ceil(length / BLOCK_N) for length in lengths]


def test_the_model_of_time():
    assert makespan([10], 4) == START_TILES + 10
    assert makespan([10, 10], 1) == START_TILES + 20  # they share the processor
    assert makespan([10, 10], 2) == START_TILES + 10
    assert makespan([4, 8], 1) == START_TILES + 12  # and the second has it alone at the end
    assert makespan([10] * 5, 1) == pytest.approx(START_TILES + 40 + START_TILES + 10)


@pytest.mark.parametrize("processors", [108, 132, 148])
@pytest.mark.parametrize("kind", ["uniform", "ragged", "one long"])
def test_no_batch_leaves_processors_idle(kind, processors):
    for size in SIZES:
        tiles = batch_of(kind, size)
        reading = 8 * sum(tiles) / processors
        # Where there is little to read, starting takes as long, however it is cut.
        least = 0.7 if reading >= 48 else 0.6 if reading >= 24 else 0.0
        achieved = efficiency(shared(tiles, 8, processors), processors)
        assert achieved >= least, (size, reading, achieved)


def test_splits_by_number_leave_almost_half_idle():
    ragged = batch_of("ragged", 100)
    assert efficiency(by_number(ragged, 8, 132), 132) < 0.55
    assert efficiency(shared(ragged, 8, 132), 132) > 0.8


def test_one_more_sequence_is_no_cliff():
    def slower(rule) -> float:
        times = [makespan(rule(batch_of("uniform", n), 8, 132), 132) for n in range(12, 40)]
        return max(after / before for before, after in pairwise(times))

    assert slower(shared) < 1.35
    assert slower(by_number) > 1.8


@triton.jit
def _dealt_out(
    found,
    seq_lens,
    query_start_loc,
    num_seqs,
    parts,
    least_tiles,
    most_splits,
    BLOCK_N: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    WINDOW: tl.constexpr,
):
    item = tl.program_id(0)
    sequence, split, _ = share_out(
        item,
        seq_lens,
        query_start_loc,
        num_seqs,
        parts,
        least_tiles,
        most_splits,
        BLOCK_N,
        BLOCK_SEQS,
        WINDOW,
    )
    tl.store(found + 2 * item, sequence)
    tl.store(found + 2 * item + 1, split)


@examples(20)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.booleans()), min_size=1, max_size=5),
    st.integers(1, 10),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from((0, 1, 100)),
)
def test_the_device_deals_out_what_the_host_says(sequences, parts, least, most, window):
    """Item after item, the splits of each sequence that has a query, in order."""
    splits = Splits(parts, least_tiles=least, most_splits=most, shared=True)
    lengths = [length for length, asks in sequences if asks]
    first = [max(length - window, 0) if window else 0 for length in lengths]
    tiles = [-(-n // 16) - at // 16 for n, at in zip(lengths, first, strict=True)]
    asking = [index for index, (_, asks) in enumerate(sequences) if asks]
    expected = [
        (index, split)
        for index, count in zip(asking, splits.of(tiles), strict=True)
        for split in range(count)
    ]
    starts = torch.tensor([0] + [int(asks) for _, asks in sequences]).cumsum(0).int()
    items = splits.items(len(sequences))
    found = torch.empty((items, 2), dtype=torch.int32)
    _dealt_out[(items,)](
        found,
        torch.tensor([length for length, _ in sequences], dtype=torch.int32),
        starts,
        len(sequences),
        parts,
        least,
        most,
        BLOCK_N=16,
        BLOCK_SEQS=triton.next_power_of_2(len(sequences)),
        WINDOW=window,
    )
    assert [tuple(row) for row in found.tolist()[: len(expected)]] == expected
    assert all(sequence >= len(sequences) for sequence, _ in found.tolist()[len(expected) :])


@examples(300)
@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=40),
    st.integers(1, 300),
    st.integers(1, 8),
    st.integers(1, MOST_SPLITS),
    st.booleans(),
)
def test_no_more_items_than_are_launched(tiles, parts, least, most, is_shared):
    if not is_shared:
        most = min(parts, max(-(-max(tiles) // least), 1))
    splits = Splits(parts, least_tiles=least, most_splits=most, shared=is_shared)
    counts = splits.of(tiles)
    assert all(1 <= count <= splits.most_splits for count in counts)
    assert sum(counts) <= splits.items(len(tiles))
