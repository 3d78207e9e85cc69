"""The blocks that a prefix cache knows by their keys, in numbers: who reads them, which are idle.

What `paged.allocator` and the orders of `paged.eviction` do of them, without saying which physical
block a key's tokens are in, and without quotas. All operations are of many keys at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]
"""Keys as numbers from 0 on, those of a prompt in order of its blocks, none twice."""

_FEW: Final = 4
_FIRST: Final = 4096


class _Line:
    """Keys in a row, counted from 1, those in front leaving first."""

    __slots__ = ("begin", "end", "keys")

    def __init__(self) -> None:
        self.keys = np.empty(_FIRST, np.int32)
        self.begin = self.end = 0

    def parted(self, count: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the first keys, some more than `count`, and their places."""
        part = self.keys[self.begin : min(self.end, self.begin + 2 * count)]
        return part, np.arange(self.begin + 1, self.begin + 1 + part.size)


class KeyedBlocks:
    """Keys with their blocks, the least recently used idle one going first.

    `window` is as in `paged.eviction.GhostList`. `own` blocks, 0 or as many as the pool has, may
    have a key that nobody else has: the smallest numbers, handed out and taken back.
    """

    def __init__(self, window: int, *, own: int = 0) -> None:
        self.window = window
        self.idle = self.evictions = 0
        """Blocks that nobody reads, and those that were given up so far."""
        # Of each key the number of its readers; 0: it has no block; below 0: nobody reads it, and
        # it stands at this place of its line.
        first = max(_FIRST, own)
        self._state = np.zeros(first, np.int32)
        # Of each key the number of its latest eviction, 0 for none.
        self._gone = np.zeros(first, np.int32)
        # Keys that nobody has, and of each such key how often one was handed out before it.
        self._own, self._spare = own, list(range(own))
        self._marks = np.zeros(own, np.int64)
        self._handed = 0
        self._line = _Line()
        self._numbers: dict[int, int] = {}
        self.given_up: Callable[[Keys], None] | None = None
        """Hears of blocks before they are given up, those first that go first."""

    def numbered(self, keys: Sequence[int] | NDArray[np.integer]) -> Keys:
        """Make room for keys. Those that come as an array are taken to be few and small."""
        if not isinstance(keys, np.ndarray):
            numbers = self._numbers
            keys = np.fromiter(
                (numbers.setdefault(key, len(numbers)) for key in keys), np.int64, len(keys)
            )
        wide: Keys = keys.astype(np.int64) + self._own
        if wide.size and (top := int(wide.max())) >= self._state.size:
            size = max(top + 1, 2 * self._state.size)
            self._make_longer(size)
        return wide

    def look(self, keys: Keys) -> tuple[int, int]:
        """Leading keys that have a block, and how many of these blocks nobody reads."""
        state = self._state[keys]
        hits = int((state == 0).argmax()) if keys.size else 0
        if hits == 0 and keys.size and state[0] != 0:
            hits = keys.size
        return hits, int(np.count_nonzero(state[:hits] < 0))

    def hand_out(self, count: int) -> tuple[Keys, Keys]:
        """Give so many blocks keys of their own, each with one reader; return keys and marks."""
        keys = np.array(self._spare[-count:], np.int64)
        del self._spare[-count:]
        marks = np.arange(self._handed, self._handed + count)
        self._handed += count
        self._marks[keys] = marks
        self.publish(keys)
        return keys, marks

    def look_own(self, keys: Keys, marks: Keys) -> int:
        """Leading keys, handed out with these marks, that still have a block."""
        gone = (self._state[keys] >= 0) | (self._marks[keys] != marks)
        return int(gone.argmax()) if gone.any() else keys.size

    def ghosts(self, keys: Keys) -> int:
        """How many of the keys were given up lately."""
        if not self.evictions:
            return 0
        return int(np.count_nonzero(self._gone[keys] > max(0, self.evictions - self.window)))

    def hold(self, keys: Keys) -> int:
        """Add a reader to each; return how many of them others are reading."""
        state = self._state[keys]
        self.idle -= int(np.count_nonzero(state < 0))
        self._state[keys] = np.maximum(state, 0) + 1
        return int(np.count_nonzero(state > 0))

    def publish(self, keys: Keys) -> Keys:
        """Give each key a block with one reader; return those that had none, the others have."""
        new: Keys = keys[self._state[keys] == 0]
        self._state[new] = 1
        return new

    def release(self, keys: Keys) -> int:
        """Take a reader from each; return how many of them others go on reading."""
        state = self._state[keys]
        self._state[keys] = state - 1
        # Tail first: a block is of use only as long as all those before it are there.
        idle = keys[state == 1][::-1]
        self.idle += idle.size
        self._add(idle)
        return int(keys.size - idle.size)

    def evict(self, count: int) -> None:
        """Give up so many idle blocks, those first that are first in the order."""
        self.idle -= count
        if count <= _FEW and self.given_up is None:
            line, state = self._line, self._state
            while count:
                key = line.keys[line.begin]
                line.begin += 1
                if state[key] == -line.begin:
                    state[key] = 0
                    self.evictions += 1
                    self._gone[key] = self.evictions
                    if key < self._own:
                        self._spare.append(int(key))
                    count -= 1
            return
        while count:
            count -= self._pop(self._line, count)

    def _add(self, idle: Keys) -> None:
        self._append(self._line, idle)

    def _append(self, line: _Line, keys: Keys) -> None:
        """Put idle keys at the end of a line."""
        if line.end + keys.size > line.keys.size:
            part, places = line.parted(line.end)
            kept = part[self._stands(line, part, places)]
            line.keys = np.empty(max(_FIRST, 2 * (kept.size + keys.size)), np.int32)
            line.keys[: kept.size] = kept
            line.begin, line.end = 0, kept.size
            self._place(kept, np.arange(1, kept.size + 1))
        end = line.end + keys.size
        line.keys[line.end : end] = keys
        self._place(keys, np.arange(line.end + 1, end + 1))
        line.end = end

    def _place(self, keys: NDArray[np.integer], places: NDArray[np.int64]) -> None:
        self._state[keys] = -places

    def _stands(
        self, line: _Line, part: NDArray[np.int32], places: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether keys still are at these places of a line."""
        stands: NDArray[np.bool_] = self._state[part] == -places
        return stands

    def _pop(self, line: _Line, count: int) -> int:
        """Give up at most `count` keys of a line; return how many, 0 at its end alone."""
        while line.begin < line.end:
            part, places = line.parted(count)
            first = np.flatnonzero(self._stands(line, part, places))[:count]
            line.begin += int(first[-1]) + 1 if first.size == count else part.size
            if first.size:
                self._give_up(part[first])
                return first.size
        return 0

    def _give_up(self, keys: NDArray[np.integer]) -> None:
        if self._own:
            self._spare.extend(keys[keys < self._own].tolist())
        if self.given_up is not None:
            self.given_up(keys[keys >= self._own].astype(np.int64))
        self._state[keys] = 0
        self._gone[keys] = np.arange(self.evictions + 1, self.evictions + 1 + keys.size)
        self.evictions += keys.size

    def _make_longer(self, size: int) -> None:
        # One after the other: the old ones are as large as all that was served so far.
        self._state = _longer(self._state, size)
        self._gone = _longer(self._gone, size)


class KeyedByHits(KeyedBlocks):
    """The least frequently found goes first, of equals the one idle longest: `eviction.LFU`."""

    def __init__(self, window: int, *, own: int = 0) -> None:
        super().__init__(window, own=own)
        self._hits = np.zeros(self._state.size, np.int32)
        # A line for each number of hits.
        self._lines: dict[int, _Line] = {}

    def hold(self, keys: Keys) -> int:
        """Add a reader to each, which has found it."""
        self._hits[keys] += 1
        return super().hold(keys)

    def publish(self, keys: Keys) -> Keys:
        """Give each key a block; those that had none begin without hits."""
        new = super().publish(keys)
        self._hits[new] = 0
        return new

    def evict(self, count: int) -> None:
        """Give up so many idle blocks, those with the fewest hits first."""
        self.idle -= count
        for hits in sorted(self._lines):
            while count and (popped := self._pop(self._lines[hits], count)):
                count -= popped
            if not count:
                return
            del self._lines[hits]

    def _add(self, idle: Keys) -> None:
        counts = self._hits[idle]
        for hits in np.unique(counts).tolist():
            self._append(self._lines.setdefault(hits, _Line()), idle[counts == hits])

    def _stands(
        self, line: _Line, part: NDArray[np.int32], places: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        # A place in another line may have the same number.
        here = next(hits for hits, each in self._lines.items() if each is line)
        stands: NDArray[np.bool_] = (self._state[part] == -places) & (self._hits[part] == here)
        return stands

    def _make_longer(self, size: int) -> None:
        super()._make_longer(size)
        self._hits = _longer(self._hits, size)


class KeyedByAge(KeyedBlocks):
    """First published, first out: `eviction.FIFO`.

    What is in use when its turn comes is passed over. It comes back in a run of those that become
    idle together, by age, and runs are older than the line.
    """

    def __init__(self, window: int, *, own: int = 0) -> None:
        super().__init__(window, own=own)
        # Of each key the number of its latest publication, from 1 on.
        self._since = np.zeros(self._state.size, np.int32)
        self._runs: list[tuple[int, int, Keys, NDArray[np.int32]]] = []
        self._published = self._made = 0

    def publish(self, keys: Keys) -> Keys:
        """Give each key a block; of those of one prompt the last goes first."""
        new = super().publish(keys)
        line = self._line
        if line.end + new.size > line.keys.size:
            kept = line.keys[line.begin : line.end]
            line.keys = np.empty(max(_FIRST, 2 * (kept.size + new.size)), np.int32)
            line.keys[: kept.size] = kept
            line.begin, line.end = 0, kept.size
        line.keys[line.end : line.end + new.size] = new[::-1]
        line.end += new.size
        self._since[new[::-1]] = np.arange(self._published + 1, self._published + 1 + new.size)
        self._published += new.size
        return new

    def evict(self, count: int) -> None:
        """Give up so many idle blocks, those published first."""
        self.idle -= count
        while count and self._runs:
            _, _, run, since = heapq.heappop(self._runs)
            # What was found again, or has a younger block now, is in another run or in the line.
            still = (self._state[run] < 0) & (self._since[run] == since)
            run, since = run[still], since[still]
            # Of what is left the first may be younger than another run's. A key may be in two runs.
            last = self._runs[0][0] if self._runs else self._published
            taken = min(int(np.searchsorted(since, last, side="right")), count)
            self._give_up(run[:taken])
            count -= taken
            self._keep(run[taken:], since[taken:])
        line = self._line
        while count:
            part, _ = line.parted(count)
            first = np.flatnonzero(self._state[part] < 0)[:count]
            line.begin += int(first[-1]) + 1 if first.size == count else part.size
            self._give_up(part[first])
            count -= first.size

    def _add(self, idle: Keys) -> None:
        self._state[idle] = -1
        since = self._since[idle]
        passed = np.flatnonzero(since <= self._published - (self._line.end - self._line.begin))
        by_age = passed[np.argsort(since[passed])]
        self._keep(idle[by_age], since[by_age])

    def _keep(self, run: Keys, since: NDArray[np.int32]) -> None:
        if run.size:
            self._made += 1
            heapq.heappush(self._runs, (int(since[0]), self._made, run, since))

    def _make_longer(self, size: int) -> None:
        super()._make_longer(size)
        self._since = _longer(self._since, size)


KEYED: Final = {"lru": KeyedBlocks, "lfu": KeyedByHits, "fifo": KeyedByAge}
"""By the order of eviction."""


def _longer(old: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    # Memory that nobody writes to is not taken up.
    grown = np.zeros(size, np.int32)
    grown[: old.size] = old
    return grown
