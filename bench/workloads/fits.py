"""Request lengths without a file: laws with the published moments, drawn as they are asked for.

Each law is discrete and has exact moments: prompts have a lognormal or gamma density's weights at
the whole numbers of tokens, outputs likewise, both cut off at the stated ends. The constants are
such that the moments *after* cutting off meet the published ones; `python -m
studies.derive_fits` solves for them again. What each law is fitted to, and what follows
unfitted, stands in `FITS` and in docs/workloads.md.

A request's lengths depend on name, seed and the request's number only: requests are drawn in blocks
of `CHUNK_REQUESTS`, each with a generator of its own, whatever the consumer does.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.workloads.arrivals import arriving
from bench.workloads.source import StreamSource, check_draw
from bench.workloads.stream import CHUNK_REQUESTS, RequestStream

DEFAULT_REQUESTS: Final = 20_000
"""Requests of a generated source where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Weights of a lognormal density at whole numbers of tokens."""

    mu: float
    sigma: float
    """Mean and standard deviation of the logarithm, before cutting off."""
    shortest: int
    longest: int
    """First and last length that occurs, tokens."""

    def weights(self) -> NDArray[np.float64]:
        """Probability of each length from `shortest` to `longest`, float64."""
        log = np.log(np.arange(self.shortest, self.longest + 1))
        return _normalised(-(((log - self.mu) / self.sigma) ** 2) / 2 - log)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Weights of a gamma density at whole numbers of tokens."""

    shape: float
    scale: float
    """The density's parameters, before cutting off; `scale` in tokens."""
    shortest: int
    longest: int
    """First and last length that occurs, tokens."""

    def weights(self) -> NDArray[np.float64]:
        """Probability of each length from `shortest` to `longest`, float64."""
        tokens = np.arange(self.shortest, self.longest + 1)
        return _normalised((self.shape - 1) * np.log(tokens) - tokens / self.scale)


