"""One step for one release of an allocator."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from bench.fuzz.campaign import Campaign, Tally, checks_run, run_campaign
from bench.fuzz.record import Subject, Trace
from bench.gate.engines.assigned import Assigned
from bench.gate.engines.record import (
    Counted,
    Counts,
    Fuzzed,
    Introduced,
    Pass,
    Raced,
    Races,
    Settings,
)
from bench.machine.timing import balanced_orders
from reference.allocator.machine import run_program
from subjects.allocators.mixed_stream import Served
from subjects.allocators.resolve import AllocatorSubject, open_allocator

TIME_LIMIT_S: Final = 600.0
"""For serving a stream once."""

CALL_LIMIT_S: Final = 30.0
"""For a call of the fuzzer's: releases are compared on machines that do other things, too."""


@contextmanager
def opened(entry: Assigned, *, limit_s: float = CALL_LIMIT_S) -> Iterator[AllocatorSubject]:
    """A release in its interpreter, which is built if it is not there yet."""
    python = ",".join(entry.requirements) or None
    with open_allocator(entry.subject, python=python, time_limit_s=limit_s) as subject:
        yield subject


def introduce(entry: Assigned) -> Introduced:
    """Ask an allocator what it is."""
    with opened(entry) as subject:
        can = subject.capabilities
        return Introduced(
            version=subject.version,
            prefix_caching=can.prefix_caching,
            commit=can.commit,
            append_each=can.append_each,
        )


def fuzz(
    entry: Assigned, settings: Settings, *, tell: Callable[[Tally], None], stop: threading.Event
) -> Fuzzed:
    """Run a campaign. Raises KeyboardInterrupt: it was stopped before its end."""
    with opened(entry) as subject:
        said = Subject(
            name=entry.subject,
            engine_python=",".join(entry.requirements) or None,
            version=subject.version,
        )
        campaign = Campaign(
            allocator=said,
            factory=subject.factory,
            kill=subject.kill,
            capabilities=subject.capabilities,
            examples=settings.examples,
            seed=settings.fuzz_seed,
        )
        tally = run_campaign(campaign, tell=tell, stop=stop)
    if not tally.complete:
        raise tally.trouble or KeyboardInterrupt
    return Fuzzed(
        seed=settings.fuzz_seed,
        programs=tally.examples,
        steps=tally.steps,
        checks=checks_run(subject.capabilities, tally),
        traces=tally.found,
    )


def shown(entry: Assigned, traces: Sequence[Trace]) -> dict[str, bool]:
    """By check of these traces: whether the release fails it in one of them."""
    shows = dict.fromkeys((trace.check for trace in traces), False)
    with opened(entry) as subject:
        for trace in traces:
            if not shows[trace.check]:
                found = run_program(
                    subject.factory, trace.program, capabilities=subject.capabilities
                )
                shows[trace.check] = found is not None and found.check == trace.check
    return shows


def passes(settings: Settings, can: Introduced) -> list[Pass]:
    """The passes whose counters are kept, without and with prefix caching."""
    mixed = [
        Pass(stream="mixed", prefix_caching=caching, num_blocks=blocks)
        for caching in (False, True)
        for blocks in (settings.ample_blocks, settings.short_blocks)
    ]
    tiny = [
        Pass(stream="evictions", prefix_caching=True, num_blocks=blocks)
        for blocks in settings.tiny_blocks
    ]
    return [each for each in (*mixed, *tiny) if can.prefix_caching or not each.prefix_caching]


def raced_passes(settings: Settings, can: Introduced) -> list[Pass]:
    """The passes that are raced: with room for everything, and where blocks are evicted."""
    raced = {("mixed", settings.ample_blocks), ("evictions", settings.tiny_blocks[0])}
    return [each for each in passes(settings, can) if (each.stream, each.num_blocks) in raced]


def count(
    entry: Assigned, settings: Settings, can: Introduced, *, advance: Callable[[int], None]
) -> Counts:
    """Serve every pass once, and short ones with every bytecode counted."""
    bytecodes, counted = [], []
    with opened(entry, limit_s=TIME_LIMIT_S) as subject:
        for each in passes(settings, can):
            served = _serve(subject, settings, can, each, looks=True)
            counted.append(_counted(each, requests_of(settings, each), served))
            if each.stream == "mixed" and each.num_blocks == settings.ample_blocks:
                few = settings.counted_requests
                served = _serve(
                    subject,
                    settings,
                    can,
                    each,
                    requests=few,
                    batched=can.append_each,
                    counted=True,
                )
                bytecodes.append(_counted(each, few, served))
            advance(1)
    return Counts(bytecodes=bytecodes, counted=counted)


def race(
    entry: Assigned,
    anchor: Assigned,
    settings: Settings,
    cans: tuple[Introduced, Introduced],
    *,
    so_far: Races,
    keep: Callable[[Races], None],
    advance: Callable[[int], None],
) -> Races:
    """Let a release and the anchor serve the same streams in turns, until the rounds are full.

    What is done is kept after every round.
    """
    both = [each for each in raced_passes(settings, cans[0]) if each in passes(settings, cans[1])]
    races = so_far if so_far.raced else Races(raced=[_not_yet(each) for each in both])
    done = min((len(each.rates) for each in races.raced), default=settings.rounds)
    if done >= settings.rounds:
        return races
    orders = balanced_orders((0, 1), random.Random(entry.name))
    with (
        opened(entry, limit_s=TIME_LIMIT_S) as mine,
        opened(anchor, limit_s=TIME_LIMIT_S) as others,
    ):
        for order in itertools.islice(orders, done, settings.rounds):
            raced = []
            for each in races.raced:
                rates = [0.0, 0.0]
                for side in order:
                    can = cans[side]
                    served = _serve(
                        (mine, others)[side], settings, can, each.of, batched=can.append_each
                    )
                    rates[side] = served.operations / served.cpu_s
                raced.append(
                    Raced(
                        of=each.of,
                        rates=[*each.rates, rates[0]],
                        anchor_rates=[*each.anchor_rates, rates[1]],
                    )
                )
            races = Races(raced=raced)
            keep(races)
            advance(1)
    return races


def requests_of(settings: Settings, each: Pass) -> int:
    """How long a pass's stream is."""
    return settings.requests if each.stream == "mixed" else settings.tiny_requests


def _serve(
    subject: AllocatorSubject,
    settings: Settings,
    can: Introduced,
    each: Pass,
    *,
    requests: int | None = None,
    **how: bool,
) -> Served:
    tiny = each.stream == "evictions"
    return subject.serve(
        stream=each.stream,
        requests=requests or requests_of(settings, each),
        max_running=settings.max_running // 2 if tiny else settings.max_running,
        commits=each.prefix_caching and can.commit,
        pool={
            "num_blocks": each.num_blocks,
            "block_size": settings.block_size,
            "prefix_caching": each.prefix_caching,
            "window": None,
        },
        **how,
    )


def _counted(each: Pass, requests: int, served: Served) -> Counted:
    return Counted(
        of=each,
        requests=requests,
        operations=served.operations,
        hit_tokens=served.hit_tokens,
        preemptions=served.preemptions,
        peak_blocks=served.peak_blocks,
        bytecodes=dict(sorted(served.bytecodes.items())),
    )


def _not_yet(each: Pass) -> Raced:
    return Raced(of=each, rates=[], anchor_rates=[])
