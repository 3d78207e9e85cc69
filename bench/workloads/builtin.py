"""Streams without a file: lengths drawn from quantiles of public traces.

What is reproduced: each law's quantiles, and the mean rate of arrival where the trace has times.

What is not: any link between the columns or the rows. A prompt and its output are drawn apart (in
the traces they correlate by -0.11 to 0.07), so are successive requests, although the turns of a
conversation grow. Arrivals are Poisson, while azure-code in truth comes in bursts (its gaps have a
coefficient of variation of 13, where Poisson has 1), as does, less so, mooncake-conv (3). There are
no prefix blocks. Between two quantiles the logarithm of the length is taken to rise evenly, which
puts the means within 3 % of the trace's but for azure-code outputs (+15 %), sharegpt-first-turns
prompts (+9 %) and mooncake-conv prompts (+6 %). Where this matters, read the trace itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.workloads.source import arrivals_after, check_draw, read_all
from bench.workloads.stream import CHUNK_REQUESTS, RequestStream

LEVELS: Final = (0.0, 0.10, 0.25, 0.50, 0.75, 0.90, 0.99, 0.999, 1.0)
"""Levels of the quantiles in the table; the outer two are the shortest and the longest request."""

_AZURE: Final = "Azure Public Dataset, LLM inference trace 2023, {} (CC-BY-4.0)"
_SHAREGPT: Final = "sarathi-serve, ShareGPT lengths, Llama-2 tokenizer, {} (Apache-2.0)"
_MOONCAKE: Final = "Mooncake, FAST'25 traces, conversation (Apache-2.0)"


@dataclass(frozen=True, slots=True)
class StreamLaw:
    """Where a built-in stream's figures come from, and the figures."""

    source: str
    """Data set and licence."""
    rate_per_s: float | None
    """Mean arrivals per second; None where the data set has no times."""
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    """Lengths at each of `LEVELS`: the shortest length that at least this share of the requests
    does not exceed (numpy's method `inverted_cdf`)."""


# fmt: off
STREAM_LAWS: Final = {
    "azure-conv": StreamLaw(
        _AZURE.format("conversation"), 5.530,
        # min  p10   p25   p50    p75    p90    p99   p99.9     max
        (   2, 207,  396, 1020,  1189,  2735,  4142,   6212,  14050),
        (   7,  54,   85,  129,   395,   424,   601,    954,   1000)),
    "azure-code": StreamLaw(
        _AZURE.format("code"), 2.566,
        (   3, 147,  578, 1469,  2745,  5194,  7436,   7437,   7437),
        (   6,   7,    9,   13,    24,    55,   252,    831,   1899)),
    "sharegpt": StreamLaw(
        _SHAREGPT.format("all turns"), None,
        (   1,  74,  580, 1730,  3735,  5696,  7434,   7855,   8141),
        (   2,  84,  228,  415,   628,   834,   998,   1021,   1024)),
    "sharegpt-first-turns": StreamLaw(
        _SHAREGPT.format("first turns"), None,
        (   1,  16,   27,   64,   194,   600,  2389,   4090,   7398),
        (   2,  67,  245,  471,   682,   871,  1003,   1022,   1024)),
    "mooncake-conv": StreamLaw(
        _MOONCAKE, 3.401,
        ( 891, 964, 2306, 6909, 15368, 27367, 85401, 121301, 126195),
        (   1,  24,  156,  350,   472,   597,  1120,   2000,   2000)),
}
# fmt: on
"""The built-in streams by name; upper row prompts, lower row outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileSource:
    """A built-in stream, drawn chunk by chunk; a longer draw begins with the shorter one."""

    name: str
    """One of `STREAM_LAWS`."""
    num_requests: int
    """Requests to draw."""
    seed: int = 0
    """Seed, 0 or more."""
    rate_per_s: float | None = None
    """Mean arrivals per second; None takes the table's, and leaves out times where it has none."""

    def __post_init__(self) -> None:
        if self.name not in STREAM_LAWS:
            raise ValueError(
                f"built-in stream {self.name!r} is unknown; use one of {', '.join(STREAM_LAWS)}"
            )
        check_draw(num_requests=self.num_requests, seed=self.seed, rate_per_s=self.rate_per_s)

    @property
    def source(self) -> str:
        """The data set behind the quantiles."""
        return f"drawn with seed {self.seed} from quantiles of: {STREAM_LAWS[self.name].source}"

    @property
    def timed(self) -> bool:
        """Whether a rate is given, here or in the table."""
        return (self.rate_per_s or STREAM_LAWS[self.name].rate_per_s) is not None

    def chunks(self) -> Iterator[RequestStream]:
        """Draw the requests, `CHUNK_REQUESTS` at a time."""
        law = STREAM_LAWS[self.name]
        rate_per_s = self.rate_per_s or law.rate_per_s
        # A generator for each column: one more request then leaves the earlier ones as they were.
        prompt, output, gaps = (
            np.random.Generator(np.random.PCG64(child))
            for child in np.random.SeedSequence(self.seed).spawn(3)
        )
        last_s: float | None = None
        for start in range(0, self.num_requests, CHUNK_REQUESTS):
            count = min(CHUNK_REQUESTS, self.num_requests - start)
            arrival_s = None
            if rate_per_s is not None:
                gaps_s = -np.log1p(-gaps.random(count)) / rate_per_s
                arrival_s = arrivals_after(last_s, gaps_s)
                last_s = float(arrival_s[-1])
            yield RequestStream(
                name=self.name,
                source=self.source,
                prompt_tokens=_lengths(prompt.random(count), law.prompt_tokens),
                output_tokens=_lengths(output.random(count), law.output_tokens),
                arrival_s=arrival_s,
            )


def builtin_stream(
    name: str = "azure-conv",
    *,
    num_requests: int = 2000,
    seed: int = 0,
    rate_per_s: float | None = None,
) -> RequestStream:
    """Draw a whole stream. Parameters and errors as for `QuantileSource`."""
    return read_all(
        QuantileSource(name=name, num_requests=num_requests, seed=seed, rate_per_s=rate_per_s)
    )


def read_law(
    levels: NDArray[np.float64], at: tuple[float, ...], quantiles: tuple[int, ...]
) -> NDArray[np.float64]:
    """Read a law at `levels`; between two of its quantiles the logarithm rises evenly."""
    values: NDArray[np.float64] = np.exp(np.interp(levels, at, np.log(quantiles)))
    return values


def _lengths(levels: NDArray[np.float64], quantiles: tuple[int, ...]) -> NDArray[np.int64]:
    return np.rint(read_law(levels, LEVELS, quantiles)).astype(np.int64)
