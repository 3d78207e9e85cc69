"""`pagedbench throughput`: what is asked for, and what comes of it. The work is done elsewhere."""

from __future__ import annotations

import re
import threading
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from bench.command.session import (
    Bar,
    Lines,
    Progress,
    QuietlyClosed,
    check_file,
    deliver,
    exit_codes,
    stop_on_interrupt,
)
from reference.errors import BadInput

if TYPE_CHECKING:
    from bench.throughput.points import Point
    from bench.throughput.record import ThroughputRecord
    from bench.throughput.run import ThroughputPlan

THROUGHPUT_HELP: Final = """
Times attention kernels, ours and every peer that is present, in one process: rounds in random
order, inputs in turn so that the cache is cold, outputs of every round checked. Prints GB/s, the
share of the copy bandwidth that is measured in the same run, and ratios. Without a GPU: paged torch
on the CPU beside contiguous torch and torch's FlexAttention, and what the Triton kernels compile
to. docs/performance.md has the method and the bars.

[bold]Examples[/]

  pagedbench throughput

  pagedbench throughput --preset bars --json bars.json --plot roofline.png

  pagedbench throughput --batch 64x4096 --batch azure-conv:64 --block-size 16,32,64

  pagedbench throughput --batch 1x131072 --splits auto,8,32 --subject triton --subject flashinfer

  pagedbench throughput --prefill 16x2048

  pagedbench throughput --batch 16x1024 --subject my_kernel.py:attention --subject torch

[bold]Exit codes[/]

  0 measured, 1 an answer in a timed round is wrong, 2 usage, 4 the harness itself failed,
  130 interrupted
"""

ROUNDS: Final = {"cpu": 15, "cuda": 30}

DEFAULT_BATCHES: Final = {
    "cpu": ("8x1024", "azure-conv:32"),
    "cuda": ("64x4096", "16x32768", "1x131072", "azure-conv:64"),
}

PRESETS: Final = ("bars",)

_HEADS: Final = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")


def throughput(
    *,
    batch: Annotated[
        list[str] | None,
        typer.Option(
            help="Decode batch: BATCHxCONTEXT, or STREAM:BATCH, lengths of running requests of a "
            "built-in stream. May be repeated.",
        ),
    ] = None,
    prefill: Annotated[
        list[str] | None,
        typer.Option(help="Whole prompts: BATCHxTOKENS. May be repeated.", metavar="BATCHxTOKENS"),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="bars: exactly the points of docs/performance.md, and their verdicts."),
    ] = None,
    block_size: Annotated[str, typer.Option(help="Tokens of a block, as in 16,32.")] = "16",
    heads: Annotated[
        str, typer.Option(help="KV heads x query heads for each, as in 8x4,1x32.")
    ] = "8x4",
    head_dim: Annotated[str, typer.Option(help="Head sizes, as in 64,128.")] = "128",
    dtype: Annotated[str, typer.Option(help="Of the query: bf16, fp16, fp32.")] = "bf16",
    kv_dtype: Annotated[
        str, typer.Option(help="Of the cache: same, e4m3, e5m2; as in same,e4m3.")
    ] = "same",
    splits: Annotated[
        str, typer.Option(help="Programs that share a sequence's keys in our Triton decode.")
    ] = "auto",
    subject: Annotated[
        list[str] | None,
        typer.Option(
            help="Who is timed: torch, contiguous, triton, a peer (flashinfer, flex, vllm-unified, "
            "flash-attn, sdpa), module:function or file.py:function. May be repeated; ratios are "
            "to the first. Default: ours and all peers that are present."
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=0, help="Rounds that count; 0: 15 on a CPU, 30 on a GPU.")
    ] = 0,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of lengths, tensors and orders.")
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile",
            help="Without a GPU, print what our kernels compile to for these points.",
        ),
    ] = True,
    time_limit: Annotated[
        float,
        typer.Option(
            min=0.1, help="Seconds that a subject may take to plan, or compile, one input."
        ),
    ] = 180.0,
    json: Annotated[Path | None, typer.Option(help="Write the record to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the roofline to this file: png, svg or pdf.")
    ] = None,
    asv: Annotated[
        Path | None, typer.Option(help="Folder of asv results to export to.", metavar="DIR")
    ] = None,
) -> None:
    """Time attention kernels against each other and against the device."""
    console, errors = QuietlyClosed(), QuietlyClosed(stderr=True)
    with exit_codes(errors, about="any kernel"):
        _check_outputs(json, plot, asv)
        if preset is not None and preset not in PRESETS:
            raise BadInput(f"--preset {preset}: choose {', '.join(PRESETS)}")
        if preset is not None and (batch or prefill):
            raise BadInput(f"--preset {preset} has its own batches: drop --batch and --prefill")
        where = _device(device)

        import torch

        from bench.throughput.candidates import DEFAULT, find_candidates
        from bench.throughput.loops import loop_figures
        from bench.throughput.run import ThroughputPlan

        if where == "cpu":
            # With several threads a small operation waits for the slowest: the times of a busy
            # machine are then of its other work.
            torch.set_num_threads(1)
        if preset is not None:
            from bench.throughput.bars import bar_points

            points = bar_points(where, seed=seed)
        else:
            points = _points(
                batch, prefill, where, block_size, heads, head_dim, dtype, kv_dtype, seed
            )
        names = tuple(subject or DEFAULT[where])
        plan = ThroughputPlan(
            points=points,
            candidates=tuple(find_candidates(names, device=where, splits=_splits(splits))),
            device=where,
            rounds=rounds or ROUNDS[where],
            seed=seed,
            with_bars=preset is not None or (where == "cpu" and not batch and not prefill),
            loops=partial(loop_figures, points, time_limit_s=time_limit)
            if compiled and where == "cpu"
            else None,
            time_limit_s=time_limit,
        )
        record = _run(plan, errors)
        try:
            _write(record, plot, asv, errors)
        finally:
            from bench.throughput.report import show

            deliver(record, json, lambda: show(record, console))
        raise typer.Exit(record.exit_code)


