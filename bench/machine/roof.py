"""What a device does at best, measured in the run that it is compared with."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Final

from bench.machine.record import Record
from bench.machine.timing import Device

TIMES: Final = 11
"""Copies, and products; those before them are not counted."""

COPY_BYTES: Final = {"cuda": 2**30, "cpu": 2**28}
"""Least size of what is copied."""

COPY_CACHES: Final = 4
"""And so many times the last-level cache."""

MATRIX_SIZE: Final = {"cuda": 8192, "cpu": 1024}

MATRIX_DTYPE: Final = {"cuda": "bfloat16", "cpu": "float32"}
"""What attention multiplies in; our torch on a CPU computes in float32."""


class RoofRecord(Record):
    """What the device does at best, measured in the same run."""

    copy_bytes: int
    copy_gigabytes_per_s: float
    copy_median_gigabytes_per_s: float
    """A copy of `copy_bytes`, read and written bytes counted, best and median."""
    matrix_dtype: str
    matrix_teraflops_per_s: float
    matrix_median_teraflops_per_s: float
    """A dense product of `matrix_dtype`, best and median."""


def measure_roof(device: Device) -> RoofRecord:
    """Copy and multiply."""
    size = max(COPY_BYTES[device.kind], COPY_CACHES * device.cache_bytes)
    rates = copy_rates(device, size)
    speeds = matrix_rates(device)
    return RoofRecord(
        copy_bytes=size,
        copy_gigabytes_per_s=max(rates),
        copy_median_gigabytes_per_s=statistics.median(rates),
        matrix_dtype=MATRIX_DTYPE[device.kind],
        matrix_teraflops_per_s=max(speeds),
        matrix_median_teraflops_per_s=statistics.median(speeds),
    )


def copy_rates(device: Device, size: int) -> list[float]:
    """Rates of several copies of so many bytes: read and written ones, 10^9 a second."""
    if device.kind == "cuda":
        import torch

        source = torch.ones(size, dtype=torch.uint8, device="cuda")
        copy: Callable[[], object] = partial(torch.empty_like(source).copy_, source)
    else:
        import numpy as np  # a process that times no tensors has no torch

        copy = partial(np.copyto, np.zeros(size, np.uint8), np.ones(size, np.uint8))
    return [2 * size / seconds / 1e9 for seconds in _seconds(device, copy)]


def matrix_rates(device: Device) -> list[float]:
    """Rates of several dense products, 10^12 operations a second."""
    import torch

    side, dtype = MATRIX_SIZE[device.kind], getattr(torch, MATRIX_DTYPE[device.kind])
    left, right = (torch.randn(side, side, device=device.kind).to(dtype) for _ in "ab")
    product = torch.empty(side, side, dtype=dtype, device=device.kind)
    seconds = _seconds(device, partial(torch.matmul, left, right, out=product))
    return [2 * side**3 / each / 1e12 for each in seconds]


def _seconds(device: Device, call: Callable[[], object]) -> list[float]:
    for _ in range(2):
        call()
    marks = [device.mark()]
    for _ in range(TIMES):
        call()
        marks.append(device.mark())
    device.synchronize()
    return [device.seconds(a, b) for a, b in pairwise(marks)]
