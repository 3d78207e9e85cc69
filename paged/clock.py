"""How long a step takes.

Integers throughout: two simulators that take the same steps then agree to the last nanosecond,
however many steps each of them takes at once.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from paged.errors import checked_size

PS_PER_NS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """A step's duration: a part of its own, and one for each token computed, read or moved.

    The defaults, 30 ms and 20,000 prompt tokens a second, are a large model's on one server; they
    are round figures, not a measurement.

    Raises BadSize: a duration is negative, or a step would take no time.
    """

    step_ns: int = 30_000_000
    """What every step takes: the weights are read once, the launches are made."""
    prefill_ns_per_token: int = 50_000
    """For each prompt token that is computed, those computed again after a preemption included."""
    kv_ps_per_token: int = 0
    """Picoseconds for each token in the cache that the step reads, once for each sequence that
    reads it. A block that is copied within the pool is read and written."""
    swap_ns_per_token: int = 0
    """For each token of a block that is copied to the host, or back."""

    def __post_init__(self) -> None:
        checked_size("step_ns", self.step_ns, at_least=1)
        for name in ("prefill_ns_per_token", "kv_ps_per_token", "swap_ns_per_token"):
            checked_size(name, getattr(self, name), at_least=0)

    def step_ps(self, *, prefill: int, read: int, swapped: int = 0) -> int:
        """Picoseconds of a step with so many prompt tokens computed, tokens read and swapped."""
        return (
            PS_PER_NS
            * (
                self.step_ns
                + prefill * self.prefill_ns_per_token
                + swapped * self.swap_ns_per_token
            )
            + read * self.kv_ps_per_token
        )


def taken_ps(steps: int, first: int, longer: int) -> int:
    """Picoseconds of steps of which each takes `longer` than the one before it."""
    return steps * first + longer * (steps * (steps - 1) // 2)


def steps_within(late: int, first: int, longer: int) -> int:
    """Fewest such steps that take `late` picoseconds or more."""
    most = max(0, -(-late // first))
    if not longer:
        return most
    return bisect_left(range(most), late, key=lambda steps: taken_ps(steps, first, longer))
