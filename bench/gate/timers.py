"""What a turn is timed by: a process's CPU time, or events on a GPU.

The timer is part of a result's key: CPU seconds and event seconds are never put beside each other.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

Device = Literal["cpu", "cuda"]
DEVICES: Final[tuple[Device, ...]] = ("cpu", "cuda")

DEVICE_VARIABLE: Final = "PAGEDBENCH_GATE_DEVICE"
"""Of a worker's environment: what it times on."""

UNTIMED_LAUNCHES: Final = 3
"""Before the events of each turn on a GPU: the other process has just left it, with its clocks
lowered and the caches of its instructions and addresses elsewhere."""

PREHEAT_S: Final = 1.0
"""Of matrix products, once in each process: a GPU raises its clocks when it has work."""

PREHEAT_SIZE: Final = 4096

CPU_COPY_BYTES: Final = 1 << 26
"""Of the bandwidth's copy; beyond the share of a last-level cache that one core usually gets."""

GPU_COPY_BYTES: Final = 1 << 30
"""Many times any L2 cache."""

COPIES: Final = 5


@dataclass(frozen=True, slots=True)
class Turn:
    """Nanoseconds that a turn took by the timer, and on the wall."""

    timer_ns: int
    wall_ns: int


class Timer(Protocol):
    """What times a worker's turns."""

    name: str
    """Part of a result's key."""

    def turn(self, call: Callable[[], object], number: int) -> Turn:
        """Time `number` calls."""

    def preheat(self) -> None:
        """Bring the device to the clocks that it has under load."""

    def copy_gbs(self) -> float:
        """Copy bandwidth: bytes read and written, 10^9 a second, the best of a few."""

    def describe(self) -> dict[str, str | None]:
        """The device, its driver and its identity, as far as the parent cannot know them."""


class CpuTimer:
    """CPU time of this process: on a shared machine steadier than the clock on the wall."""

    name = "process_time"

    def turn(self, call: Callable[[], object], number: int) -> Turn:
        """Time `number` calls."""
        calls = range(number)
        wall = time.perf_counter_ns()
        cpu = time.process_time_ns()
        for _ in calls:
            call()
        cpu = time.process_time_ns() - cpu
        return Turn(cpu, time.perf_counter_ns() - wall)

    def preheat(self) -> None:
        """Nothing: the untimed calls do."""

    def copy_gbs(self) -> float:
        """Copy bandwidth of this core."""
        import numpy as np

        source = np.zeros(CPU_COPY_BYTES, np.uint8)
        target = source + 1  # both are written once: no copy has to fetch fresh pages
        source += 1
        best = min(self.turn(lambda: np.copyto(target, source), 1).timer_ns for _ in range(COPIES))
        return 2 * CPU_COPY_BYTES / max(best, 1)

    def describe(self) -> dict[str, str | None]:
        """Nothing that the parent does not know."""
        return {}


class CudaTimer:
    """Time between two events in the current stream.

    The untimed launches and the timed ones are queued without waiting; the one wait of a turn is
    at its end, so that the GPU is idle before the other side's turn.

    Parameters
    ----------
    cuda
        `torch.cuda`, or what stands in for it in a test.
    """

    name = "cuda_event"

    def __init__(self, cuda: Any = None) -> None:
        if cuda is None:
            import torch

            cuda = torch.cuda
        if not cuda.is_available():
            raise RuntimeError("--device cuda: torch finds no GPU here; leave it for the CPU")
        self._cuda = cuda

    def turn(self, call: Callable[[], object], number: int) -> Turn:
        """Time `number` calls by events, after a few that are not timed."""
        begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(UNTIMED_LAUNCHES):
            call()
        wall = time.perf_counter_ns()
        begin.record()
        for _ in range(number):
            call()
        end.record()
        self._cuda.synchronize()
        wall = time.perf_counter_ns() - wall
        return Turn(round(begin.elapsed_time(end) * 1e6), wall)

    def preheat(self) -> None:
        """Multiply matrices for a second."""
        import torch

        matrix = torch.ones(PREHEAT_SIZE, PREHEAT_SIZE, dtype=torch.bfloat16, device="cuda")
        until = time.monotonic() + PREHEAT_S
        while time.monotonic() < until:
            for _ in range(8):
                torch.mm(matrix, matrix)
            self._cuda.synchronize()

    def copy_gbs(self) -> float:
        """Copy bandwidth of the GPU's memory."""
        import torch

        source = torch.ones(GPU_COPY_BYTES, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        best = min(self.turn(lambda: target.copy_(source), 1).timer_ns for _ in range(COPIES))
        return 2 * GPU_COPY_BYTES / max(best, 1)

    def describe(self) -> dict[str, str | None]:
        """Name, driver, and the identity by which its state can be asked for."""
        properties = self._cuda.get_device_properties(self._cuda.current_device())
        uuid = getattr(properties, "uuid", None)
        return {
            "device": properties.name,
            "driver": driver_version(),
            "uuid": None if uuid is None else f"GPU-{uuid}",
        }


def timer_of(device: Device) -> Timer:
    """The timer for a device.

    Raises RuntimeError: there is no GPU.
    """
    return CudaTimer() if device == "cuda" else CpuTimer()


def device_named(name: str) -> Device:
    """A device by the name that was asked for.

    Raises BadInput: it is none of `DEVICES`.
    """
    for known in DEVICES:
        if name == known:
            return known
    # Here, because a worker runs beside the rooms of an older tree, which may not have this one.
    from reference.errors import BadInput

    raise BadInput(f"--device {name}: choose {' or '.join(DEVICES)}")


def driver_version() -> str | None:
    """Version of the GPU's driver, by `nvidia-smi`; None where it does not say."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    # One line for each GPU, and one driver for all.
    return run.stdout.partition("\n")[0].strip() or None if run.returncode == 0 else None
