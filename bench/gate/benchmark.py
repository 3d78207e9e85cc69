"""What a benchmark of the gate is, and what it says of itself besides its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from bench.gate.timers import Device

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Output:
    """Something that a benchmark computes and both sides must agree about."""

    values: NDArray[Any]
    """Any shape. Integers and booleans must be equal; floats may differ by rounding."""
    unit_round_off: float = 0.0
    """Of the type in which floats were rounded; 0.0: bit for bit."""
    allowed: NDArray[np.float64] | None = None
    """How far each value may be from the truth; None where no truth was asked."""
    wrong: str = ""
    """What the truth has against it."""

    @classmethod
    def exact(cls, values: ArrayLike) -> Output:
        """Integers, or what else must be equal."""
        import numpy as np  # a launch that only takes turns needs no arrays

        return cls(np.asarray(values))


@dataclass(frozen=True, slots=True)
class Count:
    """An exact counter of one call."""

    value: int
    """Whole, 0 or more."""
    unit: str
    """What is counted, in the plural."""
    more_is_better: bool = False
    """Of hits; of most counters less is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A benchmark that is set up in this process."""

    call: Callable[[], object]
    """One unit of work, a fraction of a millisecond. It leaves everything as it found it, so that
    any number of calls make a turn, and its outputs lie in buffers that were there before."""
    outputs: Callable[[], Mapping[str, Output]]
    """What the last call computed, by name."""
    counters: Callable[[], Mapping[str, Count]] = field(default=dict)
    """Counters of one call besides those that are taken of every benchmark, by name. May call."""
    interpreted: Callable[[], bool] = lambda: False
    """Whether a call runs in Triton's interpreter, of which neither time nor function calls say
    anything: it is then counted and not timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """An entry of the suite."""

    key: str
    """Its name across commits: renaming one starts a new series."""
    title: str
    """What one call does."""
    prepare: Callable[[], Prepared]
    """Sets it up. What it imports of the rooms comes from the tree under test."""
    needs: tuple[str, ...] = ()
    """`module:name` of what it measures. Where the base's tree lacks one of them there is nothing
    to compare."""
    timed: bool = True
    """Whether it is timed; counters and outputs are compared anyway."""
    gated: bool = True
    """Whether the gate takes it. What is too large for its turns is for asv and `make bench`."""
    device: Device = "cpu"
    """Where it runs; a run of the gate is of one device."""
    subject: str = ""
    """Whose it is, as the project names a kernel or an allocator; empty for all others."""
    problem: str = ""
    """The spec of what a kernel is called on."""


def computed(
    compute: Callable[[], Result],
    outputs: Callable[[Result], Mapping[str, Output]],
    counters: Callable[[Result], Mapping[str, Count]] = lambda _: {},
) -> Prepared:
    """A benchmark whose call computes something anew; outputs and counters are read off it."""
    last: list[Result] = []

    def call() -> None:
        last[:] = [compute()]

    return Prepared(call=call, outputs=lambda: outputs(last[0]), counters=lambda: counters(last[0]))


def of_group(group: str, *always: str) -> Callable[..., Benchmark]:
    """Makes benchmarks of one group, which need what is named here and what each names besides."""

    def benchmark(
        name: str, title: str, prepare: Callable[[], Prepared], *needs: str, **how: Any
    ) -> Benchmark:
        return Benchmark(
            key=f"{group}/{name}", title=title, prepare=prepare, needs=(*always, *needs), **how
        )

    return benchmark
