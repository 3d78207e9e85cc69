"""Stands in for `torch.cuda` and `pynvml`: a GPU whose clock moves when work is queued."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class FakeCuda:
    """A stream of work in virtual nanoseconds; an event is the moment of the stream's end."""

    def __init__(self, *, there: bool = True) -> None:
        self.now_ns = 0
        self.synchronised = 0
        self.there = there
        cuda = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing
                self.at_ns: int | None = None

            def record(self) -> None:
                self.at_ns = cuda.now_ns

            def elapsed_time(self, end: Event) -> float:
                """Milliseconds, as torch has it; of events that are over."""
                assert cuda.synchronised, "an event is read before the device is waited for"
                assert self.at_ns is not None
                assert end.at_ns is not None
                return (end.at_ns - self.at_ns) / 1e6

        self.Event = Event

    def is_available(self) -> bool:
        return self.there

    def current_device(self) -> int:
        return 0

    def synchronize(self) -> None:
        self.synchronised += 1

    def get_device_properties(self, device: int) -> Any:
        assert device == 0
        return SimpleNamespace(name="a GPU", uuid="12-34", L2_cache_size=1000)

    def kernel(self, nanoseconds: int) -> Callable[[], None]:
        """Something to launch."""

        def launch() -> None:
            self.now_ns += nanoseconds

        return launch


class FakeNvml:
    """One GPU whose reasons to slow down are those of a list, one for each time it is asked."""

    class NVMLError(Exception):
        pass

    def __init__(self, *bits: int, uuid: str = "GPU-12-34") -> None:
        self.bits = list(bits)
        self.uuid = uuid

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's own name
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != self.uuid:
            raise self.NVMLError(uuid)
        return "handle"

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        assert handle == "handle"
        return self.bits.pop(0)

    def nvmlDeviceGetClockInfo(self, handle: str, which: int) -> int:  # noqa: N802
        return {1: 1980, 2: 3201}[which]

    def nvmlDeviceGetMaxClockInfo(self, handle: str, which: int) -> int:  # noqa: N802
        return self.nvmlDeviceGetClockInfo(handle, which)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 512_345

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        assert sensor == 0
        return 61
