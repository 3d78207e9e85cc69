"""What can be seen of an allocator between two calls, and what is wrong with it.

`Observer` asks for counts, tables and idle blocks, and judges them against what the engine knows:
the live sequences and the shadow cache. What calls are made is `reference.allocator.machine`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from reference.allocator.contract import (
    Allocator,
    AllocatorCapabilities,
    AllocatorDied,
    AllocatorRaised,
    Counts,
)
from reference.allocator.programs import Pool
from reference.allocator.shadow import Life, ShadowCache
from reference.errors import described

T = TypeVar("T")


class CheckFailed(Exception):
    """What an allocator got wrong: a member of `machine.CHECKS`, and what was seen."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(check, message)
        self.check = check
        self.message = message

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


@dataclass(frozen=True, slots=True)
class View:
    """The table of one sequence as the allocator shows it."""

    slots: NDArray[np.int64]
    """Slot of each token position, int64 [num_tokens]; -1 where it was given up."""
    blocks: tuple[int, ...]
    """Block of each logical block; -1 where it was given up."""
    first: int
    """First position that was not given up."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What can be seen of an allocator between two calls."""

    counts: Counts
    views: dict[str, View]
    """Of the live sequences."""
    idle: frozenset[int] | None
    """Blocks that are cached and in no table; None if the allocator does not name them."""


