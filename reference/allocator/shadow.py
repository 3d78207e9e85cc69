"""The shadow cache: the truth for allocators.

A cache holds keys and values, and whether they are the right ones cannot be seen from them. The
shadow holds, for each physical slot, a hash of what decides them: every token of the sequence up to
and including the one that was written there. A sequence that reads its own prefixes through its
own slots is served rightly, whatever the allocator did to get there; use after free, a block with
two owners, a missing copy, a wrong prefix hit and a stale table all end in a slot that holds
something else.

The shadow knows nothing of allocators: slots and tokens go in, findings come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Integers = Sequence[int] | NDArray[np.integer[Any]]

NEVER_WRITTEN: Final = 0
"""Stands in a slot that nothing was written to. No prefix has this hash."""

_ORIGIN: Final = 1 << 32
"""Tokens of a program have 32 bits. What keys and values depend on besides tokens, the salt and the
weights, stands above them."""

# The increment and the mixing function of SplitMix64 (Steele, Lea and Flood, "Fast splittable
# pseudorandom number generators", OOPSLA 2014; constants as in Vigna's public-domain C code).
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


@cache
def _places(room: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """What stands for each of the first places, and what it is mixed to."""
    places = np.arange(1, room + 1, dtype=np.uint64) * _GOLDEN
    return places, _mix(places)


def prefix_hashes(tokens: Integers) -> NDArray[np.uint64]:
    """Return the hash of each prefix of `tokens`, uint64 [num_tokens].

    Element `i` depends on the values and the places of tokens 0 to `i`, and on nothing else. Each
    token is mixed with its place, and prefixes are running sums of that: one pass of numpy instead
    of a loop. Two given different prefixes agree with a chance of about 2**-64; the hash is meant
    for mistakes, not for adversaries.
    """
    ids = np.asarray(tokens, dtype=np.int64).view(np.uint64)
    places, mixed = (each[: ids.size] for each in _places(1 << ids.size.bit_length()))
    hashes = _mix(np.cumsum(_mix(mixed ^ _mix(ids + _GOLDEN)), dtype=np.uint64) + places)
    hashes[hashes == NEVER_WRITTEN] = 1
    return hashes


def split_token(seen: int) -> tuple[int, int]:
    """A token as the shadow sees it: its id, and the origin that stands above it."""
    origin = (seen + _ORIGIN // 2) // _ORIGIN
    return seen - origin * _ORIGIN, origin


@dataclass(slots=True)
class Life:
    """A live sequence as the engine sees it."""

    tokens: list[int]
    """Tokens that there is room for."""
    rest: list[int]
    """Tokens of the prompt that there is no room for yet."""
    salt: str
    """Of its admission."""
    origin: int
    """What its keys and values depend on besides its tokens."""
    written: int
    """Leading tokens whose keys and values are in the cache."""
    published: int = 0
    """Leading full blocks that were committed."""
    hashes: NDArray[np.uint64] = field(init=False)
    """Of the prefixes of `tokens`, uint64 [num_tokens]."""

    def __post_init__(self) -> None:
        self._rehash()

    def seen_by_shadow(self, *, origin: int | None = None) -> NDArray[np.int64]:
        """The tokens, with what else decides keys and values mixed in: their origin, or another."""
        above = (self.origin if origin is None else origin) * _ORIGIN
        return np.asarray(self.tokens, np.int64) + above

    def put_off(self, room: int) -> None:
        """Leave only so many of the tokens in, and the others for later."""
        self.tokens, self.rest = self.tokens[:room], self.tokens[room:]
        self.hashes = self.hashes[:room]

    def extended(self, more: list[int]) -> None:
        """Take up more tokens: the next ones of the prompt, then new ones."""
        self.tokens += more
        self.rest = self.rest[len(more) :]
        self._rehash()

    def _rehash(self) -> None:
        self.hashes = prefix_hashes(self.seen_by_shadow())


@dataclass(frozen=True, slots=True)
class ShadowFinding:
    """A token position of a sequence that does not see its own prefix."""

    position: int
    """The first such token position in the sequence."""
    slot: int
    block: int
    """Where the sequence was told to look for it; the block is `slot // block_size`."""
    expected_token: int
    expected_hash: int
    """The token at that position, and the hash of the prefix that ends with it."""
    found_position: int | None
    found_token: int | None
    found_hash: int
    """What was last written to the slot: a token, its position in the sequence it belonged to, and
    the hash of the prefix. None, None and 0 if nothing was, or if there is no such slot."""
    num_wrong: int
    num_tokens: int
    """How many positions of the sequence are wrong, and how many were looked at."""

    @property
    def found_origin(self) -> int | None:
        """The origin of what was found; see `Life`."""
        return None if self.found_token is None else split_token(self.found_token)[1]

    def __str__(self) -> str:
        return self.said(None)

    def said(self, found: str | None) -> str:
        """In words, with other ones for what was found."""
        if found is None:
            found = (
                f"expected token {split_token(self.expected_token)[0]} behind prefix "
                f"{self.expected_hash:016x}, found {self._found()}"
            )
        return (
            f"position {self.position} (slot {self.slot}, block {self.block}): {found}; "
            f"{self.num_wrong} of {self.num_tokens} positions are wrong"
        )

    def _found(self) -> str:
        if self.found_token is None:
            return "a slot that was never written"
        return (
            f"token {split_token(self.found_token)[0]} of position {self.found_position} "
            f"behind prefix {self.found_hash:016x}"
        )


class ShadowCache:
    """For each slot of a cache, which prefix was written there.

    Slot `s` is token `s % block_size` of block `s // block_size`.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"{num_blocks} blocks of {block_size} slots: give at least 1 of each")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefixes = np.full(num_blocks * block_size, NEVER_WRITTEN, np.uint64)
        """Hash of the prefix in each slot, uint64 [num_blocks * block_size]."""
        # Only for the words of a finding: whose token a wrong slot holds.
        self._tokens = np.zeros(num_blocks * block_size, np.int64)
        self._positions = np.zeros(num_blocks * block_size, np.int64)

    def write(
        self,
        slots: Integers,
        tokens: Integers,
        *,
        start: int = 0,
        hashes: NDArray[np.uint64] | None = None,
    ) -> None:
        """Write positions `start` and up of a sequence, through a slot for each of them.

        `tokens` are all of the sequence, those before `start` included: they decide what is
        written. `hashes` are their `prefix_hashes`, if those are known.

        Raises ValueError: the numbers of slots and positions differ, or a slot is outside the cache
        or named twice. Nothing was written.
        """
        where = self._slot_array(slots, len(tokens) - start)
        outside = where[(where < 0) | (where >= self.prefixes.size)]
        if outside.size:
            raise ValueError(f"write to slot {outside[0]}: there are {self.prefixes.size} slots")
        named = where.tolist()
        if len(set(named)) != len(named):
            raise ValueError(f"write to slots {named}: a slot is named twice")
        self.prefixes[where] = (prefix_hashes(tokens) if hashes is None else hashes)[start:]
        self._tokens[where] = np.asarray(tokens, np.int64)[start:]
        self._positions[where] = np.arange(start, len(tokens))

    def copy(self, source: int, destination: int) -> None:
        """Copy a whole block. Raises ValueError: there is no such block."""
        for block in (source, destination):
            if not 0 <= block < self.num_blocks:
                raise ValueError(f"copy of block {block}: there are {self.num_blocks} blocks")
        for array in (self.prefixes, self._tokens, self._positions):
            blocks = array.reshape(self.num_blocks, self.block_size)
            blocks[destination] = blocks[source]

    def check(self, slots: Integers, tokens: Integers, *, start: int = 0) -> ShadowFinding | None:
        """Read a sequence through `slots` and say what is wrong with it, if anything is.

        Arguments are those of `write`. The finding is about the first position that does not see
        its own prefix. Raises ValueError: the numbers of slots and tokens differ.
        """
        where = self._slot_array(slots, len(tokens) - start)
        inside = (where >= 0) & (where < self.prefixes.size)
        # A slot outside the cache is a finding, not an IndexError, and -1 is not the last slot.
        found = np.where(inside, self.prefixes[np.where(inside, where, 0)], NEVER_WRITTEN)
        expected = prefix_hashes(tokens)[start:]
        wrong = np.flatnonzero(found != expected)
        if wrong.size == 0:
            return None
        at = int(wrong[0])
        slot = int(where[at])
        written = found[at] != NEVER_WRITTEN
        return ShadowFinding(
            position=start + at,
            slot=slot,
            block=slot // self.block_size,
            expected_token=int(tokens[start + at]),
            expected_hash=int(expected[at]),
            found_position=int(self._positions[slot]) if written else None,
            found_token=int(self._tokens[slot]) if written else None,
            found_hash=int(found[at]),
            num_wrong=int(wrong.size),
            num_tokens=len(tokens) - start,
        )

    @staticmethod
    def _slot_array(slots: Integers, length: int) -> NDArray[np.int64]:
        where = np.asarray(slots)
        if where.shape != (length,):
            raise ValueError(f"slots of shape {list(where.shape)} for {length} token positions")
        return where.astype(np.int64)
