"""How long a step takes, for streams whose requests arrive at times of their own.

Integer nanoseconds: two simulators that take the same steps then agree to the last one, however
many steps each of them takes at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from paged.errors import checked_size


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """A step's duration: a part of its own, and one for each prompt token that it computes.

    The defaults, 30 ms and 20,000 tokens a second, are a large model's on one server; they are
    round figures, not a measurement. Memory depends on them only through who meets whom.

    Raises BadSize: a duration is negative, or a step would take no time.
    """

    step_ns: int = 30_000_000
    prefill_ns_per_token: int = 50_000

    def __post_init__(self) -> None:
        checked_size("step_ns", self.step_ns, at_least=1)
        checked_size("prefill_ns_per_token", self.prefill_ns_per_token, at_least=0)
