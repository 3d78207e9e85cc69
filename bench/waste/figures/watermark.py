"""Preemptions and requests a second against the watermark, as published for a vLLM server."""

from __future__ import annotations

from typing import Final

import numpy as np

from bench.waste.clocks import Clock, clock_words, roofline
from bench.waste.figures.figure import Component, Figure
from bench.waste.gpus import read_gpu
from bench.waste.models import read_model
from paged.arrivals import Request
from paged.counting import serve_by_counts
from paged.policy import PagedPolicy

SLOTS: Final = 299_584
REQUESTS: Final = 450
CLIENTS: Final = 128
SEEDS: Final = tuple(range(8))

PUBLISHED: Final = {0.0: 1065, 0.02: 400, 0.05: 187, 0.10: 168, 0.15: 168}
"""Preemptions by watermark: vLLM pull request 44594, one GB200, Qwen2.5-7B."""

GAINS: Final = {0.02: 4.77, 0.05: 5.05, 0.10: 2.18, 0.15: 0.46}
"""Requests a second more than without a watermark, in per cent; from the output tokens a second of
the same table: 11,582, 12,134, 12,167, 11,835 and 11,635."""

POINTS: Final = 3.0
"""By how much a gain may be off."""

JUDGED: Final = (0.0, 0.02, 0.10, 0.15)
TOLERANCE: Final = 0.2


def clock() -> Clock:
    """The clock of the server that was measured, from data sheets."""
    found = roofline(read_model("Qwen2.5-7B"), read_gpu("GB200"))
    assert found is not None
    return found


def stream(*, seed: int) -> list[Request]:
    """Draw the requests."""
    generator = np.random.default_rng(seed)
    prompts = generator.integers(800, 1200, REQUESTS, endpoint=True)
    outputs = generator.integers(4000, 6000, REQUESTS, endpoint=True)
    return list(map(Request, prompts.tolist(), outputs.tolist()))


def served(watermark: float, *, seed: int) -> tuple[int, float]:
    """Simulate the server once; return its preemptions, and requests a second."""
    found = serve_by_counts(
        stream(seed=seed),
        PagedPolicy(block_size=16, watermark=watermark),
        slots=SLOTS,
        clients=CLIENTS,
        time=clock().time,
    )
    assert found.service is not None
    rate = found.service.completed / found.service.makespan_ns * 1e9
    return found.total.preemptions, rate


def watermark() -> Figure:
    """Simulate every watermark with every seed."""
    runs = {share: [served(share, seed=seed) for seed in SEEDS] for share in PUBLISHED}
    means = {share: float(np.mean([count for count, _ in each])) for share, each in runs.items()}
    rates = {share: float(np.mean([rate for _, rate in each])) for share, each in runs.items()}
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
    components += [
        Component.near(
            f"watermark {share:.0%}",
            "requests a second, more",
            "%",
            published=published,
            measured=100 * (rates[share] / rates[0.0] - 1),
            within=POINTS,
        )
        for share, published in GAINS.items()
    ]
    return Figure(
        name="watermark",
        title="Preemptions and requests a second against the watermark",
        source="vLLM pull request 44594 (measured on one GB200 with Qwen2.5-7B)",
        setup=(
            f"{SLOTS:,} slots in blocks of 16; {REQUESTS} requests of 1,000 prompt and 5,000 "
            f"output tokens, each drawn evenly within 20 %, {CLIENTS} at a time; mean of "
            f"{len(SEEDS)} seeds. The clock: {clock_words(clock().time)} ({clock().source})."
        ),
        components=tuple(components),
        notes=(
            "The server's own draw is not known: one seed differs from the next by up to a fifth "
            "at watermarks of 5 % and more, where there are fewest preemptions.",
        ),
    )
