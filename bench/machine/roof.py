"""What a device does at best, measured in the run that it is compared with."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Final

import torch

from bench.machine.timing import CpuDevice, CudaDevice, Device
from bench.throughput.record import RoofRecord

TIMES: Final = 11
"""Copies, and products; those before them are not counted."""

COPY_BYTES: Final = {"cuda": 2**30, "cpu": 2**28}
"""Least size of what is copied."""

COPY_CACHES: Final = 4
"""And so many times the last-level cache."""

MATRIX_SIZE: Final = {"cuda": 8192, "cpu": 1024}

MATRIX_DTYPE: Final = {"cuda": torch.bfloat16, "cpu": torch.float32}
"""What attention multiplies in; our torch on a CPU computes in float32."""


def device_of(name: str) -> Device:
    """The device to time on, for `cpu` or `cuda`."""
    return CudaDevice() if name == "cuda" else CpuDevice()


def measure_roof(name: str, device: Device) -> RoofRecord:
    """Copy and multiply."""
    size = max(COPY_BYTES[name], COPY_CACHES * device.cache_bytes)
    source = torch.ones(size, dtype=torch.uint8, device=name)
    target = torch.empty_like(source)
    copies = _seconds(device, partial(target.copy_, source))
    del source, target

    side, dtype = MATRIX_SIZE[name], MATRIX_DTYPE[name]
    left, right = (torch.randn(side, side, device=name).to(dtype) for _ in "ab")
    product = torch.empty(side, side, dtype=dtype, device=name)
    products = _seconds(device, partial(torch.matmul, left, right, out=product))
    flops = 2 * side**3
    return RoofRecord(
        copy_bytes=size,
        copy_gigabytes_per_s=2 * size / min(copies) / 1e9,
        copy_median_gigabytes_per_s=2 * size / statistics.median(copies) / 1e9,
        matrix_dtype=str(dtype).removeprefix("torch."),
        matrix_teraflops_per_s=flops / min(products) / 1e12,
        matrix_median_teraflops_per_s=flops / statistics.median(products) / 1e12,
    )


def _seconds(device: Device, call: Callable[[], object]) -> list[float]:
    for _ in range(2):
        call()
    marks = [device.mark()]
    for _ in range(TIMES):
        call()
        marks.append(device.mark())
    device.synchronize()
    return [device.seconds(a, b) for a, b in pairwise(marks)]


def read_clocks(name: str) -> str:
    """SM clock and what throttles it, now; or why that is not known."""
    if name != "cuda":
        return "not read: no GPU"
    try:
        import pynvml
    except ImportError:
        return "not read: nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        now = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
        most = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
        reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except (pynvml.NVMLError, AttributeError) as error:
        return f"not read: {error}"
    return f"SM {now} of {most} MHz, clock event reasons {reasons:#x}"
