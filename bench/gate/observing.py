"""Counters that every benchmark has: function calls, and what torch dispatches."""

from __future__ import annotations

import sys
from collections.abc import Callable

from bench.gate.benchmark import Count
from bench.machine.calls import function_calls

__all__ = ("function_calls", "observed")


def observed(call: Callable[[], object]) -> dict[str, Count]:
    """Counters of one call; it is called several times.

    What torch dispatches is counted where it is nothing, too: from nothing to something is seen.
    """
    counts = {"calls": Count(function_calls(call), "calls")}
    operations = moved = 0
    if "torch" in sys.modules:
        from bench.machine.dispatched import Dispatched

        with Dispatched() as dispatched:
            call()
        operations, moved = dispatched.operations, dispatched.bytes
    counts["torch_ops"] = Count(operations, "operations")
    counts["torch_bytes"] = Count(moved, "bytes")
    return counts
