"""A driver that says that a GPU is there, and nothing else: what compiling needs of one."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from kernels.compiled.targets import Target


class StubDriver(DriverBase):  # type: ignore[misc]  # Triton has no types
    """Answers for a target; nothing can be launched, loaded or timed."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        self.utils = SimpleNamespace(get_device_properties=self._properties)

    @classmethod
    def is_active(cls) -> bool:
        """Never chosen by Triton itself; only `set_active` installs it."""
        return False

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return GPUTarget(self._target.backend, self._target.arch, self._target.warp_size)

    def get_current_device(self) -> int:
        """There is one."""
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        """The default stream."""
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        """As torch has it: (9, 0) for sm_90, and for gfx942 too."""
        arch = self._target.arch
        return divmod(arch, 10) if isinstance(arch, int) else (int(arch[3]), int(arch[4], 16))

    def get_active_torch_device(self) -> torch.device:
        """Where tensors are: on the CPU, since nothing is launched."""
        return torch.device("cpu")

    def get_benchmarker(self) -> Callable[..., list[float]]:
        """For autotuners: every configuration takes no time, so the first one is taken."""
        return no_time

    def map_python_to_cpp_type(self, ty: str) -> str:
        """For launchers, of which there is none."""
        return ty

    def _properties(self, device: int) -> dict[str, Any]:
        # What Triton's own utilities and host functions that size a grid ask for.
        return {
            "max_shared_mem": self._target.shared_limit,
            "max_num_regs": self._target.registers,
            "multiprocessor_count": self._target.processors,
            "warpSize": self._target.warp_size,
        }


def no_time(kernel_call: Callable[[], object], quantiles: object = None) -> list[float]:
    """Do not run what is to be timed."""
    return [0.0, 0.0, 0.0]
