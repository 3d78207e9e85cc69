"""Which prompts begin alike: ids of prefix blocks, and the cache keys that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_SMALL: Final = 2**20
_MAX_ID: Final = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixBlocks:
    """Which prefix blocks each prompt is made of: a ragged array of block ids.

    Equal ids mean equal tokens in the block and in everything before it, so two requests share a
    prefix as far as their ids agree. Two records are equal only where they are the same object.
    """

    ids: NDArray[np.int64]
    """int64 [total], the ids of all requests, end to end."""
    offsets: NDArray[np.int64]
    """int64 [n + 1]; request r owns `ids[offsets[r] : offsets[r + 1]]`."""
    tokens_per_block: int
    """Tokens that one id stands for; the last id of a request may stand for fewer."""

    def __post_init__(self) -> None:
        if self.tokens_per_block < 1:
            raise ValueError(
                f"tokens_per_block is {self.tokens_per_block}; a block holds at least 1 token"
            )
        ids = checked_column(self.ids, "prefix ids", largest=_MAX_ID)
        offsets = checked_column(self.offsets, "prefix offsets", largest=ids.size)
        if offsets.size == 0 or offsets[0] != 0 or offsets[-1] != ids.size:
            raise ValueError(
                f"prefix offsets {offsets.tolist()[:1]} ... {offsets.tolist()[-1:]} do not cover "
                f"the {ids.size} ids; they run from 0 to the number of ids"
            )
        if (falls := np.flatnonzero(np.diff(offsets) < 0)).size:
            raise ValueError(f"prefix offsets fall after entry {falls[0]}; they must not decrease")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "offsets", offsets)

    @classmethod
    def of_lists(cls, ids: Sequence[list[int]], tokens_per_block: int) -> PrefixBlocks:
        """Join the ids of each request."""
        return cls(
            ids=np.fromiter(chain.from_iterable(ids), dtype=np.int64),
            offsets=np.fromiter(accumulate(map(len, ids), initial=0), dtype=np.int64),
            tokens_per_block=tokens_per_block,
        )

    def __len__(self) -> int:
        return int(self.offsets.size) - 1

    def of(self, request: int) -> NDArray[np.int64]:
        """Block ids of one request, int64 [blocks]."""
        if not 0 <= request < len(self):
            raise IndexError(f"request {request} of {len(self)}; they count from 0")
        return self.ids[self.offsets[request] : self.offsets[request + 1]]

    def take(self, requests: NDArray[np.int64]) -> PrefixBlocks:
        """Keep the requests of these indices, int64 [m], in their order."""
        counts = np.diff(self.offsets)[requests]
        request, index, offsets = ragged(counts)
        return PrefixBlocks(
            ids=self.ids[self.offsets[requests][request] + index],
            offsets=offsets,
            tokens_per_block=self.tokens_per_block,
        )

    def keys(self, request: int, block_size: int, prompt_tokens: int) -> NDArray[np.int64]:
        """Cache keys of one request: equal where a cache may share the block, and only there.

        One key, int64, for each block that the prompt fills and its ids cover. A block has any
        number of tokens; where that is `tokens_per_block`, a key is the id.
        """
        ids = self.of(request)
        self._check_keys(ids, block_size)
        blocks = min(prompt_tokens, ids.size * self.tokens_per_block) // block_size
        if self.tokens_per_block % block_size == 0:  # the same, and many times as fast
            per_id = self._keys_per_id(block_size)
            return (ids[:, None] * per_id + np.arange(per_id)).ravel()[:blocks]
        first = np.broadcast_to(self.offsets[request], blocks)
        return self._key(first, np.arange(blocks), block_size)

    def renumbered(self, numbers: dict[int, int]) -> PrefixBlocks:
        """Number the ids that are no small numbers; `numbers` goes on from a part to the next."""
        large = self.ids >= _SMALL
        if not large.any():
            return self
        different, place = np.unique(self.ids[large], return_inverse=True)
        small = [numbers.setdefault(each, len(numbers)) for each in different.tolist()]
        ids = self.ids.copy()
        ids[large] = _SMALL + np.array(small, dtype=np.int64)[place]
        return replace(self, ids=ids)

    def refined(self, tokens_per_block: int, prompt_tokens: NDArray[np.int64]) -> PrefixBlocks:
        """Say the same in blocks of fewer tokens, for prompts of these lengths, int64 [n]."""
        if tokens_per_block < 1 or self.tokens_per_block % tokens_per_block:
            raise ValueError(
                f"prefix blocks of {self.tokens_per_block} tokens cannot be cut into blocks of "
                f"{tokens_per_block}; use a divisor of {self.tokens_per_block}"
            )
        self._check_keys(self.ids, tokens_per_block)
        counts = np.minimum(
            -(-prompt_tokens // tokens_per_block),
            np.diff(self.offsets) * (self.tokens_per_block // tokens_per_block),
        )
        request, index, offsets = ragged(counts)
        return PrefixBlocks(
            ids=self._key(self.offsets[:-1][request], index, tokens_per_block),
            offsets=offsets,
            tokens_per_block=tokens_per_block,
        )

    def _key(
        self, first: NDArray[np.int64], block: NDArray[np.int64], block_size: int
    ) -> NDArray[np.int64]:
        """Keys of blocks, counted within requests whose ids begin at `first`.

        A block is known by the id that its last token falls in: that id stands for all before it,
        too. Several blocks may end in one id's tokens, `per_id` at most, and since those ends lie
        `block_size` apart, dividing by it tells them from each other.
        """
        per_id = self._keys_per_id(block_size)
        index, offset = np.divmod((block + 1) * block_size - 1, self.tokens_per_block)
        keys: NDArray[np.int64] = self.ids[first + index]
        return keys if per_id == 1 else keys * per_id + offset // block_size

    def _keys_per_id(self, block_size: int) -> int:
        return -(-self.tokens_per_block // block_size)

    def _check_keys(self, ids: NDArray[np.int64], block_size: int) -> None:
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; a block holds at least 1 token")
        per_id = self._keys_per_id(block_size)
        if per_id > 1 and ids.size and (top := int(ids.max())) > _MAX_ID // per_id - 1:
            raise ValueError(
                f"prefix id {top} times {per_id} blocks of {block_size} tokens does not fit int64; "
                f"number the ids from 0 on, or use blocks of {self.tokens_per_block} tokens or more"
            )

    def apart(self, owner: int | NDArray[np.int64], *, owners: int, what: str) -> PrefixBlocks:
        """Number the ids so that owners, counted from 0 to `owners`, have none in common."""
        if owners == 1:
            return self
        if self.ids.size and (top := int(self.ids.max())) > _MAX_ID // owners - owners:
            raise ValueError(
                f"prefix id {top} for each of {owners} {what} does not fit int64; number the ids "
                f"of the trace from 0 on"
            )
        return replace(self, ids=self.ids * owners + owner)


def ragged(
    counts: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row and place in it of each entry of a ragged array, int64 [total], and the rows' offsets."""
    offsets = np.zeros(counts.size + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    row = np.repeat(np.arange(counts.size), counts)
    return row, np.arange(row.size) - offsets[:-1][row], offsets


def checked_column(values: Any, name: str, *, largest: int) -> NDArray[np.int64]:
    """Copy to a read-only int64 vector with entries from 0 to `largest`."""
    given = np.asarray(values)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} is {given.dtype} {list(given.shape)}; it must be one dimension of integers"
        )
    if (wrong := np.flatnonzero((given < 0) | (given > largest))).size:
        raise ValueError(
            f"{name}[{wrong[0]}] is {given[wrong[0]]}; entries must be from 0 to {largest}"
        )
    column = given.astype(np.int64)
    column.setflags(write=False)
    return column
