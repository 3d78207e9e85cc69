"""`pagedbench fuzz` in the terminal: each finding with its steps, then what was done."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from bench.command.tables import say
from bench.command.words import plural
from bench.fuzz.record import FindingRecord, FuzzRecord, Trace
from reference.allocator.machine import CHECKS, Finding
from reference.system import contract as system


def show(record: FuzzRecord, console: Console) -> None:
    """Print a record."""
    for found in record.findings:
        show_finding(found, console)
        if record.last_seed is not None:
            say(console, f"  seed {found.trace.seed} shows it first\n")
    version = f" ({record.allocator.version})" if record.allocator.version else ""
    say(
        console,
        f"{record.allocator.name}{version}: {record.examples:,} programs, "
        f"{record.steps:,} steps in {record.seconds:.1f} s, {record.steps_per_s:,.0f} steps/s",
    )
    say(console, f"{record.states:,} different states")
    calls = "  ".join(f"{call} {count:,}" for call, count in record.calls.items())
    console.print(Text(f"calls    {calls}"), highlight=False)
    for word, colour in (("passed", "green"), ("failed", "red")):
        names = [check for check, status in record.checks.items() if status == word]
        if names:
            console.print(
                Text(f"{word:<9}", style=colour).append("  ".join(names), style="default")
            )
    missing: dict[str, list[str]] = {}
    for check, status in record.checks.items():
        if status.startswith("not run"):
            missing.setdefault(status.removeprefix("not run: "), []).append(check)
    for why, names in missing.items():
        reason = "" if why.endswith(f" {names[0]}") else f" ({why})"
        console.print(Text(f"not run  {'  '.join(names)}{reason}", "yellow"))
    if record.not_asked:
        console.print(Text(f"not asked  {'  '.join(record.not_asked)}", "yellow"))
    for known in record.known:
        if known.still_shows:
            say(console, f"known    {known.check}: {known.file}")
        else:
            gone = f"{known.file} does not fail {known.check} any more: remove it"
            say(console, f"warning  {gone}", "yellow")
    colour = {"no finding": "green", "wrong": "red"}.get(record.verdict, "yellow")
    said = plural(len(record.findings), "finding") if record.findings else record.verdict
    console.print(
        Text(said, style=f"bold {colour}").append(
            f", {_seeds(record)}, exit code {record.exit_code}", style="not bold default"
        )
    )


def _seeds(record: FuzzRecord) -> str:
    last = record.last_seed
    return f"seed {record.seed}" if last is None else f"seeds {record.seed} to {last}"


def show_finding(found: FindingRecord, console: Console) -> None:
    """Print a finding, its steps and what to do with it."""
    trace = found.trace
    title = Text(trace.check, style="bold red")
    law = {**system.CHECKS, **CHECKS}.get(trace.check, "")
    title.append(f": {law}", style="not bold default")
    console.print(title)
    _show_steps(trace.finding, console)
    if not trace.repeats:
        console.print(
            Text(
                "  the same steps did not show it again: it depends on chance; these are the steps "
                "as they were drawn",
                style="yellow",
            )
        )
    say(
        console,
        f"  after {trace.examples:,} programs; {trace.first_steps} steps made "
        f"{len(trace.program.steps)} in {trace.attempts:,} attempts",
    )
    if found.replay is not None:
        # Never wrapped: it is there to be copied.
        say(console, f"  replay: {found.replay}")
    if found.pytest_file is not None:
        say(console, f"  pytest: {found.pytest_file}")
    console.print()


def show_replay(trace: Trace, shown: Finding | None, console: Console) -> None:
    """Print what a trace shows now."""
    say(console, f"{trace.allocator.name}: {trace.check}, as it was found")
    _show_steps(trace.finding, console)
    console.print()
    if shown is None:
        console.print(Text("shows nothing any more", style="bold green"))
    elif shown.check == trace.check:
        console.print(Text("still shows it", style="bold red"))
        say(console, f"  {shown}")
    else:
        console.print(Text("shows something else", style="bold red"))
        _show_steps(shown, console)


def _show_steps(finding: Finding, console: Console) -> None:
    for line in str(finding.program).splitlines():
        say(console, f"  {line}")
    where = "after the last step" if finding.program.steps else "when it was made"
    where = "then everything was freed" if finding.at_the_end else where
    say(console, f"  {where}:")
    for line in finding.message.splitlines():
        say(console, f"    {line}", style="red")
