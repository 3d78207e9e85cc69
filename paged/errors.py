"""What can go wrong on the memory side. Every message names the value at fault and the remedy."""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import SupportsIndex


class PagedCacheError(Exception):
    """Base of every error that the paged cache raises on purpose."""


class BadSize(PagedCacheError, ValueError):
    """A number, a length, a shape or a dtype that the cache cannot work with."""


class OutOfBlocks(PagedCacheError):
    """More blocks were needed than could be had, free or idle. Nothing was changed."""

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(needed, available)
        self.needed = needed
        self.available = available

    def __str__(self) -> str:
        return (
            f"blocks needed: {self.needed}, available: {self.available}; "
            "free or preempt a sequence and try again, or give the pool more blocks"
        )


class _SequenceError(PagedCacheError):
    def __init__(self, sequence: Hashable) -> None:
        super().__init__(sequence)
        self.sequence = sequence


class UnknownSequence(_SequenceError):
    """The sequence was never admitted, or has been freed already."""

    def __str__(self) -> str:
        return f"sequence {self.sequence!r} is not in the cache: admit it first, and free it once"


class DuplicateSequence(_SequenceError):
    """The name is taken by a sequence that is still in the cache."""

    def __str__(self) -> str:
        return f"sequence {self.sequence!r} is already in the cache: free it or pick another name"


class _BlockError(PagedCacheError):
    def __init__(self, block: int) -> None:
        super().__init__(block)
        self.block = block


class DoubleFree(_BlockError):
    """A block was released more often than it was allocated and retained."""

    def __str__(self) -> str:
        return (
            f"block {self.block} has no reference left: "
            "release it once for each allocate and each retain"
        )


class UseAfterFree(_BlockError):
    """A block was retained that neither has a reference nor is kept for reuse."""

    def __str__(self) -> str:
        return f"block {self.block} is free, its content is gone: allocate a block instead"


class CopyPending(_BlockError):
    """A block was to be copied while it still waits to be filled by an earlier copy."""

    def __str__(self) -> str:
        return (
            f"block {self.block} still waits for a copy of its own: "
            "call take_copies(), carry the copies out and write, then append to the fork"
        )


def checked_size(
    name: str, value: SupportsIndex, *, at_least: int, at_most: int | None = None
) -> int:
    """Return `value` as an int, or raise a `BadSize` that says which numbers are welcome."""
    welcome = f"at least {at_least}" if at_most is None else f"{at_least} to {at_most}"
    try:
        number = operator.index(value)
    except TypeError:
        raise BadSize(f"{name} = {value!r}: give an integer, {welcome}") from None
    if isinstance(value, bool) or number < at_least or (at_most is not None and number > at_most):
        raise BadSize(f"{name} = {value!r}: give an integer, {welcome}")
    return number
