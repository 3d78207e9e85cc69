"""What a paged server is held to: drawn streams and policies, and the two checks.

The checks take the server as an argument, so that planted bugs can be put before them.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import currently_in_test_context, event, reject
from hypothesis import strategies as st

import paged.counting
import paged.scheduler
from paged.accounting import Counters, Series, Serving
from paged.arrivals import Request
from paged.clock import StepTime
from paged.latency import Slo
from paged.policy import PagedPolicy
from paged.scheduler import FREE, IDLE, INTERNAL, SHARED, TOKEN, Scheduler

Serve = Callable[..., Serving]


@dataclass(frozen=True)
class Servers:
    """The server that moves blocks and the one that counts them."""

    serve: Serve = paged.scheduler.serve
    serve_by_counts: Serve = paged.counting.serve_by_counts


OURS = Servers()

SLOTS = st.integers(1, 120)


@st.composite
def streams(draw: st.DrawFn) -> list[Request]:
    """Short requests, now and then one that never fits; with times or without."""
    timed = draw(st.booleans())
    requests, now = [], 0
    for _ in range(draw(st.integers(1, 14))):
        prompt = draw(st.integers(0, 40))
        output = draw(st.integers(1, 30))
        if timed:
            now += draw(st.sampled_from([0, 0, 1, 5, 30]))
        requests.append(Request(prompt, output, now if timed else None))
    return requests


def with_prefixes(
    requests: list[Request], forks: list[tuple[int, int]], size: int
) -> list[Request]:
    """Each prompt follows one of a few families up to its fork, and is its own from there on."""
    keyed = []
    for number, request in enumerate(requests):
        family, shared = forks[number % len(forks)]
        keys = tuple(
            (family if block < shared else 1000 + number) * 1000 + block
            for block in range(request.prompt_tokens // size)
        )
        keyed.append(request._replace(keys=keys, tenant=family % 2))
    return keyed


FORKS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=5)


# A step of 1 and a token of 1: the arrivals above then fall into the run.
TIME = StepTime(step_ns=1, prefill_ns_per_token=1, kv_ps_per_token=37, swap_ns_per_token=1)
SLO = Slo(tpot_ns=20)


@st.composite
def plain_policies(draw: st.DrawFn) -> PagedPolicy:
    """What counts decide."""
    return PagedPolicy(
        block_size=draw(st.integers(1, 9)),
        watermark=draw(st.sampled_from([0.0, 0.05, 0.3, 1.0])),
        max_running=draw(st.none() | st.integers(1, 5)),
        preemption=draw(st.sampled_from(["recompute", "swap"])),
    )


@st.composite
def counted_policies(draw: st.DrawFn) -> PagedPolicy:
    """What counts decide, and what keys do."""
    return replace(
        draw(plain_policies()),
        look_ahead=draw(st.sampled_from([0, 0, 1, 3])),
        token_budget=draw(st.none() | st.integers(1, 30)),
        prefix_caching=draw(st.booleans()),
        eviction=draw(st.sampled_from(["lru", "lfu", "fifo"])),
    )


@st.composite
def policies(draw: st.DrawFn) -> PagedPolicy:
    """Everything that the server can do."""
    policy = replace(
        draw(plain_policies()),
        look_ahead=draw(st.integers(0, 3)),
        token_budget=draw(st.none() | st.integers(1, 30)),
    )
    kind = draw(st.sampled_from(["plain", "window", "samples", "beams", "prefixes", "both"]))
    if kind in {"prefixes", "both"}:
        return replace(
            policy,
            prefix_caching=True,
            eviction=draw(st.sampled_from(["lru", "lfu", "fifo"])),
            tenant_quotas=draw(st.sampled_from([(), ((0, 4),), ((0, 0), (1, 9))])),
            samples=draw(st.integers(2, 3)) if kind == "both" else 1,
        )
    if kind == "window":
        return replace(policy, sliding_window=draw(st.integers(1, 30)), preemption="recompute")
    if kind == "samples":
        return replace(policy, samples=draw(st.integers(2, 4)))
    if kind == "beams":
        keep = draw(st.sampled_from([0.0, 0.5, 1.0]))
        return replace(policy, samples=draw(st.integers(2, 4)), beam_keep=keep)
    return policy


AGREEMENT = {
    "requests": streams(),
    "policy": counted_policies(),
    "slots": SLOTS,
    "forks": FORKS,
    "warmup": st.integers(0, 3),
    "clients": st.none() | st.integers(1, 4),
    # As in a long run: a moment at every step would leave no step to be taken with others.
    "stride": st.sampled_from([1, 7, 9999]),
}
TABLES = {"requests": streams(), "policy": policies(), "slots": SLOTS, "forks": FORKS}


def stream(*lengths: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Prompt, output and perhaps arrival of each request, and what else an example needs."""
    usual = {"forks": [(0, 0)], "warmup": 0, "clients": None, "stride": 7}
    return {"requests": [Request(*each) for each in lengths], **usual, **more}


