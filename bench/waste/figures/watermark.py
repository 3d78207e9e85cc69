"""Preemptions against the watermark, as published for a running vLLM server."""

from __future__ import annotations

from typing import Final

import numpy as np

from bench.waste.figures.figure import Component, Figure
from paged.arrivals import Request
from paged.counting import serve_by_counts
from paged.policy import PagedPolicy

SLOTS: Final = 299_584
REQUESTS: Final = 450
CLIENTS: Final = 128
SEEDS: Final = tuple(range(8))

PUBLISHED: Final = {0.0: 1065, 0.02: 400, 0.05: 187, 0.10: 168, 0.15: 168}
"""Preemptions by watermark: vLLM pull request 44594, one GB200, Qwen2.5-7B."""

JUDGED: Final = (0.0, 0.02, 0.10, 0.15)
TOLERANCE: Final = 0.2


def preemptions(watermark: float, *, seed: int) -> int:
    """Simulate the server once and count its preemptions."""
    generator = np.random.default_rng(seed)
    prompts = generator.integers(800, 1200, REQUESTS, endpoint=True)
    outputs = generator.integers(4000, 6000, REQUESTS, endpoint=True)
    served = serve_by_counts(
        map(Request, prompts.tolist(), outputs.tolist()),
        PagedPolicy(block_size=16, watermark=watermark),
        slots=SLOTS,
        clients=CLIENTS,
    )
    return served.total.preemptions


def watermark() -> Figure:
    """Simulate every watermark with every seed."""
    means = {
        share: float(np.mean([preemptions(share, seed=seed) for seed in SEEDS]))
        for share in PUBLISHED
    }
    components = [
        Component.near(
            f"watermark {share:.0%}",
            "preemptions",
            "",
            published=published,
            measured=means[share],
            within=TOLERANCE * published if share in JUDGED else None,
        )
        for share, published in PUBLISHED.items()
    ]
    ordered = list(means.values())
    components.append(
        Component(
            bar="all watermarks",
            name="largest rise from one to the next",
            unit="",
            published=0,
            measured=max(0.0, *np.diff(ordered)),
            highest=0,
        )
    )
    return Figure(
        name="watermark",
        title="Preemptions against the watermark",
        source="vLLM pull request 44594 (measured on one GB200 with Qwen2.5-7B)",
        setup=(
            f"{SLOTS:,} slots in blocks of 16; {REQUESTS} requests of 1,000 prompt and 5,000 "
            f"output tokens, each drawn evenly within 20 %, {CLIENTS} at a time; mean of "
            f"{len(SEEDS)} seeds."
        ),
        components=tuple(components),
        notes=(
            "The server's own draw is not known: one seed differs from the next by up to a fifth "
            "at watermarks of 5 % and more, where there are fewest preemptions.",
        ),
    )
