"""How many operations a second allocators do on the same stream, side by side.

Each serves the stream in its own process and interpreter, one after another in an order that is
drawn anew in each round, and is timed by the CPU time of its process. Of several rounds the fastest
counts: what else the machine does can only make one slower.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from bench.command.progress import Progress
from bench.fuzz.record import Said
from bench.machine.facts import version_of
from bench.machine.record import Record
from reference.allocator.contract import AllocatorDied, AllocatorRaised
from reference.errors import BadInput
from subjects.allocators.mixed_stream import Served
from subjects.allocators.resolve import AllocatorSubject, open_allocator

TIME_LIMIT_S: Final = 600.0
"""For serving the stream once."""

MAX_REQUESTS: Final = 250_000
"""The whole stream is in memory before the clock starts, 12 kB a request: three gigabytes."""

MAX_BLOCKS: Final = 2**24
"""Sixteen blocks' worth of bookkeeping in Python take a kilobyte or two: a few gigabytes."""


class RaceEntry(Record):
    """One allocator, with or without prefix caching."""

    allocator: str
    version: Said
    """Who it is."""
    prefix_caching: bool
    """Whether prefixes were cached."""
    batched: bool
    """Whether one call appended a token to every running sequence."""
    rates: list[float] = []
    """Operations per CPU-second, in each round."""
    operations: int = 0
    """Admissions, appends and frees."""
    hit_tokens: int = 0
    """Prompt tokens found cached."""
    preemptions: int = 0
    """Sequences that had to be given up for want of room."""
    failed: Said = ""
    """Why it did not come to the end; empty if it did."""

    @property
    def rate(self) -> float:
        """Operations per CPU-second in the fastest round; 0 if there was none."""
        return max(self.rates, default=0.0)


class RaceRecord(Record):
    """A race."""

    requests: int
    max_running: int
    num_blocks: int
    block_size: int
    rounds: int
    """What was served, from which pool, how often."""
    seed: int
    entries: list[RaceEntry]
    """In the order in which they were named, first without prefix caching."""
    cpu: str
    python: str
    """Where, and pagedbench's own interpreter."""
    pagedbench: str = ""
    """The release that made it; empty in a record of before."""
    complete: bool
    """Whether every round was run."""


class _Heat(NamedTuple):
    name: str
    caching: bool
    batched: bool


def race(
    names: Sequence[str],
    *,
    requests: int,
    max_running: int,
    num_blocks: int,
    block_size: int,
    rounds: int,
    seed: int,
    cpu: str,
    python: str,
    progress: Progress,
) -> RaceRecord:
    """Let allocators serve the same stream; KeyboardInterrupt ends it, and what is done counts."""
    for option, asked, most in (
        ("--requests", requests, MAX_REQUESTS),
        ("--num-blocks", num_blocks, MAX_BLOCKS),
    ):
        if asked > most:
            raise BadInput(f"{option} {asked}: more than fits into memory; give {most:,} at most")
    draw = random.Random(seed)
    done: dict[_Heat, list[Served]] = {}
    failed: dict[_Heat, str] = {}
    with ExitStack() as stack:
        subjects = {
            name: stack.enter_context(open_allocator(name, time_limit_s=TIME_LIMIT_S))
            for name in dict.fromkeys(names)
        }
        heats = [
            _Heat(name, caching, batched)
            for caching in (False, True)
            for name, subject in subjects.items()
            if _does(subject, block_size, caching=caching)
            for batched in ((False, True) if subject.capabilities.append_each else (False,))
        ]
        progress.begin(f"serving {requests:,} requests", rounds * len(heats))
        complete = False
        with suppress(KeyboardInterrupt):
            for heat in [heat for _ in range(rounds) for heat in draw.sample(heats, len(heats))]:
                if heat not in failed:
                    subject = subjects[heat.name]
                    try:
                        served = subject.serve(
                            requests=requests,
                            max_running=max_running,
                            commits=heat.caching and subject.capabilities.commit,
                            batched=heat.batched,
                            pool={
                                "num_blocks": num_blocks,
                                "block_size": block_size,
                                "prefix_caching": heat.caching,
                                "window": None,
                            },
                        )
                        done.setdefault(heat, []).append(served)
                    except (AllocatorDied, AllocatorRaised) as error:
                        failed[heat] = str(error)
                progress.advance(1)
            complete = True
        entries = [
            _entry(heat, subjects[heat.name].version, done.get(heat, []), failed.get(heat, ""))
            for heat in heats
        ]
    return RaceRecord(
        requests=requests,
        max_running=max_running,
        num_blocks=num_blocks,
        block_size=block_size,
        rounds=rounds,
        seed=seed,
        entries=entries,
        cpu=cpu,
        python=python,
        pagedbench=version_of("pagedbench"),
        complete=complete,
    )


def _does(subject: AllocatorSubject, block_size: int, *, caching: bool) -> bool:
    sizes = subject.capabilities.block_sizes
    return (not caching or subject.capabilities.prefix_caching) and (
        sizes is None or block_size in sizes
    )


def _entry(heat: _Heat, version: str, served: Sequence[Served], failed: str) -> RaceEntry:
    last = served[-1] if served else Served(0, 0, 0, 0.0)
    return RaceEntry(
        allocator=heat.name,
        version=version,
        prefix_caching=heat.caching,
        batched=heat.batched,
        rates=[each.operations / each.cpu_s for each in served],
        operations=last.operations,
        hit_tokens=last.hit_tokens,
        preemptions=last.preemptions,
        failed=failed,
    )
