"""Memory saved by sharing blocks between the samples of a prompt, and between beams."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from bench.waste.figures.figure import Component, Figure
from bench.waste.figures.sosp23 import SLOTS
from bench.waste.simulate import requests_of
from bench.workloads.fits import fitted
from paged.policy import PagedPolicy
from paged.scheduler import Scheduler, serve

REQUESTS: Final = {"sharegpt-fit": 1500, "alpaca-fit": 3000}
BEAM_REQUESTS: Final = {"sharegpt-fit": 30, "alpaca-fit": 150}
SAMPLES: Final = (2, 4, 6)
SEED: Final = 0

ALPACA: Final = (6.09, 8.53, 9.79)
"""Figure 15 a, per cent, for 2, 4 and 6 samples."""

SHAREGPT: Final = (16.2, None, 30.5)
"""Section 6.3 gives the ends of the range, per cent."""

ALPACA_BEAMS: Final = (37.56, 53.13, 55.16)
SHAREGPT_BEAMS: Final = (44.3, None, 66.3)

BEAM_KEEP: Final = {"alpaca-fit": 0.5, "sharegpt-fit": 0.95}
"""Share of steps in which no beam is dropped. Not published: one number fitted for each stream."""

POINTS: Final = 2.0


def saving(
    stream: str, *, num_requests: int, samples: int, beam_keep: float | None = None
) -> float:
    """Share of blocks that sharing saves over the steps, of those needed without it, 0 to 1."""
    physical = logical = 0

    def look(scheduler: Scheduler) -> None:
        nonlocal physical, logical
        physical += scheduler.allocator.num_used
        logical += sum(scheduler.allocator.pool.reference_counts)

    source = fitted(stream, num_requests=num_requests, seed=SEED)
    policy = PagedPolicy(block_size=16, samples=samples, beam_keep=beam_keep)
    serve(requests_of(source), policy, slots=SLOTS, observe=look)
    return 1 - physical / logical


def sharing() -> Figure:
    """Simulate parallel sampling and beams on both streams."""
    alpaca = _savings("alpaca-fit", REQUESTS)
    sharegpt = _savings("sharegpt-fit", REQUESTS)
    components = [
        _saved(f"Alpaca, {samples} samples", published, measured, within=POINTS)
        for samples, published, measured in zip(SAMPLES, ALPACA, alpaca, strict=True)
    ]
    components += [
        replace(
            _saved(f"ShareGPT, {samples} samples", published, measured),
            lowest=SHAREGPT[0],
            highest=SHAREGPT[-1],
        )
        for samples, published, measured in zip(SAMPLES, SHAREGPT, sharegpt, strict=True)
    ]
    components.append(
        Component(
            bar="ShareGPT, all samples",
            name="smallest rise from one to the next",
            unit="points",
            published=None,
            measured=min(np.diff(sharegpt).tolist()),
            lowest=0,
        )
    )
    for stream, name, published_beams in (
        ("alpaca-fit", "Alpaca", ALPACA_BEAMS),
        ("sharegpt-fit", "ShareGPT", SHAREGPT_BEAMS),
    ):
        measured_beams = _savings(stream, BEAM_REQUESTS, beam_keep=BEAM_KEEP[stream])
        components += [
            _saved(f"{name}, {beams} beams", published, measured)
            for beams, published, measured in zip(
                SAMPLES, published_beams, measured_beams, strict=True
            )
        ]
    return Figure(
        name="sharing",
        title="Blocks saved by sharing them, of those needed without",
        source="Kwon et al., SOSP 2023 (arXiv 2309.06180), figure 15 and section 6.3",
        setup=(
            f"{SLOTS:,} slots in blocks of 16; requests with the paper's mean lengths, a backlog "
            f"from the start; blocks in use and references to them, added up over all steps."
        ),
        components=tuple(components),
        notes=(
            "All samples of a prompt are of one length here; the paper does not say how its were.",
            "Beams are a model: in a share of the steps each beam goes on as itself, in the others "
            "each continues one drawn at random. That share is fitted, so beams are not judged.",
        ),
    )


def _savings(
    stream: str, requests: dict[str, int], *, beam_keep: float | None = None
) -> list[float]:
    return [
        100 * saving(stream, num_requests=requests[stream], samples=samples, beam_keep=beam_keep)
        for samples in SAMPLES
    ]


def _saved(
    bar: str, published: float | None, measured: float, *, within: float | None = None
) -> Component:
    return Component.near(
        bar, "blocks saved", "%", published=published, measured=measured, within=within
    )
