"""What a change would do: the server that was seen, simulated, and then changed.

The stream is rebuilt from the window: when requests arrived, their lengths, what they share, the
pool, the limits and how long steps take. The simulated server must first do what the real one did:
preempt as often, hold as much, find as much in the cache, queue as many. Where it does not, nothing
is promised of changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.diagnose.observed import Floats
from bench.diagnose.record import Fidelity, Prediction, Prescription
from bench.diagnose.statistics import arrivals, pool_tokens
from bench.diagnose.window import Window
from paged.accounting import Counters, Serving
from paged.arrivals import Request
from paged.clock import StepTime
from paged.errors import BadSize
from paged.policy import PagedPolicy
from paged.scheduler import serve

MOST_REQUESTS: Final = 5000
"""Requests of a window that are simulated; a longer one is cut at its end."""

DEFAULT_BUDGET: Final = 8192
"""Tokens of a step where nobody says: vLLM's own default for a server on large GPUs."""

_REPLICA: Final = "a second replica"

_Change = Callable[["Rebuilt"], "Rebuilt"]


@dataclass(frozen=True)
class Rebuilt:
    """The server that was seen, and its requests."""

    requests: list[Request]
    policy: PagedPolicy
    slots: int
    time: StepTime
    seconds: float
    """Length of the window."""
    clients: int | None = None
    """As many requests always ran or waited: each that finished made way for the next."""


def prescribe(window: Window) -> Prescription:
    """Simulate the window, and changes if that comes out as it was."""
    try:
        base = rebuilt(window)
    except _NotEnough as missing:
        return _none(str(missing), [])
    try:
        served = _serve(base)
    except BadSize as error:
        return _none(f"the simulator does not take it: {error}", [])
    fidelity = _fidelity(window, base, served)
    wrong = [f.quantity for f in fidelity if abs(f.seen - f.simulated) > f.tolerance]
    if wrong:
        return _none(f"the simulation misses {', '.join(wrong)}", fidelity)
    predictions = [_predicted("as it is", base, served)]
    for change, apply in _changes(base).items():
        try:
            changed = apply(base)
            predictions.append(_predicted(change, changed, _serve(changed)))
        except BadSize:
            continue  # a pool or a limit that one of the requests does not fit
    return Prescription(reproduced=True, fidelity=fidelity, predictions=predictions)


class _NotEnough(Exception):
    """What is missing, in words."""


def _none(why: str, fidelity: list[Fidelity]) -> Prescription:
    return Prescription(reproduced=False, fidelity=fidelity, predictions=[], why_not=why)


def rebuilt(window: Window) -> Rebuilt:
    """Rebuild the server from what was seen of it."""
    config = window.observed.config
    size, slots = config.get("block_size"), int(pool_tokens(window))
    if not slots or not isinstance(size, float):
        raise _NotEnough("the size of the pool or of its blocks is not known")
    if window.resets_s and window.start_s < window.resets_s[-1] < window.end_s:
        raise _NotEnough("the server restarted in the window")
    moments = _arrivals(window)
    prompts, outputs = _lengths(window, len(moments))
    block = int(size)
    if config.get("engine") == "vllm":
        slots -= block  # its first block stands for none
    running = window.gauge("running")
    limit = config.get("max_num_seqs")
    if not isinstance(limit, float) and _pinned(window) and running is not None:
        limit = float(running.max())
    budget = config.get("token_budget")
    policy = PagedPolicy(
        block_size=block,
        max_running=int(limit) if isinstance(limit, float) else None,
        token_budget=int(budget) if isinstance(budget, float) else DEFAULT_BUDGET,
        watermark=float(config.get("watermark") or 0.0),
        prefix_caching=config.get("prefix_caching") is not False,
    )
    shared = 0.0
    queries, hits = window.gained("prefix_queries"), window.gained("prefix_hits")
    if queries and hits and policy.prefix_caching:
        shared = hits / queries
    longest = slots - block
    requests = []
    for number, row in enumerate(zip(prompts.tolist(), outputs.tolist(), moments, strict=True)):
        prompt = min(int(row[0]), longest - 1)
        output = max(min(int(row[1]), longest - prompt), 1)
        keys = _keys(number, prompt, block, shared) if policy.prefix_caching else ()
        requests.append(Request(prompt, output, int(1e9 * row[2]), keys))
    seconds = min(window.seconds, float(moments[-1]) + 1 if len(moments) else 0.0)
    time, clients = _step_time(window), _clients(window)
    if clients is not None:
        requests = [each._replace(arrival_ns=None) for each in requests]
        clients = min(clients, len(requests))
    return Rebuilt(requests, policy, slots, time, max(seconds, 1e-3), clients)


