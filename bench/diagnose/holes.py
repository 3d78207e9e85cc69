"""What free memory in holes is good for: what fits, what does not, and what paging would give."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.diagnose.observed import FreeMap

BLOCK_SIZE = 16
"""Slots of a block where nothing else is said: what most engines take."""


@dataclass(frozen=True, kw_only=True)
class Holes:
    """One moment of a contiguous pool."""

    slots: int
    free: int
    """Slots in all holes."""
    holes: int
    largest: int
    """Slots of the largest hole: no longer request is admitted."""
    wanted: int | None
    """Slots of the request that was refused."""
    fit: int | None
    """Requests of that size that the holes hold."""
    fit_paged: int | None
    """How many they would hold in blocks, wherever these lie."""
    block_size: int

    @property
    def fragmented(self) -> bool:
        """Whether the request fails for the holes alone: enough is free, in pieces."""
        return self.wanted is not None and self.largest < self.wanted <= self.free

    @property
    def says(self) -> str:
        """The answer, as a sentence."""
        share = f"{self.free / self.slots:.0%} of the pool ({self.free:,} of {self.slots:,} slots)"
        if not self.free:
            return "nothing of the pool is free"
        holes = f"{self.holes:,} holes" if self.holes > 1 else "one hole"
        answer = f"{share} is free in {holes}, the largest of {self.largest:,}"
        if self.wanted is None:
            return (
                f"{answer}; no longer request is admitted, and paged one of {self.free:,} would be"
            )
        if self.wanted > self.free:
            return f"{answer}; {self.wanted:,} are more than is free, paged or not"
        return (
            f"{answer}; of requests for {self.wanted:,} slots it holds {self.fit:,}, and in blocks "
            f"of {self.block_size} it would hold {self.fit_paged:,}"
        )


def holes_of(free: FreeMap, *, block_size: int = BLOCK_SIZE) -> Holes:
    """Answer for one moment what the free list is good for."""
    total = int(free.holes.sum())
    fit = fit_paged = None
    if free.wanted is not None:
        fit = int((free.holes // free.wanted).sum())
        fit_paged = (total // block_size) // -(-free.wanted // block_size)
    return Holes(
        slots=free.slots,
        free=total,
        holes=len(free.holes),
        largest=int(free.holes.max(initial=0)),
        wanted=free.wanted,
        fit=fit,
        fit_paged=fit_paged,
        block_size=block_size,
    )


def worst(maps: Iterable[FreeMap]) -> list[Holes]:
    """Three moments at most: where most was free and of no use, else where most was free."""
    answers = [holes_of(each) for each in maps]
    return sorted(answers, key=lambda each: (not each.fragmented, -each.free / each.slots))[:3]
