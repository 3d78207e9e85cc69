"""Internal fragmentation against the block size, beside its closed form."""

from __future__ import annotations

import math
from typing import Final

from bench.waste.figures.figure import Component, Figure
from bench.waste.figures.sosp23 import SEED, SLOTS
from bench.waste.simulate import simulate
from bench.workloads.fits import fitted
from paged.policy import PagedPolicy

REQUESTS: Final = 5_000
BLOCK_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LARGEST_JUDGED: Final = 64
"""Beyond it requests are shorter than a block, and the closed form does not hold."""

POINTS: Final = 0.3


def block_size() -> Figure:
    """Simulate every block size on both streams of the PagedAttention paper."""
    components = []
    for stream, name in (("sharegpt-fit", "ShareGPT"), ("alpaca-fit", "Alpaca")):
        for size in BLOCK_SIZES:
            source = fitted(stream, num_requests=REQUESTS, seed=SEED)
            loaded = simulate(source, PagedPolicy(block_size=size), slots=SLOTS).loaded
            length = loaded.token / loaded.running
            expected = 100 * expected_internal_fraction(length, size)
            components.append(
                Component.near(
                    f"{name}, {length:.0f} tokens a request, blocks of {size}",
                    "internal",
                    "% of allocated",
                    published=expected,
                    measured=100 * loaded.internal_fraction,
                    within=POINTS if size <= LARGEST_JUDGED else None,
                )
            )
    return Figure(
        name="block-size",
        title="Internal fragmentation against the block size",
        source="closed form ((B - 1) / 2) / (L + (B - 1) / 2), L tokens a running request",
        setup=(
            f"{SLOTS:,} slots; {REQUESTS:,} requests with the lengths of the PagedAttention "
            f"paper, a backlog from the start. In place of a published figure stands the closed "
            f"form, at the mean length of the running requests."
        ),
        components=tuple(components),
    )


def expected_internal_fraction(tokens_per_request: float, block_size: int) -> float:
    """Predict the share of paged memory that internal fragmentation takes, 0 to 1.

    A running request of `L` tokens fills its last block anywhere with equal chance, so that
    `(B - 1) / 2` of its slots are empty. Good to 0.3 points while requests are longer than a block.
    """
    if not 0 < tokens_per_request < math.inf:
        raise ValueError(
            f"tokens_per_request is {tokens_per_request}; it must be above 0 and finite"
        )
    empty = (block_size - 1) / 2
    return empty / (tokens_per_request + empty)
