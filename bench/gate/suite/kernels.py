"""The Triton kernels in the interpreter: what they compute and which bytes they touch.

Not timed: the interpreter's time says nothing about a kernel. What a kernel loads and stores is the
same there as on a GPU, and exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch

from bench.gate.benchmark import Benchmark, Count, Output, Prepared
from bench.gate.suite import attention, cache
from bench.gate.suite.batches import Shape, paged_batch

DECODE: Final = Shape(num_seqs=3, query_len=1, seq_len=144, head_dim=32)
SPLIT_DECODE: Final = Shape(num_seqs=1, query_len=1, seq_len=1024, head_dim=32)
PREFILL: Final = Shape(num_seqs=2, query_len=24, seq_len=96, head_dim=32)
NUM_TOKENS: Final = 48
NUM_COPIES: Final = 6


def _traffic(roles: Callable[[], Any], call: Callable[[], object]) -> Mapping[str, Count]:
    """Bytes of one call by tensor, and the launches. The roles are those of the side's checker."""
    from kernels.interpreter.memory import watch_memory

    with watch_memory(roles()) as memory:
        call()
    if memory.findings:
        raise RuntimeError(f"the kernel touches what is not its own: {memory.findings[0]}")
    counts = {"launches": Count(memory.launches, "launches")}
    for name, moved in memory.traffic.items():
        tensor = name.replace(" ", "_")
        counts[f"loaded.{tensor}"] = Count(moved.loaded, "bytes")
        counts[f"stored.{tensor}"] = Count(moved.stored, "bytes")
    return counts


def _attention(shape: Shape) -> Prepared:
    from kernels.attention import paged_attention

    batch = paged_batch(shape)

    def roles() -> Any:
        from kernels.interpreter.memory import attention_roles

        return attention_roles(batch)

    def call() -> None:
        paged_attention(batch)

    def outputs() -> Mapping[str, Output]:
        assert batch.lse is not None
        return {"out": attention.rounded(batch.out), "lse": attention.rounded(batch.lse)}

    return Prepared(call=call, outputs=outputs, counters=lambda: _traffic(roles, call))


def _write(dtype: torch.dtype) -> Prepared:
    from kernels.cache_ops import write_slots

    held = cache.cache(dtype)
    keys, values = (cache.small_numbers(NUM_TOKENS, seed=seed).bfloat16() for seed in (4, 5))
    where = cache.slots(NUM_TOKENS)

    def roles() -> Any:
        from kernels.interpreter.memory import write_roles

        return write_roles(held.key_cache, held.value_cache, keys, values, where)

    def call() -> None:
        write_slots(held.key_cache, held.value_cache, keys, values, where)

    return Prepared(
        call=call,
        outputs=lambda: cache.contents(held),
        counters=lambda: _traffic(roles, call),
    )


def _copy() -> Prepared:
    from kernels.cache_ops import copy_blocks

    held = cache.cache(torch.bfloat16)
    which = cache.pairs(NUM_COPIES).contiguous()

    def roles() -> Any:
        from kernels.interpreter.memory import copy_roles

        return copy_roles(held.key_cache, held.value_cache, which)

    def call() -> None:
        copy_blocks(held.key_cache, held.value_cache, which)

    return Prepared(
        call=call,
        outputs=lambda: cache.contents(held),
        counters=lambda: _traffic(roles, call),
    )


def _benchmark(name: str, title: str, prepare: Callable[[], Prepared], *needs: str) -> Benchmark:
    return Benchmark(
        key=f"kernels/{name}",
        title=title,
        prepare=prepare,
        needs=(*needs, "kernels.interpreter.memory:watch_memory"),
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
