"""Room on CPython's own stack, so that no hot loop runs at the end of a piece of it.

Frames of Python functions lie in pieces of 16 KiB (`DATA_STACK_CHUNK_SIZE` in CPython's
`Python/pystate.c`). A call that does not fit in the rest of a piece takes another one from the
kernel, and its return gives that back at once. A loop that happens to call from there pays a mmap,
a page fault and a munmap for every call: a microsecond, or several on a virtual machine. Whether
one does depends on how deep it is called. It was a third of the time of our interpreted kernels
under pytest, and can be the difference between two versions that are timed in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

FRAME_SLOTS: Final = 70_000
"""Slots of eight bytes, 547 KiB. A piece for that is the next power of two: the other 477 KiB are
for calls within. Of either only the pages that are used become memory."""


def with_stack_room(function: Callable[P, R]) -> Callable[P, R]:
    """The function, called where all that it calls finds room in one piece of the stack."""

    def roomy(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    roomy.__code__ = roomy.__code__.replace(co_stacksize=FRAME_SLOTS)
    return wraps(function)(roomy)
