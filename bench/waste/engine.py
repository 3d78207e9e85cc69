"""An engine's own scheduler beside ours: the same stream, pool and clock.

What it shows is worth twice: whether our simulator can be believed, and, to whoever runs the
engine, what its scheduler makes of a stream, without a GPU. The engine's part is
`subjects.servers`; see there for how it is driven.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from bench.command.progress import Progress
from bench.machine.facts import version_of
from bench.machine.record import Record
from bench.waste.clocks import clock_words
from bench.waste.models import Model
from bench.waste.parallel import Job
from bench.waste.plan import WastePlan
from bench.waste.policies import format_policy
from bench.waste.record import TypedPolicy
from bench.waste.simulate import requests_of, simulate
from bench.waste.tables import Tables, tables_of
from bench.waste.whatif import NOTHING
from bench.workloads.record import ServedStream
from paged.accounting import Counters, Serving
from paged.arrivals import Request
from paged.clock import StepTime
from paged.group import most_blocks
from paged.latency import Service, Watch
from paged.policy import PagedPolicy
from reference.errors import BadInput
from subjects.servers.remote import EngineServer, Served

PARTS: Final = 10
"""Stretches of time that a run is shown in."""


class Part(Record):
    """A stretch of a run: means over its steps, and totals up to its end."""

    until_s: float
    running: float
    waiting: float
    blocks: float
    """Share of the pool that is in use, 0 to 1."""
    preemptions: int
    hit_tokens: int


class Side(Record):
    """What one server made of a stream."""

    steps: int
    running: float
    waiting: float
    blocks: float
    """Means over the steps: requests that run and wait, share of the pool that is in use."""
    peak_running: int
    preemptions: int
    hit_tokens: int
    hit_rate: float
    """Prompt tokens that the prefix cache had, and their share of those looked up."""
    requests_per_s: float
    """Completed, from the first arrival to the last token."""
    service: Service
    parts: list[Part | None]
    """Each tenth of the run; None: no step was seen to end in it."""

    @property
    def seen(self) -> list[Part]:
        """Those of them in which one did."""
        return [part for part in self.parts if part is not None]

    @classmethod
    def of_ours(cls, serving: Serving) -> Self:
        """Sum up a run of our server."""
        total, service = serving.total, serving.service
        assert service is not None
        moments, before = serving.series, Counters(slots=total.slots)
        parts: list[Part | None] = []
        for part in range(PARTS):
            end_ns = total.time_ns * (part + 1) // PARTS
            within = [moment for moment in moments if moment.time_ns <= end_ns]
            last = total if part == PARTS - 1 else within[-1] if within else before
            if not (steps := last.steps - before.steps):
                parts.append(None)
                continue
            stretch = last - before
            parts.append(
                Part(
                    until_s=last.time_ns / 1e9,
                    running=stretch.mean_batch,
                    waiting=stretch.queued / steps,
                    blocks=stretch.share(stretch.allocated),
                    preemptions=last.preemptions,
                    hit_tokens=last.hit_tokens,
                )
            )
            before = last
        return cls(
            steps=total.steps,
            running=total.mean_batch,
            waiting=total.queued / total.steps,
            blocks=total.share(total.allocated),
            peak_running=serving.peak_requests,
            preemptions=total.preemptions,
            hit_tokens=total.hit_tokens,
            hit_rate=total.hit_rate,
            requests_per_s=_per_s(service),
            service=service,
            parts=parts,
        )

    @classmethod
    def of_engine(cls, served: Served, requests: Sequence[Request], num_blocks: int) -> Self:
        """Sum up a run of the engine."""
        sums, watch = served.sums, Watch()
        timed = requests[0].arrival_ns is not None
        for number, arrival_ps, first_ps, _ in sorted(served.requests):
            arrival_ns = arrival_ps // 1000 if timed else None
            watch.begin(number, arrival_ns, first_ps, requests[number].tenant)
        for number, _, _, last_ps in served.requests:
            watch.end(number, last_ps, requests[number].output_tokens)
        service, steps = watch.service(), sums["steps"]
        parts: list[Part | None] = []
        begin_ns = 0
        end_ns = served.series[-1][0] if served.series else 0
        for part in range(PARTS):
            until_ns = end_ns * (part + 1) // PARTS
            rows = [row for row in served.series if begin_ns < row[0] <= until_ns]
            begin_ns = until_ns
            parts.append(_part(rows, num_blocks) if rows else None)
        return cls(
            steps=steps,
            running=sums["running"] / steps,
            waiting=sums["waiting"] / steps,
            blocks=sums["used_blocks"] / steps / num_blocks,
            peak_running=sums["peak_running"],
            preemptions=sums["preemptions"],
            hit_tokens=sums["hit_tokens"],
            hit_rate=sums["hit_tokens"] / sums["queried_tokens"] if sums["queried_tokens"] else 0.0,
            requests_per_s=_per_s(service),
            service=service,
            parts=parts,
        )


def _part(rows: Sequence[Sequence[int]], num_blocks: int) -> Part:
    _, running, waiting, used, *_ = (sum(each) / len(rows) for each in zip(*rows, strict=True))
    return Part(
        until_s=rows[-1][0] / 1e9,
        running=running,
        waiting=waiting,
        blocks=used / num_blocks,
        preemptions=rows[-1][4],
        hit_tokens=rows[-1][5],
    )


def _per_s(service: Service) -> float:
    return service.completed / service.makespan_ns * 1e9 if service.makespan_ns else 0.0


class BesideRow(Record):
    """One policy on one stream, on both servers."""

    stream: str
    policy: TypedPolicy
    grouped: bool = False
    """Whether each group of the model's layers had tables of its own."""
    refused: int
    """Requests that can never fit; neither server was asked for them."""
    engine: Side
    ours: Side


