"""`pagedbench race`: what is asked for, and what comes of it. The work is done elsewhere."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from bench.command.exit_codes import INTERRUPTED, RIGHT, WRONG
from bench.command.options import Json
from bench.command.session import check_file, session

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
    json: Json = None,
) -> None:
    """Compare the speed of KV-cache allocators."""
    with session(about="the allocators") as it:
        check_file("--json", json)
        import platform

        from bench.fuzz.race import race as run_race
        from bench.fuzz.race_report import show
        from bench.machine.facts import cpu_name

        names = list(dict.fromkeys(allocator or ["paged"]))
        with it.work(raising=True) as progress:
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
            )
        it.report(record, json, lambda: show(record, it.out))
        if not record.complete:
            it.end(INTERRUPTED)
        it.end(WRONG if any(entry.failed for entry in record.entries) else RIGHT)