def _run(plan: ThroughputPlan, errors: QuietlyClosed) -> ThroughputRecord:
    from bench.machine.timing import device_of
    from bench.throughput.run import run_throughput

    stop = threading.Event()
    progress: Progress = Bar(errors) if errors.is_terminal else Lines(errors)
    with progress, stop_on_interrupt(stop, errors):
        return run_throughput(plan, device_of(plan.device), progress=progress, stop=stop)


def _write(
    record: ThroughputRecord, plot: Path | None, asv: Path | None, errors: QuietlyClosed
) -> None:
    if plot is not None:
        from bench.throughput.plot import draw

        draw(record, plot)
    if asv is not None:
        from bench.throughput.asv import export

        exported = export(record, asv)
        said = "; ".join(exported.left_out) or f"{len(exported.paths)} file(s)"
        errors.print(f"asv: {said}", markup=False, highlight=False, soft_wrap=True)


def _check_outputs(json: Path | None, plot: Path | None, asv: Path | None) -> None:
    check_file("--json", json)
    check_file("--plot", plot)
    if plot is not None:
        from bench.waste.plot import check_format

        check_format(plot)
    if asv is not None and find_spec("asv") is None:
        raise BadInput(
            f"--asv {asv}: asv is not installed, and its format is written by its own code; "
            f"pip install asv"
        )


def _points(
    batch: list[str] | None,
    prefill: list[str] | None,
    device: str,
    block_size: str,
    heads: str,
    head_dim: str,
    dtype: str,
    kv_dtype: str,
    seed: int,
) -> tuple[Point, ...]:
    from bench.throughput.points import Sweep

    nothing_asked = not batch and not prefill
    return Sweep(
        batches=DEFAULT_BATCHES[device] if nothing_asked else tuple(batch or ()),
        prefills=tuple(prefill or ()),
        block_sizes=_numbers("--block-size", block_size),
        heads=[_pair(part) for part in _parts(heads)],
        head_dims=_numbers("--head-dim", head_dim),
        dtypes=_parts(dtype),
        kv_dtypes=["" if part == "same" else part for part in _parts(kv_dtype)],
        seed=seed,
    ).points()


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _numbers(option: str, text: str) -> list[int]:
    for part in _parts(text):
        if not part.isdecimal() or len(part) > 9:
            raise BadInput(f"{option} {text}: {part!r} is no number; give them as in 16,32")
    return [int(part) for part in _parts(text)]


def _pair(text: str) -> tuple[int, int]:
    match = _HEADS.fullmatch(text)
    if match is None:
        raise BadInput(f"--heads {text}: give KV heads x query heads for each, as in 8x4")
    return int(match[1]), int(match[2])


def _splits(text: str) -> list[int | None]:
    found: list[int | None] = []
    for part in _parts(text):
        if part == "auto":
            found.append(None)
            continue
        (number,) = _numbers("--splits", part)
        if number < 1:
            raise BadInput(f"--splits {text}: at least 1, or auto for the kernel's own choice")
        found.append(number)
    return found


def _device(name: str) -> str:
    if name not in {"auto", "cpu", "cuda"}:
        raise BadInput(f"--device {name}: choose cpu, cuda or auto")
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise BadInput(f"--device cuda: torch {torch.__version__} finds none; use --device cpu")
    return ("cuda" if there else "cpu") if name == "auto" else name
