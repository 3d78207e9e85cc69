"""A gate run as annotations of a GitHub Actions job: lines that its runner reads from the output.

The format and its escapes are those of the workflow commands in GitHub's documentation ("Workflow
commands for GitHub Actions", setting an error message). GitHub shows ten errors and ten warnings of
a step, so the worst come first and the last says how many there are beyond.
"""

from __future__ import annotations

from typing import Final, Literal

from bench.command.words import percent
from bench.gate.record import GateRecord, RunVerdict, Verdict
from bench.gate.report.words import (
    UNTIMED,
    benchmarks_that_matter,
    bounds,
    by_reason,
    count,
    counter_change,
    counters_that_matter,
    outputs_that_matter,
    truth_that_matters,
    untimed,
)

Level = Literal["error", "warning", "notice"]

SHOWN: Final = 10

_LEVELS: Final[dict[RunVerdict | Verdict, Level]] = {
    "pass": "notice",
    "fail": "error",
    "wrong": "error",
    "fails to build": "error",
    "inconclusive": "warning",
    "not run": "notice",
    "outputs differ": "error",
    "harness failed": "error",
    "interrupted": "error",
}


def workflow_commands(record: GateRecord) -> str:
    """Workflow commands, one a line; the run's verdict is the first."""
    lines: dict[Level, list[str]] = {"error": [], "warning": [], "notice": []}
    level = _LEVELS[record.verdict]
    lines[level].append(command(level, f"gate: {record.verdict}", record.reason))
    for truth, words in truth_that_matters(record):
        kind: Level = "error" if truth.head.verdict == "wrong" else "notice"
        replay = truth.head.replay or truth.base.replay
        lines[kind].append(command(kind, truth.subject, f"{words}\n{replay}".strip()))
    for output in outputs_that_matter(record):
        if output.verdict == "differs":
            words = f"{output.name} differs between base and head. {output.note}".strip()
            lines["error"].append(command("error", output.benchmark, words))
    for counter in counters_that_matter(record):
        if counter.verdict == "worse":
            kind = "error" if counter.fails else "warning"
            words = (
                f"{counter.name}: {count(counter.base, '')} to {count(counter.head, counter.unit)} "
                f"({counter_change(counter)}, allowed {100 * counter.limit:.3g} %)"
            )
            lines[kind].append(command(kind, counter.benchmark, words))
    for benchmark in benchmarks_that_matter(record):
        kind = _LEVELS[benchmark.verdict]
        words = benchmark.reason
        if benchmark.estimate is not None:
            words = (
                f"{percent(benchmark.estimate.ratio)} (95 % bounds "
                f"{bounds(benchmark.estimate)}): {words}"
            )
        lines[kind].append(command(kind, benchmark.key, words))
    for verdict, line in by_reason(untimed(record)):
        lines[_LEVELS[verdict]].append(command(_LEVELS[verdict], UNTIMED[verdict], line))
    return "".join(f"{line}\n" for kind in lines for line in _shown(kind, lines[kind]))


def command(level: Level, title: str, message: str) -> str:
    """One workflow command. Line ends, per cent signs and separators are escaped, as are characters
    that would speak to the terminal of who reads the log.
    """
    return f"::{level} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    text = "".join(c if c.isprintable() or c in "\r\n" else ascii(c)[1:-1] for c in text)
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _shown(level: Level, lines: list[str]) -> list[str]:
    if len(lines) <= SHOWN:
        return lines
    rest = len(lines) - SHOWN + 1
    more = command(level, "gate", f"and {rest} more like these; the report has them")
    return [*lines[: SHOWN - 1], more]
