"""The Triton kernels in the interpreter: what they compute and which bytes they touch.

Not timed: the interpreter's time says nothing about a kernel. What a kernel loads and stores is the
same there as on a GPU, and exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch

from bench.gate.benchmark import Count, Output, Prepared, of_group
from bench.gate.suite import attention, cache
from bench.gate.suite.batches import Shape, paged_batch

DECODE: Final = Shape(num_seqs=3, query_len=1, seq_len=144, head_dim=32)
SPLIT_DECODE: Final = Shape(num_seqs=1, query_len=1, seq_len=1024, head_dim=32)
PREFILL: Final = Shape(num_seqs=2, query_len=24, seq_len=96, head_dim=32)
NUM_TOKENS: Final = 48
NUM_COPIES: Final = 6


def _watched(
    kernel: Callable[..., object],
    roles: str,
    *arguments: Any,
    outputs: Callable[[], Mapping[str, Output]],
) -> Prepared:
    """Bytes of one call by tensor, and the launches. The roles are those of the side's checker."""

    def call() -> None:
        kernel(*arguments)

    def counters() -> Mapping[str, Count]:
        from kernels.interpreter import memory as checker

        with checker.watch_memory(getattr(checker, roles)(*arguments)) as memory:
            call()
        if memory.findings:
            raise RuntimeError(f"the kernel touches what is not its own: {memory.findings[0]}")
        counts = {"launches": Count(memory.launches, "launches")}
        for name, moved in memory.traffic.items():
            tensor = name.replace(" ", "_")
            counts[f"loaded.{tensor}"] = Count(moved.loaded, "bytes")
            counts[f"stored.{tensor}"] = Count(moved.stored, "bytes")
        return counts

    return Prepared(call=call, outputs=outputs, counters=counters)


def _attention(shape: Shape) -> Prepared:
    from kernels.attention import paged_attention

    batch = paged_batch(shape)
    return _watched(
        paged_attention, "attention_roles", batch, outputs=lambda: attention.answer(batch)
    )


def _write(dtype: torch.dtype) -> Prepared:
    from kernels.cache_ops import write_slots

    held = cache.cache(dtype)
    keys, values = (cache.small_numbers(NUM_TOKENS, seed=seed).bfloat16() for seed in (4, 5))
    return _watched(
        write_slots,
        "write_roles",
        *(held.key_cache, held.value_cache, keys, values, cache.slots(NUM_TOKENS)),
        outputs=lambda: cache.contents(held),
    )


def _copy() -> Prepared:
    from kernels.cache_ops import copy_blocks

    held = cache.cache(torch.bfloat16)
    return _watched(
        copy_blocks,
        "copy_roles",
        *(held.key_cache, held.value_cache, cache.pairs(NUM_COPIES).contiguous()),
        outputs=lambda: cache.contents(held),
    )


_benchmark = partial(
    of_group("kernels", "kernels.interpreter.memory:watch_memory"),
    # The interpreter's time says nothing about a kernel.
    timed=False,
)

ATTENTION: Final = "kernels.attention:paged_attention"

BENCHMARKS: Final = (
    _benchmark(
        "decode",
        "A decode step of 3 sequences of 144 tokens.",
        partial(_attention, DECODE),
        ATTENTION,
    ),
    _benchmark(
        "decode[split]",
        "A decode step of one sequence of 1,024 tokens, split.",
        partial(_attention, SPLIT_DECODE),
        ATTENTION,
    ),
    _benchmark(
        "prefill",
        "Chunks of 24 tokens at the end of 2 sequences of 96.",
        partial(_attention, PREFILL),
        ATTENTION,
    ),
    _benchmark(
        "write[bf16]",
        "48 tokens are stored at their slots.",
        partial(_write, torch.bfloat16),
        "kernels.cache_ops:write_slots",
    ),
    _benchmark(
        "write[e4m3]",
        "48 tokens are stored at their slots in float8.",
        partial(_write, torch.float8_e4m3fn),
        "kernels.cache_ops:write_slots",
    ),
    _benchmark("copy", "6 blocks are copied.", _copy, "kernels.cache_ops:copy_blocks"),
)