class Observer:
    """Looks at an allocator, and remembers what it saw last.

    `lives` and `shadow` are what the engine knows: they change as it makes its calls.
    """

    def __init__(
        self,
        allocator: Allocator,
        pool: Pool,
        capabilities: AllocatorCapabilities,
        lives: Mapping[str, Life],
        shadow: ShadowCache,
    ) -> None:
        self._allocator = allocator
        self._pool = pool
        self._can = capabilities
        self._lives = lives
        self._shadow = shadow
        self._views: dict[str, View] = {}
        # When each idle block was released, and which prefix each full block's prefix goes on from.
        self._released: dict[int, int] = {}
        self._clock = 0
        self._parents: dict[int, int] = {}
        self.seen = self.look()
        if self.seen.counts != (pool.num_blocks, 0, 0):
            raise CheckFailed("conservation", f"an empty pool shows {said(self.seen.counts)}")

    # Looking

    def look(self) -> Sight:
        """What can be seen now; `seen` stays what it was."""
        counts = taken(
            "counts", ask(self._allocator.counts), lambda answer: Counts(*map(index, answer))
        )
        views = {name: self._view(name, life) for name, life in self._lives.items()}
        idle = None
        if self._can.eviction is not None and self._pool.prefix_caching:
            idle = taken("idle_blocks", ask(self._allocator.idle_blocks), frozenset)
        return Sight(counts, views, idle)

    def look_again(self, name: str | None, *, committed: bool = False) -> None:
        """Look after a call that changed something, and judge what became of the idle blocks."""
        before = self.seen
        if name is not None:
            self._views.pop(name, None)
        self.seen = after = self.look()
        if before.idle is not None and after.idle is not None:
            self._judge_idle(before.idle, after.idle, before, name, committed=committed)

    def forget_idle(self) -> None:
        """Look after a reset: what was idle is gone, and rightly so."""
        self._released.clear()
        self.seen = self.look()

    def published(self, ends: list[int]) -> None:
        """A sequence was committed: the hashes of the prefixes that its full blocks end with."""
        self._parents.update(zip(ends, [0, *ends], strict=False))

    def _view(self, name: str, life: Life) -> View:
        slots = taken("slots", ask(lambda: self._allocator.slots(name)), _int64)
        before = self._views.get(name)
        if before is not None and np.array_equal(before.slots, slots):
            return before
        view = self._checked_view(name, slots, len(life.tokens))
        self._views[name] = view
        return view

    def _checked_view(self, name: str, slots: NDArray[np.int64], length: int) -> View:
        size = self._pool.block_size
        if slots.shape != (length,):
            raise CheckFailed("table", f"{name} has {length} tokens and {slots.size} slots")
        gone = np.flatnonzero(slots >= 0)
        first = int(gone[0]) if gone.size else length
        if first and (self._pool.window is None or (first % size and first < length)):
            raise CheckFailed("table", f"{name}: no slot for the positions before {first}")
        kept = slots[first:]
        if kept.size == 0:
            return View(slots, (-1,) * self._pool.blocks_for(length), first)
        heads = kept[::size]
        expected = (heads[:, None] + np.arange(size)).reshape(-1)[: kept.size]
        if (heads % size).any() or not np.array_equal(kept, expected):
            at = int(
                np.flatnonzero(
                    (kept != expected) | (expected % size != np.arange(kept.size) % size)
                )[0]
            )
            raise CheckFailed(
                "table",
                f"{name}: position {first + at} is in slot {kept[at]}; positions of a block lie "
                f"side by side, position p at offset p % {size}",
            )
        blocks = (heads // size).tolist()
        if min(blocks) < 0 or max(blocks) >= self._pool.num_blocks:
            raise CheckFailed("table", f"{name} holds blocks {blocks}, not all of the pool's")
        if len(set(blocks)) < len(blocks):
            raise CheckFailed("table", f"{name} holds blocks {blocks}: one of them twice")
        return View(slots, (*(-1,) * (first // size), *blocks), first)

    # Counts and contents

    def check_counts(self, *, copies_due: bool, ending: bool) -> None:
        """Counts add up, and agree with tables and idle blocks."""
        counts = self.seen.counts
        if min(counts) < 0 or sum(counts) != self._pool.num_blocks:
            raise CheckFailed(
                "conservation", f"{said(counts)}: the pool has {self._pool.num_blocks}"
            )
        held = {block for view in self.seen.views.values() for block in view.blocks}
        held.discard(-1)
        if not copies_due and counts.used != len(held):
            raise CheckFailed(
                "drain" if ending and not self._lives else "conservation",
                f"{said(counts)}, and tables hold {listed(held)}",
            )
        if not self._pool.prefix_caching and counts.idle:
            raise CheckFailed("conservation", f"{said(counts)} without prefix caching")
        idle = self.seen.idle
        if idle is not None:
            if len(idle) != counts.idle:
                raise CheckFailed("conservation", f"{said(counts)}, and idle are {listed(idle)}")
            if idle & held:
                raise CheckFailed("conservation", f"{listed(idle & held)} idle, and in tables")

    def check_content(self) -> None:
        """Each sequence sees its own prefixes, and under a window neither too few nor too many."""
        for name, life in self._lives.items():
            view = self.seen.views[name]
            needed = 0
            if self._pool.window is not None:
                # The next query is at the position behind the last, and sees `window` tokens,
                # itself among them.
                needed = max(len(life.tokens) - self._pool.window + 1, 0)
            if view.first > needed:
                raise CheckFailed(
                    "window",
                    f"{name} has {len(life.tokens)} tokens; the next query sees those from "
                    f"{needed} on, and those before {view.first} were given up",
                )
            slots = view.slots[view.first :]
            if not np.array_equal(self._shadow.prefixes[slots], life.hashes[view.first :]):
                finding = self._shadow.check(slots, life.seen_by_shadow(), start=view.first)
                raise CheckFailed("content", f"{name}, {finding}")
            surplus = needed // self._pool.block_size - view.first // self._pool.block_size
            if surplus > self._can.window_slack:
                raise CheckFailed(
                    "window",
                    f"{name} holds {surplus} blocks of tokens before {needed}, which no query sees",
                )

    def nothing_changed(self, before: Sight, what: str) -> None:
        """Look, and see what was there before."""
        after = self.look()
        if after.counts != before.counts:
            raise CheckFailed(
                "trace", f"{what}: there were {said(before.counts)}, now {said(after.counts)}"
            )
        if after.idle != before.idle:
            raise CheckFailed("trace", f"{what}: other blocks are idle now")
        for name, view in before.views.items():
            if after.views[name] is not view:
                raise CheckFailed(
                    "trace",
                    f"{what}: {name} held blocks {list(view.blocks)}, "
                    f"now {list(after.views[name].blocks)}",
                )

    # The order of eviction

    def _judge_idle(
        self,
        before: frozenset[int],
        after: frozenset[int],
        sight: Sight,
        name: str | None,
        *,
        committed: bool,
    ) -> None:
        """Note which blocks went idle, and judge those that were idle and are not."""
        given_up = sight.views.get(name) if name is not None else None
        # The tail is released first: a block is of use only as long as all those before it are.
        order = list(reversed(given_up.blocks)) if given_up is not None else []
        self._clock += 1
        for block in after - before:
            self._released[block] = self._clock + (order.index(block) if block in order else 0)
        self._clock += len(order)
        views = self.seen.views
        revived: tuple[int, ...] = ()
        if name in views and committed:
            # Nothing needs room here; a table may be rewritten to blocks that were idle.
            revived = views[name].blocks
        elif name in views and given_up is None:
            revived = views[name].blocks[: self._lives[name].written // self._pool.block_size]
        evicted = before - after - set(revived)
        if evicted:
            self._judge_order(evicted, before & after)

    def _judge_order(self, evicted: frozenset[int], stay: frozenset[int]) -> None:
        free = self.seen.counts.free
        if self._can.eviction == "all" and stay:
            raise CheckFailed("eviction", f"{listed(evicted)} evicted, and {listed(stay)} not")
        if self._can.eviction == "lru":
            if free:
                raise CheckFailed(
                    "eviction", f"{listed(evicted)} evicted, although {free} blocks are free"
                )
            for block in evicted:
                earlier = [o for o in stay if self._released[o] < self._released[block]]
                if earlier:
                    raise CheckFailed(
                        "eviction",
                        f"block {block} evicted, although {listed(earlier)} went idle earlier",
                    )
        if self._can.eviction == "leaf" and self._pool.window is None:
            size = self._pool.block_size
            ends = self._shadow.prefixes[size - 1 :: size].tolist()
            cached = {ends[block] for block in stay}
            # What a sequence has written: its other blocks still show what was evicted from them.
            for life in self._lives.values():
                cached.update(life.hashes[: life.written][size - 1 :: size].tolist())
            for block in stay:
                parent = self._parents.get(ends[block], 0)
                if parent and parent not in cached:
                    raise CheckFailed(
                        "eviction",
                        f"{listed(evicted)} evicted, although block {block} goes on from there",
                    )


def ask(call: Callable[[], T]) -> T:
    """Make a legal call: what it raises is a finding."""
    try:
        return call()
    except AllocatorDied as death:
        raise CheckFailed("died", str(death)) from None
    except AllocatorRaised as error:
        raise CheckFailed("answer", f"raised {error}") from None
    except SystemExit as error:
        raise CheckFailed("died", f"ended the process with code {error.code}") from None
    except Exception as error:
        raise CheckFailed("answer", f"raised {described(error)}") from error


def taken(call: str, answer: Any, take: Callable[[Any], T]) -> T:
    """Take over what a call returned, unless it is of another shape."""
    try:
        return take(answer)
    except (TypeError, ValueError, OverflowError):
        raise CheckFailed("answer", f"{call} returned {answer!r}, of another shape") from None


def truth(answer: object, call: str) -> bool:
    """What a call returned that is to say yes or no."""
    if not isinstance(answer, bool | np.bool_):
        raise CheckFailed("answer", f"{call} returned {answer!r}, neither True nor False")
    return bool(answer)


def as_pairs(answer: Any, call: str) -> list[tuple[int, int]]:
    """What a call returned that is to be pairs of blocks."""
    return taken(call, answer, lambda pairs: [(index(a), index(b)) for a, b in pairs])


def said(counts: Counts) -> str:
    """Counts in words."""
    return f"{counts.free} free, {counts.idle} idle and {counts.used} used blocks"


def listed(blocks: Iterable[int]) -> str:
    """Blocks in words."""
    shown = sorted(blocks)
    if not shown:
        return "none"
    return f"block{'' if len(shown) == 1 else 's'} {', '.join(map(str, shown))}"


def _int64(answer: Any) -> NDArray[np.int64]:
    numbers = np.asarray(answer)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(f"{numbers.ndim} dimensions of {numbers.dtype}")
    return numbers.astype(np.int64)
