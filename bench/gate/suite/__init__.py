"""The one catalogue of benchmarks: timed on the CPU or on a GPU, and counted.

The gate takes those that are `gated`; `bench.gate.discovered` makes of all of them what asv
discovers, and `tests/benchmarks` what `make bench` runs.

The definitions are those of the checkout that runs the gate, for both sides; all that they call is
each side's own. So nothing here is imported from the rooms before a benchmark is prepared.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from bench.gate.benchmark import Benchmark, Count, Output, Prepared
from bench.gate.suite import allocator, attention, cache, gpu, kernels, serving, waste

if TYPE_CHECKING:
    from bench.gate.timers import Device

__all__ = ["SUITE", "Benchmark", "Count", "Output", "Prepared", "chosen"]

SUITE: Final[tuple[Benchmark, ...]] = (
    *allocator.BENCHMARKS,
    *serving.BENCHMARKS,
    *waste.BENCHMARKS,
    *cache.BENCHMARKS,
    *attention.BENCHMARKS,
    *kernels.BENCHMARKS,
    *gpu.BENCHMARKS,
)
"""In the order of reports."""


def chosen(
    patterns: tuple[str, ...],
    suite: tuple[Benchmark, ...] = SUITE,
    *,
    device: Device = "cpu",
) -> tuple[Benchmark, ...]:
    """The gate's benchmarks of a device that one of the patterns fits; all without a pattern.

    A pattern is a part of the key, or has `*` and `?` for any characters of the whole key.
    """
    return tuple(
        benchmark
        for benchmark in suite
        if benchmark.gated
        and benchmark.device == device
        and (not patterns or any(_fits(benchmark.key, pattern) for pattern in patterns))
    )


def _fits(key: str, pattern: str) -> bool:
    # Keys have brackets, which fnmatch would take for sets of characters.
    literal = pattern.replace("[", "[[]")
    return fnmatchcase(key, literal) or ("*" not in pattern and pattern in key)
