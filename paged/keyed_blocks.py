"""The blocks that a prefix cache knows by their keys, in numbers: who reads them, which are idle.

What `paged.allocator` and the order `paged.eviction.LRU` do of them, without saying which physical
block a key's tokens are in. All operations are of many keys at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]
"""Keys as numbers from 0 on, those of a prompt in order of its blocks, none twice."""

_FEW: Final = 4
_FIRST: Final = 4096


class KeyedBlocks:
    """Keys with their blocks; `window` is as in `paged.eviction.GhostList`."""

    __slots__ = (
        "_begin",
        "_end",
        "_gone",
        "_line",
        "_numbers",
        "_state",
        "evictions",
        "idle",
        "window",
    )

    def __init__(self, window: int) -> None:
        self.window = window
        self.idle = self.evictions = 0
        """Blocks that nobody reads, and those that were given up so far."""
        # Of each key the number of its readers; 0: it has no block; below 0: nobody reads it, and
        # it stands at this place of the line, counted from 1.
        self._state = np.zeros(_FIRST, np.int32)
        # Of each key the number of its latest eviction, 0 for none.
        self._gone = np.zeros(_FIRST, np.int32)
        # Idle blocks, the next victim first. An entry whose key says another place is stale.
        self._line = np.empty(_FIRST, np.int32)
        self._begin = self._end = 0
        self._numbers: dict[int, int] = {}

    def numbered(self, keys: Sequence[int] | Keys) -> Keys:
        """Make room for keys. Those that come as an array are taken to be few and small."""
        if not isinstance(keys, np.ndarray):
            numbers = self._numbers
            keys = np.fromiter(
                (numbers.setdefault(key, len(numbers)) for key in keys), np.int64, len(keys)
            )
        if keys.size and (top := int(keys.max())) >= self._state.size:
            size = max(top + 1, 2 * self._state.size)
            self._state, self._gone = (_longer(old, size) for old in (self._state, self._gone))
        return keys

    def look(self, keys: Keys) -> tuple[int, int]:
        """Leading keys that have a block, and how many of these blocks nobody reads."""
        state = self._state[keys]
        hits = int((state == 0).argmax()) if keys.size else 0
        if hits == 0 and keys.size and state[0] != 0:
            hits = keys.size
        return hits, int(np.count_nonzero(state[:hits] < 0))

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
        if self._end + idle.size > self._line.size:
            self._make_room(idle.size)
        end = self._end + idle.size
        self._line[self._end : end] = idle
        self._state[idle] = -np.arange(self._end + 1, end + 1, dtype=np.int32)
        self._end = end
        self.idle += idle.size
        return int(keys.size - idle.size)

    def evict(self, count: int) -> None:
        """Give up so many idle blocks, those first that became idle first."""
        line, state, gone = self._line, self._state, self._gone
        self.idle -= count
        if count <= _FEW:
            while count:
                key = line[self._begin]
                self._begin += 1
                if state[key] == -self._begin:
                    state[key] = 0
                    self.evictions += 1
                    gone[key] = self.evictions
                    count -= 1
            return
        while count:
            part = line[self._begin : min(self._end, self._begin + 2 * count)]
            places = np.arange(self._begin + 1, self._begin + 1 + part.size)
            valid = np.flatnonzero(state[part] == -places)
            if valid.size >= count:
                valid = valid[:count]
                self._begin += int(valid[-1]) + 1
            else:
                self._begin += part.size
            keys = part[valid]
            state[keys] = 0
            gone[keys] = np.arange(self.evictions + 1, self.evictions + 1 + keys.size)
            self.evictions += keys.size
            count -= keys.size

    def _make_room(self, more: int) -> None:
        """Leave out the stale entries of the line, and number the places anew."""
        part = self._line[self._begin : self._end]
        places = np.arange(self._begin + 1, self._end + 1)
        kept = part[self._state[part] == -places]
        self._line = np.empty(max(_FIRST, 2 * (kept.size + more)), np.int32)
        self._line[: kept.size] = kept
        self._state[kept] = -np.arange(1, kept.size + 1, dtype=np.int32)
        self._begin, self._end = 0, kept.size


def _longer(old: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    # Memory that nobody writes to is not taken up.
    grown = np.zeros(size, np.int32)
    grown[: old.size] = old
    return grown
