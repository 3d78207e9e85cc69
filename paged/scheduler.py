"""A paged server, block by block: continuous batching on a real allocator.

Each step goes as in an engine:

1. What was completed in the step before is freed.
2. Who runs goes on: sequences that decode get a token, and a block where one begins; prompts that
   are computed in chunks get their next chunk. If there are too few blocks, the request that was
   admitted last gives up all of its own, until the others have enough.
3. If nobody had to, requests are admitted while they fit, the preempted ones first.
4. The state is counted (`paged.accounting`).

A token is in the cache once its key and value are, a step after it was generated: of a request
with prompt `i` and output `o` there are `i` tokens at the end of its first step, and `i + o - 1` at
the end of its last.

Admission asks for the room of the whole prompt, but takes blocks only as they are written. Nobody
is admitted who could not run alone: a request whose last token but one would not fit into the empty
pool is turned away.

No loop goes over tokens. A sequence that decodes is looked at when it needs a block, every
`block_size` steps; in between it only counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import fields
from itertools import count
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paged.accounting import Counters, GroupUse, Series, Serving
from paged.allocator import PagedAllocator
from paged.arrivals import Arrivals, Request
from paged.clock import PS_PER_NS, StepTime
from paged.errors import checked_size
from paged.eviction import FIFO, LFU, LRU
from paged.group import SequenceGroup, most_blocks
from paged.latency import Slo, Watch
from paged.policy import PagedPolicy

FREE, TOKEN, SHARED, INTERNAL, IDLE = range(5)
"""What `Scheduler.slot_map` says of a slot; SHARED holds a token that several sequences read."""

_ORDERS: Final = {"lru": LRU, "lfu": LFU, "fifo": FIFO}

_NOBODY: Final = "nobody"
_SHORT: Final = "waiting_short"
_WATERMARK: Final = "waiting_watermark"
_LIMIT: Final = "waiting_limit"
_BUDGET: Final = "waiting_budget"


class Scheduler:
    """A server and its queue; the arguments are those of `serve`."""

    def __init__(
        self,
        requests: Iterable[Request],
        policy: PagedPolicy,
        *,
        slots: int,
        time: StepTime | None = None,
        clients: int | None = None,
        slo: Slo | None = None,
    ) -> None:
        size = policy.block_size
        self.policy = policy
        self.slots = slots
        self.num_blocks = checked_size("slots", slots, at_least=size) // size
        self.allocator = PagedAllocator(
            self.num_blocks,
            size,
            prefix_caching=policy.prefix_caching,
            eviction=_ORDERS[policy.eviction](quotas=dict(policy.tenant_quotas)),
        )
        self.step = self.completed = 0
        self.peaks = {"peak_running": 0, "peak_requests": 0, "peak_allocated": 0}
        self._arrivals = Arrivals(
            requests,
            clients=clients,
            depth=policy.look_ahead + 1,
            fits=lambda request: self._most_blocks(request) <= self.num_blocks,
        )
        self.watch = Watch(slo)
        self._time = time or StepTime()
        # Picoseconds.
        self._clock = 0
        self._watermark = policy.watermark_blocks(self.num_blocks)
        self._max_running = policy.max_running or self.num_blocks
        self._names = count()

        # In order of admission; the last one is the first to give way.
        self._running: dict[int, SequenceGroup] = {}
        self._prefilling: dict[int, SequenceGroup] = {}
        self._finished: list[SequenceGroup] = []
        # Who comes back first stands last.
        self._preempted: list[SequenceGroup] = []
        # What falls due in which step. An entry whose group says another step is stale.
        self._growing: defaultdict[int, list[SequenceGroup]] = defaultdict(list)
        self._ending: defaultdict[int, list[SequenceGroup]] = defaultdict(list)
        self._saturating: defaultdict[int, list[SequenceGroup]] = defaultdict(list)
        self._releasing: defaultdict[int, list[SequenceGroup]] = defaultdict(list)

        # Levels: tokens of all running sequences, how many of them are in a slot that was counted
        # before, sequences, and those whose tokens become more with each step.
        self._logical = 0
        self._duplicate = 0
        self._sequences = 0
        self._decoding = 0
        self._widening = 0

        # Who got a token in this step and none in the one before.
        self._beginning: list[SequenceGroup] = []
        # Blocks moved by the end of the step before: to the host and back; within the pool.
        self._swapped = self._copied = 0

        self._gave_way = False
        self._why = _NOBODY
        self._sums = dict.fromkeys((field.name for field in fields(Counters)), 0)

    @property
    def alive(self) -> bool:
        """Whether anything runs, waits or is yet to arrive."""
        return len(self._running) > len(self._finished) or not self.draining

    @property
    def draining(self) -> bool:
        """Whether every request has been admitted: nobody waits, and nobody is to come."""
        return not (self._preempted or self._arrivals.waiting or self._arrivals.more)

    @property
    def time_ns(self) -> int:
        """The server's clock."""
        return self._clock // PS_PER_NS

    def take_step(self) -> bool:
        """Take one step; return whether a request was admitted in it. BadSize: a wrong stream."""
        for group in self._finished:
            self._forget(group, group.tokens_at(self.step))
        arrivals = self._arrivals
        if arrivals.timed:
            now_ns = self._clock // PS_PER_NS
            arrivals.draw(now_ns)
            if not (self._running or self._preempted or arrivals.waiting):
                self._clock = max(self._clock, PS_PER_NS * arrivals.idle_until(now_ns))
        self.step += 1
        budget = self.policy.token_budget
        left = None if budget is None else max(0, budget - self._decoding)
        prefill, left = self._grow(left)
        admitted, more = self._admit(left)
        if self.policy.samples > 1:
            self.allocator.take_copies()
        self._tick(prefill + more)
        self._count(prefill + more)
        return admitted

    def moment(self) -> Counters:
        """Return what was counted so far."""
        return Counters(**self._counted())

    def uses(self) -> tuple[GroupUse, ...]:
        """What each group of layers used its blocks for so far."""
        return ()

    def _counted(self) -> dict[str, int]:
        allocator = self.allocator
        known_elsewhere = {
            "slots": self.slots,
            "steps": self.step,
            "arrived": self._arrivals.count,
            "refused": self._arrivals.refused,
            "completed": self.completed,
            "copies": allocator.num_copies,
            "evictions": allocator.num_evictions,
            "ghost_hits": allocator.num_ghost_hits,
            "time_ns": self._clock // PS_PER_NS,
        }
        return self._sums | known_elsewhere

    def _most_blocks(self, request: Request) -> int:
        return most_blocks(request, self.policy)

    def _group(self, request: Request) -> SequenceGroup:
        return SequenceGroup(request, self.policy, self.allocator)

    def batch(self) -> list[tuple[int, tuple[int, ...], int]]:
        """Who runs, in order of admission: the request's number, its sequences, tokens of each.

        Sequences are the names by which `allocator` knows them. Its tables may lack the tokens
        behind the last new block.
        """
        return [
            (group.number, tuple(group.sequences), group.tokens_at(self.step))
            for group in self._running.values()
        ]

    def slot_map(self) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """What is in each slot at the end of the step, and whose it is.

        The classes, uint8 [slots], are FREE, TOKEN, SHARED, INTERNAL or IDLE. Owners, int32
        [slots], are numbers of requests, counted from 0 in order of first admission; one of them
        where several share, -1 where there is none.
        """
        size, allocator, window = self.policy.block_size, self.allocator, self.policy.sliding_window
        groups = list(self._running.values())
        table = allocator.block_table([name for group in groups for name in group.sequences])
        counts = [len(group.sequences) for group in groups]
        tokens = np.repeat([group.tokens_at(self.step) for group in groups], counts)[:, None]
        held = table >= 0
        blocks = table[held]
        first = np.arange(table.shape[1]) * size
        # Of each block: whose it is, and which slots hold tokens, from one to before another.
        owner = np.full(self.num_blocks, -1, np.int32)
        owner[blocks] = np.repeat(np.repeat([g.number for g in groups], counts), held.sum(axis=1))
        begin, end = np.zeros((2, self.num_blocks), np.int32)
        end[blocks] = (tokens - first)[held]
        if window is not None:
            begin[blocks] = (tokens - window - first)[held]
        within = np.where(np.asarray(allocator.pool.reference_counts) > 1, SHARED, TOKEN)
        kinds = np.stack([within, np.full(self.num_blocks, INTERNAL)]).astype(np.uint8)
        kinds[:, owner < 0] = FREE
        kinds[:, allocator.pool.eviction_order()] = IDLE
        offsets = np.tile(np.arange(size, dtype=np.int32), self.num_blocks)
        begin, end, owners = (np.repeat(each, size) for each in (begin, end, owner))
        inside = (begin <= offsets) & (offsets < end)
        classes = np.where(inside, *(np.repeat(kind, size) for kind in kinds))
        rest = self.slots - self.num_blocks * size
        return (
            np.concatenate((classes, np.full(rest, FREE, np.uint8))),
            np.concatenate((owners, np.full(rest, -1, np.int32))),
        )

    # -- who runs goes on ------------------------------------------------------------------------

    def _grow(self, left: int | None) -> tuple[int, int | None]:
        """Give those who run their blocks; return the prompt tokens computed, and what is left."""
        step = self.step
        demand: dict[int, int] = {}
        chunks: dict[int, int] = {}
        growing = [group for group in self._growing.pop(step, ()) if group.grows == step]
        for group in growing:
            group.reshuffle(self._names)
            demand[group.number] = group.growth_blocks(step)
        for group in self._prefilling.values():
            chunk = group.target - group.computed
            if left is not None:
                chunk = min(chunk, left)
                left -= chunk
            chunks[group.number] = chunk
            demand[group.number] = group.chunk_blocks(chunk)

        self._gave_way = False
        if demand:
            need = sum(demand.values())
            while need > self.allocator.num_free + self.allocator.num_cached_idle:
                self._gave_way = True
                number = next(reversed(self._running))
                need -= demand.pop(number, 0)
                chunks.pop(number, None)
                self._preempt(self._running[number])

        self._logical += self._widening
        for group in self._saturating.pop(step, ()):
            if group.saturates == step:
                self._widening -= len(group.sequences)
        for group in growing:
            if group.number in demand:
                self._duplicate += group.grow(step)
                self._expect_growth(group)
        for number, chunk in chunks.items():
            self._compute(self._prefilling[number], chunk)
        for group in self._releasing.pop(step, ()):
            if group.releases == step:
                self._slide(group)
        return sum(chunks.values()), left

    def _compute(self, group: SequenceGroup, chunk: int) -> None:
        """Compute `chunk` tokens of a prompt; with the last one the first token is generated."""
        before = group.live(group.tokens_at(self.step))
        again = min(group.computed + chunk, group.lost) - group.computed
        self._sums["recomputed_tokens"] += max(0, again)
        group.computed += chunk
        if group.computed < group.target:
            group.extend_prompt()
            self._logical += group.live(group.tokens_at(self.step)) - before
            if self.policy.sliding_window is not None:
                self._slide(group)
            return
        del self._prefilling[group.number]
        self._beginning.append(group)
        self._duplicate += group.decode_from(self.step, self._names)
        samples, tokens, window = len(group.sequences), group.held, self.policy.sliding_window
        self._logical += samples * group.live(tokens) - before
        self._sequences += samples - 1
        self._decoding += samples
        self._ending[group.last].append(group)
        self._expect_growth(group)
        if window is None or tokens < window:
            self._widening += samples
        if window is not None:
            if tokens < window:
                group.saturates = window - group.base
                self._saturating[group.saturates].append(group)
            self._slide(group)

    def _expect_growth(self, group: SequenceGroup) -> None:
        group.grows = group.next_growth(self.step)
        if group.grows <= group.last:
            self._growing[group.grows].append(group)

    def _slide(self, group: SequenceGroup) -> None:
        """Give up the blocks behind the window, and note when the next one will be."""
        window, size = self.policy.sliding_window or 0, group.size
        behind = max(0, group.tokens_at(self.step) - window) // size
        if behind:
            self.allocator.release_before(group.sequences[0], behind * size)
        if group.last >= 0:
            group.releases = (behind + 1) * size + window - group.base
            if group.releases <= group.last:
                self._releasing[group.releases].append(group)

    # -- who gives way ---------------------------------------------------------------------------

    def _preempt(self, group: SequenceGroup) -> None:
        self._sums["preemptions"] += 1
        self.watch.give_way(group.number, self._clock)
        if self.policy.preemption == "swap":
            group.host = group.held_blocks()
            self._sums["swapped_out"] += group.host
        at = self.step - 1
        tokens = group.tokens_at(at)
        group.suspend(at)
        self._forget(group, tokens)
        self._preempted.append(group)

    def _forget(self, group: SequenceGroup, tokens: int) -> None:
        """Take a group with `tokens` tokens a sequence out of the levels, and free its blocks."""
        samples = len(group.sequences)
        del self._running[group.number]
        self._sequences -= samples
        self._logical -= samples * group.live(tokens)
        if self._prefilling.pop(group.number, None) is None:
            self._decoding -= samples
            if (window := self.policy.sliding_window) is None or tokens < window:
                self._widening -= samples
        self._duplicate -= group.release(tokens)

    # -- who comes in ----------------------------------------------------------------------------

    def _admit(self, left: int | None) -> tuple[bool, int]:
        """Admit who fits; return whether there was one, and the prompt tokens computed."""
        arrivals, preempted = self._arrivals, self._preempted
        waiting = arrivals.waiting
        prefill = 0
        admitted = False
        self._why = _NOBODY
        if self._gave_way:
            # Whoever lost the room a moment ago may even find it now: in the next step.
            self._why = _SHORT
            return admitted, prefill
        at = 0
        while at <= self.policy.look_ahead:
            if at < len(preempted):
                group = preempted[-1 - at]
            elif at - len(preempted) < len(waiting):
                group = self._group(waiting[at - len(preempted)])
            else:
                break
            why = self._hindrance(group, left)
            if why != _NOBODY:
                if at == 0:
                    self._why = why
                if why in {_LIMIT, _BUDGET}:
                    break
                at += 1
                continue
            if group.number < 0:
                del waiting[at - len(preempted)]
            else:
                del preempted[-1 - at]
            chunk = self._start(group, left)
            if left is not None:
                left -= chunk
            prefill += chunk
            admitted = True
            arrivals.taken(outstanding=len(self._running) + len(preempted))
        return admitted, prefill

    def _hindrance(self, group: SequenceGroup, left: int | None) -> str:
        """Why a request cannot be admitted now."""
        needed, available = group.admission_blocks()
        if needed > available:
            return _SHORT
        if self._running and needed > available - self._watermark:
            return _WATERMARK
        if len(self._running) >= self._max_running:
            return _LIMIT
        if left == 0:
            return _BUDGET
        return _NOBODY

    def _start(self, group: SequenceGroup, left: int | None) -> int:
        """Admit a request; return the tokens of its prompt that are computed in this step."""
        sums, policy = self._sums, self.policy
        hits = computed = group.cached_tokens()
        if group.number < 0:
            group.number = sums["admitted"]
            sums["admitted"] += 1
            sums["prompt_tokens"] += group.request.prompt_tokens
            if policy.prefix_caching:
                sums["queried_tokens"] += group.request.prompt_tokens
                sums["hit_tokens"] += hits
                self.watch.look_up(group.request.tenant, group.request.prompt_tokens, hits)
        elif policy.preemption == "swap":
            computed = max(hits, group.lost)
            sums["swapped_in"] += max(0, group.host - hits // policy.block_size)
        chunk = group.target - computed
        if left is not None:
            chunk = min(chunk, left)
        self._running[group.number] = self._prefilling[group.number] = group
        self._sequences += 1
        self._duplicate += group.admit(next(self._names), computed=computed, chunk=chunk)
        self._logical += group.live(group.tokens_at(self.step))
        self._compute(group, chunk)
        return chunk

    # -- how long it took ------------------------------------------------------------------------

    def _tick(self, prefill: int) -> None:
        """Let the step's time pass, and note who got a token at its end."""
        time, watch, sums = self._time, self.watch, self._sums
        swapped, copied = sums["swapped_out"] + sums["swapped_in"], self.allocator.num_copies
        spent = time.step_ps(
            prefill=prefill,
            read=self._logical + 2 * (copied - self._copied) * self.policy.block_size,
            swapped=(swapped - self._swapped) * self.policy.block_size,
        )
        self._swapped, self._copied = swapped, copied
        self._clock = now = self._clock + spent
        self._arrivals.now_ns = now // PS_PER_NS
        beginning = self._beginning
        watch.go_on(spent, len(self._running) - len(self._prefilling) - len(beginning))
        for group in beginning:
            watch.begin(group.number, group.request.arrival_ns, now, group.request.tenant)
        beginning.clear()

    # -- what is counted -------------------------------------------------------------------------

    def _count(self, prefill: int) -> None:
        """Count the state at the end of the step, and see who is finished."""
        sums, allocator, size = self._sums, self.allocator, self.policy.block_size
        tokens = self._logical - self._duplicate
        allocated = allocator.num_used * size
        idle = allocator.num_cached_idle * size
        free = self.slots - allocated - idle
        running = len(self._running)
        sums["token"] += tokens
        sums["logical_token"] += self._logical
        sums["internal"] += allocated - tokens
        sums["cached_idle"] += idle
        sums["running"] += self._sequences
        sums["running_requests"] += running
        sums["generated_tokens"] += self._decoding
        sums["computed_tokens"] += self._decoding + prefill
        if self._why == _NOBODY:
            sums["free_idle"] += free
        else:
            sums[self._why] += 1
            sums["queued"] += len(self._preempted) + len(self._arrivals.waiting)
            sums["free_short" if self._why in {_SHORT, _WATERMARK} else "free_idle"] += free
        for peak, level in zip(self.peaks, (self._sequences, running, allocated), strict=True):
            self.peaks[peak] = max(self.peaks[peak], level)
        self._finished = [g for g in self._ending.pop(self.step, ()) if g.last == self.step]
        if self._finished:
            self.completed += len(self._finished)
            for group in self._finished:
                self.watch.end(group.number, self._clock, group.request.output_tokens)
            if self._arrivals.closed:
                outstanding = running - len(self._finished) + len(self._preempted)
                self._arrivals.taken(outstanding=outstanding)


def serve(
    requests: Iterable[Request],
    policy: PagedPolicy,
    *,
    slots: int,
    warmup: int = 0,
    time: StepTime | None = None,
    clients: int | None = None,
    slo: Slo | None = None,
    observe: Callable[[Scheduler], None] | None = None,
    kind: Callable[..., Scheduler] = Scheduler,
) -> Serving:
    """Serve a stream of requests; the outcome is identical for identical arguments.

    `requests` are read as they are needed: as many are held as run or wait. What is left of `slots`
    after cutting them into blocks is never allocated. `Serving.loaded` begins after `warmup`
    completed requests. `time` is the duration of a step; an idle server takes none. Where requests
    have no arrival times, `clients` are the most that run or wait at once: the next arrives when
    one is completed; None: there is always one that waits. `slo` is what `Serving.service` counts
    as good. `observe` is called at the end of each step, to look at what `serve` does not return.
    `kind` makes the server: one that does more than the usual one.

    Raises BadSize: a number is out of range, the arrivals fall or some are missing, or the stream
    is empty.
    """
    scheduler = kind(requests, policy, slots=slots, time=time, clients=clients, slo=slo)
    series: Series[Counters] = Series()
    warm = scheduler.moment() if warmup == 0 else None
    done = None
    early = late = scheduler.uses()
    while scheduler.alive:
        admitted = scheduler.take_step()
        if admitted and scheduler.draining:
            done, late = scheduler.moment(), scheduler.uses()
        if warm is None and scheduler.completed >= warmup:
            warm, early = scheduler.moment(), scheduler.uses()
        if scheduler.step >= series.due:
            series.add(scheduler.moment())
        if observe is not None:
            observe(scheduler)
    return Serving.of(
        scheduler.moment(),
        series.moments,
        warm=warm,
        done=done,
        service=scheduler.watch.service(),
        tiers=(),
        uses=(scheduler.uses(), early, late),
        **scheduler.peaks,
    )
