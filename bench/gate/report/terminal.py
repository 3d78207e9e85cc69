"""`pagedbench gate` in the terminal: what differs, the table of times, the verdict last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.command.tables import CLOSE, say, table
from bench.command.words import one_line, percent, plural
from bench.gate.record import BenchmarkRecord, GateRecord, NoiseRecord
from bench.gate.report.words import (
    bounds,
    builds_in_words,
    by_reason,
    contestant,
    count,
    counter_change,
    counters_that_matter,
    environments,
    launches,
    on_purpose,
    outputs_that_matter,
    runner_noise,
    said_verdict,
    truth_that_matters,
    without_outputs,
)

ROWS: Final = 30
"""Rows of counters and outputs that are shown; the record has more."""

KEY_WIDTH: Final = 80
"""Characters of a benchmark's key; they fold within the column."""

_STYLES: Final = {
    "fail": "bold red",
    "wrong": "bold red",
    "fails to build": "bold red",
    "outputs differ": "bold red",
    "harness failed": "bold red",
    "inconclusive": "yellow",
    "interrupted": "yellow",
    "noisy": "yellow",
    "not run": "dim",
    "pass": "green",
    "faster": "green",
}


def show(record: GateRecord, console: Console) -> None:
    """Print a record."""
    sides = {"base": contestant(record.base), "head": contestant(record.head)}
    for side, name in sides.items():
        _say(console, f"{side}  {name}")
    if note := on_purpose(record):
        _say(console, note)
    for line in (line for each in builds_in_words(record) for line in each.splitlines()):
        _say(console, line)
    _truth(record, console)
    _outputs(record, console)
    _counters(record, console)
    timed = [each for each in record.benchmarks if each.timed and each.samples]
    if timed:
        console.print()
        console.print(_times(timed))
    mattering = [each for each in record.benchmarks if each.verdict != "pass"]
    for verdict, line in by_reason(mattering):
        _say(console, f"not run: {line}" if verdict == "not run" else line, _STYLES[verdict])
    if record.noise:
        console.print()
        console.print(_noise(record.noise))
    console.print()
    for line in environments(record):
        _say(console, line)
    _say(console, f"{runner_noise(record)}; {plural(len(record.launches), 'launch', 'launches')}")
    _say(console, f"{record.verdict}: {record.reason}", _STYLES[record.verdict])
    _say(console, f"in {record.elapsed_s:.0f} s, exit code {record.exit_code}")


def _say(console: Console, words: str, style: str = "") -> None:
    say(console, one_line(words), style)


def _short(key: str) -> str:
    return one_line(key, limit=KEY_WIDTH)


def _truth(record: GateRecord, console: Console) -> None:
    other = truth_that_matters(record)
    if record.truth:
        right = sum(each.head.verdict == "right" for each in record.truth)
        _say(console, f"against the truth: {right} of {plural(len(record.truth), 'subject')} right")
    for each, words in other:
        _say(
            console,
            f"  {each.subject} {words}",
            "red" if each.head.verdict == "wrong" else "yellow",
        )
        if replay := each.head.replay or each.base.replay:
            _say(console, f"    {replay}")


def _outputs(record: GateRecord, console: Console) -> None:
    other = outputs_that_matter(record)
    same = len(record.outputs) - len(other)
    if record.outputs:
        words = f"outputs: {same} of {len(record.outputs)} are the same bits"
        _say(console, words + without_outputs(record))
    for each in other[:ROWS]:
        line = f"  {each.benchmark} {each.name}: {each.verdict}"
        if each.difference is not None and each.limit is not None:
            line += f", off by {each.difference:.3g}, allowed {each.limit:.3g}"
        if each.note:
            line += f": {each.note}"
        _say(console, line, "red" if each.verdict == "differs" else "")
    _more(len(other), console)


def _counters(record: GateRecord, console: Console) -> None:
    other = counters_that_matter(record)
    if record.counters:
        equal = len(record.counters) - len(other)
        _say(console, f"counters: {equal} of {len(record.counters)} are equal")
    for each in other[:ROWS]:
        words = f"  {each.benchmark} {each.name}: {each.verdict}"
        if each.verdict != "not there":
            words += (
                f", {count(each.base, '')} to {count(each.head, each.unit)} ({counter_change(each)}"
            )
            words += f", allowed {100 * each.limit:.3g} %)" if each.verdict == "worse" else ")"
        style = "red" if each.fails else "green" if each.verdict == "better" else ""
        _say(console, words, style)
    _more(len(other), console)


def _more(number: int, console: Console) -> None:
    if number > ROWS:
        _say(console, f"  and {number - ROWS:,} more, in the record")


def _times(benchmarks: Sequence[BenchmarkRecord]) -> Table:
    return table(
        "benchmark",
        ("head", "95 % bounds", "launches", "SD", "verdict"),
        (
            (
                Text(_short(each.key)),
                "-" if each.estimate is None else percent(each.estimate.ratio),
                bounds(each.estimate),
                launches(each),
                "-" if each.launch_sd is None else f"{100 * each.launch_sd:.1f} %",
                Text(said_verdict(each), style=_STYLES[said_verdict(each)]),
            )
            for each in benchmarks
        ),
        padding=CLOSE,
    )


def _noise(noise: Sequence[NoiseRecord]) -> Table:
    return table(
        "on identical code",
        ("launches", "SD", "false alarms", "smallest seen"),
        (
            (
                Text(_short(each.benchmark)),
                str(each.launches),
                f"{100 * each.launch_sd:.1f} %",
                f"{100 * each.found['0.0']:.1f} %" if "0.0" in each.found else "-",
                "none" if each.detectable is None else f"+{100 * each.detectable:.3g} %",
            )
            for each in noise
        ),
        padding=CLOSE,
    )
