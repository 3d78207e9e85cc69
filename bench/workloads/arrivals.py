"""Arrival times for requests that have none, or others than their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bench.workloads.source import StreamSource, Wrapped, arrivals_after, check_draw
from bench.workloads.stream import RequestStream

# Beside the seed, so that times and lengths that are drawn with the same seed are independent.
_ARRIVALS = 0x617272697665


def arriving(
    source: StreamSource, *, rate_per_s: float, cv: float = 1.0, seed: int = 0
) -> StreamSource:
    """Let the requests arrive at a mean rate, one by one, in their order.

    The gaps are independent and follow a gamma law with the coefficient of variation `cv`: 1 is a
    Poisson process, more is bursty, 0 is a metronome. Times that the source has are replaced. The
    same seed gives the same times whatever the requests.

    Raises ValueError: for a rate, CV or seed out of range.
    """
    if isinstance(source, _Arriving):  # its times would be drawn in vain
        source = source.of
    return _Arriving(of=source, rate_per_s=rate_per_s, cv=cv, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arriving(Wrapped):
    rate_per_s: float
    cv: float
    seed: int

    def __post_init__(self) -> None:
        check_draw(seed=self.seed, rate_per_s=self.rate_per_s)
        if not 0 <= self.cv <= 100:
            raise ValueError(
                f"cv is {self.cv}; use 0 (evenly spaced) to 100, with 1 for a Poisson process"
            )

    @property
    def change(self) -> str:
        return (
            f"arrivals drawn with seed {self.seed}, {self.rate_per_s:g} per s, CV of gaps "
            f"{self.cv:g}"
        )

    @property
    def timed(self) -> bool:
        return True

    def chunks(self) -> Iterator[RequestStream]:
        # One generator throughout: it hands out the same gaps however they are asked for.
        draw = np.random.Generator(np.random.PCG64([self.seed, _ARRIVALS]))
        shape = 1 / self.cv**2 if self.cv else 0.0
        last_s: float | None = None
        for chunk in self.of.chunks():
            gaps = draw.standard_gamma(shape, len(chunk)) / shape if shape else np.ones(len(chunk))
            arrival_s = arrivals_after(last_s, gaps / self.rate_per_s)
            last_s = float(arrival_s[-1])
            yield replace(chunk, arrival_s=arrival_s)
