"""Gate records for tests: every verdict, and names that want to be markup."""

from __future__ import annotations

import math
from typing import Any

from bench.gate.record import (
    BenchmarkRecord,
    ContestantRecord,
    CounterRecord,
    Design,
    Estimate,
    GateParameters,
    GateRecord,
    LaunchRecord,
    OutputRecord,
    Sample,
)
from bench.machine.environment import GateEnvironment

HOSTILE = (
    "a|b`c``d]](x)<script>alert(1)</script>*_[red]x[/red]@everyone,:%\r\n::error::gotcha\x1b[2J"
)
"""A name that ends cells, spans, tags, properties and lines, and speaks to terminals."""


def environment(**changes: Any) -> GateEnvironment:
    usual = {
        "device": "AMD EPYC 7763",
        "driver": None,
        "cuda": None,
        "torch": "2.13.0+cpu",
        "triton": "3.9.0",
        "numpy": "2.4.6",
        "python": "3.11.9",
        "timer": "process_time",
        "cpu": "AMD EPYC 7763",
        "cores": 2,
        "threads": 1,
        "platform": "Linux-6.1-x86_64",
    }
    return GateEnvironment(**{**usual, **changes})


def contestant(commit: str | None = "b" * 40, **changes: Any) -> ContestantRecord:
    usual = {
        "name": commit[:12] if commit else "tree",
        "asked": "HEAD~1",
        "path": "tree",
        "commit": commit,
        "dirty": False,
        "python": "python",
        "environment": environment(),
    }
    return ContestantRecord(**{**usual, **changes})


def parameters(**changes: Any) -> GateParameters:
    usual = {
        **Design().model_dump(),
        "pairs": 24,
        "turn_s": 0.004,
        "plant": 0.0,
        "time_limit_s": 540.0,
        "benchmarks": [],
        "seed": 0,
        "cores": [0, 1],
    }
    return GateParameters(**{**usual, **changes})


def sample(d: float = 0.0, *, base_s: float = 1e-4, **changes: Any) -> Sample:
    """A launch whose head took exp(d) times as long, and waited exp(d_wall) times as long."""
    usual = {"launch": 0, "stage": "screen", "d_timer": d, "d_wall": d, **changes}
    times = {"base_s": base_s, "head_s": base_s * math.exp(d), "base_wall_s": base_s}
    return Sample(**usual, **times, head_wall_s=base_s * math.exp(usual["d_wall"]))


def samples(
    slowdown: float = 0.0, *, count: int = 9, base_s: float = 5e-3, stage: str = "screen"
) -> list[Sample]:
    """Launches whose `d` lie around log(1 + slowdown), symmetrically, within 0.4 %."""
    return [
        sample(
            math.log1p(slowdown) + 0.001 * (launch - (count - 1) / 2),
            base_s=base_s * (1 + 0.002 * launch),
            launch=launch,
            stage=stage,
        )
        for launch in range(count)
    ]


def benchmark(
    key: str = "decode/paged-torch[block=16]", *, slowdown: float = 0.0, **changes: Any
) -> BenchmarkRecord:
    usual = {
        "key": key,
        "title": "One decode step.",
        "timed": True,
        "number": 3,
        "samples": samples(slowdown),
        "estimate": Estimate(ratio=1 + slowdown, low=0.996 + slowdown, high=1.004 + slowdown),
        "launch_sd": 0.004,
        "verdict": "pass",
        "reason": "a slowdown of 3 % is ruled out",
    }
    return BenchmarkRecord(**{**usual, **changes})


def failing(key: str = "prefill/paged-torch", slowdown: float = 0.05) -> BenchmarkRecord:
    return benchmark(
        key,
        slowdown=slowdown,
        samples=[*samples(slowdown), *samples(slowdown, count=6, stage="confirm")],
        suspect=True,
        verdict="fail",
        reason="slower by more than 1 %, confirmed on 6 fresh launches",
    )


def counter(benchmark: str = "waste/blocks", name: str = "wasted_slots", **changes: Any):
    usual = {
        "benchmark": benchmark,
        "name": name,
        "unit": "slots",
        "base": 1000,
        "head": 1000,
        "more_is_better": False,
        "change": 0.0,
        "limit": 0.0,
        "verdict": "equal",
        "fails": False,
    }
    return CounterRecord(**{**usual, **changes})


def output(verdict: str = "equal", **changes: Any) -> OutputRecord:
    usual = {"benchmark": "decode/paged-torch[block=16]", "name": "out", "verdict": verdict}
    return OutputRecord(**{**usual, **changes})


def launches(keys: list[str], count: int = 9) -> list[LaunchRecord]:
    return [
        LaunchRecord(
            index=index,
            core=index % 2,
            hash_seed=index,
            padding=100 + index,
            started_s=6.0 * index,
            elapsed_s=6.0,
            load=1.0 + 0.1 * index,
            order=keys,
        )
        for index in range(count)
    ]


def gate_record(**changes: Any) -> GateRecord:
    """A run that passes: two timed benchmarks, a counter and an output that are equal."""
    benchmarks = changes.pop("benchmarks", [benchmark(), benchmark("alloc/churn")])
    usual = {
        "mode": "gate",
        "pagedbench": "0.1.0",
        "started_at": "2026-01-02T03:04:05+00:00",
        "elapsed_s": 61.0,
        "exact_s": 12.0,
        "parameters": parameters(),
        "base": contestant("b" * 40),
        "head": contestant("a" * 40),
        "launches": launches([each.key for each in benchmarks]),
        "benchmarks": benchmarks,
        "counters": [counter()],
        "outputs": [output()],
        "complete": True,
        "verdict": "pass",
        "exit_code": 0,
        "reason": "nothing is worse",
    }
    return GateRecord(**{**usual, **changes})


def mixed_record(**changes: Any) -> GateRecord:
    """One of everything: failed, undecided, noisy, faster, not run; a hostile name among them."""
    usual = {
        "benchmarks": [
            benchmark("alloc/churn"),
            failing(),
            benchmark(
                "copy/blocks", slowdown=0.02, verdict="inconclusive", reason="40 launches: open"
            ),
            benchmark(
                HOSTILE,
                verdict="inconclusive",
                quarantined=True,
                launch_sd=0.07,
                reason=f"too noisy: {HOSTILE}",
            ),
            benchmark("table/build", slowdown=-0.04, improved=True, reason="faster"),
            benchmark(
                "new/one",
                samples=[],
                estimate=None,
                launch_sd=None,
                verdict="not run",
                reason="the base has no such thing",
            ),
        ],
        "counters": [
            counter(),
            counter(
                "alloc/churn", "allocations", head=1010, change=0.01, verdict="worse", fails=True
            ),
            counter("alloc/churn", "reads", head=1010, change=0.01, limit=0.02, verdict="worse"),
            counter("alloc/churn", "peak", unit="blocks", head=900, change=-0.1, verdict="better"),
            counter("new/one", "moved", base=None, change=None, verdict="not there"),
        ],
        "outputs": [output(), output("within tolerance", difference=1e-7, limit=1e-6)],
        "verdict": "fail",
        "exit_code": 1,
        "reason": "1 benchmark is slower and 1 counter is worse",
    }
    return gate_record(**{**usual, **changes})
