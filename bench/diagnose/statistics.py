"""The figures that tell causes apart, each with its 90 % interval. What cannot be told is absent.

Shares of samples and of counts have Beta intervals, rates Gamma intervals (Jeffreys' priors);
quantiles of histograms have the bucket that holds them, whatever lies inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from bench.diagnose.changes import Change, changes_in
from bench.diagnose.observed import Floats
from bench.diagnose.reuse import reuse
from bench.diagnose.window import Gain, Window

FEW: Final = 4
"""Samples of a window below which its shares and changes are not told."""


SLOWEST: Final = 0.998
"""Quantile of what is rare and felt: one step in a few seconds."""


class Stat(NamedTuple):
    """One figure of one window."""

    value: float
    low: float
    high: float
    """Of its 90 % interval."""
    series: str
    """What it was made of."""
    start_s: float
    end_s: float


Stats = Mapping[str, Stat]


class _Made:
    """Statistics of a window, as they are found."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.found: dict[str, Stat] = {}

    def put(
        self, name: str, value: float, series: str, low: float | None = None, high: float = math.nan
    ) -> None:
        """Keep a figure that is one."""
        if math.isfinite(value):
            low, high = (value, value) if low is None else (low, high)
            start, end = self.window.start_s, self.window.end_s
            self.found[name] = Stat(value, low, high, series, start, end)

    def share(self, name: str, part: float, whole: float, series: str) -> None:
        """Keep a share of counts."""
        if whole > 0:
            part = min(max(part, 0.0), whole)
            low, high = _beta(part, whole)
            self.put(name, part / whole, series, low, high)

    def rate(self, name: str, count: float, per: float, series: str) -> None:
        """Keep a count for each of something."""
        if per > 0:
            low, high = _poisson(count)
            self.put(name, count / per, series, low / per, high / per)

    def quantile(
        self, name: str, gain: Gain | None, share: float, series: str, unit: float = 1.0
    ) -> None:
        """Keep a quantile of a histogram, in units of `unit`."""
        if gain is not None and gain.samples >= 1 and unit > 0:
            low, high = gain.quantile(share)
            self.put(name, gain.middle(share) / unit, series, low / unit, high / unit)


def _beta(part: float, whole: float) -> tuple[float, float]:
    from scipy.special import betaincinv

    a, b = part + 0.5, whole - part + 0.5
    return float(betaincinv(a, b, 0.05)), float(betaincinv(a, b, 0.95))


def _poisson(count: float) -> tuple[float, float]:
    from scipy.special import gammaincinv

    return float(gammaincinv(count + 0.5, 0.05)), float(gammaincinv(count + 0.5, 0.95))


def statistics(window: Window) -> dict[str, Stat]:
    """All figures of a window."""
    made = _Made(window)
    for part in (_queue, _memory, _speed, _traffic, _hits, _events, _configured):
        part(made)
    return made.found


def changes(window: Window) -> list[Change]:
    """What changed within the window, earliest first."""
    if window.samples < 7:
        return []
    ends = window.times_s[1:]
    found = [
        each
        for name, values in signals(window).items()
        for each in changes_in(name, ends if len(values) == len(ends) else window.times_s, values)
    ]
    return sorted(found, key=lambda each: each.time_s)


def signals(window: Window) -> dict[str, Floats]:
    """The series in which a change is looked for: levels, and rates between samples."""
    seconds = np.diff(window.times_s)
    of: dict[str, Floats | None] = {
        "arrivals": arrivals(window),
        "token_latency": _means(window, "itl_s"),
        "hit_rate": _ratio(window.gains("prefix_hits"), window.gains("prefix_queries")),
        "usage": window.gauge("usage"),
        "running": window.gauge("running"),
        "waiting": window.gauge("waiting"),
        "preemptions": _ratio(window.gains("preemptions"), seconds),
        "prompt_length": _means(window, "prompt_length"),
        "output_length": _means(window, "output_length"),
        "first_token_latency": _means(window, "ttft_s"),
    }
    return {name: values for name, values in of.items() if values is not None}


