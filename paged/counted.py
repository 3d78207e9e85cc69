"""What `paged.counting` holds of a request, and of a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from paged.accounting import Counters, GroupUse
from paged.clock import PS_PER_NS, StepTime
from paged.errors import checked_size
from paged.keyed_blocks import KeyedBlocks, Keys
from paged.latency import Slo
from paged.layout import GroupSums, Layout, checked_layout
from paged.policy import PagedPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a server that counts is given, in the words of `paged.counting.serve_by_counts`."""

    policy: PagedPolicy
    slots: int
    time: StepTime
    clients: int | None = None
    slo: Slo | None = None
    layout: Layout | None = None
    """Tables for each group of layers, where they are not all alike; a slot is a byte then."""

    def __post_init__(self) -> None:
        if self.layout is not None:
            checked_layout(self.layout, self.policy)

    @property
    def size(self) -> int:
        """Slots of a block."""
        return self.policy.block_size if self.layout is None else self.layout.block_bytes

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool. Raises BadSize: there is not one."""
        size = self.size
        return checked_size("slots", self.slots, at_least=size) // size

    def uses(self, moment: Snapshot) -> tuple[GroupUse, ...]:
        """What each group of layers used its blocks for up to a moment."""
        if self.layout is None:
            return ()
        return self.layout.uses(moment.groups, moment.token)

    def counters(self, moment: Snapshot) -> Counters:
        """What was counted up to a moment."""
        return moment.counters(
            slots=self.slots, num_blocks=self.num_blocks, size=self.size, uses=self.uses(moment)
        )


MOST_GAPS: Final = 4096
"""Different durations of steps that are held before they go into classes."""


@dataclass(slots=True, eq=False)
class Group:
    """A request that has been admitted, or is about to be."""

    prompt: int
    output: int
    arrival: int | None
    keys: Keys
    tenant: int = 0
    number: int = -1
    """Its place in the order of first admission; -1 before that."""
    place: int = -1
    """Its name while it runs: names rise in the order of admission."""
    generated: int = 0
    computed: int = 0
    lost: int = 0
    """Tokens: output when it last began to run; computed so far, until it decodes; that had been
    computed when it was preempted."""
    host: int = 0
    """Blocks that were moved to the host when it was last preempted."""
    base: int = 0
    last: int = -1
    """While it decodes: it has `base + step` tokens after a step, and ends with `last`."""
    blocks: int = 0
    filled: int = 0
    """Blocks for what is computed, until it decodes; keys that it has read or published."""
    own: tuple[Keys, ...] = ()
    """Keys whose blocks it reads; its other blocks are nobody else's."""
    limit: int = 0
    """Leading blocks that may be hits."""
    private: tuple[Keys, Keys] | None = None
    """Keys of its blocks behind those of `keys` that were kept when it gave way, and their marks.
    """

    def look(self, cache: KeyedBlocks) -> tuple[int, int]:
        """Leading blocks that the pool has, and how many of these nobody reads."""
        hits, idle = cache.look(self.keys[: self.limit])
        if self.private is not None and hits == self.keys.size:
            keys, marks = self.private
            own = cache.look_own(keys[: self.limit - hits], marks[: self.limit - hits])
            return hits + own, idle + own
        return hits, idle

    def found(self, hits: int) -> Keys:
        """Keys of so many leading blocks; those of its own behind them are given up."""
        keys = self.keys[:hits]
        if self.private is None:
            return keys
        own, marks = self.private
        self.private = own[: hits - keys.size], marks[: hits - keys.size]
        return np.concatenate((keys, self.private[0]))

    def keep(self, cache: KeyedBlocks, full: int) -> None:
        """Give keys of their own to those of so many full blocks that have none."""
        before = self.private or (NO_KEYS, NO_KEYS)
        count = full - self.keys.size - before[0].size
        if count > 0:
            keys, marks = cache.hand_out(count)
            self.own += (keys,)
            self.private = np.concatenate((before[0], keys)), np.concatenate((before[1], marks))


NO_KEYS: Final[Keys] = np.empty(0, np.int64)

COUNTS: Final = (
    "admitted",
    "preemptions",
    "swapped_out",
    "swapped_in",
    "prompt_tokens",
    "recomputed_tokens",
    "queried_tokens",
    "hit_tokens",
    "ghost_hits",
    "loaded_tokens",
    "stored_tokens",
    "tier_ns",
)
"""Counters that are kept by name."""


class Snapshot(NamedTuple):
    """Sums from the first step on, in blocks where slots are held."""

    steps: int
    token: int
    duplicate: int
    free: int
    idle: int
    running: int
    prefilling: int
    queued: int
    computed: int
    waiting_free: int
    clock: int
    completed: int
    evictions: int
    arrived: int
    refused: int
    waits: tuple[int, ...]
    counts: tuple[int, ...]
    groups: tuple[GroupSums, ...] = ()

    def snapshot(self) -> Snapshot:
        """Itself, as of a moment that is still to be read."""
        return self

    def counters(
        self, *, slots: int, num_blocks: int, size: int, uses: Sequence[GroupUse] = ()
    ) -> Counters:
        """Return what was counted up to the moment, in a pool of blocks of `size` slots; they were
        used as `uses` says where groups of layers have their own.
        """
        idle = self.idle * size
        allocated = (num_blocks * self.steps - self.free) * size - idle
        token, roundup = self.token - self.duplicate * size, 0
        if uses:
            token = sum(each.token for each in uses)
            roundup = sum(each.padding for each in uses)
        _, short, watermark, limit, budget = self.waits
        remainder = slots - num_blocks * size
        free_short = self.waiting_free * size + remainder * (short + watermark)
        generated = self.running - self.prefilling
        return Counters(
            slots=slots,
            steps=self.steps,
            token=token,
            internal=allocated - token - roundup,
            roundup=roundup,
            free_short=free_short,
            free_idle=slots * self.steps - allocated - free_short - idle,
            cached_idle=idle,
            logical_token=self.token,
            running=self.running,
            running_requests=self.running,
            queued=self.queued,
            waiting_short=short,
            waiting_watermark=watermark,
            waiting_limit=limit,
            waiting_budget=budget,
            arrived=self.arrived,
            refused=self.refused,
            completed=self.completed,
            computed_tokens=self.computed + generated,
            generated_tokens=generated,
            evictions=self.evictions,
            time_ns=self.clock // PS_PER_NS,
            **dict(zip(COUNTS, self.counts, strict=True)),
        )


def falling(
    growing: list[int], step: int, span: int, available: int, idle: int, floor: int, running: int
) -> tuple[int, int, int, int]:
    """Let those who run grow for `span` steps, or as long as there are blocks enough.

    Returns how many steps that are, the blocks that are free or idle behind them, and the sums
    over the steps of these, and of those that are free.
    """
    size = len(growing)
    if span > size // 4 and available - running * (span // size + 1) >= max(floor, idle):
        total, end = span * available, available
        for phase, many in enumerate(growing):
            if many and (after := span - (phase - step - 1) % size) > 0:
                # These begin a block so many times, first with `after` steps to come.
                times = (after - 1) // size + 1
                end -= many * times
                total -= many * (times * after - size * (times * (times - 1) // 2))
        return span, end, total, total - span * idle
    total = total_free = 0
    phase = step % size
    for taken in range(span):
        phase = phase + 1 if phase + 1 < size else 0
        after = available - growing[phase]
        if after < floor:
            return taken, available, total, total_free
        available = after
        total += after
        if after > idle:
            total_free += after - idle
    return span, available, total, total_free
