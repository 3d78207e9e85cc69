"""`pagedbench gate`: what is asked for, and what comes of it. The work is done elsewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from bench.command.options import AsvFolder, Html, Json, OrderSeed, TimedDevice
from bench.command.project import present_project
from bench.command.session import check_file, session
from bench.gate.timers import device_named
from reference.errors import BadInput

if TYPE_CHECKING:
    from bench.command.console import SafeConsole
    from bench.command.project import Project
    from bench.gate.contestant import Contestant
    from bench.gate.record import Mode
    from bench.gate.timers import Device

GATE_HELP: Final = """
Decides whether a change made anything worse: to the kernels and allocators that \\[tool.pagedbench]
of pyproject.toml names. First each side is held against the truth, then outputs of both sides are
compared, then exact counters, then time: two processes take turns on one core, in fresh pairs of
processes, until an exact test says slower or not slower. A suspect fails only if fresh launches
confirm it.

BASE and HEAD are commits, folders, or exact requirements ("torch==2.12.0,triton==3.8.0": this
folder in an environment that is built once). HEAD is this folder as it stands if not given. Points
and streams are those of this folder, for both sides.

[bold]Examples[/]

  pagedbench gate HEAD~1

  pagedbench gate v1.2 v1.3 --json gate.json --markdown gate.md

  pagedbench gate . --python ../py313/bin/python

  pagedbench gate torch==2.12.0,triton==3.8.0

  pagedbench gate v1.2 --device cuda

  pagedbench gate --aa --time-limit 20

  pagedbench gate --plant 3% --benchmark allocator

[bold]Exit codes[/]

  0 not worse, 1 confirmed worse, wrong, or head fails to build, 2 usage, 3 inconclusive, 4 the
  harness itself failed, 5 outputs differ, 130 interrupted
"""

PERCENT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*%")

MAX_PLANT: Final = 1.0


def percentage(text: str) -> float:
    """Read `3%` as 0.03."""
    match = PERCENT.fullmatch(text.strip())
    value = float(match[1]) / 100 if match else 0.0
    if not 0 < value <= MAX_PLANT:
        raise BadInput(f"--plant {text}: give a percentage above 0 and up to 100, as in 3%")
    return value


def gate(
    *,
    base: Annotated[
        str | None,
        typer.Argument(help="What to compare with; may be left out with --aa and --plant."),
    ] = None,
    head: Annotated[
        str | None, typer.Argument(help="What is judged. Default: this checkout as it stands.")
    ] = None,
    python: Annotated[str | None, typer.Option(help="Interpreter of head.", metavar="PATH")] = None,
    base_python: Annotated[
        str | None, typer.Option(help="Interpreter of base.", metavar="PATH")
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            help="Part of a benchmark's name, or a pattern with * and ?. May be repeated. "
            "Default: all.",
            metavar="PATTERN",
        ),
    ] = None,
    list_benchmarks: Annotated[
        bool, typer.Option("--list", help="Print the benchmarks and do nothing else.")
    ] = False,
    aa: Annotated[
        bool,
        typer.Option(
            "--aa",
            help="Compare base with itself: noise, false alarms, and the smallest slowdown that "
            "is found on this machine.",
        ),
    ] = False,
    plant: Annotated[
        str | None, typer.Option(help="Slow head by so much real extra work.", metavar="PERCENT")
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0.1, help="Minutes after which no launch begins.")
    ] = 9.0,
    pairs: Annotated[int, typer.Option(min=4, help="Turns of each side in a launch.")] = 16,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Time benchmarks although counters are worse.")
    ] = False,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compiled/--no-compiled",
            help="Compile the kernels of both sides and compare their machine code. Default: where "
            "kernels or interpreters differ, and no --benchmark is chosen.",
        ),
    ] = None,
    device: TimedDevice = "cpu",
    seed: OrderSeed = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML with margins and limits. "
            "Default: \\[tool.pagedbench.gate] of pyproject.toml."
        ),
    ] = None,
    json: Json = None,
    html: Html = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write a report for a pull request to this file.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Print annotations for a GitHub Actions job.")
    ] = False,
    asv: AsvFolder = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder of records to add this one to.", metavar="DIR")
    ] = None,
) -> None:
    """Decide whether a change made anything worse."""
    with session(about="base or head") as it:
        if list_benchmarks:
            _list(tuple(benchmark or ()), device_named(device), it.out)
            return
        from bench.gate.report.deliver import Outputs, deliver_reports
        from bench.gate.trees import top_of

        project = present_project()
        outputs = Outputs(
            json=json,
            html=html,
            markdown=markdown,
            junit=junit,
            github=github,
            asv=asv,
            repository=top_of(project.root),
            store=store,
        )
        outputs.check()
        if config is not None:
            check_file("--config", config)
        if aa and plant is not None:
            raise BadInput("--aa and --plant: head cannot be the same and slower; choose one")
        timed_on = device_named(device)
        slowdown = percentage(plant) if plant is not None else 0.0
        mode: Mode = "aa" if aa else "plant" if slowdown else "gate"
        # An empty word is a variable of CI that is not set.
        if not base and mode == "gate":
            raise BadInput("BASE is missing: give a commit or a folder, as in HEAD~1")
        if mode != "gate" and (head is not None or python is not None):
            raise BadInput("with --aa and --plant base is compared with itself: give no HEAD")

        # Before anything heavy is imported: a name that leads nowhere is said at once.
        contestants = _contestants(project, base, head, base_python, python, mode)

        import secrets

        from bench.gate.configuration import configured, read_configuration
        from bench.gate.run import GatePlan, run_gate
        from bench.gate.worker import SUITE_VARIABLE

        settings = configured(project) if config is None else read_configuration(config)
        plan = GatePlan(
            base=contestants[0],
            head=contestants[1],
            mode=mode,
            design=settings.design(),
            limits=settings.limits,
            benchmarks=tuple(benchmark or ()),
            pairs=pairs,
            plant=slowdown,
            seed=secrets.randbelow(2**32) if seed is None else seed,
            time_limit_s=60 * time_limit,
            keep_going=keep_going,
            compiled=compiled,
            compiled_targets=settings.compiled_targets,
            device=timed_on,
            project=project,
            suite=os.environ.get(SUITE_VARIABLE),
        )
        with it.work() as progress:
            record = run_gate(plan, progress=progress, stop=it.stop, say=it.err.say)
        deliver_reports(record, it, outputs)
        it.end(record.exit_code)


def _contestants(
    project: Project,
    base: str | None,
    head: str | None,
    base_python: str | None,
    python: str | None,
    mode: Mode,
) -> tuple[Contestant, Contestant]:
    from bench.gate.contestant import Contestant, find_in

    here = str(project.root)
    first = second = Contestant(asked=base or here, python=base_python or "")
    if mode == "gate":
        second = Contestant(asked=head or here, python=python or "")
    for contestant in (first, second):
        find_in(project, contestant)
    return first, second


def _list(patterns: tuple[str, ...], device: Device, out: SafeConsole) -> None:
    from bench.gate.contestant import is_there
    from bench.gate.subjects import subjects_of, suite_of
    from bench.gate.suite import chosen
    from bench.gate.worker import SUITE_VARIABLE, load_suite

    project = present_project()
    suite = load_suite(
        os.environ.get(SUITE_VARIABLE) or suite_of(project), subjects_of(project), device=device
    )
    for each in chosen(patterns, suite, device=device):
        how = "timed" if each.timed else "counted"
        if not is_there(project, each.subject):
            how = "missing"
        out.say(f"{each.key:<40} {how:<8} {each.title}")
