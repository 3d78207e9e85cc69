"""A paged server in numbers: which blocks are whose does not matter, only how many there are.

While blocks are shared by key alone, the course of events follows from counts, and from who reads
which key (`paged.keyed_blocks`). `paged.scheduler` moves every block of the same server; what both
can do comes out equal to the last slot-step, as a property test holds. This one is far faster.

What makes it so: a sequence that decodes needs a block whenever its length passes a multiple of the
block size. So the sequences are counted by the step, modulo the block size, in which they need one,
and a step costs the same however many of them run. Steps at which nobody can come, end or give way
are taken at once: whoever waits for room goes on waiting while those who run only grow. Without a
prefix cache, and with a C compiler, machine code takes the place of all this (`paged.compiled`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from paged.accounting import Series, Serving, TierUse
from paged.arrivals import Arrivals, Request
from paged.clock import PS_PER_NS, StepTime, steps_within, taken_ps
from paged.compiled import CompiledServer, Moment, can_serve
from paged.counted import COUNTS, MOST_GAPS, NO_KEYS, Group, Setting, Snapshot, falling
from paged.errors import BadSize
from paged.keyed_blocks import KEYED
from paged.latency import Service, Slo, Watch
from paged.layout import Layout
from paged.policy import PagedPolicy

_NOBODY, _SHORT, _WATERMARK, _LIMIT, _BUDGET = range(5)


class CountingServer:
    """A server and its queue."""

    tiers: tuple[TierUse, ...] = ()
    """What each tier behind the pool did."""

    def __init__(self, requests: Iterable[Request], setting: Setting) -> None:
        policy, time = setting.policy, setting.time
        size = policy.block_size
        self.num_blocks = setting.num_blocks
        room = self.num_blocks * size
        self.arrivals = Arrivals(
            requests,
            clients=setting.clients,
            depth=policy.look_ahead + 1,
            fits=lambda request: request[0] + request[1] - 1 <= room,
        )
        self.watch = Watch(setting.slo)
        self.step = self.completed = self.peak_running = 0
        self._size, self._time = size, time
        self._step_ps = time.step_ns * PS_PER_NS
        self._prompt_ps = time.prefill_ns_per_token * PS_PER_NS
        self._read_ps = time.kv_ps_per_token
        self._timed, self._budget = self.arrivals.timed, policy.token_budget
        self._ahead = policy.look_ahead
        self._watermark = policy.watermark_blocks(self.num_blocks)
        self._max_running = policy.max_running or self.num_blocks
        self._swapping = policy.preemption == "swap"
        self._cache = None
        if policy.prefix_caching:
            self._cache = KEYED[policy.eviction](self.num_blocks, own=self.num_blocks)

        # In order of admission. Those whose prompt is being computed are in both.
        self._running: dict[int, Group] = {}
        self._prefilling: dict[int, Group] = {}
        # Those that decode, by the step that they end with; these steps; and how many they are by
        # the step, modulo the block size, in which they need a block.
        self._ending: dict[int, list[Group]] = {}
        self._ends: list[int] = []
        self._growing = [0] * size
        self._finished: list[Group] | None = None
        # Who is to come back first stands last. Then the head of the queue, those looked at.
        self._preempted: list[Group] = []
        self._looked: deque[Group] = deque()
        # Who got a token in this step and none in the one before.
        self._beginning: list[Group] = []
        # Durations of steps, and how many requests each of them kept waiting for their next token.
        self._gaps: dict[int, int] = {}

        # Levels. A block that a key knows and nobody reads is idle, and not free. A duplicate is a
        # reader of a block beside its first.
        self._free = self._least = self.num_blocks
        self._tokens = self._decoding = self._duplicates = 0
        # Picoseconds; blocks moved to the host and back in this step.
        self._clock = self._swapped = 0
        # Why the head of the queue waits; blocks that have to be had for it to be that; blocks that
        # have to be free before it is worth a look.
        self._why = _NOBODY
        self._floor = self._blocked = self._places = 0
        self._gave_way = self._admitted = self._spent = False

        # Sums over the steps.
        self._token_sum = self._duplicate_sum = self._free_sum = self._idle_sum = 0
        self._running_sum = self._prefilling_sum = self._queued_sum = 0
        self._waits, self._waiting_free, self._computed = [0] * 5, 0, 0
        self._counts = dict.fromkeys(COUNTS, 0)

    @property
    def time_ns(self) -> int:
        """The server's clock."""
        return self._clock // PS_PER_NS

    @property
    def peak_allocated(self) -> int:
        """Most slots that were allocated at once."""
        return (self.num_blocks - self._least) * self._size

    @property
    def draining(self) -> bool:
        """Whether every request has been admitted: nobody waits, and nobody is to come."""
        return not (self._preempted or self.arrivals.waiting or self.arrivals.more)

    def snapshot(self) -> Snapshot:
        """Take down what `counters` makes the counters of this moment of."""
        return Snapshot(
            self.step,
            self._token_sum,
            self._duplicate_sum,
            self._free_sum,
            self._idle_sum,
            self._running_sum,
            self._prefilling_sum,
            self._queued_sum,
            self._computed,
            self._waiting_free,
            self._clock,
            self.completed,
            0 if self._cache is None else self._cache.evictions,
            self.arrivals.count,
            self.arrivals.refused,
            tuple(self._waits),
            tuple(self._counts.values()),
        )

    def service(self) -> Service:
        """Say what it was like for those who waited."""
        self.watch.itl.add_all(self._gaps)
        return self.watch.service()

    def take_steps(self, due: int, _completed: int | None = None) -> bool | None:
        """Take a step, and at once those behind it that are alike, until before `due`.

        Returns whether a request was admitted in the first; None: there is nothing more to do.
        Raises BadSize: a wrong stream.
        """
        size, growing, arrivals, cache = self._size, self._growing, self.arrivals, self._cache
        if self._finished:
            for group in self._finished:
                del self._running[group.place]
                growing[(1 - group.base) % size] -= 1
                held = group.base + self.step
                self._tokens -= held
                self._release(group, held, held // size)
            self._decoding -= len(self._finished)
        if not self._running and self.draining:
            return None
        if self._timed:
            now_ns = self._clock // PS_PER_NS
            arrivals.draw(now_ns)
            if not (self._running or self._preempted or arrivals.waiting):
                self._clock = max(self._clock, PS_PER_NS * arrivals.idle_until(now_ns))
        self.step = step = self.step + 1
        phase = step % size
        left = self._budget
        if left is not None:
            left = max(0, left - self._decoding)
        self._swapped = prefill = 0
        if self._prefilling:
            assert left is not None
            prefill = self._grow_in_chunks(phase, left)
            left -= prefill
        else:
            need = growing[phase]
            self._gave_way = need > self._free and (cache is None or need > self._free + cache.idle)
            if self._gave_way:
                self._give_way(need, phase, {})
                need = growing[phase]
            self._free -= need
            if self._free < 0:
                self._take(0)
            self._tokens += self._decoding
        self._admitted = False
        self._floor = 0
        if self._gave_way or self._blocked > self._free:
            # Whoever lost the room a moment ago may even find it now: in the next step.
            self._why = _SHORT
        elif self._preempted or arrivals.waiting:
            prefill += self._admit(left)
        else:
            self._why = _NOBODY
        self._settle(prefill, due)
        return self._admitted

    # -- who runs goes on ------------------------------------------------------------------------

    def _grow_in_chunks(self, phase: int, left: int) -> int:
        """Give those who run their blocks, and prompts their chunks; return the tokens of these."""
        need = self._growing[phase]
        chunks: dict[int, tuple[int, int]] = {}
        for place, group in self._prefilling.items():
            target = group.prompt + group.generated
            chunk = min(target - group.computed, left)
            left -= chunk
            after = group.computed + chunk
            more = -(-after // self._size) - group.blocks
            chunks[place] = chunk, more
            need += more
        self._gave_way = need > self._free + (0 if self._cache is None else self._cache.idle)
        if self._gave_way:
            self._give_way(need, phase, chunks)
        self._take(self._growing[phase])
        self._tokens += self._decoding
        for place, (chunk, _) in chunks.items():
            self._compute(self._prefilling[place], chunk)
        return sum(chunk for chunk, _ in chunks.values())

    def _give_way(self, need: int, phase: int, chunks: dict[int, tuple[int, int]]) -> None:
        """Preempt who was admitted last, until the others have the blocks that they need."""
        cache = self._cache
        while need > self._free + (0 if cache is None else cache.idle):
            place, group = self._running.popitem()
            held = group.computed if group.last < 0 else group.base + self.step - 1
            full = held // self._size
            if group.last >= 0:
                self._ending[group.last].remove(group)
                own = (1 - group.base) % self._size
                self._growing[own] -= 1
                need -= own == phase
                self._decoding -= 1
                group.generated = held + 1 - group.prompt
                group.last = -1
                group.limit = full
            else:
                del self._prefilling[place]
                need -= chunks.pop(place)[1]
            group.lost = max(group.lost, held)
            self._tokens -= held
            self._preempted.append(group)
            self._counts["preemptions"] += 1
            self.watch.give_way(group.number, self._clock)
            if self._swapping:
                group.host = self._to_host(-(-held // self._size))
            self._release(group, held, full)
        self._blocked = 0

    def _take(self, count: int) -> None:
        """Take blocks, idle ones where the free ones do not suffice."""
        self._free -= count
        if self._free < 0:
            assert self._cache is not None
            self._cache.evict(-self._free)
            self._free = 0

    def _cover(self, group: Group, held: int) -> None:
        """Take the blocks for so many tokens, and publish those that they fill."""
        more = -(-held // self._size) - group.blocks
        self._take(more)
        group.blocks += more
        if group.filled < len(group.keys) and (full := held // self._size) > group.filled:
            assert self._cache is not None
            group.own += (self._cache.publish(group.keys[group.filled : full]),)
            group.filled = full

    def _release(self, group: Group, held: int, full: int) -> None:
        """Give up the blocks of so many tokens, the first ones being full."""
        self._free -= -held // self._size
        if (cache := self._cache) is None:
            return
        group.keep(cache, full)
        if group.own:
            own = group.own[0] if len(group.own) == 1 else np.concatenate(group.own)
            group.own = ()
            self._free -= own.size
            self._duplicates -= cache.release(own)

    def _compute(self, group: Group, chunk: int) -> None:
        """Compute so many tokens; with the last of its prompt's a request begins to decode."""
        again = min(group.computed + chunk, group.lost) - group.computed
        if again > 0:
            self._counts["recomputed_tokens"] += again
        group.computed += chunk
        self._tokens += chunk
        target = group.prompt + group.generated
        if group.computed < target:
            self._cover(group, group.computed)
            self._prefilling[group.place] = group
            return
        if self._cache is None:
            self._free -= -(-target // self._size) - group.blocks
        else:
            self._cover(group, target)
        if self._prefilling:
            self._prefilling.pop(group.place, None)
        self._decoding += 1
        group.base = base = target - self.step
        group.last = last = group.prompt + group.output - 1 - base
        self._growing[(1 - base) % self._size] += 1
        self._beginning.append(group)
        if last in self._ending:
            self._ending[last].append(group)
        else:
            self._ending[last] = [group]
            heapq.heappush(self._ends, last)

    # -- who comes in ----------------------------------------------------------------------------

    def _admit(self, left: int | None) -> int:
        """Admit who fits; return the prompt tokens computed."""
        preempted, waiting, looked = self._preempted, self.arrivals.waiting, self._looked
        size, cache, ahead = self._size, self._cache, self._ahead
        self._why = _NOBODY
        self._blocked = 0
        self._spent = False
        self.arrivals.now_ns = self._clock // PS_PER_NS
        prefill = at = hits = idle_hits = 0
        while at <= ahead:
            nth = at - len(preempted)
            if nth < 0:
                group = preempted[-1 - at]
            elif nth < len(waiting):
                if nth == len(looked):
                    prompt, output, arrival, keys, tenant = waiting[nth]
                    numbered = NO_KEYS if cache is None else cache.numbered(keys)
                    limit = (prompt - 1) // size
                    looked.append(Group(prompt, output, arrival, numbered, tenant, limit=limit))
                group = looked[nth]
            else:
                break
            needed = -(-(group.prompt + group.generated) // size)
            available = self._free
            if cache is not None:
                hits, idle_hits = group.look(cache)
                needed += idle_hits - hits
                available += cache.idle
            why = _NOBODY
            if needed > available:
                why = _SHORT
            elif self._running and needed > available - self._watermark:
                why = _WATERMARK
            elif len(self._running) >= self._max_running:
                why = _LIMIT
            elif left == 0:
                why = _BUDGET
            if why:
                if at == 0:
                    self._why = why
                    if why == _SHORT and cache is None and not ahead:
                        # Nothing of this can change before there are so many.
                        self._blocked = needed
                    if why != _SHORT:
                        self._floor = needed + (0 if why == _WATERMARK else self._watermark)
                if why >= _LIMIT:
                    self._spent = why == _BUDGET
                    break
                at += 1
                continue
            if nth < 0:
                del preempted[-1 - at]
            else:
                del waiting[nth], looked[nth]
            chunk = self._start(group, hits, left)
            if left is not None:
                left -= chunk
            prefill += chunk
            self._admitted = True
            self.arrivals.taken(outstanding=len(self._running) + len(preempted))
        return prefill

    def _start(self, group: Group, hits: int, left: int | None) -> int:
        """Admit a request that found so many blocks; return the tokens computed of it."""
        counts, size = self._counts, self._size
        computed = self._found(group, hits)
        if group.number < 0:
            group.number = counts["admitted"]
            counts["admitted"] += 1
            counts["prompt_tokens"] += group.prompt
            if self._cache is not None:
                counts["queried_tokens"] += group.prompt
                counts["hit_tokens"] += computed
                self.watch.look_up(group.tenant, group.prompt, computed)
        elif group.host:
            computed = max(computed, group.lost)
            counts["swapped_in"] += (blocks := -(-computed // size) - hits)
            self._swapped += blocks
        chunk = group.prompt + group.generated - computed
        if left is not None:
            chunk = min(chunk, left)
        self._places += 1
        group.place = self._places
        self._running[group.place] = group
        group.blocks = group.filled = hits
        if self._cache is not None:
            missed = group.keys[hits : group.limit]
            counts["ghost_hits"] += self._cache.ghosts(missed)
            if (held := group.found(hits)).size:
                group.own = (held,)
                self._duplicates += self._cache.hold(held)
            self._cover(group, min(computed + chunk, max(group.prompt, hits * size + 1)))
        group.computed = computed
        self._tokens += computed
        self._compute(group, chunk)
        return chunk

    # -- what is moved to the host and back ------------------------------------------------------

    def _found(self, group: Group, hits: int) -> int:
        """Tokens of a request that are cached, the pool having so many blocks of it."""
        return hits * self._size

    def _to_host(self, blocks: int) -> int:
        """Move blocks to the host; return how many it takes, all or none."""
        self._counts["swapped_out"] += blocks
        self._swapped += blocks
        return blocks

    def _moved_ps(self, spent: int) -> int:
        """Picoseconds by which the moves of this step make it longer than `spent`."""
        return self._swapped * self._size * self._time.swap_ns_per_token * PS_PER_NS

    # -- how long it took, and what is counted ---------------------------------------------------

    def _settle(self, prefill: int, due: int) -> None:
        """Let the step's time pass, take those behind it that are alike, and count them all."""
        tokens, beginning, cache = self._tokens, self._beginning, self._cache
        spent = self._step_ps + prefill * self._prompt_ps + tokens * self._read_ps
        if self._swapped:
            spent += self._moved_ps(spent)
        self._clock = now = self._clock + spent
        self._computed += prefill
        if going := self._decoding - len(beginning):
            self._note_gap(spent, going)
        if beginning:
            for group in beginning:
                self.watch.begin(group.number, group.arrival, now, group.tenant)
            beginning.clear()
        count, free = len(self._running), self._free
        idle = 0 if cache is None else cache.idle
        if count > self.peak_running:  # noqa: PLR1730 - twice as fast
            self.peak_running = count
        finished = self._finished = self._ending.pop(self.step, None)

        steps, available, sum_available, sum_free = 1, free + idle, free + idle, free
        if finished is None and count and not self._prefilling:
            span = self._alike(count, due)
            if span > 0:
                span, available, fell, fell_free = falling(
                    self._growing, self.step, span, available, idle, self._floor, count
                )
                steps += span
                sum_available += fell
                sum_free += fell_free
                if cache is None:
                    self._free = available
                else:
                    self._take(free + idle - available)
                self._take_time(span, count)
                self._token_sum += span * tokens + count * (span * (span + 1) // 2)
                self._tokens += span * count
                self.step += span
        self._token_sum += tokens
        self._free_sum += sum_free
        self._running_sum += steps * count
        self._least = min(self._least, available)
        if cache is not None:
            self._idle_sum += sum_available - sum_free
            self._duplicate_sum += steps * self._duplicates
        if self._prefilling:
            self._prefilling_sum += len(self._prefilling)
        if why := self._why:
            self._waits[why] += steps
            self._queued_sum += steps * (len(self._preempted) + len(self.arrivals.waiting))
            if why <= _WATERMARK:
                self._waiting_free += sum_free
        if finished:
            self._complete(finished, count)

    def _note_gap(self, spent: int, requests: int) -> None:
        gaps = self._gaps
        gaps[spent] = gaps.get(spent, 0) + requests
        if len(gaps) > MOST_GAPS:
            self.watch.itl.add_all(gaps)

    def _complete(self, finished: list[Group], running: int) -> None:
        """Note who got its last token."""
        self.completed += len(finished)
        for group in finished:
            self.watch.end(group.number, self._clock, group.output)
        if self.arrivals.closed:
            self.arrivals.now_ns = self._clock // PS_PER_NS
            outstanding = running - len(finished) + len(self._preempted)
            self.arrivals.taken(outstanding=outstanding)

    # -- steps that are alike --------------------------------------------------------------------

    def _alike(self, count: int, due: int) -> int:
        """Steps until before `due`, or before somebody comes or ends, if there are blocks enough.

        Whoever waits for room goes on waiting: those who run take more of it.
        """
        ends = self._ends
        while ends[0] <= self.step:
            heapq.heappop(ends)
        span = min(ends[0], due) - 1 - self.step
        if span < 1:
            return 0
        if why := self._why:
            # The head may not have been looked at last; what it needs may change with its hits; and
            # what prompts took of the budget is there again in the next step, for whoever wants it.
            if (
                (self._ahead and (self._admitted or self._gave_way))
                or (self._cache is not None and (self._gave_way or why != _SHORT))
                or (self._spent and self._decoding < (self._budget or 0))
            ):
                return 0
        elif self._admitted and self.draining:
            return 0  # a moment that is looked at
        if (upcoming := self.arrivals.next_ns) is not None:
            longer = count * self._read_ps
            first = self._step_ps + self._tokens * self._read_ps + longer
            return min(span, steps_within(upcoming * PS_PER_NS - self._clock, first, longer))
        return span

    def _take_time(self, span: int, count: int) -> None:
        """Let the time of steps pass in which nothing is computed but a token for each."""
        longer = count * self._read_ps
        first = self._step_ps + self._tokens * self._read_ps + longer
        if longer:
            self.watch.itl.add_run(first, longer, span, count)
        else:
            self._note_gap(first, span * count)
        self._clock += taken_ps(span, first, longer)


def serve_by_counts(
    requests: Iterable[Request],
    policy: PagedPolicy,
    *,
    slots: int,
    warmup: int = 0,
    time: StepTime | None = None,
    clients: int | None = None,
    slo: Slo | None = None,
    layout: Layout | None = None,
    kind: Callable[..., CountingServer] = CountingServer,
) -> Serving:
    """Serve a stream of requests, as `paged.scheduler.serve` does; `policy.by_counts` has to hold.

    Keys that come as an int64 array are taken to be numbers from 0 on, of which few are left out.
    `kind` makes the server: one that does more than the usual one. With a `layout` slots are bytes,
    and it takes the compiled one.

    Raises BadSize: the policy needs blocks to be told apart, a number is out of range, the arrivals
    fall or some are missing, or the stream is empty.
    """
    if not policy.by_counts:
        raise BadSize(f"{policy}: counts do not decide this policy; use paged.scheduler")
    time = time or StepTime()
    setting = Setting(
        policy=policy, slots=slots, time=time, clients=clients, slo=slo, layout=layout
    )
    make: Callable[..., CountingServer | CompiledServer] = kind
    if kind is CountingServer and can_serve(setting):
        make = CompiledServer
    elif layout is not None:
        raise BadSize("groups by counts without a C compiler: use paged.grouped")
    server = make(requests, setting)
    series: Series[Snapshot | Moment] = Series()
    warm = server.snapshot() if warmup == 0 else None
    done = None
    while (admitted := server.take_steps(series.due, warmup if warm is None else None)) is not None:
        if admitted and server.draining:
            done = server.snapshot()
        if warm is None and server.completed >= warmup:
            warm = server.snapshot()
        if server.step >= series.due:
            series.add(server.snapshot())

    whole = server.snapshot()
    at = [None if moment is None else moment.snapshot() for moment in (whole, warm, done)]
    total, *between = (None if moment is None else setting.counters(moment) for moment in at)
    assert total is not None
    return Serving.of(
        total,
        [setting.counters(moment.snapshot()) for moment in series.moments],
        warm=between[0],
        done=between[1],
        service=server.service(),
        tiers=server.tiers,
        uses=[() if moment is None else setting.uses(moment) for moment in at],
        peak_running=server.peak_running,
        peak_requests=server.peak_running,
        peak_allocated=server.peak_allocated,
    )
