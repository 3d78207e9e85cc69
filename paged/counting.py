"""A paged server in numbers: which blocks are whose does not matter, only how many there are.

While no block is shared, the course of events follows from counts. `paged.scheduler` moves every
block of the same server; what both can do comes out equal to the last slot-step, which a property
test holds them to. This one is an order of magnitude faster, for sweeps over long streams.

What makes it so: a sequence that decodes needs a block whenever its length passes a multiple of the
block size. So the sequences are counted by the step, modulo the block size, in which they need one,
and a step costs the same however many of them run. Steps in which nobody waits are taken at once.
"""

from __future__ import annotations

from collections.abc import Iterable

from paged.accounting import Counters, Series, Serving
from paged.arrivals import Arrivals, Request
from paged.clock import PS_PER_NS, StepTime, steps_within, taken_ps
from paged.errors import BadSize, checked_size
from paged.latency import Slo, Watch
from paged.policy import PagedPolicy

MOST_GAPS = 4096
"""Different durations of steps that are held before they go into classes."""


def serve_by_counts(
    requests: Iterable[Request],
    policy: PagedPolicy,
    *,
    slots: int,
    warmup: int = 0,
    time: StepTime | None = None,
    clients: int | None = None,
    slo: Slo | None = None,
) -> Serving:
    """Serve a stream of requests, as `paged.scheduler.serve` does; `policy.by_counts` has to hold.

    Raises BadSize: the policy needs blocks to be told apart, a number is out of range, the arrivals
    fall or some are missing, or the stream is empty.
    """
    if not policy.by_counts:
        raise BadSize(f"{policy}: counts do not decide this policy; use paged.scheduler")
    size = policy.block_size
    num_blocks = checked_size("slots", slots, at_least=size) // size
    remainder = slots - num_blocks * size
    watermark = policy.watermark_blocks(num_blocks)
    max_running = policy.max_running or num_blocks
    swapping = policy.preemption == "swap"
    room = num_blocks * size
    arrivals = Arrivals(
        requests, clients=clients, fits=lambda request: request[0] + request[1] <= room
    )
    waiting, timed = arrivals.waiting, arrivals.timed
    time = time or StepTime()
    step_ps, token_ps = time.step_ns * PS_PER_NS, time.prefill_ns_per_token * PS_PER_NS
    read_ps, swap_ps = time.kv_ps_per_token, time.swap_ns_per_token * PS_PER_NS * size
    watch = Watch(slo)

    # A running sequence holds `base + step` tokens at the end of a step: (base, last step, prompt,
    # number of the request), in order of admission. `ending` has their keys by last step, `growing`
    # how many they are by the step, modulo the block size, in which they need a block.
    running: dict[int, tuple[int, int, int, int]] = {}
    ending: dict[int, list[int]] = {}
    growing = [0] * size
    finished: list[int] | None = None
    # (prompt, final tokens, tokens held before, number); who is to come back first stands last.
    preempted: list[tuple[int, int, int, int]] = []
    # Number and arrival of those who got a token in this step and none in the one before.
    beginning: list[tuple[int, int | None]] = []

    # Durations of steps, and how many requests each of them kept waiting for their next token.
    gaps: dict[int, int] = {}

    # The clock is in picoseconds.
    clock = step = key = 0
    free, tokens = num_blocks, 0
    token_sum = free_sum = running_sum = queued_sum = 0
    short_steps = watermark_steps = limit_steps = waiting_free = 0
    admitted = completed = preemptions = swapped_out = swapped_in = 0
    prompt_tokens = recomputed = 0
    peak_running, least_free = 0, num_blocks
    series = Series()
    due = series.due
    warm: Counters | None = None
    done: Counters | None = None

    def moment() -> Counters:
        allocated = (num_blocks * step - free_sum) * size
        free_short = waiting_free * size + remainder * (short_steps + watermark_steps)
        return Counters(
            slots=slots,
            steps=step,
            token=token_sum,
            internal=allocated - token_sum,
            free_short=free_short,
            free_idle=slots * step - allocated - free_short,
            logical_token=token_sum,
            running=running_sum,
            running_requests=running_sum,
            queued=queued_sum,
            waiting_short=short_steps,
            waiting_watermark=watermark_steps,
            waiting_limit=limit_steps,
            arrived=arrivals.count,
            admitted=admitted,
            completed=completed,
            refused=arrivals.refused,
            preemptions=preemptions,
            swapped_out=swapped_out,
            swapped_in=swapped_in,
            prompt_tokens=prompt_tokens,
            computed_tokens=prompt_tokens + recomputed + running_sum,
            recomputed_tokens=recomputed,
            generated_tokens=running_sum,
            time_ns=clock // PS_PER_NS,
        )

    if warmup == 0:
        warm = moment()
    while True:
        if finished is not None:
            for at in finished:
                base, last, _, _ = running.pop(at)
                free += -(-(base + last) // size)
                growing[(1 - base) % size] -= 1
                tokens -= base + last
            finished = None
        if timed:
            arrivals.draw(clock // PS_PER_NS)
        if not running and not waiting and not preempted:
            if not arrivals.more:
                break
            clock = max(clock, PS_PER_NS * arrivals.idle_until(clock // PS_PER_NS))
        step += 1

        # Growth: who was admitted last gives way until the others have the blocks they need.
        phase = step % size
        swapped = 0
        need = growing[phase]
        while need > free:
            at, (base, last, prompt, number) = running.popitem()
            held = base + step - 1
            ending[last].remove(at)
            blocks = -(-held // size)
            free += blocks
            tokens -= held
            own = (1 - base) % size
            growing[own] -= 1
            if own == phase:
                need -= 1
            preempted.append((prompt, base + last, held, number))
            preemptions += 1
            watch.give_way(number, clock)
            if swapping:
                swapped_out += blocks
                swapped += blocks
        free -= need
        tokens += len(running)

        # Admission, in order. Whoever has just given way stands first and does not fit: of the
        # blocks that it gave up at least one was needed, and it would take as many or more.
        prefill = 0
        why = 0
        some = False
        while True:
            if preempted:
                prompt, final, held, number = preempted[-1]
                arrival = None
            elif waiting:
                prompt, output, arrival, _, _ = waiting[0]
                final = prompt + output
                held = prompt
                number = admitted
            else:
                why = _NOBODY
                break
            blocks = held // size + 1
            if blocks > free:
                why = _SHORT
                break
            if running and blocks > free - watermark:
                why = _WATERMARK
                break
            if len(running) >= max_running:
                why = _LIMIT
                break
            free -= blocks
            tokens += held + 1
            base = held + 1 - step
            last = final - base
            key += 1
            running[key] = (base, last, prompt, number)
            growing[(1 - base) % size] += 1
            if last in ending:
                ending[last].append(key)
            else:
                ending[last] = [key]
            some = True
            if preempted:
                preempted.pop()
                beginning.append((number, arrival))
                if swapping:
                    swapped_in += -(-held // size)
                    swapped += -(-held // size)
                else:
                    recomputed += held
                    prefill += held
            else:
                waiting.popleft()
                beginning.append((number, arrival))
                admitted += 1
                prompt_tokens += prompt
                prefill += prompt
                arrivals.taken(outstanding=len(running))

        # Time.
        spent = step_ps + prefill * token_ps + tokens * read_ps + swapped * swap_ps
        clock += spent
        count = len(running)
        if going := count - len(beginning):
            gaps[spent] = gaps.get(spent, 0) + going
            if len(gaps) > MOST_GAPS:
                watch.itl.add_all(gaps)
        if beginning:
            for number, arrival in beginning:
                watch.begin(number, arrival, clock)
            beginning.clear()

        # Counting.
        token_sum += tokens
        free_sum += free
        running_sum += count
        peak_running = max(peak_running, count)
        least_free = min(least_free, free)
        if why:
            queued_sum += len(waiting) + len(preempted)
            if why == _SHORT:
                short_steps += 1
                waiting_free += free
            elif why == _WATERMARK:
                watermark_steps += 1
                waiting_free += free
            else:
                limit_steps += 1
        finished = ending.pop(step, None)
        if finished is not None:
            completed += len(finished)
            for at in finished:
                base, last, prompt, number = running[at]
                watch.end(number, clock, base + last - prompt)
            if arrivals.closed:
                arrivals.now_ns = clock // PS_PER_NS
                arrivals.taken(outstanding=count - len(finished) + len(preempted))
            if warm is None and completed >= warmup:
                warm = moment()
        if some and not (preempted or waiting or arrivals.more):
            done = moment()
        if step >= due:
            series.add(moment())
            due = series.due
        if why or waiting or preempted or finished is not None or not count:
            continue

        # Nobody waits: the steps until somebody ends or arrives only grow, and are taken at once.
        first, longer = step_ps + (tokens + count) * read_ps, count * read_ps
        span = min(*ending, due) - 1 - step
        if (upcoming := arrivals.next_ns) is not None:
            span = min(span, steps_within(upcoming * PS_PER_NS - clock, first, longer))
        if count * (span // size + 1) > free:
            span = size * (free // count - 1)
        if span < 1:
            continue
        rounds, rest = divmod(span, size)
        taken = beyond = 0
        for offset in range(1, size + 1):
            # Blocks that are gone by this step of a round, in each round that gets so far.
            taken += growing[(step + offset) % size]
            times = rounds + (offset <= rest)
            free_sum += times * (free - taken) - count * (times * (times - 1) // 2)
            if offset == rest:
                beyond = taken
        free -= rounds * count + beyond
        least_free = min(least_free, free)
        watch.itl.add_run(first, longer, span, count)
        clock += taken_ps(span, first, longer)
        token_sum += span * tokens + count * (span * (span + 1) // 2)
        tokens += span * count
        running_sum += span * count
        step += span

    watch.itl.add_all(gaps)
    return Serving.of(
        moment(),
        series,
        warm=warm,
        done=done,
        service=watch.service(),
        peak_running=peak_running,
        peak_requests=peak_running,
        peak_allocated=(num_blocks - least_free) * size,
    )


_NOBODY, _SHORT, _WATERMARK, _LIMIT = range(4)
