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
"""Copies, sums and products; those before them are not counted."""

COPY_BYTES: Final = {"cuda": 2**30, "cpu": 2**28}
"""Least size of what is copied."""

COPY_CACHES: Final = 4
"""And so many times the last-level cache,"""

MOST_COPY_BYTES: Final = {"cuda": 2**34, "cpu": 2**29}
"""but no more than this: a server's CPU may have a cache of 480 MiB, and the kernel of a virtual
machine can take 2.5 seconds to give a process a GiB. Source and copy together pass 2**30 bytes."""

READ_ROWS: Final = 4096
"""Each is reduced by itself: enough programs for any GPU."""

MATRIX_SIZE: Final = {"cuda": 8192, "cpu": 1024}

MATRIX_DTYPE: Final = {"cuda": "bfloat16", "cpu": "float32"}
"""What attention multiplies in; our torch on a CPU computes in float32."""


class RoofRecord(Record):
    """What the device does at best, measured in the same run."""

    copy_bytes: int
    copy_gigabytes_per_s: float
    copy_median_gigabytes_per_s: float
    """A copy of `copy_bytes`, read and written bytes counted, best and median."""
    read_gigabytes_per_s: float | None = None
    read_median_gigabytes_per_s: float | None = None
    """A reduction of `copy_bytes` to next to nothing, best and median: attention reads, and writes
    little. None in records of before it was measured."""
    matrix_dtype: str
    matrix_teraflops_per_s: float
    matrix_median_teraflops_per_s: float
    """A dense product of `matrix_dtype`, best and median."""


def measure_roof(device: Device) -> RoofRecord:
    """Copy, read and multiply."""
    wanted = max(COPY_BYTES[device.kind], COPY_CACHES * device.cache_bytes)
    size = min(wanted, MOST_COPY_BYTES[device.kind])
    rates = copy_rates(device, size)
    reads = read_rates(device, size)
    speeds = matrix_rates(device)
    return RoofRecord(
        copy_bytes=size,
        copy_gigabytes_per_s=max(rates),
        copy_median_gigabytes_per_s=statistics.median(rates),
        read_gigabytes_per_s=max(reads),
        read_median_gigabytes_per_s=statistics.median(reads),
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


def read_rates(device: Device, size: int) -> list[float]:
    """Rates of several passes over so many bytes that only read: 10^9 a second.

    The largest of integers, which one vector instruction finds for several: what is waited for is
    memory.
    """
    if device.kind == "cuda":
        import torch

        source = torch.ones(READ_ROWS, size // READ_ROWS // 4, dtype=torch.int32, device="cuda")
        found = torch.empty(READ_ROWS, dtype=torch.int32, device="cuda")
        read: Callable[[], object] = partial(torch.amax, source, dim=1, out=found)
    else:
        import numpy as np  # a process that times no tensors has no torch

        read = np.ones(size // 4, np.int32).max
    return [size / seconds / 1e9 for seconds in _seconds(device, read)]


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
