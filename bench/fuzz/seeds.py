"""A campaign of many seeds, each in a process of its own: what they find comes together once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.fuzz.campaign import Campaign, Tally, run_campaign
from bench.fuzz.databases import open_database
from bench.fuzz.record import Subject
from bench.machine.spread import in_processes, on_ray, stopped_by, told_by_file
from reference.allocator.contract import AllocatorCapabilities
from reference.allocator.machine import Finding
from reference.allocator.moves import AMPLE_BLOCKS, BLOCK_SIZES, MAX_BLOCKS
from reference.allocator.programs import Pool
from reference.errors import BadInput
from subjects.allocators.resolve import open_allocator


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked for, as data: it can be sent to another process."""

    allocator: str
    engine_python: str | None
    in_process: bool
    time_limit_s: float
    """As for `open_allocator`."""
    block_sizes: frozenset[int]
    """Those to draw; all that it does, if there are none."""
    database: str
    local: Path
    """As for `open_database`."""
    examples: int | None
    seconds: float | None
    seed: int
    max_findings: int
    max_moves: int
    pool: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, Finding] = field(default_factory=dict)
    """As in `Campaign`."""

    @contextmanager
    def opened(self) -> Iterator[Campaign]:
        """The campaign, with the allocator at hand."""
        with open_allocator(
            self.allocator,
            python=self.engine_python,
            in_process=self.in_process,
            time_limit_s=self.time_limit_s,
        ) as subject:
            yield Campaign(
                allocator=Subject(
                    name=self.allocator, engine_python=self.engine_python, version=subject.version
                ),
                factory=subject.factory,
                kill=subject.kill,
                capabilities=_narrowed(self, subject.capabilities),
                examples=self.examples,
                seconds=self.seconds,
                seed=self.seed,
                database=open_database(self.database, local=self.local),
                max_findings=self.max_findings,
                max_moves=self.max_moves,
                pool=self.pool,
                known=self.known,
            )


def run_seeds(
    asked: Asked,
    seeds: range,
    *,
    tell: Callable[[Tally, int], None],
    stop: threading.Event,
    workers: int,
    ray: bool = False,
    address: str | None = None,
) -> Tally:
    """Run a campaign with each seed, and put together what was done until `stop` was set.

    `tell` is called after each seed with all so far and how many they are.
    """
    by_seed: dict[int, Tally] = {}
    together = Tally(complete=True)
    with told_by_file(stop) as over:
        calls = [(replace(asked, seed=seed), over) for seed in seeds]
        results = (
            on_ray(run_seed, calls, address=address, cpus=workers, over=over.exists)
            if ray
            else in_processes(run_seed, calls, workers=min(workers, len(calls)))
        )
        for seed, tally in results:
            if isinstance(tally, str):
                raise BadInput(tally)
            by_seed[seed] = tally
            together = Tally(complete=True)
            for each in sorted(by_seed):
                together.add(by_seed[each])
            tell(together, len(by_seed))
            if len(together.found) >= asked.max_findings:
                over.touch()
    together.complete &= len(by_seed) == len(seeds) and not stop.is_set()
    return together


def run_seed(asked: Asked, over: Path) -> tuple[int, Tally | str]:
    """Run one campaign until it is `over`, which a file says. Where it cannot be run: why."""
    try:
        if over.exists():
            return asked.seed, Tally()
        with stopped_by(over) as stop, asked.opened() as campaign:
            return asked.seed, run_campaign(campaign, stop=stop)
    except BadInput as error:
        return asked.seed, str(error)


def _narrowed(asked: Asked, can: AllocatorCapabilities) -> AllocatorCapabilities:
    """What is to be asked of an allocator, if it does that at all."""
    name, pool, block_sizes = asked.allocator, asked.pool, asked.block_sizes
    if can.block_sizes is not None and not block_sizes <= can.block_sizes:
        wrong = min(block_sizes - can.block_sizes)
        does = ", ".join(map(str, sorted(can.block_sizes)))
        raise BadInput(f"--block-size {wrong}: {name} does {does}")
    largest = max(can.min_blocks + MAX_BLOCKS, *AMPLE_BLOCKS)
    sizes = block_sizes or can.block_sizes or BLOCK_SIZES
    Pool(num_blocks=pool.get("num_blocks", largest), block_size=max(sizes))
    blocks = pool.get("num_blocks")
    if blocks is not None and blocks < can.min_blocks:
        raise BadInput(f"--num-blocks {blocks}: {name} needs {can.min_blocks}")
    if pool.get("prefix_caching") and not can.prefix_caching:
        raise BadInput(f"--prefix-caching: {name} declares none")
    return replace(can, block_sizes=block_sizes) if block_sizes else can
