"""Clocks, power, temperature and reasons for slowing down of the GPU, read through NVML.

Clocks of a rented GPU cannot be locked. They are recorded with each launch, and a launch within
which the GPU began or ceased to slow down for heat or for want of power is not used: one side had
another GPU than the other.

NVML comes with the driver, its Python module with the package nvidia-ml-py. Without it nothing is
recorded and no launch is dropped, which the record shows.
"""

from __future__ import annotations

from types import ModuleType
from typing import Final

from bench.gate.record import GpuState

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


class GpuReader:
    """Reads the state of one GPU.

    Parameters
    ----------
    uuid
        `GPU-...`, as NVML and `nvidia-smi -L` name it. The index would not do: with
        CUDA_VISIBLE_DEVICES torch's numbers are not NVML's.
    nvml
        The module `pynvml`, or what stands in for it in a test; None: imported, if it is there.
    """

    def __init__(self, uuid: str | None, nvml: ModuleType | None = None) -> None:
        self._nvml = nvml or _import_nvml()
        self._handle = None
        if self._nvml is not None and uuid is not None:
            try:
                self._nvml.nvmlInit()
                self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            except self._nvml.NVMLError:
                self._handle = None

    def read(self) -> GpuState | None:
        """The state now; None where it cannot be read."""
        nvml, handle = self._nvml, self._handle
        if nvml is None or handle is None:
            return None
        reasons_of = getattr(
            nvml,
            "nvmlDeviceGetCurrentClocksEventReasons",
            getattr(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None),
        )
        try:
            bits = reasons_of(handle) if reasons_of is not None else 0
            return GpuState(
                sm_mhz=nvml.nvmlDeviceGetClockInfo(handle, CLOCK_SM),
                memory_mhz=nvml.nvmlDeviceGetClockInfo(handle, CLOCK_MEMORY),
                power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                temperature_c=nvml.nvmlDeviceGetTemperature(handle, TEMPERATURE_GPU),
                slowed_by=[name for bit, name in REASONS.items() if bits & bit],
            )
        except nvml.NVMLError:
            return None


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
