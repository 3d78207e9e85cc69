"""A diagnosis on one screen."""

from __future__ import annotations

from datetime import UTC, datetime
from textwrap import fill
from typing import Final

from rich.console import Console
from rich.text import Text

from bench.diagnose.record import Cause, Diagnosis, Evidence, Prediction, Prescription

WIDTH: Final = 96
_DAY: Final = len("2026-12-01")
_SEVERAL: Final = " (several can be true at once: the shares add up to more than 100 %)"
_COLOURS: Final = {"healthy": "bold green", "found": "bold red", "cannot tell": "bold yellow"}


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print it."""
    sure = f" ({confidence(diagnosis.confidence)})" if diagnosis.confidence else ""
    seen = span(*_seen_s(diagnosis), "")
    console.print(
        Text(f"{diagnosis.verdict}{sure}", style=_COLOURS[diagnosis.verdict]),
        Text(f"[{seen} UTC]" if seen else ""),
    )
    for line in lines(diagnosis):
        console.print(Text(line), soft_wrap=True)


def lines(diagnosis: Diagnosis) -> list[str]:
    """What stands under the verdict."""
    said: list[str] = []
    first, last = (clock(at)[:_DAY] for at in _seen_s(diagnosis))
    day = first if first == last else ""
    if not diagnosis.causes and diagnosis.says != diagnosis.verdict:
        said += _wrapped(diagnosis.says)
    for cause in diagnosis.causes:
        said += _of(cause, day, several=len(diagnosis.figures) > 1)
    if diagnosis.consequences:
        said.append("what follows from it")
        said += [line for each in diagnosis.consequences for line in _item(each)]
    if diagnosis.candidates:
        several = sum(each.probability for each in diagnosis.candidates) > 1
        said.append(f"it may be{_SEVERAL if several else ''}")
        for candidate in diagnosis.candidates:
            named = "" if candidate.says == candidate.mode else f"{candidate.mode}: "
            said += _item(f"{confidence(candidate.probability):>9}  {named}{candidate.says}")
    if diagnosis.deciding:
        said += ["what would decide", *_item(diagnosis.deciding)]
    if diagnosis.timeline and diagnosis.causes:
        said.append("what changed (UTC)")
        several = len({moment.engine for moment in diagnosis.timeline}) > 1
        for moment in diagnosis.timeline[:8]:
            where = f"  engine {moment.engine}" if several and moment.engine else ""
            said += _item(f"{span(moment.time_s, moment.time_s, day)}  {moment.says}{where}")
    if diagnosis.prescription is not None:
        said += _prescribed(diagnosis.prescription)
    if diagnosis.holes:
        said.append("free memory")
        said += [line for each in diagnosis.holes for line in _item(each)]
    if diagnosis.unseen:
        said.append("what could not be seen")
        said += [line for each in diagnosis.unseen for line in _item(each)]
    return said


def _of(cause: Cause, day: str, *, several: bool) -> list[str]:
    began_s = cause.since_s
    since = f", since {span(began_s, began_s, day)}" if began_s is not None else ""
    engines = [name for name in cause.engines if name]
    where = f", engine {', '.join(engines)}" if several and engines else ""
    untested = "" if cause.tested else " (no recording has it: not tested)"
    said = _wrapped(f"{cause.mode}: {cause.says}{since}{where}{untested}")
    said += [line for each in cause.evidence for line in _item(_figure(each, day))]
    if cause.not_this:
        said.append("it is not")
        said += [line for each in cause.not_this for line in _item(f"{each.mode}: {each.why}")]
    said += ["what to change", *_item(cause.remedy)]
    return said


def _figure(evidence: Evidence, day: str) -> str:
    figure = evidence.figure
    interval = f" ({figure.low:.3g} to {figure.high:.3g})" if figure.low != figure.high else ""
    source = ", ".join(filter(None, (figure.series, span(figure.start_s, figure.end_s, day))))
    return f"{evidence.says}{interval} [{source}]"


def _prescribed(made: Prescription) -> list[str]:
    said = ["simulated, beside what was seen"]
    for each in made.fidelity:
        near = "" if abs(each.seen - each.simulated) <= each.tolerance else "  too far off"
        said += _item(f"{each.quantity}: {each.simulated:.3g}, seen {each.seen:.3g}{near}")
    if not made.reproduced:
        return [*said, *_item(f"no promise is made: {made.why_not}")]
    said.append("what a change would do, by simulation")
    head = f"{'':30}{'requests/s':>11}{'TTFT p50':>11}{'mean wait':>11}{'preempted':>11}"
    said.append(f"  {head}")
    first, *others = made.predictions
    idle = [row.change for row in others if _same(row, first)]
    for row in [first, *(row for row in others if row.change not in idle)]:
        ttft = "-" if row.ttft_p50_s is None else f"{row.ttft_p50_s:.3g} s"
        figures = f"{row.requests_per_s:>11.3g}{ttft:>11}{row.mean_wait_s:>9.3g} s"
        said.append(f"  {row.change:30}{figures}{row.preemptions:>11,}")
    return said + (_item(f"no effect: {', '.join(idle)}") if idle else [])


def _same(row: Prediction, other: Prediction) -> bool:
    """Whether a change comes to nothing that is felt."""
    return (
        abs(row.requests_per_s - other.requests_per_s) < 0.02 * other.requests_per_s
        and abs(row.mean_wait_s - other.mean_wait_s) < max(0.05 * other.mean_wait_s, 0.01)
        and abs(row.preemptions - other.preemptions) < max(0.1 * other.preemptions, 1)
    )


def confidence(probability: float) -> str:
    """As it is said: what was fitted on a few hundred recordings is never certain."""
    if 0.01 <= probability <= 0.99:
        return f"{100 * probability:.0f} %"
    return "over 99 %" if probability > 0.99 else "under 1 %"


def clock(time_s: float) -> str:
    """The time, UTC."""
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S}"


def span(start_s: float, end_s: float, day: str) -> str:
    """From when to when, without the date of `day`, any other once. Empty: there are no times."""
    start, end = (clock(at) if at > 0 else "" for at in (start_s, end_s))
    if start[:_DAY] == day:
        start = start[_DAY:].lstrip()
    if end[:_DAY] in {day, start[:_DAY]}:
        end = end[_DAY:].lstrip()
    if not start or not end or start.endswith(end):
        return start or end
    return f"{start} to {end}"


def _seen_s(diagnosis: Diagnosis) -> tuple[float, float]:
    """Of everything that was given; 0: nothing has a time."""
    times = [at for each in diagnosis.given for at in (each.start_s, each.end_s) if at]
    return min(times, default=0.0), max(times, default=0.0)


def _wrapped(text: str) -> list[str]:
    return fill(text, WIDTH).splitlines()


def _item(text: str) -> list[str]:
    return fill(text, WIDTH, initial_indent="  ", subsequent_indent="    ").splitlines()
