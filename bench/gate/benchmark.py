"""What a benchmark of the gate is, and what it says of itself besides its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.gate.timers import Device


@dataclass(frozen=True, slots=True)
class Output:
    """Something that a benchmark computes and both sides must agree about.

    Attributes
    ----------
    values
        Any shape. Integers and booleans must be equal; floats may differ by rounding.
    unit_round_off
        Of the type in which floats were rounded; 0.0: bit for bit.
    """

    values: NDArray[Any]
    unit_round_off: float = 0.0

    @classmethod
    def exact(cls, values: ArrayLike) -> Output:
        """Integers, or what else must be equal."""
        return cls(np.asarray(values))


@dataclass(frozen=True, slots=True)
class Count:
    """An exact counter of one call.

    Attributes
    ----------
    value
        Whole, 0 or more.
    unit
        What is counted, in the plural.
    more_is_better
        Of hits; of most counters less is better.
    """

    value: int
    unit: str
    more_is_better: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A benchmark that is set up in this process.

    Attributes
    ----------
    call
        One unit of work, a fraction of a millisecond. It leaves everything as it found it, so that
        any number of calls make a turn, and its outputs lie in buffers that were there before.
    outputs
        What the last call computed, by name.
    counters
        Counters of one call besides those that are taken of every benchmark, by name. May call.
    """

    call: Callable[[], object]
    outputs: Callable[[], Mapping[str, Output]]
    counters: Callable[[], Mapping[str, Count]] = field(default=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """An entry of the suite.

    Attributes
    ----------
    key
        Its name across commits: renaming one starts a new series.
    title
        What one call does.
    prepare
        Sets it up. What it imports of the rooms comes from the tree under test.
    needs
        `module:name` of what it measures. Where the base's tree lacks one of them there is nothing
        to compare.
    timed
        Whether it is timed; counters and outputs are compared anyway.
    device
        Where it runs; a run of the gate is of one device.
    """

    key: str
    title: str
    prepare: Callable[[], Prepared]
    needs: tuple[str, ...] = ()
    timed: bool = True
    device: Device = "cpu"
