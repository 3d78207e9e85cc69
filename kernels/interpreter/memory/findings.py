"""What the checker says: an access that was not legal, and where."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy
import triton

_NOT_THE_KERNEL: Final = tuple(
    str(Path(place).parent) + "/"
    for place in (triton.__file__, numpy.__file__, Path(__file__).parent)
)
"""Folders whose frames lie between an access and the line of the kernel that makes it."""


class Fault(StrEnum):
    """Kinds of illegal accesses."""

    OUT_OF_BOUNDS = "outside the tensor"
    BETWEEN_ROWS = "between the tensor's rows"
    MISALIGNED = "not aligned to an element"
    WILD = "derived from no tensor"
    NOT_OWNED = "not the program's own"
    UNWRITTEN = "never written"
    READ_ONLY = "stored to an input"
    RACE = "race between programs"
    DUPLICATE_LANES = "several lanes of one store at one address"
    UNDEFINED_LANES = "masked load without `other`"


@dataclass(frozen=True, slots=True)
class Finding:
    """Illegal lanes of one access, and how often the same was seen."""

    fault: Fault
    """The kind."""
    operation: str
    """`load`, `store` or `atomic`."""
    tensor: str
    """Name of the tensor that the pointer was derived from."""
    kernel: str
    """Name of the launched kernel."""
    file: str
    line: int
    """Of the source line that makes the access; it may be in a function that the kernel calls."""
    program: tuple[int, int, int]
    """(x, y, z) of the first program that did it."""
    lanes: int
    of_lanes: int
    """Illegal lanes of that access, and all of its active lanes."""
    place: str
    """Where the first illegal lane points, in the words of the tensor's axes."""
    held: str
    """What is there, or why it is illegal, in words."""
    times: int = 1
    """Accesses of this line to this tensor with this fault, over all programs."""

    def __str__(self) -> str:
        program = ", ".join(map(str, self.program))
        lanes = f"{self.lanes:,} of {self.of_lanes:,} lanes" if self.of_lanes > 1 else "the access"
        at = f"at {self.place}: " if self.place else ""
        again = f" ({self.times:,} such accesses)" if self.times > 1 else ""
        return (
            f"{self.fault}: {self.operation} of {self.tensor} in {Path(self.file).name}:"
            f"{self.line}, {self.kernel} program ({program}), {lanes}, {at}{self.held}{again}"
        )


def kernel_line() -> tuple[str, int]:
    """File and line of the innermost frame that belongs to a kernel."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_NOT_THE_KERNEL):
            return file, frame.f_lineno
        frame = frame.f_back
    return "?", 0
