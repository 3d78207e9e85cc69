"""A diagnosis as a post-mortem."""

from __future__ import annotations

from collections.abc import Iterable

from bench.diagnose.record import Diagnosis
from bench.diagnose.report import clock, confidence


def markdown(diagnosis: Diagnosis) -> str:
    """Timeline, evidence, cause, consequence, remedy, alert."""
    parts = [f"# {diagnosis.verdict}: {diagnosis.says}\n"]
    if diagnosis.confidence:
        parts.append(f"Confidence: {confidence(diagnosis.confidence)}.\n")
    if diagnosis.timeline:
        rows = (f"| {clock(m.time_s)} | {m.says} | {m.engine} |" for m in diagnosis.timeline)
        parts.append(_table("Timeline (UTC)", ("time", "what", "engine"), rows))
    for cause in diagnosis.causes:
        parts.append(f"## Cause: {cause.mode}\n\n{cause.says}.\n")
        rows = (
            f"| {e.says} | {e.figure.series} | {e.figure.low:.3g} to {e.figure.high:.3g} |"
            for e in cause.evidence
        )
        parts.append(_table("Evidence", ("finding", "series", "90 % interval"), rows, level=3))
        if cause.not_this:
            listed = "\n".join(f"* not {each.mode}: {each.why}" for each in cause.not_this)
            parts.append(f"### What it is not\n\n{listed}\n")
        parts.append(f"### Remedy\n\n{cause.remedy}\n\n### Alert on\n\n`{cause.alert}`\n")
    if diagnosis.consequences:
        parts.append(_list("Consequences", diagnosis.consequences))
    if diagnosis.candidates:
        likely = [f"{confidence(each.probability)}: {each.says}" for each in diagnosis.candidates]
        parts.append(_list("It may be", likely))
    if diagnosis.deciding:
        parts.append(f"## What would decide\n\n{diagnosis.deciding}\n")
    if (made := diagnosis.prescription) is not None:
        rows = (
            f"| {each.quantity} | {each.seen:.3g} | {each.simulated:.3g} |"
            for each in made.fidelity
        )
        parts.append(_table("Simulated beside seen", ("figure", "seen", "simulated"), rows))
        effects = (
            f"| {each.change} | {each.requests_per_s:.3g} | {_known(each.ttft_p50_s)} | "
            f"{each.mean_wait_s:.3g} | {each.preemptions:,} |"
            for each in made.predictions
        )
        heads = ("change", "requests/s", "TTFT p50 s", "mean wait s", "preempted")
        if made.reproduced:
            parts.append(_table("What a change would do", heads, effects))
        else:
            parts.append(f"No promise is made: {made.why_not}.\n")
    if diagnosis.unseen:
        parts.append(_list("What could not be seen", diagnosis.unseen))
    given = [f"`{each.path}` ({each.format}, {each.items:,})" for each in diagnosis.given]
    parts.append(_list("From", given))
    return "\n".join(parts)


def _known(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _list(title: str, items: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"* {item}" for item in items) + "\n"


def _table(title: str, heads: tuple[str, ...], rows: Iterable[str], level: int = 2) -> str:
    head = f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}"
    body = "\n".join(rows)
    return f"{'#' * level} {title}\n\n{head}\n{body}\n"
