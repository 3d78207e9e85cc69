"""`pagedbench check`: cross-check kernels, time paging, account for memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

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
from bench.command.session import check_file, check_readable, session
from bench.machine.facts import present_device
from reference.errors import BadInput
from subjects.attention.resolve import check_name

# torch takes seconds to import: what needs it is imported where it is used; --help is quick.
if TYPE_CHECKING:
    from bench.check.run import CheckPlan
    from bench.workloads.stream import RequestStream
    from reference.attention.expected import ExpectedFailure

CHECK_HELP: Final = """
Draws attention problems, hostile ones first, and holds each kernel against float64 attention over
a contiguous cache; times a decode step of the stream, contiguous against paged; and prints what
both need in memory.

[bold]Examples[/]

  pagedbench check

  pagedbench check --trace AzureLLMInferenceTrace_conv.csv --json check.json

  pagedbench check --kernel my_kernel.py:attention --problems 2000

  pagedbench check --kernel my_kernel.py:attention --expected expected.toml --coverage

  pagedbench check --kernel my_kernel.py:attention --seeds 0..99 --findings 20

  pagedbench check --kernel triton --problem "(q1 k129) g4 d80 b16 bf16"

[bold]Exit codes[/]

  0 right, 1 wrong, 2 usage, 4 the harness itself failed, 130 interrupted
