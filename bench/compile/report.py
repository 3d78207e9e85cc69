"""`pagedbench compile` in the terminal: a table for each target, then what changed, in words."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.command.tables import say, table
from bench.compile.record import CompileRecord, Result
from kernels.compiled.baseline import Comparison, Status
from kernels.compiled.explain import Judgement, does_not_fit, typical_access
from kernels.compiled.figures import LaunchFigures
from kernels.compiled.targets import TARGETS

MESSAGE_LINES: Final = 6
"""Lines of a compiler's message that are shown; the record has more."""

READS: Final = ("load", "async", "bulk")

_STYLES: Final = {
    Judgement.WORSE: "red",
    Judgement.BETTER: "green",
    Judgement.NOTED: "",
    Judgement.WITHIN: "dim",
}


def show(record: CompileRecord, console: Console) -> None:
    """Print a record."""
    for target in dict.fromkeys(result.target for result in record.results):
        results = [result for result in record.results if result.target == target]
        console.print(Text(f"{target}, {record.toolchains.get(target, 'not started')}"))
        console.print(_table(target, results))
        _failures(results, console)
        console.print()
    _refused(record, console)
    _comparisons(record, console)
    console.print(Text(_last_line(record)))


def _table(target: str, results: list[Result]) -> Table:
    registers = "regs" if TARGETS[target].is_nvidia else "vgprs"
    heads = (registers, "spills", "shared", "occ.", "/key", "matrix", "loads")
    rows = table("variant", heads, padding=0)
    for result in results:
        for place, launch in enumerate(result.figures.launches):
            name = f"  then {launch.kernel}" if place else result.variant
            rows.add_row(name, *_cells(launch))
        if result.figures.failure is not None:
            rows.add_row(Text(f"{result.variant}: does not compile", style="red"))
    return rows


def _cells(launch: LaunchFigures) -> list[str | Text]:
    per_key = launch.loop.instructions_per_key if launch.loop else None
    matrix = launch.loop.matrix if launch.loop else launch.matrix
    return [
        str(launch.registers),
        Text(str(launch.spill_instructions), style="bold" if launch.spill_instructions else ""),
        f"{launch.shared_bytes:,}",
        f"{launch.occupancy:.0%}" if launch.fits else Text("none", style="red"),
        f"{per_key:.1f}" if per_key is not None else "-",
        " ".join(f"{n} {_short(name)}" for name, n in list(matrix.items())[:1]) or "-",
        _main_load(launch),
    ]


def _short(name: str) -> str:
    return "mfma" if name.startswith("v_mfma") else name


def _main_load(launch: LaunchFigures) -> str:
    """The access that brings in the most, of the loop or else of the kernel."""
    memory = launch.loop.memory if launch.loop else launch.memory
    reads = {access: count for access, count in memory.items() if access.startswith(READS)}
    if not reads:
        return "-"
    kind, size = typical_access(reads)
    width = f"{size} B" if size else "box"
    return f"{width} async" if kind != "load" else width


def _failures(results: list[Result], console: Console) -> None:
    for result in results:
        if result.figures.failure is not None:
            said = result.figures.failure.splitlines()[:MESSAGE_LINES]
            say(console, f"{result.variant}: {said[0]}", style="red")
            for line in said[1:]:
                say(console, f"  {line}")
        for launch in result.figures.launches:
            if not launch.fits:
                words = f"{result.variant}: {launch.kernel} {does_not_fit(launch)}"
                say(console, words, style="red")
        for note in result.figures.notes:
            say(console, f"{result.variant}: {note}")


def _refused(record: CompileRecord, console: Console) -> None:
    for each in record.refused:
        console.print(Text(f"not run: {each.target} {each.variant}: {each.reason}"))


def _comparisons(record: CompileRecord, console: Console) -> None:
    if record.baseline is None:
        say(console, f"not compared: {record.not_compared}")
        return
    for comparison in record.comparisons:
        if comparison.changes:
            _show_changes(comparison, console)
    counts = {
        status: sum(each.status is status for each in record.comparisons) for status in Status
    }
    said = [f"{count} {status}" for status, count in counts.items() if count]
    console.print(Text(f"beside {record.baseline}: {', '.join(said)}"))
    missing = [each for each in record.comparisons if each.status is Status.NEW]
    for each in missing[:MESSAGE_LINES]:
        say(console, f"not in the baseline: {each.target} {each.variant}")
    if len(missing) > MESSAGE_LINES:
        console.print(Text(f"and {len(missing) - MESSAGE_LINES} more"))


def _show_changes(comparison: Comparison, console: Console) -> None:
    style = {Status.WORSE: "red", Status.BETTER: "green"}.get(comparison.status, "")
    head = f"{comparison.target} {comparison.variant}: {comparison.status}"
    say(console, head, style=style)
    for change in comparison.changes:
        mark = {Judgement.WORSE: "-", Judgement.BETTER: "+"}.get(change.judgement, " ")
        line = Text(f"  {mark} {change.words}", style=_STYLES[change.judgement])
        console.print(line, soft_wrap=True)


def _last_line(record: CompileRecord) -> str:
    if not record.complete:
        verdict = "incomplete"
    elif record.worse:
        verdict = "worse"
    else:
        verdict = "as the baseline, or better" if record.compared else "compiled"
    return f"{verdict} in {record.elapsed_s:.0f} s; triton {record.triton}; no GPU was used"