class BesideRecord(Record):
    """What `pagedbench waste --server` found."""

    engine: str
    """The engine and its release."""
    complete: bool
    slots: int
    clock: str
    """What a step takes on both, in words."""
    streams: list[ServedStream]
    rows: list[BesideRow]
    pagedbench: str = ""
    """The release that made it; empty in a record of before."""

    def tau(self, stream: str) -> float | None:
        """How alike both rank the policies of a stream by requests a second: Kendall's tau, 1 the
        same and -1 the reverse; None below three. Who is equally good is in the right order.
        """
        pairs = [
            (row.engine.requests_per_s, row.ours.requests_per_s)
            for row in self.rows
            if row.stream == stream
        ]
        if len(pairs) < 3:
            return None
        signs = [
            _sign(theirs, theirs_2) * _sign(ours, ours_2)
            for at, (theirs, ours) in enumerate(pairs)
            for theirs_2, ours_2 in pairs[:at]
        ]
        return sum(-1 if sign < 0 else 1 for sign in signs) / len(signs)


def _sign(one: float, other: float) -> int:
    if abs(one - other) <= NOTHING * max(one, other):
        return 0
    return 1 if one > other else -1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetting:
    """An engine's configuration, as our policy and pool mean it."""

    policy: PagedPolicy
    num_blocks: int
    tables: Tables | None = None
    """Tables for each group of layers; None: one has all."""
    longest: int | None = None
    """Tokens of the longest request; None: as many as the pool holds."""

    @property
    def block_size(self) -> int:
        """Tokens of a block of those that keep everything or a window."""
        if self.tables is None:
            return self.policy.block_size
        return min(each.block_size for each in self.tables.tables if not each.group.state_bytes)

    def arguments(self) -> list[str]:
        """As they are typed to the engine. Raises BadInput: it has no such option."""
        policy = self.policy
        lacking = {
            "look-ahead": policy.look_ahead > 0,
            "preempt=swap": policy.preemption == "swap",
            "samples": policy.samples > 1,
            "window": policy.sliding_window is not None,
            f"prefix={policy.eviction}": policy.prefix_caching and policy.eviction != "lru",
            "quota": bool(policy.tenant_quotas),
        }
        if wrong := [name for name, asked in lacking.items() if asked]:
            raise BadInput(
                f"--server vllm with {format_policy(policy)}: its scheduler has no "
                f"{' and no '.join(wrong)}; leave it out"
            )
        slots = self.num_blocks * self.block_size
        budget = policy.token_budget or slots + self.num_blocks
        running = policy.max_running or min(self.num_blocks, budget)
        if running > budget:
            raise BadInput(
                f"--server vllm with {format_policy(policy)}: it runs no more requests than its "
                f"budget has tokens; lower max-running to {budget}"
            )
        given = {
            "block-size": self.block_size,
            # One of its blocks holds nothing.
            "num-gpu-blocks-override": self.num_blocks + 1,
            "max-num-seqs": running,
            "max-num-batched-tokens": budget,
            "max-model-len": self.longest or slots,
            "watermark": policy.watermark,
        }
        caching = f"--{'' if policy.prefix_caching else 'no-'}enable-prefix-caching"
        return [
            *(word for name, value in given.items() for word in (f"--{name}", str(value))),
            caching,
        ]


