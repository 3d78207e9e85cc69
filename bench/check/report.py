"""`pagedbench check` in the terminal: what is wrong, if anything, then one table.

Everything fits 80 columns. Names, findings and commands are printed as they are: what looks like
markup in them is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bench.check.record import EXPECTED, CheckRecord, DecodeTimes, Failure, KernelRecord
from bench.command.tables import say
from bench.command.tables import table as figures
from bench.command.words import plural
from bench.workloads.need import MemoryNeed
from reference.attention.catalogue import CHECKS

if TYPE_CHECKING:
    from bench.check.search import Replay

LAWS = {check.name: check.law for check in CHECKS}
GIB = 2**30

NAME_WIDTH: Final = 24
"""Of the names in the table, columns. A longer one takes a second line, and no more than that."""


def show(record: CheckRecord, console: Console) -> None:
    """Print a record."""
    for kernel in record.kernels:
        for failure in kernel.failures:
            campaign = record.last_seed is not None
            console.print(failure_panel(kernel.name, failure, campaign=campaign))
            # Outside the frame and never wrapped: it is there to be copied.
            console.print(Text("replay it:\n  ").append(failure.replay), soft_wrap=True)
            console.print()
    console.print(table(record))
    for line in expected_lines(record):
        console.print(line, soft_wrap=True)
    colour = {"right": "green", "wrong": "red"}.get(record.verdict, "yellow")
    console.print(
        Text(record.verdict, style=f"bold {colour}").append(
            f" in {record.elapsed_s:.0f} s, {_seeds(record)}, exit code {record.exit_code}",
            style="not bold default",
        )
    )


def _seeds(record: CheckRecord) -> str:
    last = record.last_seed
    return f"seed {record.seed}" if last is None else f"seeds {record.seed} to {last}"


def show_replay(kernel: str, replayed: Replay, console: Console) -> None:
    """Print what each check said of one problem, and the bytes that the kernel moved."""
    problem, verdicts = replayed.problem, replayed.verdicts
    say(console, f"{kernel} on {problem}")
    rows = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("check", "verdict", "what was seen"):
        rows.add_column(column, overflow="fold")
    for verdict in verdicts:
        colour = "red" if verdict.wrong else "green" if verdict.status == "passed" else "yellow"
        seen = "\n".join(verdict.findings) or LAWS[verdict.check]
        rows.add_row(verdict.check, Text(verdict.status.value, style=colour), Text(seen))
    said = {verdict.check for verdict in verdicts}
    why = "the kernel hung before" if replayed.complete else "stopped before"
    for check in CHECKS:
        if check.name not in said and check.applies(problem):
            rows.add_row(check.name, Text("not run", style="yellow"), why)
    console.print(rows)
    console.print()
    if replayed.moved is not None:
        _show_moved(replayed.moved, console)


def _show_moved(moved: dict[str, dict[str, int]], console: Console) -> None:
    rows = figures("bytes moved", ("loaded", "times", "stored", "times"))
    for tensor, of in moved.items():
        cells = []
        for kind in ("loaded", "stored"):
            total, distinct = of[kind], of[f"{kind}_distinct"]
            cells += [f"{total:,}", f"{total / distinct:.2f}x"] if total else ["", ""]
        rows.add_row(Text(tensor), *cells)
    console.print(rows)
    console.print("times: how often an element was moved that was moved at all")
    console.print()


def failure_panel(kernel: str, failure: Failure, *, campaign: bool = False) -> Panel:
    """What a wrong kernel did, on the smallest problem that shows it."""
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(overflow="fold")
    for finding in failure.findings:
        lines.add_row("seen", Text(finding))
    lines.add_row("check", f"{failure.check}: {LAWS[failure.check]}")
    lines.add_row("problem", Text(failure.problem))
    if failure.first_problem != failure.problem:
        lines.add_row("drawn as", Text(failure.first_problem))
    if campaign and failure.seed is not None:
        lines.add_row("seed", f"{failure.seed} shows it first")
    if failure.seen > 1:
        lines.add_row("met in", plural(failure.seen, "problem"))
    lines.add_row("saved to", Text(failure.saved_to or "nowhere: the folder cannot be written"))
    how = "is wrong" if failure.status == "failed" else failure.status
    title = Text(f"{kernel} {how}", style="bold red")
    return Panel(lines, title=title, title_align="left", border_style="red")


def expected_lines(record: CheckRecord) -> list[Text]:
    """What was found and only counted, what failed as expected, and what is to be done about the
    others. Never wrapped.
    """
    lines = [
        Text("also      ", style="red").append(
            f"{kernel.name}: {name}, in {plural(seen, 'problem')}", style="default"
        )
        for kernel in record.kernels
        for name, seen in kernel.others.items()
    ]
    lines += [
        Text("expected  ", style="yellow").append(one.said, style="default")
        for kernel in record.kernels
        for one in kernel.expected
        if one.state == EXPECTED
    ]
    return lines + [Text(f"warning   {warning}", style="yellow") for warning in record.warnings]


def table(record: CheckRecord) -> Table:
    """The closing table: right, time, memory."""
    stream, machine = record.stream, record.environment
    caption = [
        "cache memory: what a running request holds, averaged over its life",
        f"{machine.device}, torch threads {machine.threads}, torch {machine.torch}, "
        f"triton {machine.triton}",
    ]
    if record.decode is not None:
        caption.insert(0, _batch(record.decode))
    rows = Table(
        title=Text(
            f"{stream.name}: {stream.requests:,} requests, mean prompt "
            f"{stream.mean_prompt_tokens:,.0f} and output {stream.mean_output_tokens:,.0f} tokens"
        ),
        caption=Text("\n".join(["", *caption])),
        box=box.SIMPLE_HEAD,
        show_header=False,
        show_edge=False,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    rows.add_column(overflow="fold", max_width=NAME_WIDTH + 2)
    rows.add_column(justify="right", no_wrap=True)
    rows.add_column(justify="right", no_wrap=True)
    rows.add_column(overflow="fold")
    _add_heading(rows, "cross-check")
    for kernel in record.kernels:
        verdict, meaning = _kernel_cells(kernel)
        rows.add_row(_indented(_short(kernel.name)), verdict, "", meaning)
    rows.add_section()
    _add_times(rows, record.decode)
    rows.add_section()
    _add_memory(rows, record.memory, record.pool_bytes)
    return rows


def _kernel_cells(kernel: KernelRecord) -> tuple[Text, str]:
    ran, asked, passed = kernel.problems, kernel.asked, kernel.count("passed")
    expected = kernel.count(EXPECTED)
    if kernel.failure is not None:
        verdict = Text(kernel.failure.status, style="red")
        checks = ", ".join(dict.fromkeys(failure.check for failure in kernel.failures))
        count = plural(len(kernel.failures), "finding")
        count += f" and {plural(len(kernel.others), 'other')}" if kernel.others else ""
        of = "" if kernel.complete else f"{ran:,} of "
        meaning = f"{checks}: {count} in {of}{plural(asked if of else ran, 'problem')}"
    elif not kernel.complete:
        verdict = Text("incomplete" if ran else "not run", style="yellow")
        meaning = f"{ran:,} of {plural(asked, 'problem')}, {plural(passed, 'check')}"
    else:
        verdict = Text("as expected", style="yellow") if expected else Text("right", style="green")
        unsupported = kernel.count("not supported")
        few = ran < asked and not unsupported
        meaning = plural(ran, "problem") + (" (there are no more)" if few else "")
        meaning += f", {plural(passed, 'check')}"
        meaning += f", {expected:,} failed as expected" if expected else ""
        meaning += f", {unsupported:,} not supported" if unsupported else ""
    return verdict, f"{meaning}\n{_covered(kernel)}"


def _covered(kernel: KernelRecord) -> str:
    """Cells of the coverage matrix that were shown, of those that the kernel supports."""
    shown = sum(kernel.cells(state) for state in ("passed", "failed", EXPECTED))
    line = f"coverage {shown}/{shown + kernel.cells('not run')}"
    line += f", pairs {kernel.pairs.met}/{kernel.pairs.asked}" if kernel.pairs.asked else ""
    return line + "".join(f", {check} not run" for check in kernel.unseen)


def _add_times(rows: Table, decode: DecodeTimes | None) -> None:
    _add_heading(rows, "decode time")
    if decode is None:
        rows.add_row(_indented("not run"), "", "", "")
        return
    for timing in decode.timings:
        meaning = f"{_figure(timing.gigabytes_per_s)} GB/s"
        if timing.bandwidth_share is not None:
            meaning += f" ({timing.bandwidth_share:.0%} of copy)"
        meaning += f", {_figure(timing.fastest_ms)} to {_figure(timing.slowest_ms)} ms"
        figures = f"{_figure(timing.median_ms)} ms", f"{timing.ratio:.2f}x"
        rows.add_row(_indented(timing.name), *figures, meaning)


def _add_memory(rows: Table, needs: list[MemoryNeed], pool_bytes: int) -> None:
    _add_heading(rows, "cache memory")
    baseline = needs[0].bytes_per_request
    for need in needs:
        kind = "max {:,}" if need.policy == "contiguous" else "blocks of {:,}"
        rows.add_row(
            _indented(f"{need.policy}, {kind.format(need.granule_tokens)}"),
            f"{_figure(need.bytes_per_request / GIB)} GiB",
            f"{need.bytes_per_request / baseline:.2f}x",
            f"{need.waste_fraction:.1%} wasted, {need.requests_in_pool:,} fit in "
            f"{pool_bytes / GIB:g} GiB",
        )


def _batch(decode: DecodeTimes) -> str:
    return (
        f"decode: {plural(decode.batch_size, 'running request')}, {decode.context_tokens:,} "
        f"tokens, one layer of {decode.num_q_heads}/{decode.num_kv_heads} heads of "
        f"{decode.head_dim}, {decode.dtype}, blocks of {decode.block_size}; GB/s of keys and values"
    )


def _add_heading(rows: Table, words: str) -> None:
    rows.add_row(Text(words, style="bold"), "", "", "")


def _indented(name: str) -> Padding:
    return Padding(Text(name), (0, 0, 0, 2))


def _short(name: str) -> str:
    """The end of a long name: a path's beginning is what its readers know."""
    most = 2 * NAME_WIDTH
    return name if len(name) <= most else f"…{name[-most + 1 :]}"


def _figure(value: float) -> str:
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"
