"""The command line. Exit codes: 0 right, 1 wrong, 2 usage, 4 the harness itself failed."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

# torch takes seconds to import: what needs it is imported where it is used; --help is quick.
if TYPE_CHECKING:
    from bench.check import CheckPlan
    from bench.workloads.stream import RequestStream

# A distribution of the same name as one of the rooms may be installed; ours lie beside this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

app = typer.Typer(
    name="pagedbench",
    help="A test bench for paged-attention kernels and KV-cache allocators.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)

CHECK_EXAMPLES = """
Draws attention problems, hostile ones first, and holds each kernel against float64 attention over
a contiguous cache; times a decode step of the stream, contiguous against paged; and prints what
both need in memory.

[bold]Examples[/]

  pagedbench check

  pagedbench check --trace AzureLLMInferenceTrace_conv.csv --json check.json

  pagedbench check --kernel my_kernel.py:attention --problems 2000

  pagedbench check --kernel triton --problem "(q1 k129) g4 d80 b16 bf16 window=32"

[bold]Exit codes[/]

  0 right, 1 wrong, 2 usage, 4 the harness itself failed, 130 interrupted
"""


@app.callback()
def pagedbench() -> None:
    """Keep `check` a command of its own while it is the only one."""


@app.command(help=CHECK_EXAMPLES)
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
            help="Kernel to check: torch, triton, module:function or file.py:function. "
            "May be repeated. Default: torch and triton."
        ),
    ] = None,
    problems: Annotated[int, typer.Option(min=1, help="Problems to draw for each kernel.")] = 300,
    problem: Annotated[
        str | None, typer.Option(help="Run every check on this one problem, and nothing else.")
    ] = None,
    max_len: Annotated[
        int, typer.Option(min=1, help="Longest context taken from the stream, tokens.")
    ] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same problems.")] = 0,
    device: Annotated[
        str, typer.Option(help="cpu (Triton is interpreted), cuda, or auto.")
    ] = "auto",
    lanes: Annotated[
        int, typer.Option(min=0, help="Processes per kernel; 0: one a core, four at most.")
    ] = 0,
    timing: Annotated[bool, typer.Option(help="Time contiguous against paged decode.")] = True,
    json: Annotated[Path | None, typer.Option(help="Write the record to this file.")] = None,
    save: Annotated[
        Path, typer.Option(help="Where failing problems are kept for the next run.")
    ] = Path(".pagedbench"),
) -> None:
    """Cross-check kernels, time paging, account for memory."""
    console, errors = Console(), Console(stderr=True)
    kernels = tuple(dict.fromkeys(kernel or ["torch", "triton"]))
    try:
        where = _device(device)
        if problem is not None:
            raise typer.Exit(_replay(kernels, where, problem, console))
        from bench.check import CheckPlan
        from bench.cross_check import default_lanes
        from bench.failures import FailureStore
        from bench.timing import DecodeShape

        plan = CheckPlan(
            kernels=kernels,
            stream=_stream(trace, stream),
            problems=problems,
            max_len=max_len,
            seed=seed,
            device=where,
            lanes=lanes or default_lanes(),
            store=FailureStore(save / "failures"),
            timed=DecodeShape() if timing else None,
        )
        raise typer.Exit(_check(plan, _writable(json), console, errors))
    except _usage_errors() as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(2) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception:
        errors.print("the harness itself failed; this says nothing about the kernel:", style="red")
        errors.print(traceback.format_exc(), markup=False, highlight=False)
        raise typer.Exit(4) from None


class _UsageError(ValueError):
    """An option that cannot be met; the message has the value and the remedy."""


def _usage_errors() -> tuple[type[Exception], ...]:
    from bench.workloads.traces import TraceError
    from reference.problem import InvalidProblem
    from subjects.resolve import SubjectError

    return _UsageError, TraceError, InvalidProblem, SubjectError


def _check(plan: CheckPlan, json: Path | None, console: Console, errors: Console) -> int:
    from bench.check import run_check
    from bench.report.terminal import show

    stop = threading.Event()
    with _Bar(errors) as bar, _stop_on_interrupt(stop, errors):
        record = run_check(plan, progress=bar, stop=stop)
    if json is not None:
        json.write_text(record.model_dump_json(indent=2) + "\n")
    show(record, console)
    return record.exit_code


def _replay(kernels: tuple[str, ...], device: str, spec: str, console: Console) -> int:
    from bench.check import RIGHT, WRONG
    from bench.cross_check import replay
    from bench.report.terminal import show_replay
    from reference.problem import AttentionProblem

    parsed = AttentionProblem.parse(spec)
    wrong = False
    for name in kernels:
        verdicts = replay(name, device, parsed)
        show_replay(name, str(parsed), verdicts, console)
        wrong = wrong or any(verdict.wrong for verdict in verdicts)
    return WRONG if wrong else RIGHT


def _stream(trace: Path | None, name: str) -> RequestStream:
    from bench.workloads.builtin import STREAM_LAWS, builtin_stream
    from bench.workloads.traces import read_trace

    if trace is None:
        if name not in STREAM_LAWS:
            raise _UsageError(f"--stream {name}: choose one of {', '.join(STREAM_LAWS)}")
        return builtin_stream(name)
    try:
        return read_trace(trace)
    except OSError as error:
        raise _UsageError(f"--trace {trace}: {error.strerror}") from None


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in {"cpu", "cuda"}:
        raise _UsageError(f"--device {name}: choose cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise _UsageError(f"--device cuda: torch {torch.__version__} finds none; use --device cpu")
    return name


def _writable(path: Path | None) -> Path | None:
    # Before the work, not after it: a minute's record should not end in a missing folder.
    if path is not None and not path.parent.is_dir():
        raise _UsageError(f"--json {path}: the folder {path.parent} does not exist")
    return path


@contextmanager
def _stop_on_interrupt(stop: threading.Event, errors: Console) -> Iterator[None]:
    """The first Ctrl-C ends the search and keeps what is done; the second ends the process."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        errors.print("stopping; what is done is reported (Ctrl-C again to abort)", style="yellow")

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Bar:
    """A progress bar on standard error, one line for each step of the job."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._step = TaskID(0)

    def begin(self, what: str, total: int) -> None:
        """Start a line."""
        self._step = self._bar.add_task(what, total=total)

    def advance(self, count: int) -> None:
        """Move the last line on."""
        self._bar.advance(self._step, count)

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the finished lines on the screen."""
        self._bar.stop()


def main() -> None:
    """Entry point of the command `pagedbench`."""
    app()