def _normalised(log_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(log_weights - log_weights.max())
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised


@dataclass(frozen=True, kw_only=True)
class LengthLaw:
    """Joint law of prompt and output length."""

    prompt: Lognormal | Gamma
    output: Lognormal | Gamma
    """The two laws."""
    max_tokens: int | None = None
    """Most tokens of prompt and output together; pairs beyond are drawn again. None for any."""
    link: float = 0.0
    """Dependence, from -1 to 1: that of the Farlie-Gumbel-Morgenstern copula `u v (1 + link (1 - u)
    (1 - v))`; 0 draws the two apart."""

    @cached_property
    def _levels(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distribution functions; the last entry is 1, above every uniform draw."""
        prompt, output = (np.cumsum(law.weights()) for law in (self.prompt, self.output))
        prompt[-1] = output[-1] = 1.0
        return prompt, output

    def draw(
        self, generator: np.random.Generator, count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw prompt and output lengths, int64 [count] each."""
        prompt, output = self._draw(generator, count)
        if self.max_tokens is not None:
            while (beyond := np.flatnonzero(prompt + output > self.max_tokens)).size:
                prompt[beyond], output[beyond] = self._draw(generator, beyond.size)
        return prompt, output

    def _draw(
        self, generator: np.random.Generator, count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        prompt_levels, output_levels = self._levels
        # Uniform draws alone: of all of numpy's they are the last to change between releases.
        u, v = generator.random(count), generator.random(count)
        if self.link:
            slope = self.link * (1 - 2 * u)
            v = 2 * v / (1 + slope + np.sqrt((1 + slope) ** 2 - 4 * slope * v))
        prompt = np.searchsorted(prompt_levels, u, side="right") + self.prompt.shortest
        output = np.searchsorted(output_levels, v, side="right") + self.output.shortest
        return prompt, output


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A law, what it is fitted to, and how its requests arrive."""

    law: LengthLaw
    """The lengths."""
    description: str
    """What the requests are like, in a line."""
    source: str
    """Where the moments come from."""
    rate_per_s: float | None = None
    """Mean arrivals per second; None where the source of the moments has no times."""
    cv: float = 1.0
    """Coefficient of variation of the gaps between arrivals, 1 for a Poisson process."""


_PAPER: Final = "PagedAttention (Kwon et al., SOSP 2023), figures"
_AZURE: Final = "Azure Public Dataset, LLM inference trace 2023, {} (CC-BY-4.0)"

FITS: Final = {
    # The second moments are read off the paper's figure 2. Of 15,728 slots Orca (Max) gives 7
    # requests a reservation of 2048; reserved are 13.3 % of the slots, 299 a request, and a request
    # that is resident for o steps has E[o^2] / 2E[o] still to come: E[o^2] / E[o] is 598. From the
    # 20.4 % of live tokens E[i o] / E[o] is 159.6. The prompts' CV of 1.39 is that of the first
    # turns of the public ShareGPT lengths, those beyond 1024 tokens left out as here.
    "sharegpt-fit": Fit(
        law=LengthLaw(
            prompt=Lognormal(4.566308799168418, 2.5105380470687986, 1, 1024),
            output=Gamma(1.226210243683597, 279.67365427177975, 1, 2047),
            max_tokens=2048,
            link=0.04017493182598149,
        ),
        description="chat as in the PagedAttention paper: mean prompt 161.31, output 337.99",
        source=f"{_PAPER} 11 and 2, ShareGPT",
    ),
    # An output CV of 1 gives the batch sizes of the paper's figure 13. The saving by sharing the
    # prompt's full blocks hardly depends on the prompt's shape; of lognormal and gamma laws with
    # CVs from 0.3 to 1 this one comes nearest to figure 15: 6.63, 9.94 and 11.04 % for 2, 4 and 6
    # samples, where the paper has 6.09, 8.53 and 9.79 %.
    "alpaca-fit": Fit(
        law=LengthLaw(
            prompt=Lognormal(2.806880865449035, 0.554513065892906, 1, 512),
            output=Gamma(0.9816273602899537, 58.990574122375946, 1, 1024),
        ),
        description="instructions as in the PagedAttention paper: mean prompt 19.31, output 58.45",
        source=f"{_PAPER} 11, 13 and 15, Alpaca",
    ),
    "azure-fit": Fit(
        law=LengthLaw(
            prompt=Gamma(1.0824855534448403, 1065.904129175606, 2, 14050),
            output=Gamma(1.572746118777539, 134.81652841561706, 7, 1000),
            link=-0.42045469376031114,
        ),
        description="a cloud's chat: mean prompt 1155, output 211, 5.5 requests a second",
        source=_AZURE.format("conversation"),
        rate_per_s=5.530,
        cv=1.09,
    ),
    "azure-code-fit": Fit(
        law=LengthLaw(
            prompt=Gamma(0.5762455083451165, 6372.704308146647, 3, 7437),
            output=Lognormal(0.2784757298512315, 1.8483365954260418, 6, 1899),
        ),
        description="a cloud's code completion: mean prompt 2048, output 28, in bursts (CV 13)",
        source=_AZURE.format("code"),
        rate_per_s=2.566,
        cv=13.15,
    ),
}
"""The fitted laws by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthFit:
    """Lengths drawn from one of `FITS`; a longer draw begins with the shorter one."""

    name: str
    """One of `FITS`."""
    num_requests: int = DEFAULT_REQUESTS
    """Requests to draw."""
    seed: int = 0
    """Seed, 0 or more."""

    def __post_init__(self) -> None:
        if self.name not in FITS:
            raise ValueError(f"fit {self.name!r} is unknown; use one of {', '.join(FITS)}")
        check_draw(num_requests=self.num_requests, seed=self.seed)

    @property
    def source(self) -> str:
        """What the law is fitted to."""
        return f"drawn with seed {self.seed} from a law fitted to: {FITS[self.name].source}"

    @property
    def timed(self) -> bool:
        """False: only the lengths are drawn."""
        return False

    def chunks(self) -> Iterator[RequestStream]:
        """Draw the requests, `CHUNK_REQUESTS` at a time."""
        law = FITS[self.name].law
        # The name beside the seed: two fits of one seed are then independent.
        entropy = [self.seed, zlib.crc32(self.name.encode())]
        for block, start in enumerate(range(0, self.num_requests, CHUNK_REQUESTS)):
            seeds = np.random.SeedSequence(entropy, spawn_key=(block,))
            # Whole blocks: the redrawn pairs of a shorter one would be others.
            prompt, output = law.draw(np.random.Generator(np.random.PCG64(seeds)), CHUNK_REQUESTS)
            count = min(CHUNK_REQUESTS, self.num_requests - start)
            yield RequestStream(
                name=self.name,
                source=self.source,
                prompt_tokens=prompt[:count],
                output_tokens=output[:count],
            )


def fitted(
    name: str,
    *,
    num_requests: int = DEFAULT_REQUESTS,
    seed: int = 0,
    rate_per_s: float | None = None,
    cv: float | None = None,
) -> StreamSource:
    """Draw lengths and arrivals as one of `FITS` has them, or with another rate and CV of the gaps.

    A fit without a rate has no times. Raises ValueError: for an unknown name, a number out of
    range, or a CV without a rate.
    """
    lengths = LengthFit(name=name, num_requests=num_requests, seed=seed)
    fit = FITS[name]
    rate_per_s = fit.rate_per_s if rate_per_s is None else rate_per_s
    if rate_per_s is None:
        if cv is not None:
            raise ValueError(f"cv {cv} of {name!r}, which has no rate; give rate_per_s as well")
        return lengths
    return arriving(lengths, rate_per_s=rate_per_s, cv=fit.cv if cv is None else cv, seed=seed)
