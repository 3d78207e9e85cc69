"""What our Triton kernel compiles to, for points that cannot be timed here."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Final

from bench.command.progress import Progress
from bench.compile.run import ask, start
from bench.throughput.points import Point
from bench.throughput.record import LoopRecord
from kernels.compiled.figures import LaunchFigures
from kernels.compiled.targets import find_target
from kernels.compiled.variants import Variant
from reference.attention.problem import Request
from subjects.starting import PREFIX

TARGET: Final = "sm_90"

SUBJECTS: Final = {
    "decode": f"{PREFIX}kernels.compiled.hosts:ragged_decode",
    "prefill": f"{PREFIX}kernels.compiled.hosts:prefill",
    "latent": f"{PREFIX}kernels.compiled.hosts:ragged_latent",
}
"""As the kernels are launched by default, which is what is timed on a GPU."""

REQUESTS: Final = {"decode": (Request(1, 1024),) * 16, "prefill": (Request(512, 1024),) * 16}
"""Lengths do not change the code: all points of one kind and size compile to the same."""


def loop_figures(
    points: Sequence[Point], progress: Progress, stop: threading.Event, *, time_limit_s: float
) -> Iterator[LoopRecord]:
    """Compile our decode and prefill for the sizes of the points."""
    target = find_target(TARGET)
    variants = dict.fromkeys(
        (_host(point), str(point.problem.replace(requests=REQUESTS[point.kind], seed=0)))
        for point in points
    )
    progress.begin(f"compiling for {TARGET}", len(variants))
    with start(target, time_limit_s=time_limit_s) as child:
        for kind, spec in variants:
            if stop.is_set():
                return
            figures = ask(child, Variant(spec, SUBJECTS[kind], spec))
            if figures.failure is not None:
                yield LoopRecord(problem=spec, target=TARGET, failure=str(figures.failure))
            for launch in figures.launches:
                yield _record(spec, launch)
            progress.advance(1)


def _host(point: Point) -> str:
    return "latent" if point.problem.kind == "latent" else point.kind


def _record(spec: str, launch: LaunchFigures) -> LoopRecord:
    return LoopRecord(
        problem=spec,
        target=TARGET,
        kernel=launch.kernel,
        registers=launch.registers,
        spill_instructions=launch.spill_instructions,
        shared_bytes=launch.shared_bytes,
        occupancy=launch.warps / launch.max_warps,
        instructions_per_key=launch.loop.instructions_per_key if launch.loop else None,
    )
