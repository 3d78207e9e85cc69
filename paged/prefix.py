"""The prefix index: which block holds the keys and values of which prefix.

A block's keys and values depend on every token before them. So a full block is known by a digest
of its own tokens and of the digest of the block before it: equal digests mean equal prefixes, from
the first token on. The digest is blake2b (RFC 7693) with 256 bits and nothing but the digest is
compared on a hit, which is as good as comparing the tokens, also when somebody chooses their
prompt to collide with another's.

The chain starts from a digest of a salt. Sequences with different salts never share a block: give
each tenant its own, and each adapter or anything else that keys and values depend on. That first
digest is personalised, so that no salt can be mistaken for tokens.

A recorded stream often knows no tokens, only which blocks of its prompts are equal: there a key
that the recorder gave out takes the place of the digest (`KeyedPrompt`).
"""

from __future__ import annotations

import reprlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from paged.errors import BadSize, PagedCacheError, checked_size

Tokens = Sequence[int] | NDArray[np.integer[Any]]
"""Token ids: a list, a tuple, a range or an integer array, one-dimensional."""

BlockKey = bytes | int
"""What a full block is known by: a digest of its prefix, or a key that stands for its prefix."""

_DIGEST_BYTES: Final = 32
_TOKEN_BYTES: Final = 8


def token_array(tokens: Tokens) -> NDArray[np.int64]:
    """Return token ids as an int64 array [num_tokens].

    Raises BadSize: they are not one-dimensional, not integers, or do not fit into 64 bits.
    """
    try:
        ids = np.asarray(tokens)
    except (ValueError, OverflowError) as reason:
        raise BadSize(f"tokens {reprlib.repr(tokens)}: give one flat list of integers") from reason
    if ids.ndim != 1:
        raise BadSize(f"tokens of shape {list(ids.shape)}: give one dimension, [num_tokens]")
    if ids.size == 0:
        return np.empty(0, np.int64)
    if ids.dtype.kind not in "iu" or (ids.dtype == np.uint64 and ids.max() > 2**63 - 1):
        raise BadSize(f"tokens of dtype {ids.dtype}: give integers that fit into int64")
    return ids.astype(np.int64, copy=False)


@dataclass(frozen=True, slots=True)
class KeyedPrompt:
    """A prompt of which no token ids are known, only which of its blocks equal those of others.

    Raises BadSize: `num_tokens` or `tenant` is negative or no integer.
    """

    num_tokens: int
    """Tokens of the prompt."""
    keys: Sequence[int] = ()
    """One integer for each full block, from the first on: equal keys say that all tokens up to the
    end of the block are equal. Fewer keys than full blocks are fine, `()` too: the blocks without a
    key are neither looked up nor kept."""
    tenant: int = 0
    """Whose prompt it is, 0 or more, for quotas of the cache. Tenants share blocks of equal keys.
    """
    own: Sequence[bytes] = ()
    """Keys of the blocks behind those, which `free` was given: they are looked up, too, and not
    published again."""

    def __post_init__(self) -> None:
        if type(self.num_tokens) is not int or self.num_tokens < 0:
            checked_size("num_tokens", self.num_tokens, at_least=0)
        if type(self.tenant) is not int or self.tenant < 0:
            checked_size("tenant", self.tenant, at_least=0)

    def checked_keys(self, block_size: int) -> Sequence[int]:
        """The keys. Raises BadSize: there are more than full blocks of `block_size` tokens."""
        if len(self.keys) > self.num_tokens // block_size:
            raise BadSize(
                f"{len(self.keys)} keys for {self.num_tokens} tokens in blocks of {block_size}: "
                f"give at most {self.num_tokens // block_size}, one for each full block"
            )
        return self.keys