"""


def check(
    *,
    trace: Annotated[
        Path | None,
        typer.Option(help="Request trace: Azure or ShareGPT CSV, Mooncake JSONL; plain or gzip."),
    ] = None,
    stream: Annotated[
        str, typer.Option(help="Built-in stream, where no trace is given.")
    ] = "azure-conv",
    kernel: Annotated[
        list[str] | None,
        typer.Option(
            help="Kernel to check: torch, triton, a peer (sdpa, flex, vllm-unified, ...), "
            "module:function or file.py:function. May be repeated. Default: those of the "
            "project's pyproject.toml, else torch and triton."
        ),
    ] = None,
    engine_python: Annotated[
        str | None, typer.Option(help="Interpreter to run the kernels with.", metavar="PATH")
    ] = None,
    problems: Annotated[int, typer.Option(min=1, help="Problems to draw for each kernel.")] = 300,
    problem: Annotated[
        str | None, typer.Option(help="Run every check on this one problem, and nothing else.")
    ] = None,
    max_len: Annotated[
        int, typer.Option(min=1, help="Longest context taken from the stream, tokens.")
    ] = 1024,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="The same seed draws the same problems.")
    ] = 0,
    seeds: Annotated[str | None, typer.Option(help=SEEDS_HELP, metavar="A..B")] = None,
    ray: Ray = False,
    ray_address: RayAddress = None,
    device: Annotated[
        str, typer.Option(help="cpu (Triton is interpreted), cuda, or auto.")
    ] = "auto",
    lanes: Annotated[
        int, typer.Option(min=0, help="Processes per kernel; 0: one a core, four at most.")
    ] = 0,
    time_limit: Annotated[
        float, typer.Option(min=0.1, help="Seconds for one check of one problem; more is a hang.")
    ] = 120.0,
    findings: Annotated[
        int,
        typer.Option(
            min=1, help="Findings to show of one kernel, made smaller; others are counted."
        ),
    ] = 5,
    timing: Annotated[bool, typer.Option(help="Time contiguous against paged decode.")] = True,
    expected: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of failures that are expected, with reasons; they fail nothing."
        ),
    ] = None,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Print what was shown of each capability.")
    ] = False,
    coverage_md: Annotated[
        Path | None, typer.Option(help="Write that to this file, as markdown.", metavar="FILE")
    ] = None,
    json: Json = None,
    html: Html = None,
    save: Annotated[
        Path, typer.Option(help="Where failing problems are kept for the next run.")
    ] = Path(".pagedbench"),
) -> None:
    """Cross-check kernels, time paging, account for memory."""
    with session(about="the kernel") as it:
        kernels = subjects_under_test("kernels", kernel) or ("torch", "triton")
        engine_python = _interpreter(engine_python, kernel)
        for name in kernels:
            check_name(name)
        check_readable(expected)
        if problem is not None:
            recorded = {"--json": json, "--html": html, "--coverage-md": coverage_md}
            for option in (name for name, file in recorded.items() if file is not None):
                raise BadInput(
                    f"{option} {recorded[option]}: --problem prints, and makes no record; drop one"
                )
            if coverage:
                raise BadInput("--coverage: --problem covers one problem; drop one of the two")
            from reference.attention.problem import AttentionProblem
            from reference.attention.size import check_reference

            # What nothing can hold, and a file that is none, are said before torch is imported.
            parsed = AttentionProblem.parse(problem)
            check_reference(parsed)
            known = _expected(expected)
            from bench.check.report import show_replay
            from bench.check.run import replay_problem

            where = present_device(device)
            with it.work(quiet=True, raising=True):
                code = replay_problem(
                    parsed,
                    kernels,
                    where,
                    expected=known,
                    time_limit_s=time_limit,
                    python=engine_python,
                    show=lambda kernel, replayed: show_replay(kernel, replayed, it.out),
                )
            it.end(code)
        campaign = None if seeds is None else seeds_of(seeds)
        cluster = on_a_cluster(ray=ray, address=ray_address, campaign=campaign)
        _check_writable(json, save)
        check_file("--html", html)
        check_file("--coverage-md", coverage_md)
        lengths = _stream(trace, stream)
        where = present_device(device)
        from bench.check.coverage import show_coverage
        from bench.check.coverage_markdown import markdown
        from bench.check.failures import FailureStore
        from bench.check.page import sheet
        from bench.check.report import show
        from bench.check.run import CheckPlan, run_check

        step = None
        if timing:
            import torch

            from bench.check.decode import STEP

            # With several threads every small operation waits for the slowest one: times of a busy
            # machine are then of its other work. The children have one thread anyway.
            torch.set_num_threads(1)
            step = STEP
        plan = CheckPlan(
            kernels=kernels,
            stream=lengths,
            problems=problems,
            max_len=max_len,
            seed=seed if campaign is None else campaign[0],
            last_seed=None if campaign is None else campaign[-1],
            device=where,
            lanes=lanes or (default_lanes() if campaign is None else default_lanes(most=256)),
            store=FailureStore(save / "failures"),
            timed=step,
            time_limit_s=time_limit,
            python=engine_python,
            expected=_expected(expected),
            findings=findings,
            ray=cluster,
        )
        with it.work() as progress, _cluster(plan, ray_address) as plan:
            record = run_check(plan, progress=progress, stop=it.stop)
        if coverage:
            it.deliver("standard output", lambda: show_coverage(record, it.out))
        it.write("--coverage-md", coverage_md, lambda: markdown(record))
        it.report(
            record, json, lambda: show(record, it.out), html=html, sheet=lambda: sheet(record)
        )
        it.end(record.exit_code)


@contextmanager
def _cluster(plan: CheckPlan, address: str | None) -> Iterator[CheckPlan]:
    """The plan, with a lane for each core of the cluster that it is to run on, if any."""
    if not plan.ray:
        yield plan
        return
    from bench.machine.spread import ray_cluster

    with ray_cluster(address=address, cpus=plan.lanes) as ray:
        yield replace(plan, lanes=max(int(ray.cluster_resources().get("CPU", 1)), 1))


def _expected(file: Path | None) -> tuple[ExpectedFailure, ...]:
    from bench.check.expected_file import read_expected

    return () if file is None else read_expected(file)


def _stream(trace: Path | None, name: str) -> RequestStream:
    from bench.workloads.builtin import STREAM_LAWS, builtin_stream
    from bench.workloads.traces import read_trace

    if trace is None:
        if name not in STREAM_LAWS:
            raise BadInput(f"--stream {name}: choose one of {', '.join(STREAM_LAWS)}")
        return builtin_stream(name)
    try:
        stream = read_trace(trace)
    except OSError as error:
        raise BadInput(
            f"--trace {trace}: {error.strerror or error}; name a file that can be read"
        ) from None
    if not stream.output_tokens.any():
        raise BadInput(
            f"--trace {trace}: no request generates a token, so none is ever in the cache; "
            f"choose a trace with outputs"
        )
    return stream


def _interpreter(python: str | None, kernels: list[str] | None) -> str | None:
    if python is None:
        return None
    if not kernels:
        raise BadInput(f"--engine-python {python}: name the kernel that needs it with --kernel")
    from subjects.environments import chosen_interpreter

    return chosen_interpreter(python)


def _check_writable(json: Path | None, save: Path) -> None:
    check_file("--json", json)
    there = next(path for path in (save, *save.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise BadInput(f"--save {save}: {there} is no folder to write to; choose another one")
