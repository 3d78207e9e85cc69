"""The block table of one sequence, and where in the cache each of its tokens lives."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paged.errors import BadSize, checked_size

RELEASED: Final = -1
"""What stands in a table in the place of a block that was given up."""

_FIRST_CAPACITY: Final = 8
_NO_BLOCKS: Final[NDArray[np.int32]] = np.empty(0, np.int32)


@cache
def _offsets(block_size: int) -> NDArray[np.int64]:
    """Of the slots of a block from its first."""
    return np.arange(block_size)


class BlockTable:
    """The blocks of one sequence in logical order, and how many tokens they hold.

    Token position `p` lives in slot `blocks[p // block_size] * block_size + p % block_size`. The
    blocks always cover the tokens with less than one block to spare.

    Leading blocks may be released once nobody looks back that far, as behind a sliding window. The
    others keep their places, so positions keep their meaning; a released place holds `RELEASED`.

    A table owns nothing: references to its blocks are counted by whoever fills it.

    Raises BadSize: `block_size` is below 1.
    """

    __slots__ = ("_mirror", "_mirrored", "block_size", "blocks", "num_released", "num_tokens")

    def __init__(self, block_size: int) -> None:
        self.block_size = checked_size("block_size", block_size, at_least=1)
        self.blocks: list[int] = []
        """To be read; the methods change it."""
        self.num_tokens = 0
        self.num_released = 0
        # Bookkeeping reads single blocks, for which a list is several times faster than an array;
        # kernels want the whole row, for which the array is. So the row is kept beside the list,
        # and brought up to date when it is asked for.
        self._mirror = _NO_BLOCKS
        self._mirrored = 0

    def grow(self, num_tokens: int, blocks: list[int]) -> None:
        """Add `num_tokens` tokens, and behind the present blocks the `blocks` they need.

        Raises BadSize: the blocks would be too few or too many for the tokens. Nothing was changed.
        """
        total = self.num_tokens + num_tokens
        needed = -(-total // self.block_size) - len(self.blocks)
        if num_tokens < 0 or len(blocks) != needed:
            raise BadSize(
                f"{num_tokens} more tokens with {len(blocks)} more blocks: a table of "
                f"{self.num_tokens} tokens in blocks of {self.block_size} takes {max(needed, 0)}"
            )
        self.blocks += blocks
        self.num_tokens = total

    def replace_last(self, block: int) -> None:
        """Put `block` in the place of the last one, as copy-on-write does."""
        self.blocks[-1] = block
        self._mirrored = min(self._mirrored, len(self.blocks) - 1)

    def release_before(self, position: int) -> list[int]:
        """Take out the blocks whose tokens all lie before `position`, and return them in order.

        Raises BadSize: `position` is negative or behind the last token. Nothing was changed.
        """
        if not 0 <= position <= self.num_tokens:
            raise BadSize(
                f"position = {position}: the sequence has {self.num_tokens} tokens, "
                f"release before 0 to {self.num_tokens}"
            )
        first = self.num_released
        end = position // self.block_size
        if end <= first:
            return []
        released = self.blocks[first:end]
        self.blocks[first:end] = [RELEASED] * len(released)
        self.num_released = end
        # The part of the row that has been written says so, too.
        self._mirror[first : min(end, self._mirrored)] = RELEASED
        return released

    def held(self) -> list[int]:
        """Return the blocks that were not released, in order."""
        return self.blocks[self.num_released :]

    def fork(self) -> BlockTable:
        """Return a table of the same tokens in the same blocks that grows on its own."""
        child = BlockTable(self.block_size)
        child.blocks = self.blocks.copy()
        child.num_tokens = self.num_tokens
        child.num_released = self.num_released
        return child

    def row(self) -> NDArray[np.int32]:
        """The blocks, int32 [len(blocks)], `RELEASED` for released ones: a view until the next
        change.
        """
        length = len(self.blocks)
        if self._mirrored < length:
            if self._mirror.size < length:
                grown = np.empty(max(_FIRST_CAPACITY, 2 * length), np.int32)
                grown[: self._mirrored] = self._mirror[: self._mirrored]
                self._mirror = grown
            self._mirror[self._mirrored : length] = self.blocks[self._mirrored :]
            self._mirrored = length
        return self._mirror[:length]

    def slots(self, *, start: int = 0) -> NDArray[np.int64]:
        """Return the slot of each token position from `start` on, int64 [num_tokens - start].

        Raises BadSize: `start` is negative, behind the last token, or in a block that was released.
        """
        if not 0 <= start <= self.num_tokens:
            raise BadSize(f"start = {start}: the sequence has positions 0 to {self.num_tokens}")
        size = self.block_size
        first = start // size
        if first < self.num_released:
            raise BadSize(
                f"start = {start}: the blocks before position {self.num_released * size} were "
                f"released, start at {self.num_released * size} or behind it"
            )
        # int64 before the product: a pool may hold more than 2**31 slots.
        bases = self.row()[first:].astype(np.int64) * size
        slots = (bases[:, None] + _offsets(size)).reshape(-1)
        return slots[start - first * size : self.num_tokens - first * size]
