"""Counters that every benchmark has: function calls, and what torch dispatches."""

from __future__ import annotations

import sys
from collections.abc import Callable

from bench.calls import function_calls
from bench.gate.benchmark import Count


def observed(call: Callable[[], object]) -> dict[str, Count]:
    """Counters of one call; it is called several times.

    What torch dispatches is counted where torch is imported: without it nothing can be.
    """
    counts = {"calls": Count(function_calls(call), "calls")}
    if "torch" in sys.modules:
        from bench.gate.dispatching import Dispatched

        with Dispatched() as dispatched:
            call()
        if dispatched.operations:
            counts["torch_ops"] = Count(dispatched.operations, "operations")
            counts["torch_bytes"] = Count(dispatched.bytes, "bytes")
    return counts
