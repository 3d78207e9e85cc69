"""Request streams through a pool: the simulators' time, and what they come to.

The gate times a few short requests; `large` ones are for asv and `make bench`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.gate.benchmark import Count, Output, Prepared, computed, of_group

if TYPE_CHECKING:
    from paged.accounting import Serving

NUM_REQUESTS: Final = 12
SLOTS: Final = 256
MAX_MODEL_LEN: Final = 128

PAPER_SLOTS: Final = 15_728
PAPER_MAX_MODEL_LEN: Final = 2048
"""Of the PagedAttention paper's server."""

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


def _served(serving: Serving) -> Mapping[str, Output]:
    """Requests that came through and the tokens that they got; both hold for any policy."""
    total = serving.total
    return {"served": Output.exact([total.arrived, total.completed, total.generated_tokens])}


def _dear(serving: Serving) -> Mapping[str, Count]:
    """Waste over the whole run, the peak, and how often what is dear was done."""
    total = serving.total
    known = {field.name for field in fields(total)}
    return {
        "wasted_slot_steps": Count(sum(getattr(total, each) for each in WASTED), "slot-steps"),
        "peak_slots": Count(serving.peak_allocated, "slots"),
        "hit_tokens": Count(total.hit_tokens, "tokens", more_is_better=True),
        "missed_tokens": Count(total.queried_tokens - total.hit_tokens, "tokens"),
        **{
            name: Count(int(getattr(total, name)), unit)
            for name, unit in LESS_IS_BETTER.items()
            if name in known
        },
    }


def simulation(simulate: Callable[[], Serving]) -> Prepared:
    """A simulation, with what was served as its output."""
    return computed(simulate, _served, _dear)


def _by_blocks(**policy: Any) -> Prepared:
    from paged.arrivals import Request
    from paged.policy import PagedPolicy
    from paged.scheduler import serve

    requests = [Request(*each) for each in _lengths()[:8]]
    rule = PagedPolicy(block_size=16, **policy)
    return simulation(lambda: serve(requests, rule, slots=SLOTS))


def _by_counts() -> Prepared:
    from paged.arrivals import Request
    from paged.counting import serve_by_counts
    from paged.policy import PagedPolicy

    requests = [Request(*each) for each in _lengths()]
    rule = PagedPolicy(block_size=16)
    return simulation(lambda: serve_by_counts(requests, rule, slots=SLOTS))


def _contiguous(**policy: Any) -> Prepared:
    from bench.waste.contiguous import ContiguousPolicy, serve_contiguous

    lengths = _lengths()
    rule = ContiguousPolicy(max_model_len=MAX_MODEL_LEN, **policy)
    return simulation(lambda: serve_contiguous(lengths, rule, slots=SLOTS))


def _sharegpt(count: int) -> list[tuple[int, int, int | None]]:
    from bench.waste.simulate import lengths_of
    from bench.workloads.fits import fitted

    return list(lengths_of(fitted("sharegpt-fit", num_requests=count)))


def _large_contiguous(**policy: Any) -> Prepared:
    from bench.waste.contiguous import ContiguousPolicy, serve_contiguous

    lengths = _sharegpt(20_000)
    rule = ContiguousPolicy(max_model_len=PAPER_MAX_MODEL_LEN, **policy)
    return simulation(lambda: serve_contiguous(lengths, rule, slots=PAPER_SLOTS))


def _large_paged(count: int, *, by_counts: bool, watermark: float) -> Prepared:
    from paged.arrivals import Request
    from paged.counting import serve_by_counts
    from paged.policy import PagedPolicy
    from paged.scheduler import serve

    requests = [Request(*each) for each in _sharegpt(count)]
    rule = PagedPolicy(block_size=16, watermark=watermark)
    server = serve_by_counts if by_counts else serve
    return simulation(lambda: server(requests, rule, slots=PAPER_SLOTS))


def _draw() -> Prepared:
    from bench.workloads.builtin import builtin_stream

    return computed(
        lambda: builtin_stream("azure-conv", num_requests=200, seed=0),
        lambda stream: {
            "lengths": Output.exact(np.stack([stream.prompt_tokens, stream.output_tokens]))
        },
    )


LARGE: Final[dict[str, dict[str, Any]]] = {
    "max/buddy": {"reservation": "max", "arena": "buddy"},
    "pow2/buddy": {"reservation": "pow2", "arena": "buddy"},
    "oracle/buddy": {"reservation": "oracle", "arena": "buddy"},
    "oracle/first-fit": {"reservation": "oracle", "arena": "first-fit"},
    "oracle/best-fit": {"reservation": "oracle", "arena": "best-fit"},
    "oracle/buddy,look-ahead=8": {"reservation": "oracle", "arena": "buddy", "look_ahead": 8},
}

_benchmark = of_group("serving")

BENCHMARKS: Final = (
    _benchmark(
        "by-blocks",
        "8 short requests through a pool of 256 slots, block by block.",
        _by_blocks,
        "paged.scheduler:serve",
        "paged.policy:PagedPolicy",
    ),
    _benchmark(
        "by-counts",
        "12 short requests through a pool of 256 slots, by counts.",
        _by_counts,
        "paged.counting:serve_by_counts",
        "paged.policy:PagedPolicy",
    ),
    _benchmark(
        "contiguous[oracle,first-fit]",
        "12 short requests in pieces of their final length, first fit.",
        partial(_contiguous, reservation="oracle", arena="first-fit"),
        "bench.waste.contiguous:serve_contiguous",
    ),
    _benchmark(
        "draw",
        "200 requests drawn from a fit of a public trace.",
        _draw,
        "bench.workloads.builtin:builtin_stream",
    ),
    *(
        _benchmark(
            f"large[{name}]",
            "20,000 requests with ShareGPT lengths through the pool of the paper.",
            partial(_large_contiguous, **policy),
            "bench.waste.contiguous:serve_contiguous",
            "bench.waste.simulate:lengths_of",
            gated=False,
        )
        for name, policy in LARGE.items()
    ),
    *(
        _benchmark(
            f"large[{name}]",
            f"{count:,} requests with ShareGPT lengths through the pool of the paper.",
            partial(_large_paged, count, by_counts=by_counts, watermark=watermark),
            "paged.counting:serve_by_counts",
            "bench.waste.simulate:lengths_of",
            gated=False,
        )
        for name, count, by_counts, watermark in (
            ("paged", 20_000, True, 0.0),
            ("paged,watermark=0.01", 20_000, True, 0.01),
            ("paged,by-blocks", 5_000, False, 0.0),
        )
    ),
)