def serve_on_engine(
    engine: EngineServer,
    requests: Sequence[Request],
    policy: PagedPolicy,
    *,
    slots: int,
    time: StepTime,
    clients: int | None = None,
    model: Model | None = None,
) -> Served:
    """Serve requests on an engine, configured as a policy says. Raises BadInput: it cannot be.

    Those that can never fit are to be left out. To see what a change does, serve the same requests
    again with another policy or pool. With a `model` slots are bytes, and its groups of layers have
    tables of their own.
    """
    setting, layers = EngineSetting(policy=policy, num_blocks=slots // policy.block_size), []
    if model is not None:
        tables = tables_of(model, block_size=policy.block_size)
        longest = max(each.prompt_tokens + each.output_tokens for each in requests)
        layers = tables.layers(model, longest=longest)
        setting = EngineSetting(
            policy=policy,
            num_blocks=slots // tables.block_bytes,
            tables=tables,
            longest=longest,
        )
    return engine.serve(
        [(each.prompt_tokens, each.output_tokens, each.arrival_ns, each.keys) for each in requests],
        arguments=setting.arguments(),
        pace={
            "base": 1000 * time.step_ns,
            "prompt": 1000 * time.prefill_ns_per_token,
            "kv": time.kv_ps_per_token,
        },
        block_size=policy.block_size,
        clients=clients,
        layers=layers,
    )


def side_by_side(
    plan: WastePlan, name: str, python: str | None, progress: Progress
) -> BesideRecord:
    """Serve what is planned on an engine and on ours; after an interrupt there is what is done."""
    jobs = [job for job in plan.jobs() if isinstance(job.policy, PagedPolicy)]
    if len(jobs) < len(plan.jobs()):
        raise BadInput(
            f"--server {name}: it has paging only; give --policy paged, with its options"
        )
    for job in jobs:
        assert isinstance(job.policy, PagedPolicy)
        EngineSetting(policy=job.policy, num_blocks=plan.slots // job.policy.block_size).arguments()
    rows: list[BesideRow] = []
    complete = False
    progress.begin(f"streams on {name} and on ours", len(jobs))
    with EngineServer(name, python=python) as engine:
        with suppress(KeyboardInterrupt):
            for job in jobs:
                rows.append(_row(engine, plan, job))
                progress.advance(1)
            complete = True
        return BesideRecord(
            engine=engine.version,
            complete=complete,
            slots=plan.slots,
            clock=f"{clock_words(plan.clock.time)} ({plan.clock.source})",
            streams=[described for _, described in plan.streams],
            rows=rows,
            pagedbench=version_of("pagedbench"),
        )


def _row(engine: EngineServer, plan: WastePlan, job: Job) -> BesideRow:
    policy, layout = job.policy, job.layout
    assert isinstance(policy, PagedPolicy)
    num_blocks = job.slots // (layout.block_bytes if layout else policy.block_size)
    size = policy.block_size if policy.prefix_caching else None
    every = list(requests_of(job.source, key_block_size=size))
    if layout is None:
        most = [most_blocks(each, policy) for each in every]
    else:
        budget = policy.token_budget
        most = [layout.most(each.prompt_tokens + each.output_tokens - 1, budget) for each in every]
    fitting = [each for each, blocks in zip(every, most, strict=True) if blocks <= num_blocks]
    if not fitting:
        raise BadInput(f"{job.stream}: no request fits into {job.slots} slots; give more")
    served = serve_on_engine(
        engine,
        fitting,
        policy,
        slots=job.slots,
        time=plan.clock.time,
        clients=job.clients,
        model=plan.model if layout else None,
    )
    ours = simulate(
        job.source,
        policy,
        slots=job.slots,
        warmup=0,
        time=job.time,
        clients=job.clients,
        layout=layout,
    )
    return BesideRow(
        stream=job.stream,
        policy=policy,
        grouped=layout is not None,
        refused=len(every) - len(fitting),
        engine=Side.of_engine(served, fitting, num_blocks),
        ours=Side.of_ours(ours),
    )
