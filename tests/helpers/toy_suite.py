"""A suite for trying the gate out: its clock is made of what the tree under test says it costs.

A worker loads this file. Time here is virtual, so that a verdict depends on nothing but the tree,
the schedule and the seed: no test waits for a machine to be quiet.
"""

import os
import random
import time
from collections.abc import Mapping
from typing import Any

from bench.gate.benchmark import Benchmark, Count, Output, Prepared

LAUNCH_SD = 0.005
"""Of a process: its layout, say."""


class Clock:
    """CPU and wall-clock time of a process, nanoseconds."""

    def __init__(self, name: str, spread: float) -> None:
        launch = os.environ["PYTHONHASHSEED"]
        self.cpu_ns = self.wall_ns = 1
        self._factor = random.Random(f"{launch} {name}").gauss(1.0, spread)
        self._noise = random.Random(f"{launch} {name} turns")

    def spend(self, microseconds: float) -> None:
        """Work."""
        spent = round(1000 * microseconds * self._factor * self._noise.gauss(1.0, 0.01))
        self.cpu_ns += spent
        self.wall_ns += spent

    def wait(self, microseconds: float) -> None:
        """Sleep, which CPU time does not see."""
        self.wall_ns += round(1000 * microseconds)


def _prepare(name: str) -> Prepared:
    # What lies in the tree under test, not in this repository.
    from paged import toy  # type: ignore[attr-defined]

    clock = Clock(f"{toy.NAME} {name}", getattr(toy, "SPREAD", LAUNCH_SD))
    time.process_time = lambda: clock.cpu_ns * 1e-9
    time.perf_counter_ns = lambda: clock.wall_ns

    def outputs() -> Mapping[str, Output]:
        return {"answer": Output.exact(toy.ANSWER)}

    def counters() -> Mapping[str, Count]:
        return {"operations": Count(toy.OPERATIONS, "operations")}

    def call() -> Any:
        return toy.work(clock, name)

    return Prepared(call=call, outputs=outputs, counters=counters)


SUITE = (
    Benchmark(
        key="toy/work", title="Work.", prepare=lambda: _prepare("work"), needs=("paged.toy:work",)
    ),
    Benchmark(
        key="toy/more",
        title="More work.",
        prepare=lambda: _prepare("more"),
        needs=("paged.toy:MORE",),
    ),
    Benchmark(
        key="toy/counted",
        title="Only counted.",
        prepare=lambda: _prepare("counted"),
        needs=("paged.toy:work",),
        timed=False,
    ),
)
