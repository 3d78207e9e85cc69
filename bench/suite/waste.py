"""Where a server's slots go on request streams: waste, batch, preemptions, hits; and how fast.

The `track_` figures are simulated with fixed seeds, in integers. They are the same on every machine
and in every run, so any change from one commit to the next is a change of the code.
"""

from __future__ import annotations

from functools import cache
from itertools import starmap
from typing import ClassVar, Final

from bench.waste.contiguous import ContiguousPolicy, serve_contiguous
from bench.waste.figures.sosp23 import MAX_MODEL_LEN, SLOTS, sosp23
from bench.waste.policies import Policy
from bench.waste.prefix_replay import ReplayOrder, replay
from bench.waste.simulate import lengths_of, simulate
from bench.workloads.conversations import ConversationFit
from bench.workloads.fits import fitted
from paged.accounting import Serving
from paged.arrivals import Request
from paged.counting import serve_by_counts
from paged.policy import PagedPolicy
from reference.allocator.arenas import ArenaName, ReservationName

REQUESTS: Final = 2000

_RESERVATIONS: Final[tuple[tuple[ReservationName, ArenaName], ...]] = (
    ("max", "buddy"),
    ("pow2", "buddy"),
    ("oracle", "buddy"),
    ("oracle", "first-fit"),
    ("oracle", "best-fit"),
)
CONTIGUOUS: Final = {
    f"{reservation}/{arena}": ContiguousPolicy(
        reservation=reservation, arena=arena, max_model_len=MAX_MODEL_LEN
    )
    for reservation, arena in _RESERVATIONS
}
PAGED: Final = {
    "paged:block=16": PagedPolicy(block_size=16),
    "paged:block=128": PagedPolicy(block_size=128),
    "paged:block=16,watermark=0.05": PagedPolicy(block_size=16, watermark=0.05),
    "paged:block=16,budget=512": PagedPolicy(block_size=16, token_budget=512),
}
POLICIES: Final[dict[str, Policy]] = {**CONTIGUOUS, **PAGED}


@cache
def _served(policy: str) -> Serving:
    """Simulate once for all the figures that are tracked of it."""
    return simulate(fitted("sharegpt-fit", num_requests=REQUESTS), POLICIES[policy], slots=SLOTS)


class Waste:
    """The ShareGPT lengths of the PagedAttention paper in its pool, a backlog from the start."""

    version = "1"
    params = (tuple(POLICIES),)
    param_names = ("policy",)

    def setup(self, policy: str) -> None:
        """Simulate."""
        self.serving = _served(policy)

    def track_waste(self, policy: str) -> float:
        """Share of the pool that holds nothing while somebody holds it or waits for it."""
        return self.serving.loaded.waste_fraction

    track_waste.unit = "fraction"  # type: ignore[attr-defined]

    def track_peak_batch(self, policy: str) -> int:
        """Most requests that ran at once."""
        return self.serving.peak_requests

    track_peak_batch.unit = "requests"  # type: ignore[attr-defined]

    def track_mean_batch(self, policy: str) -> float:
        """Requests that ran at once, on average."""
        return self.serving.loaded.mean_batch

    track_mean_batch.unit = "requests"  # type: ignore[attr-defined]

    def track_preemptions(self, policy: str) -> int:
        """Times that a request lost its memory."""
        return self.serving.total.preemptions

    track_preemptions.unit = "preemptions"  # type: ignore[attr-defined]

    def track_recomputed(self, policy: str) -> float:
        """Tokens computed again after a preemption, for each token generated."""
        total = self.serving.total
        return total.recomputed_tokens / total.generated_tokens

    track_recomputed.unit = "tokens"  # type: ignore[attr-defined]


class PrefixCache:
    """Conversations that share prefixes, served at their own arrival times from a small pool."""

    version = "1"
    params = ((1_000_000, 3_000_000),)
    param_names = ("slots",)

    REQUESTS: ClassVar = 1500

    def setup(self, slots: int) -> None:
        """Simulate."""
        source = ConversationFit(num_requests=self.REQUESTS)
        policy = PagedPolicy(block_size=512, prefix_caching=True)
        self.serving = simulate(source, policy, slots=slots)

    def track_hit_rate(self, slots: int) -> float:
        """Share of the prompt tokens that were in the cache."""
        return self.serving.total.hit_rate

    track_hit_rate.unit = "fraction"  # type: ignore[attr-defined]

    def track_ghost_hits(self, slots: int) -> int:
        """Blocks that were looked up shortly after they had been evicted."""
        return self.serving.total.ghost_hits

    track_ghost_hits.unit = "blocks"  # type: ignore[attr-defined]


class Eviction:
    """The same conversations looked up one after the other, in a cache of 3 million tokens."""

    version = "1"
    params = (("lru", "lfu", "fifo"),)
    param_names = ("order",)

    REQUESTS: ClassVar = 4000
    CAPACITY: ClassVar = 3_000_000

    def setup(self, order: ReplayOrder) -> None:
        """Replay."""
        source = ConversationFit(num_requests=self.REQUESTS)
        self.result = replay(source, self.CAPACITY, order)

    def track_hit_rate(self, order: str) -> float:
        """Share of the prompt tokens that were in the cache."""
        return self.result.hit_rate

    track_hit_rate.unit = "fraction"  # type: ignore[attr-defined]


class Speed:
    """Requests that a simulator serves in a second of one core."""

    version = "1"
    params = ((*CONTIGUOUS, "paged:block=16"),)
    param_names = ("policy",)

    REQUESTS: ClassVar = 20_000

    def setup(self, policy: str) -> None:
        """Draw the stream: what is timed is the simulator."""
        self.lengths = list(lengths_of(fitted("sharegpt-fit", num_requests=self.REQUESTS)))
        self.requests = list(starmap(Request, self.lengths))

    def time_twenty_thousand_requests(self, policy: str) -> None:
        """Serve them."""
        if policy in CONTIGUOUS:
            serve_contiguous(self.lengths, CONTIGUOUS[policy], slots=SLOTS)
        else:
            serve_by_counts(self.requests, PAGED[policy], slots=SLOTS)


class PaperFigure:
    """The memory figure of the PagedAttention paper, all four servers."""

    version = "1"

    def time_figure(self) -> None:
        """Simulate it."""
        sosp23()
