"""All commands, and what `pagedbench` says without one."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.commands.check import CHECK_HELP, check
from bench.commands.compare import COMPARE_HELP, compare
from bench.commands.compile import COMPILE_HELP, compile_kernels
from bench.commands.diagnose import DIAGNOSE_HELP, diagnose
from bench.commands.fuzz import FUZZ_HELP, fuzz
from bench.commands.gate import GATE_HELP, gate
from bench.commands.history import HISTORY_HELP, history
from bench.commands.import_ import IMPORT_HELP, import_records
from bench.commands.init import INIT_HELP, init
from bench.commands.race import RACE_HELP, race
from bench.commands.record import RECORD_HELP, record
from bench.commands.report import REPORT_HELP, report
from bench.commands.throughput import THROUGHPUT_HELP, throughput
from bench.commands.waste import WASTE_HELP, waste

HELP = """
A test bench for paged-attention kernels and KV-cache allocators.

[bold]Examples[/]

  pagedbench check

  pagedbench check --kernel my_kernel.py:attention

  pagedbench waste

  pagedbench waste --trace requests.csv --whatif

  pagedbench fuzz --allocator my_pool.py:make

  pagedbench compile --target sm_90 --kernel decode

  pagedbench throughput --batch 8x1024

  pagedbench gate HEAD~1

  pagedbench report check.json gate.json -o report.html

  pagedbench init

  pagedbench waste --help
"""

app = typer.Typer(
    name="pagedbench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        from bench.machine.facts import version_of

        for name in ("pagedbench", "torch", "triton"):
            typer.echo(f"{name} {version_of(name)}")
        raise typer.Exit


@app.callback(help=HELP)
def pagedbench(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of pagedbench, torch and triton.",
            callback=lambda value: _print_version(wanted=value),
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Print help where no command is given."""


for command, name, words, short in (
    (check, "check", CHECK_HELP, "Cross-check kernels, time paging, account for memory."),
    (waste, "waste", WASTE_HELP, "Account for every slot of a KV cache."),
    (fuzz, "fuzz", FUZZ_HELP, "Fuzz a KV-cache allocator."),
    (compile_kernels, "compile", COMPILE_HELP, "Compile kernels ahead of time, without a GPU."),
    (throughput, "throughput", THROUGHPUT_HELP, "Time kernels against peers and the device."),
    (diagnose, "diagnose", DIAGNOSE_HELP, "Say what is wrong with a server's KV cache."),
    (gate, "gate", GATE_HELP, "Decide whether a change made anything worse."),
    (compare, "compare", COMPARE_HELP, "Compare releases side by side."),
    (report, "report", REPORT_HELP, "Make a page of records to look at."),
    (history, "history", HISTORY_HELP, "List the steps in stored results."),
    (import_records, "import", IMPORT_HELP, "Take in records of another machine."),
    (init, "init", INIT_HELP, "Set up a repository of your own."),
    (race, "race", RACE_HELP, "Compare the speed of KV-cache allocators."),
    (record, "record", RECORD_HELP, "Record a running server."),
):
    app.command(name, help=words, short_help=short)(command)