class KeyedChain:
    """How far one sequence of a `KeyedPrompt` has come: the counterpart of `PrefixChain`."""

    __slots__ = ("_block_size", "_keys", "num_tokens")

    def __init__(self, keys: Sequence[int], block_size: int) -> None:
        self._keys = keys
        self._block_size = block_size
        self.num_tokens = 0

    @property
    def exhausted(self) -> bool:
        """Whether every block that has a key is full."""
        return self.num_tokens >= len(self._keys) * self._block_size

    def push(self, token: int) -> int | None:
        """Add one token, of whatever id; return the key of the block that it fills, if any."""
        return next(self.advance(1), None)

    def extend(self, tokens: NDArray[np.int64]) -> Iterator[int]:
        """Add tokens, of whatever ids; return the keys of the blocks that they fill."""
        return self.advance(tokens.size)

    def advance(self, num_tokens: int) -> Iterator[int]:
        """Add `num_tokens` tokens; return the keys of the blocks that they fill."""
        first = self.num_tokens // self._block_size
        self.num_tokens += num_tokens
        return iter(self._keys[first : self.num_tokens // self._block_size])

    def fork(self) -> KeyedChain:
        """Return a chain that stands where this one stands and goes on by itself."""
        child = KeyedChain(self._keys, self._block_size)
        child.num_tokens = self.num_tokens
        return child


class PrefixChain:
    """How far the chained hashes of one sequence have come.

    `digest` is that of the last full block, or of the salt while there is none; `tail` has the
    tokens behind it, fewer than `block_size`.
    """

    __slots__ = ("_block_size", "digest", "tail")

    def __init__(self, block_size: int, *, salt: bytes = b"") -> None:
        self._block_size = block_size
        self.digest = blake2b(salt, digest_size=_DIGEST_BYTES, person=b"salt").digest()
        self.tail = array("q")

    def push(self, token: int) -> bytes | None:
        """Add one token; return the digest of a block that it fills. BadSize: beyond 64 bits."""
        try:
            self.tail.append(token)
        except OverflowError:
            raise BadSize(f"token {token}: give integers that fit into int64") from None
        if len(self.tail) < self._block_size:
            return None
        content = self.tail.tobytes()
        self.tail = array("q")
        return self._link(content)

    def extend(self, tokens: NDArray[np.int64]) -> Iterator[bytes]:
        """Add tokens; yield the digests of blocks that they fill. All are taken up at its end."""
        content = self.tail.tobytes() + tokens.tobytes()
        step = self._block_size * _TOKEN_BYTES
        full = len(content) - len(content) % step
        for at in range(0, full, step):
            yield self._link(content[at : at + step])
        self.tail = array("q", content[full:])

    def fork(self) -> PrefixChain:
        """Return a chain that stands where this one stands and goes on by itself."""
        child = PrefixChain.__new__(PrefixChain)
        child._block_size = self._block_size
        child.digest = self.digest
        child.tail = self.tail[:]
        return child

    def _link(self, content: bytes) -> bytes:
        self.digest = blake2b(self.digest + content, digest_size=_DIGEST_BYTES).digest()
        return self.digest


class PrefixIndex:
    """Full blocks by the prefix they end. Raises BadSize: `block_size` is below 1."""

    __slots__ = ("_block_of", "_digest_of", "block_size", "digests")

    def __init__(self, block_size: int) -> None:
        self.block_size = checked_size("block_size", block_size, at_least=1)
        self._block_of: dict[BlockKey, int] = {}
        self._digest_of: dict[int, BlockKey] = {}
        self.digests: Mapping[int, BlockKey] = self._digest_of
        """Digest or key of each indexed block. To be read, not written."""

    def __len__(self) -> int:
        return len(self._digest_of)

    def match(self, tokens: Tokens, *, salt: bytes = b"") -> list[int]:
        """The blocks of the longest run of leading full blocks of `tokens` that is held."""
        chain = PrefixChain(self.block_size, salt=salt)
        return self.longest_run(chain.extend(token_array(tokens)))

    def longest_run(self, digests: Iterable[BlockKey]) -> list[int]:
        """Return the blocks of `digests` up to the first that is not held."""
        run: list[int] = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            run.append(block)
        return run

    def insert(self, digest: BlockKey, block: int) -> bool:
        """Say that `block` holds what `digest` stands for; return whether it is indexed now.

        It is not if another block holds the same: the first stays, the duplicate stays private to
        its sequence, since a table that kernels may be reading is not rewritten.

        Raises PagedCacheError: the block is indexed already.
        """
        if block in self._digest_of:
            raise PagedCacheError(
                f"block {block} is indexed already: forget it before it is filled again"
            )
        if digest in self._block_of:
            return False
        self._block_of[digest] = block
        self._digest_of[block] = digest
        return True

    def forget(self, block: int) -> BlockKey | None:
        """Take `block` out of the index, and return what it was known by, if it is there."""
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
        return digest

    def clear(self) -> None:
        """Take every block out of the index."""
        self._block_of.clear()
        self._digest_of.clear()
