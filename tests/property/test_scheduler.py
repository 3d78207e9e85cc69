"""The paged server: its levels against its own tables, and against the server that only counts."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers.profiles import examples
from hypothesis import assume, event, given
from hypothesis import strategies as st

from paged.accounting import Counters
from paged.arrivals import Request
from paged.clock import StepTime
from paged.counting import serve_by_counts
from paged.policy import PagedPolicy
from paged.scheduler import FREE, IDLE, INTERNAL, SHARED, TOKEN, Scheduler, serve

SLOTS = st.integers(1, 120)


@st.composite
def streams(draw: st.DrawFn, *, keys: bool = False) -> list[Request]:
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


def time_of(requests: list[Request]) -> StepTime:
    # A step of 1 and a token of 1: the arrivals above then fall into the run.
    return StepTime(step_ns=1, prefill_ns_per_token=1)


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
def policies(draw: st.DrawFn) -> PagedPolicy:
    """Everything that the server can do."""
    policy = replace(
        draw(plain_policies()),
        look_ahead=draw(st.integers(0, 3)),
        token_budget=draw(st.none() | st.integers(1, 30)),
    )
    kind = draw(st.sampled_from(["plain", "window", "samples", "beams"]))
    if kind == "window":
        return replace(policy, sliding_window=draw(st.integers(1, 30)), preemption="recompute")
    if kind == "samples":
        return replace(policy, samples=draw(st.integers(2, 4)))
    if kind == "beams":
        keep = draw(st.sampled_from([0.0, 0.5, 1.0]))
        return replace(policy, samples=draw(st.integers(2, 4)), beam_keep=keep)
    return policy


@examples(300)
@given(
    requests=streams(),
    policy=plain_policies(),
    slots=SLOTS,
    warmup=st.integers(0, 3),
    clients=st.none() | st.integers(1, 4),
)
def test_counting_and_moving_blocks_agree_to_the_last_slot_step(
    requests: list[Request],
    policy: PagedPolicy,
    slots: int,
    warmup: int,
    clients: int | None,
) -> None:
    assume(slots >= policy.block_size)
    if requests[0].arrival_ns is not None:
        clients = None
    kwargs = {"slots": slots, "warmup": warmup, "time": time_of(requests), "clients": clients}
    counted = serve_by_counts(requests, policy, **kwargs)
    moved = serve(requests, policy, **kwargs)
    event(f"preemptions: {min(counted.total.preemptions, 3)}")
    assert counted == moved


def tokens_of(scheduler: Scheduler) -> Counter[int]:
    classes, owners = scheduler.slot_map()
    assert ((owners >= 0) == np.isin(classes, [TOKEN, SHARED, INTERNAL])).all()
    return Counter(classes.tolist())


@examples(300)
@given(requests=streams(), policy=policies(), slots=SLOTS)
def test_what_is_counted_is_what_the_tables_hold(
    requests: list[Request], policy: PagedPolicy, slots: int
) -> None:
    assume(slots >= policy.block_size)
    before = Counters(slots=slots)

    def look(scheduler: Scheduler) -> None:
        nonlocal before
        now = scheduler.moment()
        step, before = now - before, now
        held = tokens_of(scheduler)
        assert step.token == held[TOKEN] + held[SHARED]
        assert step.internal == held[INTERNAL]
        assert step.cached_idle == held[IDLE]
        assert step.free_short + step.free_idle == held[FREE]
        batch, window = scheduler.batch(), policy.sliding_window or 10**9
        assert step.logical_token == sum(len(names) * min(n, window) for _, names, n in batch)
        assert step.running == sum(len(names) for _, names, _ in batch)
        assert step.running_requests == len(batch)
        assert step.logical_token >= step.token
        assert step.internal < policy.block_size * step.running or step.running == 0

    result = serve(requests, policy, slots=slots, time=time_of(requests), observe=look)
    total = result.total
    assert total.arrived == len(requests)
    assert total.admitted == total.completed == total.arrived - total.refused
    event(f"preempted: {total.preemptions > 0}, refused: {total.refused > 0}")
    if total.refused == 0:
        assert total.generated_tokens == policy.samples * sum(r.output_tokens for r in requests)
        assert total.prompt_tokens == sum(r.prompt_tokens for r in requests)
