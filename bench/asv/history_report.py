"""`pagedbench history` in the terminal: a line for each step, series by series."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from bench.asv.history import History, Step
from bench.command.tables import say
from bench.command.words import plural


def show(history: History, console: Console) -> None:
    """Print a history. Commits are shortened to 8 digits."""
    last = None
    for step in history.steps:
        where = (step.benchmark, step.machine, step.environment)
        if where != last:
            say(console, f"{step.benchmark}", style="bold")
            say(console, f"  {step.machine}; {step.environment}")
            last = where
        style = "red" if step.kind == "worse" else "green"
        say(console, f"  {_words(step)}", style=style)
    worse = sum(step.kind == "worse" for step in history.steps)
    console.print(
        Text(
            f"{plural(len(history.steps), 'step')}, {worse} for the worse, in "
            f"{history.series:,} series over {plural(history.commits, 'commit')}"
        )
    )
    if history.unknown_commits:
        say(
            console,
            f"not in this repository and left out: {plural(len(history.unknown_commits), 'commit')}"
            f", such as {history.unknown_commits[0][:12]}; fetch what is missing",
        )


def _words(step: Step) -> str:
    change = "from 0" if step.change is None else f"{100 * step.change:+.3g} %"
    unit = f" {step.unit}" if step.unit else ""
    return (
        f"{step.kind} by {change}: {step.before:.6g} to {step.after:.6g}{unit}, "
        f"{step.last_before[:8]}..{step.first_after[:8]}, {plural(step.points, 'point')}"
    )
