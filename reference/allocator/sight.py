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

from reference.allocator.cached import Cached
from reference.allocator.contract import (
    Allocator,
    AllocatorCapabilities,
    AllocatorDied,
    AllocatorRaised,
    Counts,
)
from reference.allocator.programs import Pool
from reference.allocator.shadow import Life, ShadowCache, ShadowFinding, prefix_hashes
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
    """Slot of each token position that there is room for, int64; -1 where it was given up."""
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

    `lives`, `shadow` and `origins` are what the engine knows: they change as it makes its calls.
    """

    def __init__(
        self,
        allocator: Allocator,
        pool: Pool,
        capabilities: AllocatorCapabilities,
        lives: Mapping[str, Life],
        shadow: ShadowCache,
        origins: Mapping[tuple[str, int], int],
    ) -> None:
        self._allocator = allocator
        self._pool = pool
        self._can = capabilities
        self._lives = lives
        self._shadow = shadow
        self._origins = origins
        self.cached = Cached(pool, shadow)
        """Prefixes that have to be found again."""
        self.evictions = 0
        """Blocks that were seen to be evicted."""
        self._views: dict[str, View] = {}
        self._answers: dict[str, list[int] | None] = {}
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
        answer = ask(self._allocator.counts, "counts")
        counts = taken("counts", answer, lambda answer: Counts(*map(index, answer)), _COUNTS)
        views = {name: self._view(name, life) for name, life in self._lives.items()}
        idle = None
        if self._can.eviction is not None and self._pool.prefix_caching:
            named = ask(self._allocator.idle_blocks, "idle_blocks")
            idle = taken("idle_blocks", named, _blocks, "block numbers")
            if idle and not 0 <= min(idle) <= max(idle) < self._pool.num_blocks:
                raise CheckFailed("conservation", f"idle are {listed(idle)}, not all of the pool's")
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
        self.cached.forget()
        self.seen = self.look()

    def published(self, life: Life, *, to_be_found: bool) -> None:
        """A sequence was committed, and perhaps others have to find what it filled."""
        size = self._pool.block_size
        ends = life.hashes[size - 1 :: size].tolist()
        self._parents.update(zip(ends, [0, *ends], strict=False))
        if to_be_found:
            self.cached.publish(ends[life.published :])
        life.published = len(ends)

    def _view(self, name: str, life: Life) -> View:
        answer = ask(lambda: self._allocator.slots(name), "slots")
        before = self._views.get(name)
        # Mostly nothing has changed, and lists are compared faster than they become arrays.
        if before is not None and type(answer) is list and answer == self._answers.get(name):
            return before
        slots = taken("slots", answer, _int64, "one slot for each token, in one list")
        self._answers[name] = answer.copy() if type(answer) is list else None
        if before is not None and _same(before.slots, slots):
            return before
        reserved = len(life.rest) if self._can.reserves_prompt else 0
        view = self._checked_view(name, slots, len(life.tokens) + reserved)
        self._views[name] = view
        return view

    def _checked_view(self, name: str, slots: NDArray[np.int64], length: int) -> View:
        size = self._pool.block_size
        if slots.shape != (length,):
            has = "has room for" if self._can.reserves_prompt else "has"
            raise CheckFailed("table", f"{name} {has} {length} tokens and {slots.size} slots")
        gone = np.flatnonzero(slots >= 0)
        first = int(gone[0]) if gone.size else length
        if first and (self._pool.window is None or (first % size and first < length)):
            raise CheckFailed("table", f"{name}: no slot for the positions before {first}")
        kept = slots[first:]
        if kept.size == 0:
            return View(slots, (-1,) * self._pool.blocks_for(length), first)
        heads = kept[::size]
        expected = (heads[:, None] + np.arange(size)).reshape(-1)[: kept.size]
        if (heads % size).any() or not _same(kept, expected):
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
            slots = view.slots[view.first : len(life.tokens)]
            if not _same(self._shadow.prefixes[slots], life.hashes[view.first :]):
                finding = self._shadow.check(slots, life.seen_by_shadow(), start=view.first)
                assert finding is not None
                raise CheckFailed("content", f"{name}, {self._said(finding, life)}")
            surplus = needed // self._pool.block_size - view.first // self._pool.block_size
            if surplus > self._can.window_slack:
                raise CheckFailed(
                    "window",
                    f"{name} holds {surplus} blocks of tokens before {needed}, which no query sees",
                )

    def _said(self, finding: ShadowFinding, life: Life) -> str:
        """A finding in words, which tell another tenant's tokens and old weights by their names."""
        origin = finding.found_origin
        if origin is None or origin == life.origin:
            return str(finding)
        salt, weights = list(self._origins)[origin]
        own, now = list(self._origins)[life.origin]
        where = [f"under another salt, {salt!r} instead of {own!r}"] if salt != own else []
        if weights != now:
            where.append(f"written {'before' if weights < now else 'after'} the reset")
        same = prefix_hashes(life.seen_by_shadow(origin=origin))[finding.position]
        what = "the same tokens" if int(same) == finding.found_hash else "other tokens"
        return finding.said(f"found {what} {' and '.join(where)}")

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

    # Hits and writes

    def check_hit(self, hit: Any, length: int) -> None:
        """An admission was told so many cached tokens, of `length`."""
        if isinstance(hit, bool) or not isinstance(hit, int | np.integer):
            raise CheckFailed(
                "answer",
                f"admit returned {hit!r}, neither a number nor None: return the tokens that were "
                f"found cached, or None if refused",
            )
        if hit and not self._pool.prefix_caching:
            raise CheckFailed("hit", f"{hit} tokens found cached without prefix caching")
        if not 0 <= hit <= max(length - 1, 0):
            raise CheckFailed("hit", f"{hit} of {length} tokens found cached: one has to be left")
        if hit % self._pool.block_size:
            raise CheckFailed("hit", f"{hit} tokens found cached: that is not whole blocks")

    def check_source(self, before: Sight, name: str, num_hits: int) -> None:
        """What was found cached has to be a block that was kept, not one that was free."""
        if not num_hits or before.idle is None:
            return
        kept = before.idle.union(*(view.blocks for view in before.views.values()))
        stray = set(self.seen.views[name].blocks[:num_hits]) - kept - {-1}
        if stray:
            raise CheckFailed(
                "hit", f"{listed(stray)} found cached, though neither idle nor in a table"
            )

    def check_shared_write(
        self, name: str, slots: NDArray[np.int64], hashes: NDArray[np.uint64], other: str
    ) -> None:
        """A write into a block of another sequence: right only if that one waits for just this."""
        seen = self.seen.views[other]
        hashes_there = self._lives[other].hashes.tolist()
        expected = dict(zip(seen.slots.tolist(), hashes_there, strict=False))
        shared = set(seen.blocks)
        for slot, written in zip(slots.tolist(), hashes.tolist(), strict=True):
            block = slot // self._pool.block_size
            if block in shared and expected.get(slot) != written:
                raise CheckFailed(
                    "ownership",
                    f"{name} writes to slot {slot} of block {block}, which {other} holds too",
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
            self.evictions += len(evicted)
            self.cached.evict(evicted)
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


_COUNTS = "three whole numbers: blocks that are free, idle and used"


def ask(call: Callable[[], T], name: str = "") -> T:
    """Make a legal call: what it raises is a finding, of a call to look with its name."""
    which = f"{name} raised" if name else "raised"
    try:
        return call()
    except AllocatorDied as death:
        raise CheckFailed("died", str(death)) from None
    except AllocatorRaised as error:
        raise CheckFailed("answer", f"{which} {error}") from None
    except SystemExit as error:
        raise CheckFailed("died", f"ended the process with code {error.code}") from None
    except Exception as error:
        raise CheckFailed("answer", f"{which} {described(error)}") from error


def taken(call: str, answer: Any, take: Callable[[Any], T], remedy: str) -> T:
    """Take over what a call returned, unless it is of another shape."""
    try:
        return take(answer)
    except (TypeError, ValueError, OverflowError):
        shown = repr(answer)
        shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
        raise CheckFailed(
            "answer", f"{call} returned {shown}, of another shape: return {remedy}"
        ) from None


def truth(answer: object, call: str) -> bool:
    """What a call returned that is to say yes or no."""
    if not isinstance(answer, bool | np.bool_):
        raise CheckFailed(
            "answer", f"{call} returned {answer!r}, neither True nor False: return one of them"
        )
    return bool(answer)


def as_pairs(answer: Any, call: str) -> list[tuple[int, int]]:
    """What a call returned that is to be pairs of blocks."""
    return taken(
        call, answer, lambda pairs: [(index(a), index(b)) for a, b in pairs], "pairs of blocks"
    )


def said(counts: Counts) -> str:
    """Counts in words."""
    return f"{counts.free} free, {counts.idle} idle and {counts.used} used blocks"


def listed(blocks: Iterable[int]) -> str:
    """Blocks in words."""
    shown = sorted(blocks)
    if not shown:
        return "none"
    return f"block{'' if len(shown) == 1 else 's'} {', '.join(map(str, shown))}"


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays of one dtype are equal: for short ones several times `np.array_equal`."""
    return one.tobytes() == other.tobytes()


def _blocks(answer: Any) -> frozenset[int]:
    return frozenset(map(index, answer))


def _int64(answer: Any) -> NDArray[np.int64]:
    numbers = np.asarray(answer)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(f"{numbers.ndim} dimensions of {numbers.dtype}")
    return numbers.astype(np.int64)
