"""What was in each slot of a pool, step by step: one column for each step that is looked at.

A map comes from a short run of its own, from the first step on: it shows how the pool fills and how
holes come about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.waste.contiguous import ContiguousPolicy, Piece, serve_contiguous
from bench.waste.parallel import Job
from bench.waste.policies import Policy
from bench.waste.simulate import lengths_of, requests_of
from paged import scheduler
from paged.clock import StepTime

MAX_ROWS: Final = 500
"""Most rows of a map. A row is as many slots as it takes, and shows what most of them are."""

MIN_COLUMNS: Final = 400
MAX_COLUMNS: Final = 20_000
"""Steps that are looked at."""

MAX_LOOKS: Final = 200_000_000
"""Slots that are looked at, over all columns, if those are more than the fewest: five seconds."""

GENERATIONS: Final = 6
"""Length of a map in mean outputs: as often has the pool been filled anew, or nearly."""

RESERVE, ROUNDUP = 5, 6
"""What a reservation adds to the classes of `paged.scheduler.Scheduler.slot_map`."""

NUM_CLASSES: Final = 7

FREE, TOKEN, SHARED = scheduler.FREE, scheduler.TOKEN, scheduler.SHARED
INTERNAL, IDLE = scheduler.INTERNAL, scheduler.IDLE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolMap:
    """What was in each slot, step by step."""

    policy: Policy
    """Whose pool it is."""
    slots: int
    slots_per_row: int
    """Size of the pool; slots that a row stands for, the last one for fewer."""
    steps: NDArray[np.int64]
    """int64 [columns], the sampled steps."""
    classes: NDArray[np.uint8]
    """uint8 [rows, columns], the most frequent class of each row's slots; of two that are equally
    frequent the one with the smaller number."""
    owners: NDArray[np.int32]
    """int32 [rows, columns], a request that has a slot of that class there; -1 for none."""
    counts: NDArray[np.int64]
    """int64 [columns, classes], slots in each class, exact."""


class _Enough(Exception):
    """The last column has been seen."""


class _Sampler:
    def __init__(self, slots: int, every: int, columns: int) -> None:
        self.slots, self.every, self._columns = slots, every, columns
        self.slots_per_row = -(-slots // MAX_ROWS)
        self.steps: list[int] = []
        self.classes: list[NDArray[np.uint8]] = []
        self.owners: list[NDArray[np.int32]] = []
        self.counts: list[NDArray[np.int64]] = []

    def add(self, step: int, classes: NDArray[np.uint8], owners: NDArray[np.int32]) -> None:
        rows = -(-self.slots // self.slots_per_row)
        # Slots beyond the pool are in no class.
        padded = np.full((rows, self.slots_per_row), NUM_CLASSES, np.uint8)
        padded.reshape(-1)[: self.slots] = classes
        tally = np.stack([(padded == kind).sum(axis=1) for kind in range(NUM_CLASSES)])
        most = tally.argmax(axis=0).astype(np.uint8)
        first = (padded == most[:, None]).argmax(axis=1) + np.arange(rows) * self.slots_per_row
        self.steps.append(step)
        self.classes.append(most)
        self.owners.append(owners[first])
        self.counts.append(tally.sum(axis=1))
        if len(self.steps) == self._columns:
            raise _Enough

    def add_pieces(self, step: int, pieces: list[Piece]) -> None:
        classes = np.full(self.slots, FREE, np.uint8)
        owners = np.full(self.slots, -1, np.int32)
        for address, granted, requested, final, tokens, number in pieces:
            piece = classes[address : address + granted]
            piece[:] = ROUNDUP
            piece[:requested] = INTERNAL
            piece[:final] = RESERVE
            piece[:tokens] = TOKEN
            owners[address : address + granted] = number
        self.add(step, classes, owners)

    def add_scheduler(self, server: scheduler.Scheduler) -> None:
        if server.step % self.every == 0:
            self.add(server.step, *server.slot_map())


def pool_map(job: Job, *, mean_output_tokens: float, columns: int | None = None) -> PoolMap:
    """Serve the beginning of a stream, and look at the pool as often as the map has columns.

    Unless said otherwise at each step, as far as `MAX_LOOKS` goes.
    """
    policy, time = job.policy, job.time or StepTime()
    steps = max(columns or MIN_COLUMNS, round(GENERATIONS * mean_output_tokens))
    columns = columns or min(steps, max(MIN_COLUMNS, MAX_LOOKS // job.slots), MAX_COLUMNS)
    sampler = _Sampler(job.slots, every=steps // columns, columns=columns)
    try:
        if isinstance(policy, ContiguousPolicy):
            serve_contiguous(
                lengths_of(job.source),
                policy,
                slots=job.slots,
                time=time,
                observe=sampler.add_pieces,
                observe_every=sampler.every,
            )
        else:
            keys = policy.block_size if policy.prefix_caching else None
            scheduler.serve(
                requests_of(job.source, key_block_size=keys),
                policy,
                slots=job.slots,
                time=time,
                clients=job.clients,
                observe=sampler.add_scheduler,
            )
    except _Enough:
        pass
    return PoolMap(
        policy=policy,
        slots=job.slots,
        slots_per_row=sampler.slots_per_row,
        steps=np.array(sampler.steps, np.int64),
        classes=_columns(sampler.classes, np.uint8),
        owners=_columns(sampler.owners, np.int32),
        counts=np.array(sampler.counts, np.int64).reshape(-1, NUM_CLASSES),
    )


def _columns(columns: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.stack(columns, axis=1) if columns else np.empty((0, 0), dtype)
