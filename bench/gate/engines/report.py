"""`pagedbench compare --allocator` in the terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.text import Text

from bench.command.tables import CLOSE, say, table
from bench.command.words import one_line
from bench.gate.engines.history import steps
from bench.gate.engines.record import EnginesRecord
from bench.gate.engines.words import (
    RACES,
    bytecodes,
    conditions,
    ratio,
    short,
    step_title,
    verdict,
    where,
)

FUNCTIONS: Final = 5
"""Of each step, that are named."""


def show(record: EnginesRecord, console: Console, *, explain: bool = False) -> None:
    """Print a record; `explain`: also which functions added bytecodes from release to release."""
    exact = table("release", ("bytecodes off", "on"), padding=CLOSE)
    exact.add_column("findings")
    timed = table("ops per CPU-second, of the anchor's", ("off", "on", "evictions"), padding=CLOSE)
    for each in record.releases:
        name = Text(one_line(short(each.name)))
        counts = [bytecodes(each, caching=caching) for caching in (False, True)]
        exact.add_row(name, *counts, Text(verdict(each)))
        timed.add_row(name, *(ratio(each, record.anchor, heat) for heat in RACES))
    console.print(exact)
    console.print(timed)
    _show_counters(record, console)
    for found in record.located:
        say(console, where(found), "red")
        if found.replay is not None:
            say(console, f"  replay: {found.replay}")
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
    """Print what each release came to where that differs."""
    passes = list(dict.fromkeys(each.of for release in record.releases for each in release.counted))
    rows = table("pass", ("release", "hit tokens", "blocks at peak", "preemptions"), padding=CLOSE)
    for of in passes:
        last: tuple[int, int, int] | None = None
        for release in record.releases:
            for each in release.counted:
                found = (each.hit_tokens, each.peak_blocks, each.preemptions)
                if each.of == of and found != last:
                    rows.add_row(of.words, short(release.name), *(f"{one:,}" for one in found))
                    last = found
    console.print(Text("counters, each where it differs from the release above it"))
    console.print(rows)