def arrivals(window: Window) -> Floats | None:
    """Requests that arrived, a second, between each two samples: those that began, and the queue's
    growth. What was given up in the queue is not seen.
    """
    began, waiting = window.gains("ttft_s"), window.gauge("waiting")
    if began is None:
        began = window.gains("finished")
    if began is None:
        return None
    grown = 0.0 if waiting is None else np.diff(waiting)
    return np.asarray(np.maximum(began + grown, 0) / np.diff(window.times_s))


def _ratio(part: Floats | None, whole: Floats | None) -> Floats | None:
    if part is None or whole is None:
        return None
    with np.errstate(all="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _means(window: Window, name: str) -> Floats | None:
    return _ratio(window.sums(name), window.gains(name))


def _queue(made: _Made) -> None:
    window = made.window
    running, waiting = window.gauge("running"), window.gauge("waiting")
    usage = window.gauge("usage")
    if waiting is None or window.samples < FEW:
        return
    queued = waiting[1:] > 0
    n = len(queued)
    # Samples that follow one another are not independent: a third of them counts.
    low, high = _beta(queued.sum() / 3, n / 3)
    made.put("waiting_share", float(queued.mean()), "waiting", low, high)
    if queued.any():
        made.put("waiting_burst", float(waiting.max() / (waiting.mean() + 1)), "waiting")
    if usage is not None and queued.sum() >= 2:
        held = usage[1:][queued]
        low, high = np.quantile(held, (0.05, 0.95))
        spread = (high - low) / math.sqrt(len(held))
        mean = float(held.mean())
        made.put("usage_while_waiting", mean, "usage", mean - spread, mean + spread)
    if running is not None and queued.sum() >= 2:
        pinned = (running[1:] >= running.max() - 0.5) & queued
        low, high = _beta(pinned.sum() / 3, queued.sum() / 3)
        made.put("pinned_share", pinned.sum() / queued.sum(), "running", low, high)
        stuck = (running[1:] == 0) & queued
        made.put("stuck_samples", float(_longest(stuck)), "running")
    reasons = window.gauge("waiting_by", reason="deferred")
    if reasons is not None and waiting.sum() > 0:
        made.put("deferred_share", float(reasons.sum() / waiting.sum()), "waiting_by")
    if (fetch := window.gauge("kv_fetch")) is not None:
        made.put("fetching_share", float((fetch > 0).mean()), "kv_fetch")


def _sustained_growth(times_s: Floats, came: Floats) -> float:
    """The largest step up between levels that last a fifth of the window: a burst is none."""
    found = changes_in("arrivals", times_s, came)
    if not found:
        return 1.0
    edges = [float(times_s[0]), *(each.time_s for each in found), float(times_s[-1])]
    levels = [*(each.before for each in found), found[-1].after]
    least = 0.2 * (edges[-1] - edges[0])
    lasting = [
        level
        for level, (start, end) in zip(levels, pairwise(edges), strict=True)
        if end - start >= least
    ]
    steps = [(after + 0.02) / (before + 0.02) for before, after in pairwise(lasting)]
    return max([1.0, *steps])


def _grown(found: Change) -> float:
    """The level after by that before; from next to nothing is not without bounds."""
    return (found.after + 0.02) / (found.before + 0.02)


def _longest(flags: np.ndarray) -> int:
    longest = length = 0
    for flag in flags.tolist():
        length = length + 1 if flag else 0
        longest = max(longest, length)
    return longest


def _memory(made: _Made) -> None:
    window = made.window
    usage, running = window.gauge("usage"), window.gauge("running")
    if (preempted := window.gained("preemptions")) is not None:
        if done := _counted(window):
            made.rate("preemptions_per_request", preempted, done, "preemptions")
        elif guessed := _running_minutes(window):
            value = preempted / guessed
            made.put("preemptions_per_request", value, _GUESSED, value / 3, value * 3)
    if (tokens := window.gained("retracted_tokens")) is not None:
        made.rate(
            "preemptions_per_request", tokens, window.gained("prompt_tokens") or 0, "retracted"
        )
    if usage is not None and window.samples >= FEW:
        made.put("usage_top", float(np.quantile(usage, 0.95)), "usage")
        made.put("usage_mean", float(usage.mean()), "usage")
        third = max(len(usage) // 3, 1)
        early, late = float(usage[:third].mean()), float(usage[-third:].mean())
        made.put("usage_growth", (late + 0.01) / (early + 0.01), "usage")
    idle = _idle_usage(window)
    if idle is not None:
        made.put("usage_at_idle", idle, "usage")
    pool = pool_tokens(window)
    if pool:
        made.quantile(
            "longest_prompt", window.histogram("prompt_length"), 0.99, "prompt_length", pool
        )
        made.quantile(
            "longest_output", window.histogram("output_length"), 0.99, "output_length", pool
        )
    if (outputs := window.histogram("output_length")) is not None and outputs.samples >= 8:
        made.put("output_spread", outputs.middle(0.99) / max(outputs.mean, 1), "output_length")
    ratio = window.gauge("new_token_ratio")
    if ratio is not None:
        made.put("new_token_ratio", float(ratio.mean()), "new_token_ratio")
    if running is not None and usage is not None and window.samples >= FEW:
        busy = running > 0
        each = usage[busy] / running[busy]
        if len(each) >= 6:
            third = len(each) // 3
            made.put(
                "usage_per_request_growth",
                float((each[-third:].mean() + 1e-4) / (each[:third].mean() + 1e-4)),
                "usage",
            )


_GUESSED: Final = "preemptions, a minute taken for each request"


def _counted(window: Window) -> float:
    """Requests of a window, by the first of the counters that knows any."""
    for names in (("finished", "ttft_s"), ("admitted",), ("http",)):
        if found := max(window.gained(name) or 0.0 for name in names):
            return found
    return 0.0


def _running_minutes(window: Window) -> float:
    """What stands for the number of requests in a log that counts none: minutes they ran."""
    running = window.gauge("running")
    if running is None or not any(each.origin == "log" for each in window.series("preemptions")):
        return 0.0
    return float(max(running.max(), running.mean() * window.seconds / 60))


def _idle_usage(window: Window) -> float | None:
    """The lowest usage of the samples after work, where nobody ran or waited."""
    whole = Window(window.observed, window.engine, window.start_s, math.inf)
    usage, running, waiting = (whole.gauge(name) for name in ("usage", "running", "waiting"))
    if usage is None or running is None:
        return None
    idle = (running == 0) & (True if waiting is None else waiting == 0)
    idle[0] = False
    # The first idle sample may have been taken while the last request was being let go.
    settled = idle[1:] & idle[:-1]
    return float(usage[1:][settled].min()) if settled.any() else None


def pool_tokens(window: Window) -> float:
    """Tokens that the pool holds; 0: not said."""
    config = window.observed.config
    for name, factor in (("pool_tokens", 1.0), ("num_blocks", config.get("block_size", 0))):
        value = config.get(name)
        if isinstance(value, float) and isinstance(factor, float) and value * factor > 0:
            return value * factor
    return 0.0


def _speed(made: _Made) -> None:
    window = made.window
    latency, first = window.histogram("itl_s"), window.histogram("ttft_s")
    prefill = window.histogram("prefill_s")
    steps = window.histogram("step_tokens")
    if latency is not None and latency.samples >= 20:
        made.put("token_latency", latency.mean, "itl_s")
        (_, usual), (least, _) = latency.quantile(0.5), latency.quantile(SLOWEST)
        ratio = latency.middle(SLOWEST) / max(latency.middle(0.5), 1e-6)
        made.put("latency_spread", ratio, "itl_s", least / max(usual, 1e-6), ratio)
    if first is not None:
        made.put("first_token_latency", first.mean, "ttft_s")
    if steps is not None and steps.samples:
        made.put("step_tokens", steps.mean, "step_tokens")
        made.quantile("largest_step", steps, SLOWEST, "step_tokens")
    if prefill is not None and latency is not None and latency.mean > 0:
        made.put("prefill_steps", prefill.mean / latency.mean, "prefill_s")
    prompts, hits = window.gained("prompt_tokens"), window.gained("prefix_hits")
    if prompts is not None and latency is not None and window.seconds > 0 and latency.samples >= 20:
        computed = max(prompts - (hits or 0.0), 0.0)
        made.put(
            "prompt_tokens_per_step", computed / window.seconds * latency.mean, "prompt_tokens"
        )
    if (slower := _slowdown(window)) is not None:
        made.put("slowdown", slower, "itl_s")


def _slowdown(window: Window) -> float | None:
    """Latency of a token late by early, at as many running requests; a step of few is no slower."""
    means, running = _means(window, "itl_s"), window.gauge("running")
    if means is None or running is None or window.samples < 7:
        return None
    drafts, accepted = window.gains("drafts"), window.gains("accepted_tokens")
    if drafts is not None and accepted is not None:
        # With speculative decoding a step gives more than one token, and how many is no speed.
        means = means * (1 + accepted / np.maximum(drafts, 1))
    level = (running[1:] + running[:-1]) / 2
    known = np.isfinite(means) & (means > 0)
    means, level = means[known], level[known]
    if len(means) < 6:
        return None
    rises = [c for c in changes_in("itl_s", np.arange(float(len(means))), means) if c.ratio > 1]
    at = int(max(rises, key=lambda each: each.ratio).time_s) if rises else len(means) // 2
    before, after = slice(None, at), slice(at, None)
    low = max(level[before].min(), level[after].min())
    high = min(level[before].max(), level[after].max())
    one, two = ((level[part] >= low) & (level[part] <= high) for part in (before, after))
    if one.sum() >= 2 and two.sum() >= 2:
        return float(np.median(means[after][two]) / np.median(means[before][one]))
    grown = max(np.median(level[after]) / max(np.median(level[before]), 0.5), 1.0)
    return float(np.median(means[after]) / np.median(means[before]) / grown**0.3)


def _traffic(made: _Made) -> None:
    window = made.window
    came = arrivals(window)
    if came is not None and window.samples >= 7:
        made.put("arrivals_growth", _sustained_growth(window.times_s[1:], came), "arrivals")
    _lost(made)
    answers = {status: window.gained("http", status=status) or 0.0 for status in _STATUSES}
    if (served := sum(answers.values())) >= 5:
        made.share("refused_share", answers["4xx"], served, "http")
    finished, began = window.gained("finished"), window.gained("ttft_s")
    if (rejected := window.gained("rejections")) is not None:
        made.share(
            "rejected_share", rejected, rejected + max(finished or 0, began or 0), "rejections"
        )
    if (aborted := window.gained("aborted")) is not None and finished:
        made.share("lost_share", aborted, aborted + finished, "aborted")
    # A scrape that got no answer is no restart: a busy server is late, too.
    again = [t for t in window.resets_s if window.start_s <= t <= window.end_s]
    made.put("restarts", float(len(again)), "resets")
    log = window.requests
    if log is not None and (log.tenant != "").any():
        _, counts = np.unique(log.tenant, return_counts=True)
        made.share("largest_tenant", float(counts.max()), float(len(log)), "requests")


def _lost(made: _Made) -> None:
    """Requests that began, or were answered, and neither finished nor run.

    A client that disconnects is in no counter of vLLM's. Where all that is open is dropped at one
    moment, as at the end of a test, nobody gave up: the moments that lose most are left out.
    """
    window = made.window
    running, waiting = window.gauge("running"), window.gauge("waiting")
    finished = window.gains("finished")
    if finished is None or running is None:
        return
    held = np.diff(running if waiting is None else running + waiting)
    for name, labels in (("ttft_s", {}), ("http", {"status": "2xx"})):
        came = window.gains(name, **labels)
        if name == "http" and not window.alone:
            continue  # of all engines behind one door
        if came is None or came.sum() < 5:
            continue
        lost = came - finished - (held if name == "ttft_s" else 0.0)
        kept = np.sort(lost)[: -max(2, len(lost) // 20)]
        made.share("lost_share", float(kept.sum()), float(came.sum()), name)


_STATUSES: Final = ("2xx", "4xx", "5xx")


def _hits(made: _Made) -> None:
    window = made.window
    queries, hits = window.gains("prefix_queries"), window.gains("prefix_hits")
    prompts = window.gains("prompt_tokens")
    if queries is None and hits is not None:
        queries = prompts  # SGLang counts the tokens of prompts, and those of them that were cached
    if queries is None and prompts is not None and window.series("prefix_queries"):
        queries = np.zeros_like(prompts)
    if queries is not None and prompts is not None and prompts.sum() > 0:
        made.put("queried", float(queries.sum() / prompts.sum()), "prefix_queries")
    if queries is not None and hits is not None and queries.sum() > 0:
        made.put("hit_rate", float(hits.sum() / queries.sum()), "prefix_hits")
        rates = _ratio(hits, queries)
        assert rates is not None
        if window.samples >= 7:
            drops = changes_in("hit_rate", window.times_s[1:], rates)
            lowest = min(drops, key=_grown, default=None)
            made.put("hit_rate_change", 1.0 if lowest is None else _grown(lowest), "prefix_hits")
    elif (rate := window.gauge("hit_rate")) is not None and len(rate) and hits is None:
        scale = 100.0 if rate.max() > 1 else 1.0
        made.put("hit_rate", float(rate[-1]) / scale, "hit_rate")
    size = window.observed.config.get("block_size")
    if isinstance(size, float) and size > 0:
        made.quantile(
            "prompt_blocks", window.histogram("prompt_length"), 0.5, "prompt_length", size
        )
    idle, gap = window.histogram("block_idle_s"), window.histogram("reuse_gap_s")
    if idle is not None and idle.samples >= 10 and gap is not None and gap.samples >= 10:
        made.put("residence", idle.mean / max(gap.middle(0.9), 1e-3), "block_idle_s")


def _configured(made: _Made) -> None:
    config = made.window.observed.config
    if isinstance(on := config.get("prefix_caching"), bool):
        made.put("caching_off", float(not on), "configuration")
    for name in {fact.name for fact in made.window.observed.facts}:
        times = [fact.time_s for fact in made.window.observed.facts if fact.name == name]
        count = float(len(times))
        made.found[f"log_{name}"] = Stat(count, count, count, "log", min(times), max(times))
    for free in made.window.observed.free_maps:
        hole, whole = float(free.holes.max(initial=0)), float(free.holes.sum())
        if free.wanted is not None and hole < free.wanted <= whole:
            made.put("free_in_holes", whole / free.slots, "free map")


def _events(made: _Made) -> None:
    events = made.window.events
    found = None if events is None else reuse(events)
    if found is None:
        return
    made.share("stored_again", found.again, found.stored, "events")
    made.share("roots_again", found.roots_again, found.roots, "events")
    if found.blocks_again:
        made.share("few_again", found.blocks_again, found.stored - found.again, "events")
    made.share("turns", found.turns, found.prompts, "events")
    if found.known:
        made.share("stored_elsewhere", found.elsewhere, found.known, "events")
        made.share("stored_salted", found.salted, found.known, "events")
