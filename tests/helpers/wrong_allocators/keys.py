"""Wrong allocators: what a prefix is known by, what an eviction forgets, and counts that end."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np

from helpers.wrong_allocators.catalogue import OWNERS, bug
from paged.allocator import PagedAllocator
from paged.pool import BlockPool
from paged.prefix import PrefixChain, PrefixIndex

# Evictions


@bug("hit")
class NothingIsFoundAfterAnEviction(PrefixIndex):
    __slots__ = ("evicted",)

    def forget(self, block: int) -> Any:
        self.evicted = True
        return super().forget(block)

    def longest_run(self, digests: Iterable[Any]) -> list[int]:
        return [] if getattr(self, "evicted", False) else super().longest_run(digests)


class EqualBlocksAreKept(PrefixIndex):
    """Right: of equal blocks all are kept, and each stands in for one that is evicted."""

    __slots__ = ()

    def insert(self, digest: Any, block: int) -> bool:
        if digest not in self._block_of:
            return super().insert(digest, block)
        self._digest_of[block] = digest
        return True

    def forget(self, block: int) -> Any:
        digest = self._digest_of.pop(block, None)
        if digest is not None and self._block_of.get(digest) == block:
            del self._block_of[digest]
            for other, known in self._digest_of.items():
                if known == digest:
                    self._block_of[digest] = other
        return digest


@bug("hit")
class EvictionForgetsTheEqualBlock(EqualBlocksAreKept):
    __slots__ = ()

    def forget(self, block: int) -> Any:
        digest = self._digest_of.pop(block, None)
        self._block_of.pop(digest, None)
        return digest


@bug("hit")
class EvictionForgetsAnotherBlock(PrefixIndex):
    __slots__ = ()

    def forget(self, block: int) -> Any:
        digest = self._digest_of.pop(block, None)
        self._block_of.pop(digest, None)
        for oldest in list(self._block_of)[:1]:
            del self._block_of[oldest]
        return digest


@bug("hit")
class NothingIsPublishedAfterAnEviction(PagedAllocator):
    def _publish(self, *given: Any) -> None:
        if not self.num_evictions:
            super()._publish(*given)


@bug("hit")
class HitsEndAtFifteenBlocks(PrefixIndex):
    __slots__ = ()

    def longest_run(self, digests: Iterable[Any]) -> list[int]:
        return super().longest_run(digests)[:15]


# Salts

for name, key in (
    ("SaltCountsOnlyAsPresent", lambda salt: salt and b"salt"),
    ("SaltOfOneLetter", lambda salt: salt[:1]),
    ("SaltOfSixLetters", lambda salt: salt[:6]),
    ("SaltOfItsLength", lambda salt: bytes([len(salt)])),
    ("SaltOfTheSumOfItsLetters", lambda salt: str(sum(salt)).encode()),
    ("SaltWithoutItsCase", bytes.lower),
    ("SaltWithoutItsSpace", bytes.strip),
):

    def salted(self: Any, block_size: int, *, salt: bytes = b"", key: Any = key) -> None:
        PrefixChain.__init__(self, block_size, salt=key(salt))

    bug("content ownership hit")(type(name, (PrefixChain,), {"__slots__": (), "__init__": salted}))


# Tokens

for name, kind in (
    ("TokensOfEightBits", np.uint8),
    ("TokensOfSixteenBits", np.uint16),
    ("TokensOfFloat32", np.float32),
):

    def narrow(self: Any, content: bytes, kind: Any = kind) -> bytes:
        return PrefixChain._link(self, np.frombuffer(content, np.int64).astype(kind).tobytes())

    bug("content ownership hit")(type(name, (PrefixChain,), {"__slots__": (), "_link": narrow}))


@bug(OWNERS)
class DigestOfTwelveBits(PrefixChain):
    """As many prefixes as it takes are only in the large pools."""

    __slots__ = ()

    def _link(self, content: bytes) -> bytes:
        high, low = blake2b(self.digest + content, digest_size=2).digest()
        self.digest = bytes([high & 15, low])
        return self.digest


# Counts


@bug(OWNERS)
class CountEndsAtSeven(BlockPool):
    __slots__ = ()
    most = 7

    def retain(self, block: int) -> None:
        super().retain(block)
        self._references[block] = min(self._references[block], self.most)


@bug(OWNERS)
class CountOfFourBits(CountEndsAtSeven):
    __slots__ = ()
    most = 15
