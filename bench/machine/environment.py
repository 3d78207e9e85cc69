"""Where a record was made: without it a figure means nothing."""

from __future__ import annotations

from typing import Any, Self

from bench.machine.facts import cpu_name, facts
from bench.machine.record import Record, StrictRecord


class Machine(Record):
    """What every environment says."""

    python: str
    cpu: str
    """The processor, as the system names it."""

    @classmethod
    def here(cls, **known: Any) -> Self:
        """Describe this process: what the caller knows, and what `FACTS` finds of the rest."""
        return cls(**facts(set(cls.model_fields) - set(known)), **known)


class Checkout(Machine):
    """A machine, and what pagedbench it runs."""

    pagedbench: str
    commit: str | None
    dirty: bool | None
    """Of the checkout that pagedbench runs from, and whether it has uncommitted changes; None where
    it is not a checkout."""


class Environment(Checkout):
    """Where kernels were run."""

    torch: str
    triton: str
    device: str
    """The GPU's name, or the CPU's."""
    driver: str | None
    """Version of the CUDA driver; None on the CPU."""
    threads: int
    """Of torch."""


class FuzzEnvironment(Checkout, StrictRecord):
    """Where an allocator was run."""

    hypothesis: str


class WasteEnvironment(Checkout):
    """Where simulations were run. None of their figures depends on it, but for the seconds."""

    numpy: str
    cores: int
    """Cores that this process may use."""


class GateEnvironment(Machine, StrictRecord):
    """What one contestant ran on and with, said by its own worker."""

    device: str
    """The GPU's name, or the CPU's."""
    driver: str | None
    cuda: str | None
    """Versions of the CUDA driver, and of CUDA that torch was built for; None on the CPU."""
    torch: str
    triton: str
    numpy: str
    timer: str
    """What the verdicts are of: `process_time` (CPU seconds) or `cuda_event`."""
    cores: int
    threads: int
    platform: str
    """Cores that this process may use, torch's threads, the system."""
    copy_gbs: float | None = None
    """Measured copy bandwidth of one core, or of the GPU: bytes read and written, 10^9 a second,
    the best of a few copies of 64 MiB. None where it was not measured."""

    @property
    def key(self) -> tuple[str, ...]:
        """What two results must have in common before absolute figures are compared."""
        driver, cuda = self.driver or "none", self.cuda or "none"
        return (self.device, driver, cuda, self.torch, self.triton, self.timer)


def describe_environment(device: str, *, threads: int | None = None) -> Environment:
    """Collect the environment of this process for work on `cpu` or `cuda`.

    `threads`: of torch, where this process may have none; None: it is asked.
    """
    on_gpu = device == "cuda"
    name, driver = cpu_name(), None
    if on_gpu or threads is None:
        # Not above: other environments are wanted without the second that it takes.
        import torch

        threads = torch.get_num_threads()
        if on_gpu:
            from bench.machine.gpu import driver_version

            name, driver = torch.cuda.get_device_name(), driver_version()
    return Environment.here(device=name, driver=driver, threads=threads)
