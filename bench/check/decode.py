"""What paging costs in time: one decode step of a batch of the stream, contiguous against paged."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from bench.check.record import DecodeTimes, TimingRecord
from bench.machine.roof import COPY_BYTES, copy_rates
from bench.machine.timing import Side, Timer, copies_needed, device_of, forget, paired_ratio
from bench.workloads.running import running_lengths
from bench.workloads.stream import RequestStream
from paged.attention import paged_attention
from reference.attention.contiguous import ContiguousBatch, contiguous_attention
from reference.attention.contract import AttentionCall, PagedBatch
from reference.attention.layout import contiguous_of, usual
from reference.attention.problem import AttentionProblem, Request

ROUNDS: Final = 9
WARM_UP: Final = 2

STEP: Final = AttentionProblem.parse("32x(q1 k1) h8 g4 d128 b16 bf16")
"""One layer of Llama-3-8B. Of a step that is timed the lengths are the stream's."""

CPU_CACHE_BYTES: Final = 1 << 30
"""Most that contiguous caches may take on the CPU: rounds then take seconds, not minutes."""

BASELINE: Final = "contiguous, torch"


def time_decode(
    stream: RequestStream,
    *,
    step: AttentionProblem = STEP,
    device: str,
    seed: int,
    advance: Callable[[int], object] = lambda _: None,
    stop: threading.Event | None = None,
) -> DecodeTimes | None:
    """Time a decode step of running requests of the stream; None if `stop` ends it."""
    where = device_of(device)
    most_bytes = torch.cuda.mem_get_info()[0] // 4 if device == "cuda" else CPU_CACHE_BYTES
    drawn = running_lengths(stream, len(step.requests), seed=seed)
    lengths = that_fit(drawn, slots=most_bytes // bytes_per_token(step))
    problem = step.replace(requests=tuple(Request(1, n) for n in sorted(lengths, reverse=True)))
    kv_bytes = problem.cache_tokens * bytes_per_token(problem)
    reserved = len(lengths) * problem.max_seq_len * bytes_per_token(problem)
    needed = copies_needed(kv_bytes, where.cache_bytes, least=1)
    copies = max(1, min(needed, most_bytes // reserved))
    inputs = [usual(problem, device=device, seed=seed + index) for index in range(copies)]
    sides = {side.name: side for side in _sides(problem, inputs, device)}
    baseline = sides[BASELINE]
    times = Timer(where, rounds=ROUNDS, warm_up=WARM_UP, seed=seed).time(
        list(sides.values()),
        before_round=partial(forget, [out for side in sides.values() for out in side.outs]),
        judge=lambda name: sides[name].disagreement(baseline),
        advance=advance,
        stop=stop,
    )
    for name, each in times.items():
        if each.out:
            raise RuntimeError(each.wrong or f"timing {name}: {each.raised}")
    if any(len(each.cold_s) < ROUNDS for each in times.values()):
        return None
    copy = statistics.median(copy_rates(where, COPY_BYTES[device])) if device == "cuda" else None
    return DecodeTimes(
        batch_size=len(lengths),
        context_tokens=problem.cache_tokens,
        kv_bytes=kv_bytes,
        num_q_heads=problem.num_q_heads,
        num_kv_heads=problem.num_kv_heads,
        head_dim=problem.head_dim,
        block_size=problem.block_size,
        dtype=str(problem.torch_dtype).removeprefix("torch."),
        copy_gigabytes_per_s=copy,
        timings=[
            _timing(name, each.cold_s, times[BASELINE].cold_s, kv_bytes, copy)
            for name, each in times.items()
        ],
    )


def bytes_per_token(problem: AttentionProblem) -> int:
    """Of the keys and values of one token."""
    return 2 * problem.num_kv_heads * problem.head_dim * problem.torch_kv_dtype.itemsize


def that_fit(lengths: list[int], *, slots: int) -> list[int]:
    """The first of `lengths` that a contiguous cache of so many slots holds, at least one."""
    count = len(lengths)
    while count > 1 and count * max(lengths[:count]) > slots:
        count -= 1
    return lengths[:count]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side(Side):
    """An implementation and its call of each input; the outputs are its own."""

    outs: list[Tensor]

    def disagreement(self, baseline: _Side) -> str:
        """How the outputs of the last round differ from the baseline's; empty if they do not."""
        for out, expected in zip(self.outs, baseline.outs, strict=True):
            # Each side rounds a float32 result once; two units of the last place cover both.
            limit = 4 * torch.finfo(expected.dtype).eps * float(expected.float().abs().max())
            gap = float((out.float() - expected.float()).abs().max())
            if not gap <= limit:
                return (
                    f"timed rounds of {baseline.name} and {self.name} disagree by {gap:.3g} (limit "
                    f"{limit:.3g}): the times are of different computations"
                )
        return ""


def _side(name: str, attend: Callable[[Any], object], batches: Sequence[AttentionCall]) -> _Side:
    own = [batch.replace(out=torch.full_like(batch.out, torch.nan)) for batch in batches]
    calls = tuple(partial(attend, batch) for batch in own)
    return _Side(name=name, calls=calls, outs=[batch.out for batch in own])


def _sides(problem: AttentionProblem, inputs: Sequence[PagedBatch], device: str) -> Iterator[_Side]:
    contiguous = [contiguous_of(batch) for batch in inputs]
    yield _side(BASELINE, contiguous_attention, contiguous)
    yield _side("paged, torch", paged_attention, inputs)
    if device == "cuda":
        os.environ["TRITON_INTERPRET"] = "0"  # read when triton is imported: here, on a GPU only
        from kernels.attention import paged_attention as triton_attention

        yield _side("paged, triton", triton_attention, inputs)
    else:
        lengths = [request.seq_len for request in problem.requests]
        yield _side(
            "contiguous, torch SDPA", lambda batch: sdpa_one_by_one(batch, lengths), contiguous
        )


def _timing(
    name: str, seconds: list[float], baseline: list[float], kv_bytes: int, copy: float | None
) -> TimingRecord:
    median = statistics.median(seconds)
    rate = kv_bytes / median / 1e9
    return TimingRecord(
        name=name,
        median_ms=median * 1e3,
        fastest_ms=min(seconds) * 1e3,
        slowest_ms=max(seconds) * 1e3,
        ratio=paired_ratio(seconds, baseline).median,
        gigabytes_per_s=rate,
        bandwidth_share=None if copy is None else rate / copy,
    )
