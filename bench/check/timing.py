"""Times attention over a stream's batch: contiguous against paged, in turns.

Rounds are interleaved in random order, so a burst of load hits both sides; the ratio is the median
of each round's own ratio. What each implementation wrote in its last round is compared.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from bench.workloads.stream import RequestStream
from paged.attention import paged_attention
from reference.attention.contiguous import ContiguousBatch, contiguous_attention
from reference.attention.contract import AttentionCall, PagedBatch

ROUNDS: Final = 9
WARM_UP: Final = 2
COPY_BYTES: Final = 1 << 30
"""Size of the copy that measures a GPU's bandwidth; far beyond any cache."""

CPU_CACHE_BYTES: Final = 1 << 30
"""Most that a contiguous cache may take on the CPU: rounds then take seconds, not minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeShape:
    """One decode step of a batch from a stream."""

    batch_size: int = 32
    """Sequences. Their lengths are those of running requests: each drawn with a probability
    proportional to its output, at a uniform step of it. Fewer where a contiguous cache for them
    would not fit."""
    num_kv_heads: int = 8
    group_size: int = 4
    head_dim: int = 128
    block_size: int = 16
    """As in `AttentionProblem`; the default is one layer of Llama-3-8B."""
    dtype: torch.dtype = torch.bfloat16
    """Of query and cache."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one implementation."""

    name: str
    """What was timed."""
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    """Milliseconds a call, over the rounds."""
    ratio: float
    """Median over rounds of this time divided by the baseline's of the same round."""
    gigabytes_per_s: float
    """Keys and values of the batch divided by the median time, 10^9 bytes a second."""
    bandwidth_share: float | None = None
    """Of the device's measured copy bandwidth; None where that was not measured."""


@dataclass(frozen=True, slots=True)
class TimedBatch:
    """What was timed, and the times."""

    shape: DecodeShape
    """The batch, as large as it was."""
    context_tokens: int
    """Tokens in the cache, over all sequences."""
    kv_bytes: int
    """Bytes of keys and values that a call must read."""
    timings: tuple[Timing, ...]
    """Baseline first."""
    copy_gigabytes_per_s: float | None = None
    """Measured copy bandwidth, read plus written; None on the CPU."""


def running_lengths(stream: RequestStream, count: int, *, seed: int) -> list[int]:
    """Context lengths of `count` requests that run at once, tokens."""
    rng = np.random.default_rng(seed)
    output = stream.output_tokens.astype(np.float64)
    chosen = rng.choice(len(stream), size=count, p=output / output.sum())
    step = np.floor(rng.random(count) * stream.output_tokens[chosen]).astype(np.int64)
    lengths: list[int] = (stream.prompt_tokens[chosen] + step + 1).tolist()
    return lengths


