"""`pagedbench check` in the terminal: what is wrong, if anything, then one table."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from bench.record import CheckRecord, FailureRecord, KernelRecord
from reference.conformance import CHECKS
from reference.verdict import Verdict

LAWS = {check.name: check.law for check in CHECKS}
GIB = 2**30


def show(record: CheckRecord, console: Console) -> None:
    """Print a record."""
    for kernel in record.kernels:
        if kernel.failure is not None:
            console.print(failure_panel(kernel.name, kernel.failure))
    console.print(table(record))
    colour = {"right": "green", "wrong": "red"}.get(record.verdict, "yellow")
    console.print(
        f"[bold {colour}]{record.verdict}[/] in {record.elapsed_s:.0f} s, "
        f"seed {record.seed}, exit code {record.exit_code}"
    )


def show_replay(kernel: str, problem: str, verdicts: list[Verdict], console: Console) -> None:
    """Print what each check said of one problem."""
    rows = Table(title=escape(f"{kernel} on {problem}"), box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("check", "verdict", "what was seen"):
        rows.add_column(column, overflow="fold")
    for verdict in verdicts:
        colour = "red" if verdict.wrong else "green" if verdict.status == "passed" else "yellow"
        seen = "\n".join(verdict.findings) or LAWS[verdict.check]
        rows.add_row(verdict.check, f"[{colour}]{verdict.status.value}[/]", escape(seen))
    console.print(rows)


def failure_panel(kernel: str, failure: FailureRecord) -> Panel:
    """What a wrong kernel did, on the smallest problem that shows it."""
    lines = [
        f"check     {failure.check}: {LAWS[failure.check]}",
        f"problem   {failure.problem}",
        *(f"seen      {finding}" for finding in failure.findings),
        f"drawn as  {failure.first_problem}",
        f"replay    {failure.replay}",
    ]
    how = "is wrong" if failure.status == "failed" else failure.status
    return Panel(
        escape("\n".join(lines)),
        title=f"[bold red]{escape(kernel)} {how}[/]",
        title_align="left",
        border_style="red",
    )


def table(record: CheckRecord) -> Table:
    """The closing table: right, time, memory."""
    stream, machine = record.stream, record.environment
    rows = Table(
        title=escape(
            f"{stream.name}: {stream.requests:,} requests, mean prompt "
            f"{stream.mean_prompt_tokens:,.0f} and output {stream.mean_output_tokens:,.0f} tokens"
        ),
        caption=escape(
            f"{machine.device}, {machine.threads} threads, torch {machine.torch}, "
            f"triton {machine.triton}"
        ),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    rows.add_column("")
    rows.add_column("of", overflow="fold")
    rows.add_column("figure", justify="right")
    rows.add_column("ratio", justify="right")
    rows.add_column("meaning", overflow="fold")
    for kernel in record.kernels:
        rows.add_row("cross-check", escape(kernel.name), *_kernel_cells(kernel))
    rows.add_section()
    _add_times(rows, record)
    rows.add_section()
    _add_memory(rows, record)
    return rows


def _kernel_cells(kernel: KernelRecord) -> tuple[str, str, str]:
    skipped = kernel.count("not supported")
    if kernel.failure is not None:
        verdict = f"[red]{kernel.failure.status}[/]: {kernel.failure.check}"
    elif not kernel.complete:
        verdict = "[yellow]incomplete[/]"
    else:
        verdict = f"[green]right[/], {kernel.count('passed'):,} checks passed"
    if skipped:
        verdict += f", {skipped:,} not supported"
    return f"{kernel.problems:,} problems", "", verdict


def _add_times(rows: Table, record: CheckRecord) -> None:
    decode = record.decode
    if decode is None:
        rows.add_row("decode time", "", "not run", "", "")
        return
    for timing in decode.timings:
        meaning = f"{timing.gigabytes_per_s:.1f} GB/s of keys and values"
        if timing.bandwidth_share is not None:
            meaning += f", {timing.bandwidth_share:.0%} of copy bandwidth"
        meaning += f"; {timing.fastest_ms:.1f} to {timing.slowest_ms:.1f} ms"
        figures = f"{timing.median_ms:.1f} ms", f"{timing.ratio:.2f}x"
        rows.add_row("decode time", timing.name, *figures, meaning)
    rows.add_row(
        "",
        "",
        "",
        "",
        f"one layer, {decode.batch_size} requests, {decode.context_tokens:,} tokens, "
        f"{decode.num_q_heads}/{decode.num_kv_heads} heads of {decode.head_dim}, {decode.dtype}, "
        f"blocks of {decode.block_size}",
    )


def _add_memory(rows: Table, record: CheckRecord) -> None:
    baseline = record.memory[0].bytes_per_request
    for need in record.memory:
        unit = "reserved" if need.policy == "contiguous" else "a block"
        rows.add_row(
            "cache memory",
            f"{need.policy}, {need.granule_tokens:,} {unit}",
            f"{need.bytes_per_request / GIB:.3f} GiB",
            f"{need.bytes_per_request / baseline:.3f}x",
            f"per running request, {need.waste_fraction:.1%} wasted; "
            f"{need.requests_in_pool:,.0f} fit into {record.pool_bytes / GIB:g} GiB",
        )
