"""Request streams through a pool: the simulators' time, and exactly what the policies waste.

Time is of a few short requests. Counters are of 2,000 requests with the ShareGPT lengths of the
PagedAttention paper in its pool, which are not timed: a second each, and the same everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.gate.benchmark import Benchmark, Count, Output, Prepared

if TYPE_CHECKING:
    from paged.accounting import Serving

NUM_REQUESTS: Final = 12
SLOTS: Final = 256
MAX_MODEL_LEN: Final = 128

WASTED: Final = ("reserve", "internal", "roundup", "free_frag", "free_short")
"""Slot classes that hold nothing while somebody holds them or waits for them."""

LESS_IS_BETTER: Final = {
    "steps": "steps",
    "preemptions": "preemptions",
    "recomputed_tokens": "tokens",
    "copies": "blocks",
    "evictions": "evictions",
    "refused": "requests",
    "ghost_hits": "blocks",
}


def _lengths() -> list[tuple[int, int, int | None]]:
    """Prompt tokens, output tokens and no time of arrival."""
    draw = random.Random(0)
    return [(draw.randint(8, 96), draw.randint(4, 24), None) for _ in range(NUM_REQUESTS)]


class _Simulation:
    """A simulation that keeps what it came to."""

    def __init__(self, simulate: Callable[[], Serving]) -> None:
        self._simulate = simulate
        self.serving: Serving | None = None

    def __call__(self) -> None:
        self.serving = self._simulate()

    def result(self) -> Serving:
        """Of the last call."""
        assert self.serving is not None
        return self.serving

    def outputs(self) -> Mapping[str, Output]:
        """Requests that came through and the tokens that they got; both hold for any policy."""
        total = self.result().total
        return {
            "served": Output.exact([total.arrived, total.completed, total.generated_tokens]),
        }

    def counters(self) -> Mapping[str, Count]:
        """Waste over the whole run, the peak, and how often what is dear was done."""
        serving = self.result()
        total = serving.total
        known = {field.name for field in fields(total)}
        return {
            "wasted_slot_steps": Count(sum(getattr(total, each) for each in WASTED), "slot-steps"),
            "peak_slots": Count(serving.peak_allocated, "slots"),
            "hit_tokens": Count(total.hit_tokens, "tokens", more_is_better=True),
            **{
                name: Count(int(getattr(total, name)), unit)
                for name, unit in LESS_IS_BETTER.items()
                if name in known
            },
        }


def _simulation(simulate: Callable[[], Serving]) -> Prepared:
    simulation = _Simulation(simulate)
    return Prepared(call=simulation, outputs=simulation.outputs, counters=simulation.counters)


def _by_blocks(**policy: Any) -> Prepared:
    from paged.arrivals import Request
    from paged.policy import PagedPolicy
    from paged.scheduler import serve

    requests = [Request(*each) for each in _lengths()[:8]]
    rule = PagedPolicy(block_size=16, **policy)
    return _simulation(lambda: serve(requests, rule, slots=SLOTS))


def _by_counts() -> Prepared:
    from paged.arrivals import Request
    from paged.counting import serve_by_counts
    from paged.policy import PagedPolicy

    requests = [Request(*each) for each in _lengths()]
    rule = PagedPolicy(block_size=16)
    return _simulation(lambda: serve_by_counts(requests, rule, slots=SLOTS))


def _contiguous(**policy: Any) -> Prepared:
    from bench.waste.contiguous import ContiguousPolicy, serve_contiguous

    lengths = _lengths()
    rule = ContiguousPolicy(max_model_len=MAX_MODEL_LEN, **policy)
    return _simulation(lambda: serve_contiguous(lengths, rule, slots=SLOTS))


def _waste(policy: str) -> Prepared:
    from bench.waste.figures.sosp23 import SLOTS as PAPER_SLOTS
    from bench.waste.policies import parse_policy
    from bench.waste.simulate import simulate
    from bench.workloads.fits import fitted

    stream = fitted("sharegpt-fit", num_requests=2000)
    rule = parse_policy(policy, max_model_len=2048)
    return _simulation(lambda: simulate(stream, rule, slots=PAPER_SLOTS))


def _conversations() -> Prepared:
    from bench.waste.simulate import simulate
    from bench.workloads.conversations import ConversationFit
    from paged.policy import PagedPolicy

    stream = ConversationFit(num_requests=300)
    rule = PagedPolicy(block_size=512, prefix_caching=True)
    return _simulation(lambda: simulate(stream, rule, slots=1_000_000))


def _draw() -> Prepared:
    from bench.workloads.builtin import builtin_stream

    result: list[Any] = []

    def call() -> None:
        result[:] = [builtin_stream("azure-conv", num_requests=200, seed=0)]

    def outputs() -> Mapping[str, Output]:
        stream = result[0]
        return {
            "lengths": Output.exact(np.stack([stream.prompt_tokens, stream.output_tokens])),
        }

    return Prepared(call=call, outputs=outputs)


WASTE: Final = (
    "max/buddy",
    "pow2/buddy",
    "oracle/first-fit",
    "paged:block=16",
    "paged:block=16,watermark=0.05",
)

BENCHMARKS: Final = (
    Benchmark(
        key="serving/by-blocks",
        title="8 short requests through a pool of 256 slots, block by block.",
        prepare=_by_blocks,
        needs=("paged.scheduler:serve", "paged.policy:PagedPolicy"),
    ),
    Benchmark(
        key="serving/by-counts",
        title="12 short requests through a pool of 256 slots, by counts.",
        prepare=_by_counts,
        needs=("paged.counting:serve_by_counts", "paged.policy:PagedPolicy"),
    ),
    Benchmark(
        key="serving/contiguous[oracle,first-fit]",
        title="12 short requests in pieces of their final length, first fit.",
        prepare=partial(_contiguous, reservation="oracle", arena="first-fit"),
        needs=("bench.waste.contiguous:serve_contiguous",),
    ),
    Benchmark(
        key="serving/draw",
        title="200 requests drawn from a fit of a public trace.",
        prepare=_draw,
        needs=("bench.workloads.builtin:builtin_stream",),
    ),
    *(
        Benchmark(
            key=f"waste/{policy}",
            title="2,000 requests with ShareGPT lengths, counted and not timed.",
            prepare=partial(_waste, policy),
            needs=(
                "bench.waste.simulate:simulate",
                "bench.workloads.fits:fitted",
                "bench.waste.policies:parse_policy",
            ),
            timed=False,
        )
        for policy in WASTE
    ),
    Benchmark(
        key="waste/conversations[prefix-caching]",
        title="300 requests of conversations with common prefixes, counted and not timed.",
        prepare=_conversations,
        needs=("bench.waste.simulate:simulate", "bench.workloads.conversations:ConversationFit"),
        timed=False,
    ),
)
