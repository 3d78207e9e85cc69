"""Many simulations at once: on the cores of this machine, or on a Ray cluster.

Each job is a few numbers and a source that can be read again wherever it is sent, and its result is
integers. So what comes out does not depend on where, or in which order, the jobs were run.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bench.waste.contiguous import ContiguousPolicy
from bench.waste.policies import Policy, format_policy
from bench.workloads.source import StreamSource
from paged.accounting import Serving
from paged.clock import StepTime
from reference.errors import BadInput

REQUESTS_PER_S: Final = {
    "contiguous": 100_000,
    "counts": 60_000,
    "blocks": 6_000,
    "prefix caching": 1_000,
}
"""Requests that one core simulates in a second, in round figures: what the order of the jobs, and
whether processes are worth their start, is decided by. Nothing that is reported depends on it."""

WORTH_PROCESSES_S: Final = 4.0
"""Estimated seconds of work from which on processes are started where nobody says how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One simulation."""

    source: StreamSource
    """The requests; a recipe rather than a `RequestStream`, where the job is sent elsewhere."""
    requests: int
    """How many they are."""
    policy: Policy
    slots: int
    warmup: int | None = None
    time: StepTime | None = None
    clients: int | None = None
    """As for `bench.waste.simulate.simulate`."""

    @property
    def expected_s(self) -> float:
        """Rough seconds that the simulation takes on one core."""
        policy = self.policy
        if isinstance(policy, ContiguousPolicy):
            return self.requests / REQUESTS_PER_S["contiguous"]
        if policy.by_counts:
            return self.requests / REQUESTS_PER_S["counts"]
        kind = "prefix caching" if policy.prefix_caching else "blocks"
        # Each step that admits nobody looks at everybody whom it may admit.
        looks = 1 + policy.look_ahead / 2
        return self.requests / REQUESTS_PER_S[kind] * looks


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a job."""

    index: int
    """Its place among the jobs."""
    serving: Serving
    """The result."""
    seconds: float
    """How long it took, where it was run."""


class JobFailed(BadInput):
    """A policy, a stream and a pool that do not go together; the message says which, and why."""


class RayMissing(BadInput):
    """Ray is asked for and not installed."""

    def __str__(self) -> str:
        return (
            'Ray is not installed: pip install "pagedbench[ray]", or leave out --ray to use the '
            "cores of this machine"
        )


def default_workers(jobs: Sequence[Job]) -> int:
    """Processes for these jobs: one a core, and this one alone for what is done soon."""
    from joblib import cpu_count

    if sum(job.expected_s for job in jobs) < WORTH_PROCESSES_S:
        return 1
    return max(1, min(len(jobs), int(cpu_count())))


def run_here(jobs: Sequence[Job], *, workers: int | None = None) -> Generator[Finished]:
    """Run jobs on this machine, and yield each when it is done, in whatever order that is.

    Parameters
    ----------
    jobs
        What to run. Those that take longest are begun first.
    workers
        Processes; 1 runs the jobs in this one. None: `default_workers`.

    Raises JobFailed: A policy, a stream and a pool do not go together. Raises ValueError: `workers`
    is less than 1.
    """
    if workers is None:
        workers = default_workers(jobs)
    if workers < 1:
        raise ValueError(f"workers = {workers}: use 1 or more")
    order = _longest_first(jobs)
    if workers == 1 or len(jobs) < 2:
        for index in order:
            yield _finished(run(index, jobs[index]))
        return
    from joblib import Parallel, delayed

    # Being interrupted is no reason for advice.
    warnings.filterwarnings("ignore", r"\d+ tasks (have been|which were)", UserWarning)
    parallel = Parallel(n_jobs=min(workers, len(jobs)), return_as="generator_unordered")
    done = None
    try:
        with _deaf_children():
            done = parallel(delayed(run)(index, jobs[index]) for index in order)
        yield from map(_finished, done)
    finally:
        if done is not None:
            # Before the end, as an interrupt does, this stops the processes that still work.
            done.close()


def run_on_ray(
    jobs: Sequence[Job], *, address: str | None = None, cpus: int | None = None
) -> Generator[Finished]:
    """Run jobs on a Ray cluster, and yield each when it is done, in whatever order that is.

    joblib's own Ray backend hands out its results all at once, at the end; so Ray is asked
    directly. The nodes of a cluster need the same pagedbench, and traces under the same path.

    Parameters
    ----------
    jobs
        What to run. Those that take longest are begun first.
    address
        Of a running cluster, as `ray.init` takes it; None takes that of RAY_ADDRESS, and where
        that is not set starts one on this machine and ends it afterwards.
    cpus
        Cores of a cluster that is started here; None: all.

    Raises JobFailed: as for `run_here`. Raises RayMissing: ray is not installed. Raises
    ConnectionError: there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise RayMissing from None
    # A connection that was there before is not ours to end.
    ours = not ray.is_initialized()
    if ours:
        address = address or os.environ.get("RAY_ADDRESS")
        starts = address is None
        with _deaf_children():
            ray.init(
                address="local" if starts else address,
                num_cpus=cpus if starts else None,
                include_dashboard=False if starts else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    try:
        remote = ray.remote(num_cpus=1)(run)
        pending = [remote.remote(index, jobs[index]) for index in _longest_first(jobs)]
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            yield from map(_finished, ray.get(done))
    finally:
        if ours:
            ray.shutdown()


def run(index: int, job: Job) -> Finished | tuple[int, str]:
    """Run one job. Where it cannot be run: its place, and why."""
    from bench.waste.simulate import simulate

    began = time.perf_counter()
    try:
        serving = simulate(
            job.source,
            job.policy,
            slots=job.slots,
            warmup=job.warmup,
            time=job.time,
            clients=job.clients,
        )
    except ValueError as error:
        # As a value: an exception looks different after each way of being sent.
        return index, f"{format_policy(job.policy)} on {job.source.name}: {error}"
    return Finished(index, serving, time.perf_counter() - began)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach.

    It goes to all processes of a terminal; what it means is for the first one to say. A signal that
    is ignored stays so in the processes that are started meanwhile, from their first moment on. One
    that comes just then is lost, to be sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _finished(result: Finished | tuple[int, str]) -> Finished:
    if not isinstance(result, Finished):
        raise JobFailed(result[1])
    return result


def _longest_first(jobs: Sequence[Job]) -> list[int]:
    return sorted(range(len(jobs)), key=lambda index: -jobs[index].expected_s)
