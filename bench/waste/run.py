"""The work of `pagedbench waste`: simulate what is planned, and draw the pools."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench.command.progress import Progress
from bench.machine.environment import WasteEnvironment
from bench.waste.capacity import capacity
from bench.waste.parallel import run_jobs
from bench.waste.plan import WastePlan
from bench.waste.record import ClockRecord, PoolRecord, WasteRecord, WasteRow
from bench.waste.rounds import rounds
from bench.waste.whatif import compare

if TYPE_CHECKING:
    from bench.waste.pool_map import PoolMap


def run_waste(plan: WastePlan, progress: Progress) -> WasteRecord:
    """Simulate every policy on every stream; after an interrupt the record has what is done."""
    began, started_at = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    machine = WasteEnvironment.here()
    rows: list[WasteRow] = []
    asked = 0

    def found(*, complete: bool = False) -> WasteRecord:
        """Make a record of what there is."""
        return WasteRecord(
            started_at=started_at,
            elapsed_s=time.perf_counter() - began,
            command=sys.argv[1:],
            complete=complete,
            asked=asked,
            machine=machine,
            pool=PoolRecord(slots=plan.slots, bytes_per_token=plan.bytes_per_token),
            warmup=plan.warmup,
            clients=plan.clients,
            step_ns=plan.clock.time.step_ns,
            prefill_ns_per_token=plan.clock.time.prefill_ns_per_token,
            base=plan.base,
            streams=[described for _, described in plan.streams],
            rows=list(rows),
            clock=ClockRecord(
                source=plan.clock.source,
                kv_ps_per_token=plan.clock.time.kv_ps_per_token,
                swap_ns_per_token=plan.clock.time.swap_ns_per_token,
                error=plan.clock.error,
                errors=plan.clock.errors,
            ),
            slo=plan.slo,
            rank=plan.rank,
            runs=plan.runs if plan.whatif else None,
            capacity=None
            if plan.model is None
            else capacity(
                plan.model,
                plan.slots * plan.bytes_per_token,
                block_size=plan.first_paged.block_size,
                in_flight=plan.first_paged.token_budget or 1,
            ),
            tiers=plan.tiers,
        )

    with suppress(KeyboardInterrupt):
        for what, jobs in rounds(plan, found, rows.append):
            asked = sum(not row.inferred for row in rows) + len(jobs)
            done = run_jobs(jobs, workers=plan.workers, ray=plan.ray, address=plan.ray_address)
            new: dict[int, WasteRow] = {}
            if jobs:
                progress.begin(what, len(jobs))
            try:
                with closing(done):
                    for index, row in done:
                        new[index] = row
                        progress.advance(1)
            finally:
                rows += [new[index] for index in sorted(new)]
        return found(complete=True)
    return found()


def pool_maps(
    plan: WastePlan, record: WasteRecord, progress: Progress
) -> Iterator[tuple[str, list[PoolMap]]]:
    """Maps of the pools of each stream, by its label."""
    from bench.waste.plot import MAX_MAPS
    from bench.waste.pool_map import pool_map

    jobs = [] if record.base is not None else plan.jobs()
    for at, stream in enumerate(record.streams):
        mine = [job for job in jobs if job.stream == stream.label and not job.drawing]
        if record.base is not None:
            # Many, and alike but for one option: the base, and what gives back most.
            found = compare(record, stream.label)
            best = [found.best.row.policy] if found and found.best else []
            mine = [plan.job(at, policy) for policy in (record.base, *best)]
        # A map has slots of tokens; groups of layers have different ones.
        mine = [job for job in mine if job.layout is None][:MAX_MAPS]
        maps = []
        progress.begin("occupancy maps", len(mine))
        for job in mine:
            maps.append(pool_map(job, mean_output_tokens=stream.mean_output_tokens))
            progress.advance(1)
        yield stream.label, maps


def draw_pools(
    record: WasteRecord, maps: Mapping[str, list[PoolMap]], file: Path
) -> Iterator[Path]:
    """Draw a picture for each stream, and yield the name of each when it is drawn."""
    from bench.waste.plot import draw

    for stream in record.streams:
        name = re.sub(r"[^\w.-]+", "-", stream.label).strip("-")
        one = file if len(record.streams) == 1 else file.with_stem(f"{file.stem}-{name}")
        draw(record, stream.label, maps[stream.label], one)
        yield one
