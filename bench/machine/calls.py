"""Function calls as a measure of Python's work: exact, where a clock is not."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType


def function_calls(operation: Callable[[], object]) -> int:
    """Calls of Python and of C functions that `operation` makes, without that of itself."""
    return _calls_seen(operation) - _calls_seen(lambda: None)


def _calls_seen(operation: Callable[[], object]) -> int:
    calls = 0

    def see(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before, collecting = sys.getprofile(), gc.isenabled()
    gc.disable()  # a collection runs the callbacks of whoever asked for them
    sys.setprofile(see)
    try:
        operation()
    finally:
        sys.setprofile(before)
        if collecting:
            gc.enable()
    return calls