# Two streams that the servers once disagreed on, and one that a draw seldom comes to.
# Whoever look-ahead reached had stopped at the budget, which a prompt of that step had used up.
BEHIND_THE_HEAD = stream(
    *((12, 15), (40, 1), (0, 1), (0, 4), (7, 3), *[(0, 1)] * 5),
    policy=PagedPolicy(block_size=1, look_ahead=1, token_budget=5),
    slots=61,
)
# What is first of a run that came back, once its older keys were found again, is not the oldest.
NOT_THE_OLDEST = stream(
    *((16, 18, 0), (32, 10, 0), (20, 16, 0), (15, 13, 0), (9, 14, 1)),
    policy=PagedPolicy(block_size=4, look_ahead=2, prefix_caching=True, eviction="fifo"),
    slots=61,
    forks=[(0, 2), (0, 1), (0, 3), (0, 0), (0, 3)],
    stride=1,
)
# A hit on a block that was hit before, of a cache that keeps count of them.
FOUND_AGAIN = stream(
    *((0, 5), (0, 9), (31, 9), (0, 6), *[(0, 1)] * 6),
    policy=PagedPolicy(block_size=1, prefix_caching=True, eviction="lfu"),
    slots=48,
    stride=1,
)


def check_agreement(
    servers: Servers,
    requests: list[Request],
    policy: PagedPolicy,
    slots: int,
    forks: list[tuple[int, int]],
    warmup: int,
    clients: int | None,
    stride: int,
) -> None:
    """Counting, in Python and in machine code, and moving blocks agree to the last slot-step."""

    class SparseSeries(Series):
        def __init__(self) -> None:
            super().__init__()
            self._stride = self.due = stride

    if slots < policy.block_size:
        reject()
    if requests[0].arrival_ns is not None:
        clients = None
    if policy.prefix_caching:
        requests = with_prefixes(requests, forks, policy.block_size)
    else:
        requests = [each._replace(tenant=number % 3) for number, each in enumerate(requests)]
    kwargs = {"slots": slots, "warmup": warmup, "time": TIME, "clients": clients, "slo": SLO}

    def served(serve: Serve, **changed: Any) -> Serving:
        with mock.patch.dict(serve.__globals__, {"Series": SparseSeries} | changed):  # type: ignore[attr-defined]
            return serve(requests, policy, **kwargs)

    by_machine = served(servers.serve_by_counts)
    counted = served(servers.serve_by_counts, can_serve=lambda *_, **__: False)
    moved = served(servers.serve)
    if currently_in_test_context():
        event(f"preemptions: {min(counted.total.preemptions, 3)}")
        event(f"evictions: {counted.total.evictions > 0}, ghosts: {counted.total.ghost_hits > 0}")
    assert counted == moved
    assert by_machine == moved


def slots_by_class(scheduler: Scheduler) -> Counter[int]:
    classes, owners = scheduler.slot_map()
    assert ((owners >= 0) == np.isin(classes, [TOKEN, SHARED, INTERNAL])).all()
    return Counter(classes.tolist())


def check_tables(
    servers: Servers,
    requests: list[Request],
    policy: PagedPolicy,
    slots: int,
    forks: list[tuple[int, int]],
) -> None:
    """What is counted is what the tables hold, step by step, and everybody is served."""
    if slots < policy.block_size:
        reject()
    requests = with_prefixes(requests, forks, policy.block_size)
    before = Counters(slots=slots)

    def look(scheduler: Scheduler) -> None:
        nonlocal before
        now = scheduler.moment()
        step, before = now - before, now
        held = slots_by_class(scheduler)
        assert step.token == held[TOKEN] + held[SHARED]
        assert step.internal == held[INTERNAL]
        assert step.cached_idle == held[IDLE]
        assert step.free_short + step.free_idle == held[FREE]
        batch, window = scheduler.batch(), policy.sliding_window or 10**9
        assert step.logical_token == sum(len(names) * min(n, window) for _, names, n in batch)
        assert step.running == sum(len(names) for _, names, _ in batch)
        assert step.running_requests == len(batch)
        assert step.logical_token >= step.token
        prefill = step.computed_tokens - step.generated_tokens
        assert policy.token_budget is None or prefill <= policy.token_budget
        # Part of the last block, and with a window part of the first.
        ends = 1 if policy.sliding_window is None else 2
        assert step.internal <= ends * (policy.block_size - 1) * step.running

    result = servers.serve(requests, policy, slots=slots, time=TIME, observe=look)
    total = result.total
    assert total.arrived == len(requests)
    assert total.admitted == total.completed == total.arrived - total.refused
    event(f"preempted: {total.preemptions > 0}, refused: {total.refused > 0}")
    if total.refused == 0:
        assert total.generated_tokens == policy.samples * sum(r.output_tokens for r in requests)
        assert total.prompt_tokens == sum(r.prompt_tokens for r in requests)