def time_decode(
    stream: RequestStream,
    *,
    shape: DecodeShape,
    device: str,
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> TimedBatch:
    """Time one decode step of a batch of the stream, contiguous against paged.

    Raises RuntimeError if the sides disagree about the output of a timed round.
    """
    drawn = running_lengths(stream, shape.batch_size, seed=seed)
    lengths = sorted(that_fit(drawn, shape=shape, device=device), reverse=True)
    shape = replace(shape, batch_size=len(lengths))
    contiguous, paged = decode_batches(lengths, shape=shape, device=device, seed=seed)
    calls: dict[str, _Call] = {
        "contiguous, torch": _Call(contiguous_attention, contiguous),
        "paged, torch": _Call(paged_attention, paged),
    }
    if device == "cuda":
        os.environ["TRITON_INTERPRET"] = "0"  # read when triton is imported: here, on a GPU only
        from kernels.attention import paged_attention as triton_attention

        calls["paged, triton"] = _Call(triton_attention, paged)
    else:
        calls["contiguous, torch SDPA"] = _Call(
            lambda batch: sdpa_one_by_one(batch, lengths), contiguous
        )
    timer = _event_ms if device == "cuda" else _clock_ms
    rounds = _interleave(calls, timer, random.Random(seed), advance)
    _compare({name: call.batch.out for name, call in calls.items()})

    kv_bytes = sum(lengths) * shape.bytes_per_token
    copy = _copy_bandwidth() if device == "cuda" else None
    baseline = rounds["contiguous, torch"]
    return TimedBatch(
        shape=shape,
        context_tokens=sum(lengths),
        kv_bytes=kv_bytes,
        timings=tuple(
            _summary(name, times, baseline, kv_bytes, copy) for name, times in rounds.items()
        ),
        copy_gigabytes_per_s=copy,
    )


def that_fit(lengths: list[int], *, shape: DecodeShape, device: str) -> list[int]:
    """The first of `lengths` for which a contiguous cache fits, at least one."""
    free = torch.cuda.mem_get_info()[0] // 4 if device == "cuda" else CPU_CACHE_BYTES
    slots = free // shape.bytes_per_token
    count = len(lengths)
    while count > 1 and count * max(lengths[:count]) > slots:
        count -= 1
    return lengths[:count]


def decode_batches(
    lengths: list[int], *, shape: DecodeShape, device: str, seed: int
) -> tuple[ContiguousBatch, PagedBatch]:
    """The same random contents in a contiguous cache and in shuffled pages."""
    rng = torch.Generator(device=device).manual_seed(seed)
    heads, dim, block = shape.num_kv_heads, shape.head_dim, shape.block_size
    counts = [-(-length // block) for length in lengths]
    longest = max(counts) * block
    row = (len(lengths), longest, heads, dim)
    keys, values = (
        torch.empty(row, dtype=shape.dtype, device=device).normal_(generator=rng) for _ in "kv"
    )
    physical = torch.randperm(sum(counts), generator=rng, device=device)
    table = torch.zeros(len(lengths), max(counts), dtype=torch.int32, device=device)
    caches = [
        torch.empty(sum(counts), block, heads, dim, dtype=shape.dtype, device=device) for _ in "kv"
    ]
    taken = 0
    for sequence, count in enumerate(counts):
        blocks = physical[taken : taken + count]
        taken += count
        table[sequence, :count] = blocks.int()
        for cache, contents in zip(caches, (keys, values), strict=True):
            cache[blocks] = contents[sequence, : count * block].view(count, block, heads, dim)
    query = torch.empty(
        len(lengths), heads * shape.group_size, dim, dtype=shape.dtype, device=device
    )
    query.normal_(generator=rng)
    starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device=device)
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    scale = dim**-0.5
    contiguous = ContiguousBatch(
        query=query,
        key_cache=keys,
        value_cache=values,
        seq_lens=seq_lens,
        query_start_loc=starts,
        out=torch.empty_like(query),
        lse=None,
        scale=scale,
    )
    paged = PagedBatch(
        query=query,
        key_cache=caches[0],
        value_cache=caches[1],
        block_table=table,
        seq_lens=seq_lens,
        query_start_loc=starts,
        out=torch.empty_like(query),
        lse=None,
        max_query_len=1,
        max_seq_len=max(lengths),
        scale=scale,
    )
    return contiguous, paged


def sdpa_one_by_one(batch: ContiguousBatch, lengths: list[int]) -> None:
    """Torch's own attention on each sequence of a contiguous cache: what a user would write."""
    for sequence, length in enumerate(lengths):
        query = batch.query[sequence].unsqueeze(0).unsqueeze(2)
        keys = batch.key_cache[sequence, :length].transpose(0, 1).unsqueeze(0)
        values = batch.value_cache[sequence, :length].transpose(0, 1).unsqueeze(0)
        out = torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, scale=batch.scale, enable_gqa=True
        )
        batch.out[sequence] = out[0, :, 0]


class _Call:
    """An implementation and the batch that it fills; its output is its own."""

    def __init__(self, attend: Callable[[Any], object], batch: AttentionCall) -> None:
        self.batch = batch.replace(out=torch.full_like(batch.out, torch.nan))
        self._attend = attend

    def __call__(self) -> None:
        self._attend(self.batch)


def _interleave(
    calls: Mapping[str, Callable[[], object]],
    timer: Callable[[Callable[[], object]], float],
    order: random.Random,
    advance: Callable[[int], None],
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP + ROUNDS):
        names = list(calls)
        order.shuffle(names)
        for name in names:
            elapsed = timer(calls[name])
            if number >= WARM_UP:
                times[name].append(elapsed)
        advance(1)
    return times


def _clock_ms(call: Callable[[], object]) -> float:
    before = time.perf_counter()
    call()
    return (time.perf_counter() - before) * 1e3


def _event_ms(call: Callable[[], object]) -> float:
    # Device times, not the host's: a launch returns before the kernel ends. Writing a buffer
    # larger than any L2 first makes every round start cold.
    torch.empty(COPY_BYTES // 4, dtype=torch.int8, device="cuda").zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    elapsed: float = begin.elapsed_time(end)
    return elapsed


def _copy_bandwidth() -> float:
    source = torch.empty(COPY_BYTES, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    times = [_event_ms(lambda: target.copy_(source)) for _ in range(ROUNDS)]
    return 2 * COPY_BYTES / statistics.median(times) / 1e6


def _compare(outputs: Mapping[str, Tensor]) -> None:
    """Hold every output against the first."""
    (baseline, expected), *others = outputs.items()
    # Each side rounds a float32 result once; two units of the last place cover two roundings.
    limit = 4 * torch.finfo(expected.dtype).eps * float(expected.float().abs().max())
    for name, out in others:
        gap = float((out.float() - expected.float()).abs().max())
        if not gap <= limit:
            raise RuntimeError(
                f"timed rounds of {baseline} and {name} disagree by {gap:.3g} (limit {limit:.3g}): "
                f"the times are of different computations"
            )


def _summary(
    name: str, times: list[float], baseline: list[float], kv_bytes: int, copy: float | None
) -> Timing:
    median = statistics.median(times)
    rate = kv_bytes / median / 1e6
    return Timing(
        name=name,
        median_ms=median,
        fastest_ms=min(times),
        slowest_ms=max(times),
        ratio=statistics.median(a / b for a, b in zip(times, baseline, strict=True)),
        gigabytes_per_s=rate,
        bandwidth_share=None if copy is None else rate / copy,
    )