def _clients(window: Window) -> int | None:
    """Requests that run or wait, if they are always as many."""
    running, waiting = window.gauge("running"), window.gauge("waiting")
    if running is None or waiting is None:
        return None
    held = running + waiting
    inside = held[len(held) // 10 + 1 : -(len(held) // 5 + 1)]
    middle = float(np.median(inside)) if len(inside) else 0.0
    return int(middle) if middle >= 2 and np.abs(inside - middle).mean() < 0.03 * middle else None


def _pinned(window: Window) -> bool:
    running, waiting = window.gauge("running"), window.gauge("waiting")
    if running is None or waiting is None or not (waiting > 0).any():
        return False
    return bool((running[waiting > 0] == running.max()).mean() > 0.8)


def _arrivals(window: Window) -> Floats:
    """Seconds after the start at which requests arrived: evenly between two scrapes."""
    log = window.requests
    if log is not None and len(log) >= 8:
        inside = (log.arrival_s >= window.start_s) & (log.arrival_s <= window.end_s)
        return np.sort(log.arrival_s[inside])[:MOST_REQUESTS] - window.start_s
    came = arrivals(window)
    if came is None or window.samples < 7:
        raise _NotEnough("when requests arrived is not known")
    times = window.times_s - window.start_s
    total = np.concatenate([[0.0], np.cumsum(came * np.diff(times))])
    number = int(total[-1])
    if number < 8:
        raise _NotEnough(f"only {number} requests arrived")
    return np.asarray(np.interp(np.arange(number) + 0.5, total, times))[:MOST_REQUESTS]


def _lengths(window: Window, number: int) -> tuple[Floats, Floats]:
    """Lengths of prompts and outputs, in the order in which requests finished."""
    log = window.requests
    if log is not None and len(log) == number and np.isfinite(log.prompt + log.output).all():
        return log.prompt, log.output
    random = np.random.default_rng(0)
    prompts, outputs = (_finished(window, name, random) for name in _LENGTHS)
    if min(len(prompts), len(outputs)) < 8:
        raise _NotEnough("the lengths of the requests are not known")
    each = np.arange(number)
    return prompts[each * len(prompts) // number], outputs[each * len(outputs) // number]


_LENGTHS: Final = ("prompt_length", "output_length")


def _finished(window: Window, name: str, random: np.random.Generator) -> Floats:
    """A length for each request that finished: the mean of its bucket.

    What a histogram's sum gained between two scrapes is that of as many requests of each bucket as
    were counted, so that the means of the buckets follow by least squares.
    """
    from scipy.optimize import lsq_linear

    bounds, gains = window.buckets(name)
    sums = window.sums(name)
    if sums is None or not len(bounds):
        return np.empty(0)
    used = gains.sum(axis=0) > 0
    if not used.any():
        return np.empty(0)
    lower = np.concatenate([[0.0], bounds[:-1]])[used]
    upper = np.where(np.isfinite(bounds), bounds, 4 * bounds[max(len(bounds) - 2, 0)])[used]
    means = lsq_linear(gains[:, used], sums, bounds=(lower, upper + 1e-9)).x
    parts = []
    for row in np.rint(gains[:, used]).astype(int):
        part = np.repeat(means, np.maximum(row, 0))
        random.shuffle(part)
        parts.append(part)
    return np.asarray(np.maximum(np.rint(np.concatenate(parts)), 1))


def _keys(number: int, prompt: int, block: int, shared: float) -> tuple[int, ...]:
    """As large a part of each prompt as was found in the cache is one that all begin with."""
    common = round(shared * prompt / block)
    first = 1_000_000 * (number + 1)
    return (*range(1, common + 1), *range(first, first + max(prompt // block - common, 0)))


def _step_time(window: Window) -> StepTime:
    """A step's duration: one part for each, one for each token of a prompt that it computes."""
    from scipy.optimize import nnls

    counts, sums = window.gains("itl_s"), window.sums("itl_s")
    prompts, hits = window.gains("prompt_tokens"), window.gains("prefix_hits")
    if counts is None or sums is None or counts.sum() < 20:
        raise _NotEnough("how long a step takes is not known")
    known = counts > 0
    took = sums[known] / counts[known]
    seconds = np.diff(window.times_s)[known]
    # A token's latency has in it how long its request was preempted; the time of a step has not.
    if (steps := window.gains("step_tokens")) is not None:
        took = np.minimum(took, seconds / np.maximum(steps[known], 1))
    computed = np.zeros_like(took) if prompts is None else prompts[known]
    if prompts is not None and hits is not None:
        computed = np.maximum(computed - hits[known], 0)
    each = computed * took / seconds  # steps follow one another while there is work
    usage = window.gauge("usage")
    held = np.zeros_like(took) if usage is None else usage[1:][known] * pool_tokens(window)
    weight = np.sqrt(counts[known])
    columns = np.stack([np.ones_like(took), each, held], axis=1) * weight[:, None]
    # Where all samples are alike, what a step takes and what its tokens take cannot be told apart:
    # a slight pull gives it to the step.
    pull = np.diag(0.03 * np.linalg.norm(columns, axis=0) * np.array([0.0, 1.0, 1.0]))
    sides = np.concatenate([took * weight, np.zeros(3)])
    (step, token, kv), _ = nnls(np.concatenate([columns, pull]), sides)
    step = max(step, 0.2 * float(took.min()), 1e-4)
    return StepTime(
        step_ns=int(1e9 * step),
        prefill_ns_per_token=int(1e9 * token),
        kv_ps_per_token=int(1e12 * kv),
    )


def _serve(server: Rebuilt) -> Serving:
    return serve(
        server.requests, server.policy, slots=server.slots, time=server.time, clients=server.clients
    )


def _within(server: Rebuilt, served: Serving) -> Counters:
    """What had happened by the end of the window; what comes after is nobody's to compare."""
    end_ns = int(1e9 * server.seconds)
    return max(
        (moment for moment in served.series if moment.time_ns <= end_ns),
        key=lambda moment: moment.time_ns,
        default=served.total,
    )


def _fidelity(window: Window, base: Rebuilt, served: Serving) -> list[Fidelity]:
    done = _within(base, served)
    result: list[Fidelity] = []

    def compare(quantity: str, seen: float | None, simulated: float, tolerance: float) -> None:
        if seen is not None:
            result.append(
                Fidelity(quantity=quantity, seen=seen, simulated=simulated, tolerance=tolerance)
            )

    number = len(base.requests)
    preempted = window.gained("preemptions")
    allowed = max(0.25 * (preempted or 0), 0.05 * number)
    compare("preemptions", preempted, done.preemptions, allowed)
    usage, waiting = window.gauge("usage"), window.gauge("waiting")
    # Of what a step sees while it works; an idle server has none.
    busy = slice(1, None)
    if usage is not None:
        compare("usage", float(usage[busy].mean()), done.share(done.allocated), 0.1)
    if waiting is not None:
        queue = float(waiting[busy].mean())
        compare("waiting requests", queue, _queue(base, done), max(0.3 * queue, 1.0))
    queries, hits = window.gained("prefix_queries"), window.gained("prefix_hits")
    if queries and hits is not None and base.policy.prefix_caching:
        compare("hit rate", hits / queries, done.hit_rate, 0.07)
    return result


def _queue(server: Rebuilt, done: Counters) -> float:
    """Requests that wait, on average: of a fixed number of clients, all that do not run."""
    steps = max(done.steps, 1)
    waiting = done.queued / steps
    if server.clients is not None:
        waiting = server.clients - done.running_requests / steps
    return waiting


def _predicted(change: str, server: Rebuilt, served: Serving) -> Prediction:
    service = served.service
    assert service is not None
    done = _within(server, served)
    ttft = service.ttft
    span = max(done.time_ns / 1e9, 1e-9)
    servers = 2 if change == _REPLICA else 1
    # Clients that are served faster ask more: the requests of the window end before it does.
    longer = server.seconds / span if server.clients is not None else 1.0
    return Prediction(
        change=change,
        requests_per_s=servers * done.completed / span,
        ttft_p50_s=None if ttft is None or server.clients else ttft.p50_ns / 1e9,
        preemptions=round(servers * longer * done.preemptions),
        mean_wait_s=_queue(server, done) * span / max(done.completed, 1),
    )


def _changes(base: Rebuilt) -> dict[str, _Change]:
    """What can be changed, in words."""

    def policy(**changes: Any) -> _Change:
        return lambda server: replace(server, policy=replace(server.policy, **changes))

    budget, limit = base.policy.token_budget or DEFAULT_BUDGET, base.policy.max_running
    changes: dict[str, _Change] = {
        "50 % more blocks": lambda server: replace(server, slots=server.slots * 3 // 2),
        "watermark 5 %": policy(watermark=0.05),
        f"token budget {4 * budget:,}": policy(token_budget=4 * budget),
        "look past the head, 8 deep": policy(look_ahead=8),
        _REPLICA: _halved,
    }
    if limit is not None:
        changes[f"max_num_seqs {2 * limit}"] = policy(max_running=2 * limit)
    held = _most_running(base)
    if held >= 2 and held != limit:
        changes[f"max_num_seqs {held}"] = policy(max_running=held)
    return changes


def _halved(server: Rebuilt) -> Rebuilt:
    """What one of two replicas gets."""
    if server.clients is not None:
        return replace(server, clients=max(server.clients // 2, 1))
    return replace(server, requests=server.requests[::2])


def _most_running(base: Rebuilt) -> int:
    """Requests of mean final length that the pool holds at once, or the limit where it is lower."""
    final: NDArray[np.float64] = np.array(
        [each.prompt_tokens + each.output_tokens for each in base.requests], dtype=np.float64
    )
    held = int(base.slots / max(float(final.mean()), 1.0))
    return min(held, base.policy.max_running or held)
