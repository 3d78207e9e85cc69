"""`pagedbench throughput` in the terminal: a table for each point, then the bars, in 80 columns."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.command.tables import CLOSE, say, table
from bench.machine.roof import RoofRecord
from bench.throughput.record import (
    TIMED,
    BarRecord,
    LoopRecord,
    PointRecord,
    SubjectRecord,
    ThroughputRecord,
)

NAME_WIDTH: Final = 22
"""Of a subject's name, columns."""

_STYLES: Final = {
    "wrong": "bold red",
    "died": "bold red",
    "raised": "red",
    "missed": "red",
    "met": "green",
}


def show(record: ThroughputRecord, console: Console) -> None:
    """Print a record."""
    for point in record.points:
        _show_point(point, record, console)
    if record.bars:
        _show_bars(record.bars, console)
    if record.loops:
        _show_loops(record.loops, console)
    for line in _last_lines(record):
        console.print(line, soft_wrap=True)


def _show_point(point: PointRecord, record: ThroughputRecord, console: Console) -> None:
    say(console, point.name, style="bold")
    cold = "cold" if point.cold else _not_cold(point, record)
    say(
        console,
        f"{point.context_tokens:,} tokens, {point.kv_bytes / 1e6:,.1f} MB of keys and values, "
        f"{point.intensity:,.1f} FLOP/byte; {point.copies} inputs in turn, {cold}",
    )
    first = next((each for each in point.subjects if each.status == TIMED), None)
    if first is not None:
        console.print(_timed(point, first))
    for each in point.subjects:
        if each.status != TIMED:
            line = Text(f"{each.name}: ").append(each.status, style=_STYLES.get(each.status, ""))
            console.print(line.append(f", {each.why}" if each.why else ""), soft_wrap=True)
    console.print()


def _not_cold(point: PointRecord, record: ThroughputRecord) -> str:
    held = f"{point.copies * point.kv_bytes / 2**20:,.0f} MiB"
    cache = f"{record.cache_bytes / 2**20:,.0f} MiB"
    return f"not cold: they are {held}, the cache {cache}, and more would take minutes or memory"


def _timed(point: PointRecord, first: SubjectRecord) -> Table:
    warm = any(each.warm_seconds for each in point.subjects)
    prefill = point.kind == "prefill"
    clocked = any(each.cycles for each in point.subjects)
    columns = ["ms", "GB/s", "copy", "read", "TFLOP/s"] + ["dense"] * prefill
    columns += ["kcycles"] * clocked + ["warm ms"] * warm + ["ratio", "95 %"]
    rows = table("subject", columns, name_width=NAME_WIDTH, padding=CLOSE)
    for each in point.subjects:
        if each.status != TIMED or each.seconds is None:
            continue
        ratio = each.times_of.get(first.name)
        cells = [
            f"{1e3 * each.seconds.median:,.3f}",
            f"{each.gigabytes_per_s:,.2f}",
            f"{each.bandwidth_share:.0%}",
            "-" if each.read_share is None else f"{each.read_share:.0%}",
            f"{each.teraflops_per_s:,.3g}",
        ]
        cells += [f"{each.matrix_share:.1%}"] * prefill
        if clocked:
            cells.append(f"{each.cycles.median / 1e3:,.1f}" if each.cycles else "")
        if warm:
            cells.append(f"{1e3 * each.warm_seconds.median:,.3f}" if each.warm_seconds else "")
        cells += [f"{ratio.median:.2f}x", ratio.spread] if ratio else ["1.00x", ""]
        rows.add_row(Text(each.name + ("*" if each.captured else "")), *cells)
    return rows


def _show_bars(bars: list[BarRecord], console: Console) -> None:
    rows = table("bar", ("wanted", "got", "verdict"), padding=CLOSE)
    for bar in bars:
        if bar.got is not None:
            name = Text(f"{bar.what}: {bar.point}")
            verdict = Text(bar.state, style=_STYLES[bar.state])
            rows.add_row(name, f"{bar.wanted:.2f}", f"{bar.got:.3f}", verdict)
    if rows.row_count:
        console.print(rows)
    missing: dict[str, int] = {}
    for bar in bars:
        if bar.got is None:
            missing[bar.why] = missing.get(bar.why, 0) + 1
    for why, count in missing.items():
        say(console, f"{count} of {len(bars)} bars not measured: {why}")
    console.print()


def _show_loops(loops: list[LoopRecord], console: Console) -> None:
    say(
        console, f"our Triton kernel, compiled for {loops[0].target}; no time, see docs/compiled.md"
    )
    rows = table("launch", ("regs", "spills", "shared", "occ.", "instr./key"), padding=CLOSE)
    for loop in loops:
        if loop.failure:
            rows.add_row(Text(f"{loop.problem}: {loop.failure.splitlines()[0]}", style="red"))
            continue
        per_key, occupancy = loop.instructions_per_key, loop.occupancy or 0.0
        rows.add_row(
            Text(loop.problem),
            str(loop.registers),
            str(loop.spill_instructions),
            f"{loop.shared_bytes:,}",
            f"{occupancy:.0%}",
            "-" if per_key is None else f"{per_key:.1f}",
        )
    console.print(rows)
    console.print()


def _last_lines(record: ThroughputRecord) -> list[Text]:
    lines = []
    for point, subject in record.wrong:
        lines.append(Text(f"{subject.status}: {subject.name} on {point.name}", style="bold red"))
    if record.roof is not None:
        lines.append(Text(roof_words(record.roof)))
    if any(each.captured for point in record.points for each in point.subjects):
        lines.append(Text("*: timed as a CUDA graph"))
    if record.points:
        lines.append(
            Text(
                "ms: median of the rounds, inputs in turn; GB/s: keys and values, each read once; "
                "copy, read: as a share of the bandwidth at which the device copied, and read; "
                "dense: of the dense product; ratio: time over the first subject's, median of the "
                "rounds' own ratios, with its interval"
            )
        )
    where = record.environment
    if record.clock == "process_time":
        clock = f"CPU seconds, torch threads {where.threads}"
    else:
        clock = f"CUDA events, driver {where.driver}; clocks {record.clocks}"
    lines.append(Text(f"{where.device}, torch {where.torch}, triton {where.triton}; {clock}"))
    verdict = {0: "right", 1: "wrong", 130: "incomplete"}[record.exit_code]
    colour = {0: "green", 1: "red"}.get(record.exit_code, "yellow")
    lines.append(
        Text(verdict, style=f"bold {colour}").append(
            f" in {record.elapsed_s:.0f} s, {record.rounds} rounds, seed {record.seed}, exit code "
            f"{record.exit_code}",
            style="not bold default",
        )
    )
    return lines


def roof_words(roof: RoofRecord) -> str:
    """The measured roofs in a line."""
    read = roof.read_gigabytes_per_s
    return (
        f"copy bandwidth {roof.copy_gigabytes_per_s:,.1f} GB/s (median "
        f"{roof.copy_median_gigabytes_per_s:,.1f}), "
        + (f"reading alone {read:,.1f} GB/s, " if read else "")
        + f"dense {roof.matrix_dtype} product {roof.matrix_teraflops_per_s:,.3g} TFLOP/s"
    )
