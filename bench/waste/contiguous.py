"""A request stream through a contiguous cache, every slot of every step accounted for.

Continuous batching as in Orca: each running request gets a token per step, and its piece of the
cache is reserved as a whole before the first. In each step

1. the pieces of the requests that ended with the step before are freed,
2. running requests get one token each,
3. waiting requests are admitted in order, while a hole is large enough,
4. the state is counted: of a request with prompt `i` and output `o` first `i + 1` tokens, at last
   `i + o`, in `o` steps altogether.

Between two events (a request ends, or arrives) only the tokens grow, by one per request and step,
so what lies between is added up in closed form. All sums are exact integers.

A saturated stream (no arrival times) is a backlog: of those who wait, one has arrived, and the next
arrives when somebody is admitted. In a timed stream a request has arrived in the first step that
begins at or after its arrival. The clock begins at 0; while nobody runs and nobody waits it jumps
to the next arrival, and there are no steps.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import starmap
from typing import Final, get_args

from paged.accounting import Counters, IdentityBroken, Series, Serving
from paged.arrivals import Request, checked_requests
from paged.clock import PS_PER_NS, StepTime, steps_within, taken_ps
from paged.errors import checked_size
from paged.latency import Slo, Watch
from reference.allocator.arenas import ARENAS, RESERVATIONS, Arena, ArenaName, ReservationName

NEVER: Final = sys.maxsize
"""A step, a number of requests or of completions that no run reaches."""

_STEP_TIME: Final = StepTime()

Piece = tuple[int, int, int, int, int, int]
"""Address; slots granted, slots requested, final and current tokens; number of the request."""

Observer = Callable[[int, list[Piece]], None]

BACKLOG: Final = -1
"""The arrival of a request that has none."""

# Number in the stream, prompt and output tokens, arrival, slots requested and granted. A request
# that can never fit requests 0 slots.
_Request = tuple[int, int, int, int, int, int]

# Last step, number in the stream, address, final tokens, slots requested and granted, output.
_Running = tuple[int, int, int, int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContiguousPolicy:
    """How a contiguous cache is shared out."""

    reservation: ReservationName
    """How many slots a request asks for: "max", "pow2" or "oracle" (`reference.allocator.arenas`).
    """
    arena: ArenaName
    """Where its piece lies and how it is rounded up: "buddy", "first-fit" or "best-fit"."""
    max_model_len: int
    """Most tokens of a request, prompt and output. Longer ones are refused."""
    look_ahead: int = 0
    """Requests behind the head of the queue that may be admitted past it, when it finds no hole. 0:
    first come, first served."""
    max_running: int | None = None
    """Most requests that run at once; None: as many as fit."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("reservation", self.reservation, get_args(ReservationName)),
            ("arena", self.arena, get_args(ArenaName)),
        ):
            if value not in known:
                raise ValueError(f"{name} = {value!r}: choose one of {', '.join(known)}")
        checked_size("max_model_len", self.max_model_len, at_least=1)
        checked_size("look_ahead", self.look_ahead, at_least=0)
        if self.max_running is not None:
            checked_size("max_running", self.max_running, at_least=1)


