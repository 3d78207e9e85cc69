"""What policies waste, exactly: simulated or by arithmetic, counted and not timed.

2,000 requests with the ShareGPT lengths of the PagedAttention paper in its pool; conversations that
share prefixes; and what whole streams need (`memory`). A second each, and the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from bench.gate.benchmark import Benchmark, Count, Output, Prepared
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
    result: list[Any] = []

    def call() -> None:
        result[:] = [replay(source, 3_000_000, order)]

    def counters() -> Mapping[str, Count]:
        (found,) = result
        return {
            "missed_tokens": Count(found.queried_tokens - found.hit_tokens, "tokens"),
            "ghost_hits": Count(found.ghost_hits, "blocks"),
        }

    return Prepared(
        call=call,
        outputs=lambda: {"queried": Output.exact(result[0].queried_tokens)},
        counters=counters,
    )


def _memory(stream: str, block_size: int | None) -> Prepared:
    from bench.check.need import contiguous_need, paged_need
    from bench.workloads.builtin import builtin_stream

    requests = builtin_stream(stream, num_requests=2000, seed=0)
    result: list[Any] = []

    def call() -> None:
        need = (
            contiguous_need(requests)
            if block_size is None
            else paged_need(requests, block_size=block_size)
        )
        result[:] = [need]

    def counters() -> Mapping[str, Count]:
        (need,) = result
        return {
            "wasted_slot_steps": Count(need.waste, "slot-steps"),
            "allocated_slot_steps": Count(need.allocated, "slot-steps"),
        }

    return Prepared(
        call=call,
        outputs=lambda: {"held": Output.exact([result[0].token, result[0].request_steps])},
        counters=counters,
    )


def _paper_figure() -> Prepared:
    from bench.waste.figures.sosp23 import sosp23

    result: list[Any] = []

    def call() -> None:
        result[:] = [sosp23()]

    return Prepared(call=call, outputs=lambda: {"met": Output.exact(result[0].met)})


def _of_policies(policies: tuple[str, ...], *, gated: bool) -> Iterator[Benchmark]:
    for policy in policies:
        yield Benchmark(
            key=f"waste/{policy}",
            title="2,000 requests with ShareGPT lengths, counted and not timed.",
            prepare=partial(_waste, policy),
            needs=(
                "bench.waste.simulate:simulate",
                "bench.workloads.fits:fitted",
                "bench.waste.policies:parse_policy",
            ),
            timed=False,
            gated=gated,
        )


def _memories() -> Iterator[Benchmark]:
    for stream in STREAMS:
        for block_size in (None, 16, 64, 256):
            how = "contiguous" if block_size is None else f"block={block_size}"
            yield Benchmark(
                key=f"memory/{stream}[{how}]",
                title="Slot-steps of 2,000 requests, by arithmetic.",
                prepare=partial(_memory, stream, block_size),
                needs=("bench.check.need:paged_need", "bench.workloads.builtin:builtin_stream"),
                timed=False,
                gated=False,
            )


CONVERSATIONS: Final = (
    "bench.waste.simulate:simulate",
    "bench.workloads.conversations:ConversationFit",
)

BENCHMARKS: Final = (
    *_of_policies(POLICIES, gated=True),
    Benchmark(
        key="waste/conversations[prefix-caching]",
        title="300 requests of conversations with common prefixes, counted and not timed.",
        prepare=_conversations,
        needs=CONVERSATIONS,
        timed=False,
    ),
    *_of_policies(MORE_POLICIES, gated=False),
    *(
        Benchmark(
            key=f"waste/conversations[1500,slots={slots}]",
            title=f"1,500 requests of conversations through {slots:,} slots.",
            prepare=partial(_conversations, requests=1500, slots=slots),
            needs=CONVERSATIONS,
            timed=False,
            gated=False,
        )
        for slots in POOLS
    ),
    *(
        Benchmark(
            key=f"waste/replay[{order}]",
            title="4,000 requests of conversations looked up in a cache of 3,000,000 tokens.",
            prepare=partial(_replay, order),
            needs=("bench.waste.prefix_replay:replay", *CONVERSATIONS[1:]),
            timed=False,
            gated=False,
        )
        for order in ORDERS
    ),
    *_memories(),
    Benchmark(
        key="waste/paper-figure",
        title="The memory figure of the PagedAttention paper, all four servers.",
        prepare=_paper_figure,
        needs=("bench.waste.figures.sosp23:sosp23",),
        gated=False,
    ),
)
