"""What policies waste, exactly: simulated or by arithmetic, counted and not timed.

2,000 requests with the ShareGPT lengths of the PagedAttention paper in its pool; conversations that
share prefixes; and what whole streams need (`memory`). A second each, and the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from bench.gate.benchmark import Benchmark, Count, Output, Prepared, computed, of_group
from bench.gate.suite.serving import PAPER_MAX_MODEL_LEN, PAPER_SLOTS, simulation

POLICIES: Final = (
    "max/buddy",
    "pow2/buddy",
    "oracle/first-fit",
    "paged:block=16",
    "paged:block=16,watermark=0.05",
)
MORE_POLICIES: Final = (
    "oracle/buddy",
    "oracle/best-fit",
    "paged:block=128",
    "paged:block=16,budget=512",
)
STREAMS: Final = ("azure-conv", "azure-code", "sharegpt", "sharegpt-first-turns", "mooncake-conv")
ORDERS: Final = ("lru", "lfu", "fifo")
POOLS: Final = (1_000_000, 3_000_000)


def _waste(policy: str) -> Prepared:
    from bench.waste.policies import parse_policy
    from bench.waste.simulate import simulate
    from bench.workloads.fits import fitted

    stream = fitted("sharegpt-fit", num_requests=2000)
    rule = parse_policy(policy, max_model_len=PAPER_MAX_MODEL_LEN)
    return simulation(lambda: simulate(stream, rule, slots=PAPER_SLOTS))


def _conversations(*, requests: int = 300, slots: int = 1_000_000) -> Prepared:
    from bench.waste.simulate import simulate
    from bench.workloads.conversations import ConversationFit
    from paged.policy import PagedPolicy

    stream = ConversationFit(num_requests=requests)
    rule = PagedPolicy(block_size=512, prefix_caching=True)
    return simulation(lambda: simulate(stream, rule, slots=slots))


def _replay(order: Any) -> Prepared:
    from bench.waste.prefix_replay import replay
    from bench.workloads.conversations import ConversationFit

    source = ConversationFit(num_requests=4000)
    return computed(
        lambda: replay(source, 3_000_000, order),
        lambda found: {"queried": Output.exact(found.queried_tokens)},
        lambda found: {
            "missed_tokens": Count(found.queried_tokens - found.hit_tokens, "tokens"),
            "ghost_hits": Count(found.ghost_hits, "blocks"),
        },
    )


def _memory(stream: str, block_size: int | None) -> Prepared:
    from bench.workloads.builtin import builtin_stream
    from bench.workloads.need import contiguous_need, paged_need

    requests = builtin_stream(stream, num_requests=2000, seed=0)
    return computed(
        lambda: (
            contiguous_need(requests)
            if block_size is None
            else paged_need(requests, block_size=block_size)
        ),
        lambda need: {"held": Output.exact([need.token, need.request_steps])},
        lambda need: {
            "wasted_slot_steps": Count(need.waste, "slot-steps"),
            "allocated_slot_steps": Count(need.allocated, "slot-steps"),
        },
    )


def _paper_figure() -> Prepared:
    from bench.waste.figures.sosp23 import sosp23

    return computed(sosp23, lambda figure: {"met": Output.exact(figure.met)})


_benchmark = partial(of_group("waste"), timed=False)


def _of_policies(policies: tuple[str, ...], *, gated: bool) -> Iterator[Benchmark]:
    for policy in policies:
        yield _benchmark(
            policy,
            "2,000 requests with ShareGPT lengths, counted and not timed.",
            partial(_waste, policy),
            "bench.waste.simulate:simulate",
            "bench.workloads.fits:fitted",
            "bench.waste.policies:parse_policy",
            gated=gated,
        )


def _memories() -> Iterator[Benchmark]:
    memory = of_group("memory", "bench.workloads.need:paged_need")
    for stream in STREAMS:
        for block_size in (None, 16, 64, 256):
            how = "contiguous" if block_size is None else f"block={block_size}"
            yield memory(
                f"{stream}[{how}]",
                "Slot-steps of 2,000 requests, by arithmetic.",
                partial(_memory, stream, block_size),
                "bench.workloads.builtin:builtin_stream",
                timed=False,
                gated=False,
            )


CONVERSATIONS: Final = (
    "bench.waste.simulate:simulate",
    "bench.workloads.conversations:ConversationFit",
)

BENCHMARKS: Final = (
    *_of_policies(POLICIES, gated=True),
    _benchmark(
        "conversations[prefix-caching]",
        "300 requests of conversations with common prefixes, counted and not timed.",
        _conversations,
        *CONVERSATIONS,
    ),
    *_of_policies(MORE_POLICIES, gated=False),
    *(
        _benchmark(
            f"conversations[1500,slots={slots}]",
            f"1,500 requests of conversations through {slots:,} slots.",
            partial(_conversations, requests=1500, slots=slots),
            *CONVERSATIONS,
            gated=False,
        )
        for slots in POOLS
    ),
    *(
        _benchmark(
            f"replay[{order}]",
            "4,000 requests of conversations looked up in a cache of 3,000,000 tokens.",
            partial(_replay, order),
            "bench.waste.prefix_replay:replay",
            *CONVERSATIONS[1:],
            gated=False,
        )
        for order in ORDERS
    ),
    *_memories(),
    _benchmark(
        "paper-figure",
        "The memory figure of the PagedAttention paper, all four servers.",
        _paper_figure,
        "bench.waste.figures.sosp23:sosp23",
        timed=True,
        gated=False,
    ),
)
