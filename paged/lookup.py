"""What the prefix index holds of a prompt that is to be admitted, and how much room it needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from paged.errors import checked_size
from paged.prefix import (
    BlockKey,
    KeyedChain,
    KeyedPrompt,
    PrefixChain,
    PrefixIndex,
    Tokens,
    token_array,
)


def length_of(prompt: Tokens | KeyedPrompt) -> int:
    """Tokens of a prompt."""
    return prompt.num_tokens if isinstance(prompt, KeyedPrompt) else token_array(prompt).size


def room_for(total: int, num_tokens: int | None, *, cached: int = 0) -> int:
    """Tokens of a prompt of `total` tokens to make room for, of which `cached` are hits."""
    if num_tokens is None:
        return total
    asked = checked_size("num_tokens", num_tokens, at_least=0, at_most=total)
    return max(asked, min(cached + 1, total))


class PromptLookup:
    """What the index holds of a prompt of token ids; digests are computed as they are needed."""

    __slots__ = ("_computed", "_digests", "_ids", "_salt", "_size", "chain", "hits", "num_tokens")

    def __init__(
        self, ids: NDArray[np.int64], index: PrefixIndex, num_tokens: int | None, salt: bytes
    ) -> None:
        self._size = index.block_size
        self._ids = ids
        self._salt = salt
        self.chain = PrefixChain(self._size, salt=salt)
        self._digests = self.chain.extend(ids)
        self._computed: list[BlockKey] = []
        self.hits = index.longest_run(self._compute(candidates(ids.size, self._size)))
        self.num_tokens = room_for(ids.size, num_tokens, cached=len(self.hits) * self._size)

    def missed(self) -> list[BlockKey]:
        """Digests of the full blocks behind the hits. This takes `chain` to its end."""
        if self.num_tokens < self._ids.size:
            # The lookup may have gone beyond the tokens that there is to be room for.
            begin = len(self.hits) * self._size
            self.chain = PrefixChain(self._size, salt=self._salt)
            if self.hits:
                last = self._computed[len(self.hits) - 1]
                assert isinstance(last, bytes)
                self.chain.digest = last
            return list(self.chain.extend(self._ids[begin : self.num_tokens]))
        return [*self._computed[len(self.hits) :], *self._digests]

    def in_vain(self, missed: list[BlockKey]) -> list[BlockKey]:
        """Those of `missed` that a hit could have been found for."""
        return missed[: candidates(self._ids.size, self._size) - len(self.hits)]

    def _compute(self, count: int) -> Iterator[BlockKey]:
        for digest in itertools.islice(self._digests, count):
            self._computed.append(digest)
            yield digest


class KeyedLookup:
    """What the index holds of a keyed prompt."""

    __slots__ = ("_candidates", "_keys", "_size", "chain", "hits", "num_tokens")

    def __init__(self, prompt: KeyedPrompt, index: PrefixIndex, num_tokens: int | None) -> None:
        self._size = index.block_size
        self._keys = prompt.checked_keys(self._size)
        known: Sequence[BlockKey] = (*self._keys, *prompt.own) if prompt.own else self._keys
        self._candidates = known[: candidates(prompt.num_tokens, self._size)]
        self.hits = index.longest_run(self._candidates)
        self.num_tokens = room_for(
            prompt.num_tokens, num_tokens, cached=len(self.hits) * self._size
        )
        self.chain: KeyedChain | None = None

    def missed(self) -> list[BlockKey]:
        """Keys of the full blocks behind the hits. This sets `chain`, if more are to come."""
        full = self.num_tokens // self._size
        if full < len(self._keys):
            self.chain = KeyedChain(self._keys, self._size)
            self.chain.num_tokens = self.num_tokens
        return list(self._keys[len(self.hits) : full])

    def in_vain(self, missed: list[BlockKey]) -> Sequence[BlockKey]:
        """Keys of the prompt that a hit could have been found for. They are known whatever there
        is room for.
        """
        return self._candidates[len(self.hits) : len(self._keys)]


def candidates(num_tokens: int, block_size: int) -> int:
    """Blocks that may be hits: not that of the last token, for at least one has to be computed."""
    return max(num_tokens - 1, 0) // block_size
