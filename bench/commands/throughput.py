"""`pagedbench throughput`: what is asked for, and what comes of it. The work is done elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from bench.asv.series import check_asv
from bench.command.options import AsvFolder, Html, Json, check_chart
from bench.command.project import is_foreign, subjects_under_test
from bench.command.session import Session, check_file, session
from bench.machine.facts import present_device
from reference.errors import BadInput
from subjects.attention.resolve import check_name

if TYPE_CHECKING:
    from bench.throughput.points import Point
    from bench.throughput.record import ThroughputRecord

THROUGHPUT_HELP: Final = """
Times attention kernels, ours and every peer that is present, in one process: rounds in random
order, inputs in turn so that the cache is cold, outputs of every round checked. Prints GB/s, the
shares of the bandwidths at which the device copied and read in the same run, and ratios. Without a
GPU: paged torch on the CPU beside contiguous torch and torch's FlexAttention, and what the Triton
kernels compile to. docs/performance.md has the method and the bars.

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
            "built-in stream. May be repeated."
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
    head_dim: Annotated[
        str, typer.Option(help="Head sizes, as in 64,128; 512+64 is a latent record.")
    ] = "128",
    dtype: Annotated[str, typer.Option(help="Of the query: bf16, fp16, fp32.")] = "bf16",
    kv_dtype: Annotated[
        str, typer.Option(help="Of the cache: same, e4m3, e5m2; as in same,e4m3.")
    ] = "same",
    shared: Annotated[
        int, typer.Option(min=0, help="Tokens with which all sequences of a batch begin.")
    ] = 0,
    splits: Annotated[
        str, typer.Option(help="Programs that share a sequence's keys in our Triton decode.")
    ] = "auto",
    subject: Annotated[
        list[str] | None,
        typer.Option(
            help="Who is timed: torch, contiguous, triton, a peer (flashinfer, flex, vllm-unified, "
            "flash-attn, sdpa), module:function or file.py:function. May be repeated; ratios are "
            "to the first. Default: the project's own, ours and all peers that are present."
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
    json: Json = None,
    html: Html = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the roofline to this file: png, svg or pdf.")
    ] = None,
    asv: AsvFolder = None,
) -> None:
    """Time attention kernels against each other and against the device."""
    with session(about="any kernel") as it:
        check_file("--json", json)
        check_file("--html", html)
        check_file("--plot", plot)
        check_asv(asv)
        check_chart(plot)
        if preset is not None and preset not in PRESETS:
            raise BadInput(f"--preset {preset}: choose {', '.join(PRESETS)}")
        if preset is not None and (batch or prefill):
            raise BadInput(f"--preset {preset} has its own batches: drop --batch and --prefill")
        own = subjects_under_test("kernels", subject)
        if not subject:
            own = tuple(name for name in own if is_foreign(name) and preset is None)
        for name in own:
            check_name(name, also=("contiguous",))
        split_counts = _splits(splits)
        from bench.throughput.points import Grid

        grid = Grid(
            batches=tuple(batch or ()),
            prefills=tuple(prefill or ()),
            block_sizes=_numbers("--block-size", block_size),
            heads=[_pair(part) for part in _parts(heads)],
            head_dims=_head_sizes(head_dim),
            dtypes=_parts(dtype),
            kv_dtypes=["" if part == "same" else part for part in _parts(kv_dtype)],
            shared=shared,
            seed=seed,
        )
        asked = bool(batch or prefill)
        # Before torch is imported: what makes no call is refused at once.
        points = (grid if asked else replace(grid, batches=("1x1",))).points()
        where = present_device(device)

        import torch

        from bench.machine.timing import device_of
        from bench.throughput.candidates import default_names
        from bench.throughput.loops import loop_figures
        from bench.throughput.page import sheet
        from bench.throughput.report import show
        from bench.throughput.run import ThroughputPlan, run_throughput

        if where == "cpu":
            # With several threads a small operation waits for the slowest: the times of a busy
            # machine are then of its other work.
            torch.set_num_threads(1)
        if preset is not None:
            from bench.throughput.bars import bar_points

            points = bar_points(where, seed=seed)
        elif not asked:
            points = replace(grid, batches=DEFAULT_BATCHES[where]).points()
        _check_sizes(points, where)
        plan = ThroughputPlan(
            points=points,
            names=own if subject else (*own, *default_names(points, where)),
            splits=split_counts,
            device=where,
            rounds=rounds or ROUNDS[where],
            seed=seed,
            with_bars=preset is not None or (where == "cpu" and not asked),
            loops=partial(loop_figures, points, time_limit_s=time_limit)
            if compiled and where == "cpu"
            else None,
            time_limit_s=time_limit,
        )
        with it.work() as progress:
            record = run_throughput(plan, device_of(where), progress=progress, stop=it.stop)
        if plot is not None:
            from bench.throughput.plot import draw

            it.deliver(f"--plot {plot}", lambda: draw(record, plot))
        if asv is not None:
            it.deliver(f"--asv {asv}", lambda: _export(record, asv, it))
        it.report(
            record, json, lambda: show(record, it.out), html=html, sheet=lambda: sheet(record)
        )
        it.end(record.exit_code)


def _export(record: ThroughputRecord, folder: Path, it: Session) -> None:
    from bench.throughput.asv import export

    exported = export(record, folder)
    said = "; ".join(exported.left_out) or f"{len(exported.paths)} file(s)"
    it.err.say(f"asv: {said}")


def _check_sizes(points: Sequence[Point], device: str) -> None:
    from reference.attention.size import call_bytes, check_size

    memory = None
    if device == "cuda":
        import torch

        memory = torch.cuda.get_device_properties(0).total_memory
    for point in points:
        check_size(call_bytes(point.problem), point.problem, memory=memory)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _numbers(option: str, text: str) -> list[int]:
    for part in _parts(text):
        if not part.isdecimal() or len(part) > 9:
            raise BadInput(f"{option} {text}: {part!r} is no number; give them as in 16,32")
    return [int(part) for part in _parts(text)]


def _head_sizes(text: str) -> list[int | tuple[int, int]]:
    sizes: list[int | tuple[int, int]] = []
    for part in _parts(text):
        latent, *rope = _numbers("--head-dim", part.replace("+", ",", 1))
        sizes.append((latent, rope[0]) if rope else latent)
    return sizes


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
