"""Many simulations at once: on the cores of this machine, or on a Ray cluster.

Each job is a few numbers and a source that can be read again wherever it is sent, and its result is
integers. So what comes out does not depend on where, or in which order, the jobs were run.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Hashable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from bench.machine.spread import in_processes, on_ray
from bench.waste.contiguous import ContiguousPolicy
from bench.waste.policies import Policy, format_policy
from bench.waste.record import WasteRow
from bench.waste.simulate import simulate
from bench.workloads.source import StreamSource, Wrapped
from bench.workloads.stream import RequestStream
from paged.clock import StepTime
from paged.latency import Slo
from paged.layout import Layout
from paged.tiers import Tier
from reference.errors import BadInput

REQUESTS_PER_S: Final = {
    "contiguous": 100_000,
    "counts": 40_000,
    "keys": 5_000,
    "blocks": 1_000,
}
"""Requests that one core simulates in a second, in round figures: what the order of the jobs, and
whether processes are worth their start, is decided by. Nothing that is reported depends on it."""

AT_HAND: Final = 50_000
"""Most requests of a stream that are kept from one job to the next; longer ones are read again."""

WORTH_PROCESSES_S: Final = 4.0
"""Estimated seconds of work from which on processes are started where nobody says how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One simulation."""

    stream: str
    """Label of the stream, for the row that comes of it."""
    source: StreamSource
    """The requests; a recipe rather than a `RequestStream`, where the job is sent elsewhere."""
    requests: int
    """How many they are."""
    policy: Policy
    slots: int
    warmup: int | None = None
    time: StepTime | None = None
    clients: int | None = None
    slo: Slo | None = None
    tiers: tuple[Tier, ...] = ()
    layout: Layout | None = None
    """As for `bench.waste.simulate.simulate`."""
    drawing: int = 0
    """Which drawing of the stream it is."""

    @property
    def expected_s(self) -> float:
        """Rough seconds that the simulation takes on one core."""
        policy = self.policy
        if isinstance(policy, ContiguousPolicy):
            return self.requests / REQUESTS_PER_S["contiguous"]
        kind = "keys" if policy.prefix_caching else "counts"
        return self.requests / REQUESTS_PER_S[kind if policy.by_counts else "blocks"]


Done = tuple[int, WasteRow]
"""A job's place among the jobs, and what came of it."""


def default_workers(jobs: Sequence[Job]) -> int:
    """Processes for these jobs: one a core, and this one alone for what is done soon."""
    from joblib import cpu_count

    if sum(job.expected_s for job in jobs) < WORTH_PROCESSES_S:
        return 1
    return max(1, min(len(jobs), int(cpu_count())))


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int | None = None,
    ray: bool = False,
    address: str | None = None,
) -> Generator[Done]:
    """Run jobs, and yield each when it is done, those begun first that take longest.

    `workers` are processes: 1 runs the jobs in this one, None is `default_workers`. With `ray` a
    cluster runs them: the one at `address` or at RAY_ADDRESS, or one that is started here and
    ended.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers = {workers}: use 1 or more")
    order = sorted(range(len(jobs)), key=lambda index: -jobs[index].expected_s)
    calls = [(index, jobs[index]) for index in order]
    if ray:
        results = on_ray(run, calls, address=address, cpus=workers)
    elif (workers := workers or default_workers(jobs)) == 1 or len(jobs) < 2:
        results = (run(*call) for call in calls)
    else:
        results = in_processes(run, calls, workers=min(workers, len(jobs)))
    _at_hand.cache_clear()  # files may have changed
    with closing(results):
        for index, row in results:
            if isinstance(row, str):
                raise BadInput(row)
            yield index, row
    _at_hand.cache_clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read(Wrapped):
    """A source whose requests are at hand."""

    parts: tuple[RequestStream, ...]
    change: str = ""

    def chunks(self) -> Iterator[RequestStream]:
        yield from self.parts


@lru_cache(maxsize=1)
def _at_hand(source: StreamSource) -> StreamSource:
    """Read a source once for all jobs that this process is sent, one after the other."""
    return _Read(of=source, parts=tuple(source.chunks()))


def run(index: int, job: Job) -> tuple[int, WasteRow | str]:
    """Run one job. Where it cannot be run: its place, and why."""
    began = time.perf_counter()
    try:
        source = job.source
        if job.requests <= AT_HAND and isinstance(source, Hashable):
            source = _at_hand(source)
        serving = simulate(
            source,
            job.policy,
            slots=job.slots,
            warmup=job.warmup,
            time=job.time,
            clients=job.clients,
            slo=job.slo,
            tiers=job.tiers,
            layout=job.layout,
        )
    except ValueError as error:
        # As a value: an exception looks different after each way of being sent.
        return index, f"{format_policy(job.policy)} on {job.source.name}: {error}"
    seconds = time.perf_counter() - began
    return index, WasteRow.of(job.stream, job.policy, serving, seconds=seconds, drawing=job.drawing)
