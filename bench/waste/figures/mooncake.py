"""Hit rates of a prefix cache on the public Mooncake conversation trace, against its size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from bench.waste.figures.figure import Component, Figure
from bench.waste.prefix_replay import ReplayOrder, replay
from bench.workloads.traces import TraceSource
from reference.errors import BadInput

FOLDER_VARIABLE: Final = "PAGEDBENCH_TRACES"
NAMES: Final = ("mooncake_conversation.jsonl", "conversation_trace.jsonl")
"""File names that the trace goes by, with or without `.gz`."""

REQUESTS: Final = 12_031
"""Requests of the trace."""

POINTS: Final = 0.1

# Capacity in tokens, order, token hit rate in per cent, and whether it is judged. The rates are of
# independent replays of the same file; the first two are the ones to be met.
EXPECTED: Final[tuple[tuple[int | None, ReplayOrder, float, bool], ...]] = (
    (None, "lru", 37.4, True),
    (3_000_000, "lru", 13.9, True),
    (3_000_000, "fifo", 12.7, False),
    (3_000_000, "perfect-lfu", 15.5, False),
    (3_000_000, "belady", 35.7, False),
    (10_000_000, "lru", 29.1, False),
    (30_000_000, "lru", 36.6, False),
)


def find_trace() -> Path:
    """Find the trace in the folder that `PAGEDBENCH_TRACES` names."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None:
        for name in NAMES:
            for path in (Path(folder) / name, Path(folder) / f"{name}.gz"):
                if path.exists():
                    return path
    where = f"{folder} has none" if folder else f"{FOLDER_VARIABLE} is not set"
    raise BadInput(
        f"figure mooncake needs the conversation trace, and {where}: put conversation_trace.jsonl "
        f"(github.com/kvcache-ai/Mooncake, FAST25-release/traces) into a folder, and name the "
        f"folder in {FOLDER_VARIABLE}, or the file by --trace"
    )


def mooncake(trace: Path | None = None) -> Figure:
    """Replay the conversation trace, None that of `find_trace`, through caches of several sizes."""
    source = TraceSource(trace or find_trace(), format="mooncake")
    components = []
    for capacity, order, expected, judged in EXPECTED:
        result = replay(source, capacity, order)
        if result.requests != REQUESTS:
            raise BadInput(
                f"figure mooncake on {source.name}, which has {result.requests:,} requests: the "
                f"figures are of the conversation trace's {REQUESTS:,}; for another trace use "
                f"pagedbench waste --trace {source.name} --hits"
            )
        size = "no limit" if capacity is None else f"{capacity // 1_000_000}M tokens"
        components.append(
            Component.near(
                f"{size}, {order}" if capacity else size,
                "token hit rate",
                "%",
                published=expected,
                measured=100 * result.hit_rate,
                within=POINTS if judged else None,
            )
        )
    return Figure(
        name="mooncake",
        title="Prompt tokens found in a prefix cache, against its size",
        source="Mooncake (FAST 2025), conversation trace, and independent replays of it",
        setup=(
            "The trace's prompts one after the other, in blocks of 512 tokens, without time; a "
            "prompt's last block counts although it may be partly filled."
        ),
        components=tuple(components),
        notes=(
            "Mooncake's figure 9 gives a 3M-token LRU cache 41 % of the largest possible rate; "
            "its definition is not printed in full, and this one comes to 37 %.",
        ),
    )
