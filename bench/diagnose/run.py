"""From what was observed to the verdict: engine by engine, then together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.diagnose.changes import Change
from bench.diagnose.drawn import series_of
from bench.diagnose.findings import FINDINGS
from bench.diagnose.holes import worst
from bench.diagnose.inference import (
    Fitted,
    Posterior,
    fitted,
    hits_open,
    infer,
    proven,
    ratio,
    seen,
)
from bench.diagnose.modes import HEALTHY, MODES
from bench.diagnose.observed import Observed, Source
from bench.diagnose.record import (
    Candidate,
    Cause,
    Diagnosis,
    Evidence,
    Figure,
    Given,
    Moment,
    Prescription,
    Ruled,
)
from bench.diagnose.replicas import replica_statistics
from bench.diagnose.statistics import FEW, Stat, Stats, changes, statistics
from bench.diagnose.unseen import missing, unseen
from bench.diagnose.window import Window, windows

SAID: Final = 0.5
"""Probability from which a cause is said to be one."""

BESIDE: Final = 0.35
"""Probability from which it is said beside another."""

SLIGHT: Final = 0.2
"""Change of a level, as a share of it, that is not worth a line."""

SILENT: Final = 3
"""Scrapes without an answer at the end from which a server is thought to be gone."""

MAYBE: Final = 0.08
"""Probability from which it is named where nothing can be told."""


@dataclass(frozen=True)
class Examined:
    """One engine."""

    window: Window
    stats: Stats
    changes: list[Change]
    posterior: Posterior


def diagnose(observed: Observed, fit: Fitted | None = None, *, simulate: bool = False) -> Diagnosis:
    """Say what is wrong, as far as it can be told; with `simulate` also what changes would do."""
    fit = fit or fitted()
    examined = examine(observed, fit)
    together = _together(examined)
    healthy = together[HEALTHY] + sum(together[m] for m, mode in MODES.items() if mode.healthy)
    ill = {m: p for m, p in together.items() if m in MODES and not MODES[m].healthy}
    found = [m for m, p in ill.items() if p >= (SAID if p == max(ill.values()) else BESIDE)]
    told = any(_tells(each) for each in examined)
    if max(ill.values(), default=0) < SAID:
        found = []
    causes, consequences = _ordered(found, examined)
    common = {
        "figures": {each.window.engine: _figures(each.stats) for each in examined},
        "probabilities": together,
        "config": dict(observed.config),
        "given": [_given(source) for source in observed.sources],
        "timeline": _timeline(examined, observed),
        "series": series_of(examined),
        "holes": [holes.says for holes in worst(observed.free_maps)],
        "unseen": unseen(examined, observed, told=told),
        "prescription": _prescription(causes, examined) if simulate and told else None,
    }
    bare = [m for m in causes if not any(proven(m, each.posterior.holds) for each in examined)]
    causes = [mode for mode in causes if mode not in bare]
    if causes and told:
        made = [_cause(mode, together, examined, fit) for mode in causes]
        return Diagnosis(
            verdict="found",
            says="; and ".join(each.says for each in made),
            confidence=made[0].confidence,
            causes=made,
            consequences=[MODES[mode].says for mode in consequences],
            candidates=[_candidate(mode, together[mode]) for mode in bare],
            deciding=_deciding([*bare, *causes], examined, fit) if bare else "",
            **common,
        )
    open_ = any(hits_open(each.posterior.holds) for each in examined)
    blank = _blank(examined, observed)
    sure = fit.confidence(healthy) >= SAID
    if healthy >= SAID and sure and told and not open_ and not blank:
        shares = {m: together[m] for m, mode in MODES.items() if mode.healthy}
        likeliest = max(shares, key=shares.__getitem__)
        says = MODES[likeliest].says if shares[likeliest] > 0.15 else "healthy"
        return Diagnosis(
            verdict="healthy",
            says=says,
            confidence=fit.confidence(healthy),
            causes=[],
            consequences=[],
            candidates=[],
            deciding="",
            **common,
        )
    rest = {"healthy": healthy, **ill, "other": together["other"]}
    alike = {other for mode in bare for other in MODES[mode].unlike}
    candidates = [
        _candidate(mode, probability)
        for mode, probability in sorted(rest.items(), key=lambda each: -each[1])
        if told and (probability >= MAYBE or mode in alike) and not (blank and mode == "healthy")
    ]
    return Diagnosis(
        verdict="cannot tell",
        says=(blank if told and healthy >= SAID else "")
        or _cannot(candidates, bare, examined, told=told, hits=open_ and healthy >= SAID),
        confidence=0.0,
        causes=[],
        consequences=[],
        candidates=candidates,
        deciding=_deciding([each.mode for each in candidates], examined, fit),
        **common,
    )


def _prescription(causes: list[str], examined: list[Examined]) -> Prescription:
    """Of the engine that has the first cause most, or of the busiest."""
    from bench.diagnose.prescribe import prescribe

    if causes:
        return prescribe(max(examined, key=lambda e: e.posterior.causes[causes[0]]).window)
    return prescribe(max(examined, key=lambda e: e.window.gained("finished") or 0.0).window)


def examine(observed: Observed, fit: Fitted) -> list[Examined]:
    """Look at each engine by itself; what replicas have in common is a figure of each."""
    every = windows(observed)
    common = replica_statistics(every)
    result = []
    for window in every:
        stats = {**statistics(window), **common}
        result.append(Examined(window, stats, changes(window), infer(seen(stats), fit)))
    return result


def _tells(examined: Examined) -> bool:
    """Whether there is enough to tell anything: one scrape says nothing of now."""
    return examined.window.samples >= FEW or any(
        name.startswith("log_") or name in {"free_in_holes", "stored_again"}
        for name in examined.stats
    )


def _together(examined: Iterable[Examined]) -> dict[str, float]:
    """Of each cause the highest probability of an engine; healthy is who is so everywhere."""
    found: dict[str, float] = {}
    healthy, other = 1.0, 0.0
    for each in examined:
        posterior = each.posterior
        healthy, other = min(healthy, posterior.healthy), max(other, posterior.other)
        for mode, probability in posterior.causes.items():
            found[mode] = max(found.get(mode, 0.0), probability)
    all_of = {HEALTHY: healthy if found else 0.0, **found, "other": other}
    return dict(sorted(all_of.items(), key=lambda each: -each[1]))


def ranked(probabilities: Mapping[str, float]) -> list[str]:
    """Causes by rank: what leads to another stands before it, if it is likely itself."""
    order = [mode for mode in probabilities if mode != "other"]
    likely = {mode for mode in order if probabilities[mode] >= BESIDE}
    led = {led for mode in likely if mode in MODES for led in MODES[mode].leads_to}
    first = [mode for mode in order if mode in likely and mode not in led]
    return first + [mode for mode in order if mode not in first]


def _ordered(found: list[str], examined: list[Examined]) -> tuple[list[str], list[str]]:
    """Causes, the earliest first, and what follows from them."""
    followed = {
        led for mode in found for led in MODES[mode].leads_to if _before(mode, led, examined)
    }
    causes = [mode for mode in found if mode not in followed]
    if not causes:  # two that lead to each other
        return found, []
    followed = {
        led
        for mode in causes
        for led in MODES[mode].leads_to
        if led in found or any(_shows(led, each.posterior.holds) for each in examined)
    }
    starts = {mode: _since(mode, examined) for mode in causes}
    known = sorted(starts.values(), key=lambda t: t if t is not None else math.inf)
    if None not in known:
        causes.sort(key=lambda mode: starts[mode] or 0.0)
    return causes, [mode for mode in MODES if mode in followed and mode not in causes]


def _shows(mode: str, holds: Mapping[str, float]) -> bool:
    """Whether all that a mode requires was seen to hold; without a symptom nothing forbids it."""
    about = MODES[mode]
    felt = any(FINDINGS[name].symptom for name in about.requires)
    against = not felt and any(holds.get(name, 0.0) > 0.5 for name in about.forbids)
    return not against and all(holds.get(name, 0.0) > 0.5 for name in about.requires)


def _before(mode: str, led: str, examined: list[Examined]) -> bool:
    one, two = _since(mode, examined), _since(led, examined)
    return one is None or two is None or one <= two


def _since(mode: str, examined: list[Examined]) -> float | None:
    """When the signal of a cause changed first: for the worse, of any engine."""
    signal = MODES[mode].change
    falls = signal == "hit_rate"
    times = [
        change.time_s
        for each in examined
        for change in each.changes
        if change.series == signal and (change.after < change.before) == falls
    ]
    return min(times, default=None)


def _figures(stats: Stats) -> dict[str, Figure]:
    return {name: _figure(stat) for name, stat in stats.items()}


def _figure(stat: Stat) -> Figure:
    return Figure(**stat._asdict())


def _cause(
    mode: str, together: Mapping[str, float], examined: list[Examined], fit: Fitted
) -> Cause:
    worst = max(examined, key=lambda each: each.posterior.causes[mode])
    holds = worst.posterior.holds
    rivals = [HEALTHY, *(m for m in together if m in MODES and m != mode)][:3]
    weights = {
        name: sum(ratio(name, sure, mode, rival, fit) for rival in rivals)
        for name, sure in holds.items()
    }
    about = MODES[mode]
    own = {*about.requires, *about.expects}
    evidence: list[Evidence] = []
    first = about.requires[0]
    for name in sorted(own & weights.keys(), key=lambda each: (each != first, -weights[each])):
        stat = worst.stats[FINDINGS[name].stat]
        known = {each.figure for each in evidence}
        if holds[name] > 0.5 and weights[name] > 0 and _figure(stat) not in known:
            weight = ratio(name, holds[name], mode, HEALTHY, fit)
            says = FINDINGS[name].sentence(stat)
            evidence.append(Evidence(finding=name, says=says, figure=_figure(stat), weight=weight))
    likely = [each.window.engine for each in examined if each.posterior.causes[mode] >= BESIDE]
    if about.requires[0] == "uneven":  # a figure of all: the one with the queue
        likely = [max(examined, key=_queued).window.engine]
    return Cause(
        mode=mode,
        says=about.says,
        confidence=fit.confidence(together[mode]),
        tested=about.recorded,
        engines=likely,
        since_s=_since(mode, examined),
        evidence=evidence[:3],
        not_this=_not_this(mode, together, worst, fit),
        remedy=about.remedy,
        alert=about.alert,
    )


def _queued(examined: Examined) -> float:
    gauge = examined.window.gauge("waiting")
    return 0.0 if gauge is None else float(gauge.mean())


def _not_this(
    mode: str, together: Mapping[str, float], worst: Examined, fit: Fitted
) -> list[Ruled]:
    """Look-alikes that it is not, and for each the finding that says so most."""
    alike = [
        other
        for other in MODES[mode].unlike
        if together.get(other, 0) < BESIDE and other not in MODES[mode].leads_to
    ]
    result = []
    for other in alike:
        holds = worst.posterior.holds
        named = MODES[mode].unlike[other]
        if named not in holds and other != HEALTHY and not proven(other, holds):
            continue  # nothing that would show it could be seen
        of_either = _roles(mode) | _roles(other) | {named}
        weighed = {
            name: ratio(name, sure, mode, other, fit)
            for name, sure in holds.items()
            if name in of_either
        }
        if not weighed:
            continue
        best = named if weighed.get(named, 0) > 0.5 else max(weighed, key=weighed.__getitem__)
        if weighed[best] > 0.3 and other != HEALTHY:
            finding, stat = FINDINGS[best], worst.stats[FINDINGS[best].stat]
            result.append(Ruled(mode=other, why=finding.sentence(stat)))
    return result


def _roles(mode: str) -> set[str]:
    """Findings that somebody who knows the mode would name."""
    about = MODES.get(mode)
    return set() if about is None else {*about.requires, *about.expects, *about.forbids}


def _candidate(mode: str, probability: float) -> Candidate:
    return Candidate(mode=mode, says=_words(mode), probability=probability)


def _words(mode: str) -> str:
    if mode == "other":
        return "something that is not known here"
    return "healthy" if mode == HEALTHY else MODES[mode].says


def _blank(examined: list[Examined], observed: Observed) -> str:
    """Why a server on which nothing is wrong cannot be called healthy either. Empty: it can."""
    windows = [each.window for each in examined]
    last_s = max(
        (float(each.times_s[-1]) for each in observed.series if len(each.times_s)), default=0.0
    )
    silent = observed.failed_s[observed.failed_s > last_s]
    if len(silent) >= SILENT:
        return f"it stopped answering: the last {len(silent)} scrapes failed, see its log"
    if not any(_ABOUT_THE_CACHE & each.stats.keys() for each in examined):
        return "nothing waits or is lost, but nothing that was given is about the cache"
    came = [window.gained(name) for window in windows for name in _WORK]
    gauges = [gauge for w in windows if (gauge := w.gauge("running")) is not None]
    if (gauges or any(gain is not None for gain in came)) and not (
        any(came) or any((gauge > 0).any() for gauge in gauges)
    ):
        return "nobody asked the server for anything: record it while it works"
    return ""


_WORK: Final = ("ttft_s", "finished", "prompt_tokens", "generation_tokens")
_ABOUT_THE_CACHE: Final = frozenset(
    {"preemptions_per_request", "usage_top", "hit_rate", "stored_again"}
)


def _cannot(
    candidates: list[Candidate],
    bare: list[str],
    examined: list[Examined],
    *,
    told: bool,
    hits: bool,
) -> str:
    if not told:
        samples = max((each.window.samples for each in examined), default=0)
        if samples == 1:
            return "too little to tell from: one look at a counter says nothing of now"
        given = f"{samples} samples" if samples else "no sample of a known metric"
        return f"too little to tell from: {given}; record at least a minute"
    if hits:
        return "nothing waits or is lost; whether more could be reused cannot be told from this"
    if candidates and candidates[0].mode == "other":
        return "something is wrong, and it is none of the causes that are known here"
    if candidates and candidates[0].mode in bare:
        return f"it looks like {candidates[0].mode}, of which nothing that was given is proof"
    return "it cannot be told which of these it is"


def _deciding(candidates: list[str], examined: list[Examined], fit: Fitted) -> str:
    """The input whose findings tell the first two candidates apart most."""
    modes = [mode for mode in candidates if mode in {HEALTHY, *MODES}]
    if len(modes) < 2 or not examined:
        return ""
    if any(mode in MODES and not MODES[mode].provable for mode in modes[:1]):
        return INPUTS["prompts"]
    weights: dict[str, float] = {}
    of_either = {name for mode in modes[:2] for name in _roles(mode)}
    for name, finding in FINDINGS.items():
        if name in of_either and all(name not in each.posterior.holds for each in examined):
            far = max(
                abs(ratio(name, sure, one, two, fit))
                for sure in (0.0, 1.0)
                for one in modes[:2]
                for two in modes[:4]
            )
            weights[finding.input] = max(weights.get(finding.input, 0.0), far)
    best = max(weights, key=weights.__getitem__, default="")
    if weights.get(best, 0) <= 1:
        return ""
    lacking = missing([each.window for each in examined])
    return INPUTS[best].format(missing=f" ({', '.join(lacking)})" if lacking else "")


INPUTS: Final = {
    "metrics": "metrics with the series that are missing{missing}, scraped every 1 to 2 s",
    "events": "block events (--kv-events-config, `pagedbench record --events`)",
    "requests": "a request log with the tenant of each request",
    "prompts": "the prompts: whether they begin alike",
    "log": "the server's log, from its start",
    "configuration": "the start line of the server's log, or vllm:cache_config_info",
    "replicas": "the same from every replica",
}
"""What a user can bring."""


def _timeline(examined: list[Examined], observed: Observed) -> list[Moment]:
    moments = []
    for each in examined:
        begun: set[str] = set()
        for change in each.changes:
            if change.series in begun or abs(change.after - change.before) < SLIGHT * max(
                abs(change.before), abs(change.after)
            ):
                continue
            begun.add(change.series)
            name = change.series.replace("_", " ")
            says = f"{name} from {change.before:.3g} to {change.after:.3g}"
            moments.append(Moment(time_s=change.time_s, says=says, engine=each.window.engine))
        moments += [
            Moment(time_s=time_s, says="counters begin anew", engine=each.window.engine)
            for time_s in each.window.resets_s
        ]
    if len(observed.failed_s):
        count = len(observed.failed_s)
        says = "no answer to a scrape" if count == 1 else f"no answer to {count} scrapes, from here"
        moments.append(Moment(time_s=float(observed.failed_s[0]), says=says, engine=""))
    return sorted(moments, key=lambda moment: moment.time_s)


def _given(source: Source) -> Given:
    values = source._asdict()
    clean = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
    }
    return Given(**clean)
