"""Tiers behind the pool: what a prefix cache gives up is kept in the host's memory, or on a disk.

A block that the pool gives up is copied to the first tier, one that a tier gives up to the next,
least recently used first; a tier that has a block already keeps it, and nothing is copied. A prompt
is looked up in the pool, and from the first block that it does not have on in the tiers; what is
found there is copied to the pool, where it takes a block like one that is computed. With
`preempt=swap` preempted requests take room of the first tier; who does not fit into it is computed
again.

How long copies take. Loads make a step longer, all but what `overlap` hides behind its computing.
Stores run beside the steps, one after the other; a step in which blocks move waits for those that
are late, since a block cannot be written before its copy is made. A tier reads and writes at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paged.accounting import TierUse
from paged.arrivals import Request
from paged.clock import PS_PER_NS
from paged.counted import Group, Setting
from paged.counting import CountingServer
from paged.errors import BadSize, checked_size
from paged.keyed_blocks import KeyedBlocks, Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Memory behind the pool. Raises BadSize: a number is out of range."""

    name: str
    slots: int
    """Tokens that it holds."""
    load_ps_per_token: int
    store_ps_per_token: int
    """Picoseconds to copy a token from it, and to it."""
    overlap: float = 0.0
    """Share of a step's computing, 0 to 1, behind which loads are hidden."""

    def __post_init__(self) -> None:
        for name in ("slots", "load_ps_per_token", "store_ps_per_token"):
            checked_size(name, getattr(self, name), at_least=0)
        if not 0 <= self.overlap <= 1:
            raise BadSize(f"overlap = {self.overlap}: give a share from 0 to 1")


class _Shelf(KeyedBlocks):
    """The blocks of a tier: nobody reads them, so all of them are idle."""

    def __init__(self, tier: Tier, size: int) -> None:
        super().__init__(window=1)
        self.tier = tier
        self.room = tier.slots // size
        """Blocks that it can hold beside those of swapped requests."""
        self.loaded = self.stored = 0
        """Blocks copied from it, and to it."""
        self.late_ps = 0
        """Moment at which the last store is done."""

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether it has each of the keys."""
        keys = self.numbered(keys)
        there: NDArray[np.bool_] = self._state[keys] != 0
        return there

    def keep(self, keys: Keys) -> None:
        """Take in blocks, or see those used that are there, the first being the least recent."""
        self.hold(self.numbered(keys))
        self.release(keys[::-1])
        self.shrink()

    def shrink(self) -> None:
        """Give up what there is no room for."""
        if self.idle > self.room:
            self.evict(self.idle - self.room)


class TieredServer(CountingServer):
    """The server that counts, with tiers behind its pool, those first that are asked first."""

    def __init__(
        self, requests: Iterable[Request], setting: Setting, *, tiers: Sequence[Tier]
    ) -> None:
        super().__init__(requests, setting)
        self._shelves = [_Shelf(tier, self._size) for tier in tiers]
        # What the step loads, picoseconds by tier.
        self._loading = [0] * len(tiers)
        # What was given up for each tier, and has not been passed on.
        self._given_up: list[list[Keys]] = [[] for _ in tiers]
        above: KeyedBlocks | None = self._cache
        for shelf, given_up in zip(self._shelves, self._given_up, strict=True):
            if above is not None:
                above.given_up = given_up.append
            above = shelf

    @property
    def tiers(self) -> tuple[TierUse, ...]:  # type: ignore[override]
        """What each tier did."""
        return tuple(
            TierUse(
                name=shelf.tier.name,
                loaded_tokens=(loaded := shelf.loaded * self._size),
                stored_tokens=(stored := shelf.stored * self._size),
                load_ns=loaded * shelf.tier.load_ps_per_token // PS_PER_NS,
                store_ns=stored * shelf.tier.store_ps_per_token // PS_PER_NS,
            )
            for shelf in self._shelves
        )

    def _take(self, count: int) -> None:
        super()._take(count)
        self._pass_on()

    def _pass_on(self) -> None:
        """Copy what was given up to the tier behind it, all the way down."""
        for shelf, given_up in zip(self._shelves, self._given_up, strict=True):
            if not given_up:
                continue
            keys = np.concatenate(given_up)
            given_up.clear()
            if shelf.room:
                self._copy_to(shelf, int(np.count_nonzero(~shelf.has(keys))))
                shelf.keep(keys)

    def _copy_to(self, shelf: _Shelf, blocks: int) -> int:
        tokens = blocks * self._size
        shelf.late_ps = max(shelf.late_ps, self._clock) + tokens * shelf.tier.store_ps_per_token
        shelf.stored += blocks
        self._counts["stored_tokens"] += tokens
        self._swapped += blocks
        return blocks

    def _copy_from(self, nth: int, blocks: int) -> None:
        shelf, tokens = self._shelves[nth], blocks * self._size
        self._loading[nth] += tokens * shelf.tier.load_ps_per_token
        shelf.loaded += blocks
        self._counts["loaded_tokens"] += tokens
        self._swapped += blocks

    def _found(self, group: Group, hits: int) -> int:
        if group.host:
            self._shelves[0].room += group.host
            self._copy_from(0, max(0, group.host - hits))
            return hits * self._size
        keys = group.keys[hits : (group.prompt - 1) // self._size]
        if not keys.size:
            return hits * self._size
        where = np.full(keys.size, -1)
        for nth in reversed(range(len(self._shelves))):
            where[self._shelves[nth].has(keys)] = nth
        found = int((where < 0).argmax()) if (where < 0).any() else keys.size
        for nth, shelf in enumerate(self._shelves):
            mine = keys[:found][where[:found] == nth]
            if mine.size:
                self._copy_from(nth, mine.size)
                shelf.keep(mine[::-1])
        return (hits + found) * self._size

    def _to_host(self, blocks: int) -> int:
        shelf = self._shelves[0]
        if blocks > shelf.room:
            return 0
        shelf.room -= blocks
        shelf.shrink()
        self._pass_on()
        self._counts["swapped_out"] += blocks
        return self._copy_to(shelf, blocks)

    def _moved_ps(self, spent: int) -> int:
        longer = late = 0
        for nth, shelf in enumerate(self._shelves):
            longer += max(0, self._loading[nth] - int(shelf.tier.overlap * spent))
            late = max(late, shelf.late_ps - self._clock - spent)
            self._loading[nth] = 0
        waited = max(longer, late)
        self._counts["tier_ns"] += waited // PS_PER_NS
        return waited