def serve_contiguous(
    requests: Iterable[tuple[int, int, int | None]],
    policy: ContiguousPolicy,
    *,
    slots: int,
    warmup: int = 0,
    time: StepTime = _STEP_TIME,
    slo: Slo | None = None,
    observe: Observer | None = None,
    observe_every: int = 1,
) -> Serving:
    """Serve a stream to its end, and say where the slots were.

    The stream, (prompt tokens, output tokens, arrival in nanoseconds or None) in order of arrival,
    is read as it is served: memory grows with the requests that run or wait. All requests have an
    arrival or none has one. `time` is how long a step takes, `slo` what `Serving.service` counts as
    good. After `warmup` completions `Serving.loaded` begins. `observe` gets the step and the pieces
    of the running requests, by address, at the end of every `observe_every`th step.
    """
    slots = checked_size("slots", slots, at_least=1)
    warmup = checked_size("warmup", warmup, at_least=0)
    observe_every = checked_size("observe_every", observe_every, at_least=1)
    arena = ARENAS[policy.arena](slots)
    stream = _read(requests, policy, arena)
    allocate, release = arena.allocate, arena.free
    max_running = NEVER if policy.max_running is None else policy.max_running
    window = policy.look_ahead + 1
    watch = Watch(slo)

    upcoming = next(stream, None)
    if upcoming is None:
        raise ValueError("the stream is empty: give at least one request")
    timed = upcoming[3] != BACKLOG
    waiting: deque[_Request] = deque()
    running: list[_Running] = []  # a heap: who ends first
    # Number and arrival of those who get their first token in the next step.
    beginning: list[tuple[int, int | None]] = []

    # Sums over the requests that run now: their number, what they will hold, asked for and got,
    # and their tokens at the end of the last step.
    batch = final = requested = granted = tokens = 0
    # Sums of these over the steps so far; the clock is in picoseconds.
    steps = now = 0
    token = final_steps = requested_steps = granted_steps = running_steps = 0
    free_frag = free_short = free_idle = 0
    waiting_frag = waiting_short = waiting_limit = queued = 0
    arrived = admitted = completed = refused = prompt_tokens = 0
    peak_batch = peak_granted = 0

    def so_far() -> Counters:
        return Counters(
            slots=slots,
            steps=steps,
            token=token,
            reserve=final_steps - token,
            internal=requested_steps - final_steps,
            roundup=granted_steps - requested_steps,
            free_frag=free_frag,
            free_short=free_short,
            free_idle=free_idle,
            logical_token=token,
            running=running_steps,
            running_requests=running_steps,
            queued=queued,
            waiting_short=waiting_short,
            waiting_frag=waiting_frag,
            waiting_limit=waiting_limit,
            arrived=arrived,
            admitted=admitted,
            completed=completed,
            refused=refused,
            prompt_tokens=prompt_tokens,
            computed_tokens=prompt_tokens + running_steps,
            generated_tokens=running_steps,
            time_ns=now // PS_PER_NS,
        )

    series: Series[Counters] = Series()
    series_due = series.due
    picture_due = NEVER if observe is None else observe_every
    warm_at = warmup or NEVER
    warm = None if warmup else so_far()
    done: Counters | None = None

    while upcoming is not None or waiting or running:
        # Who has arrived. Of a backlog, as many as may be looked at.
        if timed:
            if upcoming is not None and not waiting and not running:
                now = max(now, upcoming[3] * PS_PER_NS)
            while upcoming is not None and upcoming[3] * PS_PER_NS <= now:
                waiting.append(upcoming)
                arrived += 1
                upcoming = next(stream, None)
        else:
            while upcoming is not None and len(waiting) < window:
                waiting.append(upcoming)
                upcoming = next(stream, None)

        # Who is admitted. Space only shrinks meanwhile: what was too large once still is.
        prefill = index = 0
        too_large = NEVER
        while index < window and index < len(waiting):
            number, prompt, output, arrival, asked, taken = waiting[index]
            if not asked:
                refused += 1
            elif batch == max_running:
                break
            elif taken >= too_large:
                index += 1
                continue
            else:
                address = allocate(asked)
                if address is None:
                    too_large = taken
                    index += 1
                    continue
                end = prompt + output
                heappush(running, (steps + output, number, address, end, asked, taken, output))
                beginning.append((number, None if arrival == BACKLOG else arrival))
                admitted += 1
                prefill += prompt
                batch += 1
                final += end
                requested += asked
                granted += taken
            del waiting[index]
            if upcoming is not None and not timed:
                waiting.append(upcoming)
                upcoming = next(stream, None)
        prompt_tokens += prefill
        tokens += prefill
        if not timed:
            arrived = admitted + refused + bool(waiting)

        if not batch:
            if waiting:
                raise IdentityBroken(
                    f"request {waiting[0][0]} finds no hole in an empty pool: {arena.num_free} of "
                    f"{slots} slots are free, the largest hole has {arena.largest_hole}"
                )
            continue
        peak_batch = max(peak_batch, batch)
        peak_granted = max(peak_granted, granted)

        # Until when nothing happens.
        until = min(running[0][0], series_due, picture_due)
        drained = upcoming is None and not waiting and done is None
        if drained:
            until = steps + 1
        # The first of the steps computes the prompts.
        first = time.step_ps(prefill=prefill, read=tokens + batch)
        second = time.step_ps(prefill=0, read=tokens + 2 * batch)
        longer = time.kv_ps_per_token * batch
        if timed and upcoming is not None:
            late = upcoming[3] * PS_PER_NS - now - first
            until = min(until, steps + 1 + steps_within(late, second, longer))
        span = until - steps
        watch.go_on(first, batch - len(beginning))
        for number, arrived_ns in beginning:
            watch.begin(number, arrived_ns, now + first)
        beginning.clear()
        watch.itl.add_run(second, longer, span - 1, batch)
        now += first + taken_ps(span - 1, second, longer)

        # What happened until then.
        free = arena.num_free
        if not waiting:
            free_idle += span * free
        else:
            queued += span * (len(waiting) if timed else 1)
            _, _, _, _, asked, taken = waiting[0]
            if asked > free:
                free_short += span * free
                waiting_short += span
            elif batch < max_running or taken > arena.largest_hole:
                free_frag += span * free
                waiting_frag += span
            else:
                free_idle += span * free
                waiting_limit += span
        new = span * batch
        token += span * tokens + new * (span + 1) // 2
        tokens += new
        running_steps += new
        final_steps += span * final
        requested_steps += span * requested
        granted_steps += span * granted
        steps = until

        if steps == picture_due and observe is not None:
            observe(steps, _pieces(running, steps))
            picture_due += observe_every
        while running and running[0][0] == steps:
            _, number, address, end, asked, taken, output = heappop(running)
            watch.end(number, now, output)
            release(address)
            completed += 1
            batch -= 1
            tokens -= end
            final -= end
            requested -= asked
            granted -= taken
        if completed >= warm_at:
            warm = so_far()
            warm_at = NEVER
        if drained:
            done = so_far()
        if steps == series_due:
            series.add(so_far())
            series_due = series.due

    total = so_far()
    return Serving.of(
        total,
        series.moments,
        warm=warm,
        # Where the last request is refused while nobody runs, no step follows.
        done=done or total,
        service=watch.service(),
        peak_running=peak_batch,
        peak_requests=peak_batch,
        peak_allocated=peak_granted,
    )


def _read(
    requests: Iterable[tuple[int, int, int | None]], policy: ContiguousPolicy, arena: Arena
) -> Iterator[_Request]:
    reserve = RESERVATIONS[policy.reservation]
    max_model_len = policy.max_model_len
    granted = arena.granted
    largest = arena.largest_hole
    checked = checked_requests(starmap(Request, requests))
    for number, (prompt, output, arrival_ns, _, _) in enumerate(checked):
        asked = taken = 0
        if prompt + output <= max_model_len:
            asked = reserve(prompt, output, max_model_len)
            taken = granted(asked)
            if taken > largest:
                asked = 0
        arrival = BACKLOG if arrival_ns is None else arrival_ns
        yield number, prompt, output, arrival, asked, taken


def _pieces(running: list[_Running], steps: int) -> list[Piece]:
    return sorted(
        (address, taken, asked, final, final - (last - steps), number)
        for last, number, address, final, asked, taken, _ in running
    )
