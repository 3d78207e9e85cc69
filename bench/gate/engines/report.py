"""`pagedbench compare --allocator` in the terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.text import Text

from bench.command.tables import CLOSE, say, table
from bench.command.words import one_line
from bench.gate.engines.history import by_allocator, steps
from bench.gate.engines.record import EnginesRecord
from bench.gate.engines.words import COUNTERS, conditions, counters, row, step_title, where

FUNCTIONS: Final = 5
"""Of each step, that are named."""


def show(record: EnginesRecord, console: Console, *, explain: bool = False) -> None:
    """Print a record; `explain`: also which functions added bytecodes from release to release."""
    exact = table("release", ("bytecodes off", "on"), padding=CLOSE)
    exact.add_column("findings")
    timed = table("ops per CPU-second, of the anchor's", ("off", "on", "evictions"), padding=CLOSE)
    for each in record.releases:
        found = row(each, record.anchor)
        name = Text(one_line(found.name))
        exact.add_row(name, *found.bytecodes, Text(found.verdict))
        timed.add_row(name, *found.ratios)
    console.print(exact)
    console.print(timed)
    _show_counters(record, console)
    for located in record.located:
        say(console, where(located), "red")
        if located.replay is not None:
            say(console, f"  replay: {located.replay}")
    for each in record.releases:
        for what, why in each.trouble.items():
            say(console, one_line(f"{each.name}: {what} did not end: {why}"), "yellow")
    if explain:
        for step in steps(record.releases):
            if round(step.added):
                say(console, step_title(step), "bold")
                for function, added in step.by_function[:FUNCTIONS]:
                    say(console, f"  {added:+7.1f}  {function}")
    for line in conditions(record):
        say(console, line)


def _show_counters(record: EnginesRecord, console: Console) -> None:
    rows = table("stream", ("releases", *COUNTERS), padding=CLOSE)
    for releases in by_allocator(record.releases).values():
        for words, names, figures in counters(releases):
            rows.add_row(Text(words), Text(one_line(names)), *figures)
    console.print(Text("counters"))
    console.print(rows)
