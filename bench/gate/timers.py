"""How a turn is timed: so many calls between two marks of a device.

The device's clock is part of a result's key: CPU seconds and event seconds are never put beside
each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

from bench.machine import timing

Device = Literal["cpu", "cuda"]
DEVICES: Final[tuple[Device, ...]] = ("cpu", "cuda")

DEVICE_VARIABLE: Final = "PAGEDBENCH_GATE_DEVICE"
"""Of a worker's environment: what it times on."""

UNTIMED_LAUNCHES: Final = 3
"""Before the events of each turn on a GPU: the other process has just left it, with its clocks
lowered and the caches of its instructions and addresses elsewhere."""

COPY_BYTES: Final = {"cpu": 2**26, "cuda": 2**30}
"""Of the bandwidth's copy: beyond the share of a last-level cache that one core usually gets, and
many times any L2 cache."""


def take_turn(device: timing.Device, call: Callable[[], object], number: int) -> dict[str, int]:
    """Nanoseconds of `number` calls, queued without waiting, on a GPU after a few untimed ones."""
    calls = range(number)
    for _ in range(UNTIMED_LAUNCHES if device.queues else 0):
        call()
    wall = time.perf_counter_ns()
    before = device.mark()
    for _ in calls:
        call()
    after = device.mark()
    device.synchronize()
    wall = time.perf_counter_ns() - wall
    return {"timer_ns": round(device.seconds(before, after) * 1e9), "wall_ns": wall}


def device_named(name: str) -> Device:
    """A device by the name that was asked for."""
    for known in DEVICES:
        if name == known:
            return known
    # Here, because a worker runs beside the rooms of an older tree, which may not have this one.
    from reference.errors import BadInput

    raise BadInput(f"--device {name}: choose {' or '.join(DEVICES)}")
