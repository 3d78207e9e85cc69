"""Driver, clocks, power, temperature and reasons for slowing down of the GPU.

Clocks of a rented GPU cannot be locked. They are recorded with each launch, and a launch within
which the GPU began or ceased to slow down for heat or for want of power is not used: one side had
another GPU than the other.

Clocks are read through NVML. It comes with the driver, its Python module with the package
nvidia-ml-py. Without it nothing is recorded and no launch is dropped, which the record shows.
"""

from __future__ import annotations

import subprocess
from types import ModuleType
from typing import Any, Final

from bench.machine.record import StrictRecord

# Bits of nvmlDeviceGetCurrentClocksEventReasons, as in nvml.h.
REASONS: Final = {
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "heat, by software",
    0x040: "heat, by hardware",
    0x080: "power brake",
    0x100: "display clocks",
}
"""The bit for an idle GPU (1) is left out: it comes and goes between turns."""

SLOWED: Final = frozenset(
    {"hardware slowdown", "heat, by software", "heat, by hardware", "power brake"}
)
"""Reasons that make it another GPU. The power cap is not one of them: under a heavy kernel it is in
force all the time, for both sides."""

CLOCK_SM: Final = 1
CLOCK_MEMORY: Final = 2
TEMPERATURE_GPU: Final = 0


class GpuState(StrictRecord):
    """A GPU at one moment, by NVML."""

    sm_mhz: int
    memory_mhz: int
    """Clocks."""
    power_w: float
    temperature_c: int
    """Watts, degrees Celsius."""
    slowed_by: list[str]
    """Reasons for clocks below the highest: of `REASONS`."""


class GpuReader:
    """Reads the state of one GPU, by its UUID as `nvidia-smi -L` names it.

    The index would not do: with CUDA_VISIBLE_DEVICES torch's numbers are not NVML's. `nvml` stands
    in for the module `pynvml` in a test.
    """

    def __init__(self, uuid: str | None, nvml: ModuleType | None = None) -> None:
        self._nvml = nvml or _import_nvml()
        self._handle = None
        self.why_not = "nvidia-ml-py is not installed" if uuid is not None else "no GPU"
        if self._nvml is not None and uuid is not None:
            try:
                self._nvml.nvmlInit()
                self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            except self._nvml.NVMLError as error:
                self.why_not = str(error)

    def read(self) -> GpuState | None:
        """The state now; None where it cannot be read."""
        nvml, handle = self._nvml, self._handle
        if nvml is None or handle is None:
            return None
        try:
            bits = self._reasons()
            return GpuState(
                sm_mhz=nvml.nvmlDeviceGetClockInfo(handle, CLOCK_SM),
                memory_mhz=nvml.nvmlDeviceGetClockInfo(handle, CLOCK_MEMORY),
                power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                temperature_c=nvml.nvmlDeviceGetTemperature(handle, TEMPERATURE_GPU),
                slowed_by=[name for bit, name in REASONS.items() if bits & bit],
            )
        except nvml.NVMLError:
            return None

    def sm_mhz(self) -> int | None:
        """Clock of the multiprocessors now; None where it cannot be read."""
        nvml, handle = self._nvml, self._handle
        if nvml is None or handle is None:
            return None
        try:
            return int(nvml.nvmlDeviceGetClockInfo(handle, CLOCK_SM))
        except nvml.NVMLError:
            return None

    def clocks(self) -> str:
        """SM clock and what slows it, now, in words; or why that is not known."""
        nvml, handle = self._nvml, self._handle
        if nvml is None or handle is None:
            return f"not read: {self.why_not}"
        try:
            now = nvml.nvmlDeviceGetClockInfo(handle, CLOCK_SM)
            most = nvml.nvmlDeviceGetMaxClockInfo(handle, CLOCK_SM)
            return f"SM {now} of {most} MHz, clock event reasons {self._reasons():#x}"
        except nvml.NVMLError as error:
            return f"not read: {error}"

    def _reasons(self) -> int:
        nvml: Any = self._nvml
        ask = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None) or getattr(
            nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None
        )
        return int(ask(self._handle)) if ask is not None else 0


def driver_version() -> str | None:
    """Version of the driver, by `nvidia-smi`; None where it does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    # One line for each GPU, and one driver for all.
    return run.stdout.partition("\n")[0].strip() or None


def became_another_gpu(states: list[GpuState]) -> bool:
    """Whether reasons of `SLOWED` came or went between the states."""
    return len({SLOWED.intersection(state.slowed_by) for state in states}) > 1


def _import_nvml() -> ModuleType | None:
    try:
        import pynvml
    except ImportError:
        return None
    module: ModuleType = pynvml
    return module
