"""`pagedbench race`: what is asked for, and what comes of it. The work is done elsewhere."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Final

import typer

from bench.command.session import (
    INTERRUPTED,
    Bar,
    Lines,
    QuietlyClosed,
    check_file,
    deliver,
    exit_codes,
    stop_on_interrupt,
)

WRONG: Final = 1

RACE_HELP: Final = """
Lets KV-cache allocators serve the same stream of requests, each in its own process and interpreter,
and prints how many admissions, appends and frees each does in a second of CPU time. Half of the
requests begin with one of four system prompts.

[bold]Examples[/]

  pagedbench race

  pagedbench race --allocator paged --allocator my_pool.py:make

  pagedbench race --allocator paged --allocator vllm --num-blocks 3000 --json race.json

[bold]Exit codes[/]

  0 all came to the end, 1 one did not, 2 usage, 4 the harness itself failed, 130 interrupted
"""


def race(
    *,
    allocator: Annotated[
        list[str] | None,
        typer.Option(
            help="Built-in name, module:factory or file.py:factory; the first is what the others "
            "are compared with. May be repeated. Default: paged."
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests to serve.")] = 10_000,
    running: Annotated[int, typer.Option(min=1, help="Sequences that run at once.")] = 64,
    num_blocks: Annotated[int, typer.Option(min=1, help="Blocks of the pool.")] = 16_384,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens per block.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each serves it.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the order in each round.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the record to this file.")] = None,
) -> None:
    """Compare the speed of KV-cache allocators."""
    console, errors = QuietlyClosed(), QuietlyClosed(stderr=True)
    with exit_codes(errors, about="the allocators"):
        check_file("--json", json)
        import platform

        from bench.fuzz.race import race as run_race
        from bench.fuzz.race_report import show
        from bench.machine.facts import cpu_name

        names = list(dict.fromkeys(allocator or ["paged"]))
        stop = threading.Event()
        progress = Bar(errors) if errors.is_terminal else Lines(errors)
        with progress, stop_on_interrupt(stop, errors):
            record = run_race(
                names,
                requests=requests,
                max_running=running,
                num_blocks=num_blocks,
                block_size=block_size,
                rounds=rounds,
                seed=seed,
                cpu=cpu_name(),
                python=platform.python_version(),
                progress=progress,
                stop=stop,
            )
        deliver(record, json, lambda: show(record, console))
        if not record.complete:
            raise typer.Exit(INTERRUPTED)
        if any(entry.failed for entry in record.entries):
            raise typer.Exit(WRONG)
