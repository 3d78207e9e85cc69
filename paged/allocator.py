"""The allocator: which sequence owns which blocks of the cache.

It moves numbers, not tensors. A step of an engine goes

1. `admit`, `append`, `fork` and `free`, in any order;
2. `take_copies`, and every copy it names is carried out;
3. keys and values of the new tokens are written to their `slots`;
4. attention reads through `block_table`.

Three rules keep what the tables promise true:

- *Writes follow program order.* A block is published for reuse by `admit` or `append` as soon as
  its last token is known, which is before its keys and values are written. A later `admit` may hit
  it at once; it reads after the writes of the step, so it sees them. The price: what was admitted
  or appended has to be written, even if the sequence is freed in the same step. (Blocks that are
  not full are never published, so tokens of such a block may be dropped.)
- *Copies precede writes.* Until its copies are taken, the source of a copy keeps a reference of its
  own: it is neither evicted nor handed out, so no block is source and destination in the same step
  and the copies may run in any order, or all at once. A copy whose destination has become free in
  the meantime is dropped.
- *Tokens are written before a fork of them grows.* Appending to a fork copies the shared, partly
  filled block. What the parent appended in the same step is not in there yet.

One thread at a time: nothing here is locked.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from paged.errors import (
    BadSize,
    CopyPending,
    DuplicateSequence,
    OutOfBlocks,
    UnknownSequence,
    checked_size,
)
from paged.pool import BlockPool
from paged.prefix import PrefixChain, PrefixIndex, Tokens, token_array
from paged.table import BlockTable


class PagedAllocator:
    """Blocks for sequences: on demand, shared between forks, reused for equal prefixes.

    Parameters
    ----------
    num_blocks
        Blocks in the pool, 1 to 2**31 - 1.
    block_size
        Tokens per block, at least 1.
    prefix_caching
        Whether full blocks are kept after their sequence is freed and found again by sequences
        that begin with the same tokens.

    Attributes
    ----------
    num_blocks, block_size, prefix_caching
        As given.
    pool
        The physical blocks. To be read: its references belong to this allocator.

    Raises
    ------
    BadSize
        A number is out of range.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = False) -> None:
        self.pool = BlockPool(num_blocks, on_evict=self._forget)
        self.num_blocks = self.pool.num_blocks
        self.block_size = checked_size("block_size", block_size, at_least=1)
        self.prefix_caching = prefix_caching
        self._references = self.pool.reference_counts
        self._index = PrefixIndex(self.block_size)
        self._tables: dict[Hashable, BlockTable] = {}
        # Only sequences whose full blocks are to be published have a chain.
        self._chains: dict[Hashable, PrefixChain] = {}
        # Pending copies, source by destination, and how many of them each source waits for. The
        # reference that the writing sequence had on the source is now the copy's.
        self._copies: dict[int, int] = {}
        self._waiting: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks without an owner and without content."""
        return self.pool.num_free

    @property
    def num_cached_idle(self) -> int:
        """Blocks without an owner that are kept for sequences with the same prefix."""
        return self.pool.num_cached_idle

    @property
    def num_used(self) -> int:
        """Blocks in the table of at least one sequence, or source of a pending copy."""
        return self.pool.num_used

    def admit(self, sequence: Hashable, tokens: Tokens, *, salt: bytes = b"") -> int:
        """Make room for a new sequence.

        Parameters
        ----------
        sequence
            Any name that is not in use.
        tokens
            Its token ids, [num_tokens]; none at all is fine.
        salt
            Sequences share cached prefixes only with sequences of the same salt.

        Returns
        -------
        int
            Leading tokens whose keys and values are in the cache already. They are whole blocks,
            and at least one token is left to be computed, since its logits are needed.

        Raises
        ------
        DuplicateSequence
            The name is in use.
        BadSize
            The tokens are not one-dimensional integers.
        OutOfBlocks
            The pool cannot hold the sequence now. Nothing was changed.
        """
        if sequence in self._tables:
            raise DuplicateSequence(sequence)
        ids = token_array(tokens)
        table = BlockTable(self.block_size)
        if not self.prefix_caching:
            table.grow(ids.size, self.pool.allocate(self._blocks_for(ids.size)))
            self._tables[sequence] = table
            return 0

        prompt = _Prompt(ids, self._index, salt)
        needed, available = self._demand(prompt)
        if needed > available:
            raise OutOfBlocks(needed, available)
        # Retained before anything is allocated: an allocation may evict idle blocks, and the idle
        # ones among the hits are not to be among them.
        for block in prompt.hits:
            self.pool.retain(block)
        table.grow(ids.size, prompt.hits + self.pool.allocate(needed))
        self._publish(table.blocks, len(prompt.hits), prompt.missed_digests())
        self._tables[sequence] = table
        self._chains[sequence] = prompt.chain
        return len(prompt.hits) * self.block_size

    def append(self, sequence: Hashable, tokens: Tokens | int) -> None:
        """Add one token or several to a sequence, and the blocks that they need.

        If the last block is partly filled and shared, the sequence gets a copy of its own; the
        copy is then due in `take_copies`.

        Raises
        ------
        UnknownSequence
            There is no such sequence.
        BadSize
            The tokens are not one-dimensional integers.
        OutOfBlocks
            The pool cannot hold the tokens now. Nothing was changed.
        CopyPending
            The block to be copied is itself waiting for a copy. Nothing was changed.
        """
        table = self._tables.get(sequence)
        if table is None:
            raise UnknownSequence(sequence)
        if type(tokens) is list and len(tokens) == 1 and type(tokens[0]) is int:
            tokens = tokens[0]
        if (
            type(tokens) is int
            and table.num_tokens % self.block_size
            and self._references[table.blocks[-1]] == 1
        ):
            # What nearly every call of a decoding engine is: one token, room for it, no sharing.
            chain = self._chains.get(sequence)
            digest = None if chain is None else chain.push(tokens)
            table.num_tokens += 1
            if digest is not None:
                self._index.insert(digest, table.blocks[-1])
            return
        if isinstance(tokens, int | np.integer):
            tokens = np.array([tokens])
        self._append_many(sequence, table, token_array(tokens))

    def _append_many(self, sequence: Hashable, table: BlockTable, ids: NDArray[np.int64]) -> None:
        if ids.size == 0:
            return
        filled, offset = divmod(table.num_tokens, self.block_size)
        source = table.blocks[-1] if offset else None
        needed = self._blocks_for(table.num_tokens + ids.size) - len(table.blocks)
        if source is None or not self._is_shared(source):
            table.grow(ids.size, self.pool.allocate(needed))
        else:
            if source in self._copies:
                raise CopyPending(source)
            copy, *more = self.pool.allocate(needed + 1)
            table.replace_last(copy)
            table.grow(ids.size, more)
            self._copies[copy] = source
            self._waiting[source] = self._waiting.get(source, 0) + 1
        chain = self._chains.get(sequence)
        if chain is not None:
            self._publish(table.blocks, filled, chain.extend(ids))

    def fork(self, parent: Hashable, child: Hashable) -> None:
        """Start `child` as a continuation of `parent` that shares all of its blocks.

        Raises
        ------
        UnknownSequence
            There is no such parent.
        DuplicateSequence
            The child's name is in use.
        """
        table = self._tables.get(parent)
        if table is None:
            raise UnknownSequence(parent)
        if child in self._tables:
            raise DuplicateSequence(child)
        for block in table.blocks:
            self.pool.retain(block)
        self._tables[child] = table.fork()
        if parent in self._chains:
            self._chains[child] = self._chains[parent].fork()

    def free(self, sequence: Hashable) -> None:
        """Give up a sequence. Published blocks stay for reuse until their room is needed.

        Raises
        ------
        UnknownSequence
            There is no such sequence, or no longer.
        """
        table = self._tables.pop(sequence, None)
        if table is None:
            raise UnknownSequence(sequence)
        self._chains.pop(sequence, None)
        # Tail first: a block is of use only as long as all those before it are there, so the head
        # has to be evicted last.
        for block in reversed(table.blocks):
            self._release(block)

    def slots(self, sequence: Hashable, *, start: int = 0) -> NDArray[np.int64]:
        """Return the slot of each token position from `start` on, int64 [num_tokens - start].

        Raises
        ------
        UnknownSequence
            There is no such sequence.
        BadSize
            `start` is negative or behind the last token.
        """
        return self._table(sequence).slots(start=start)

    def num_tokens(self, sequence: Hashable) -> int:
        """Return the tokens of a sequence.

        Raises
        ------
        UnknownSequence
            There is no such sequence.
        """
        return self._table(sequence).num_tokens

    def block_table(
        self, sequences: Sequence[Hashable], *, width: int | None = None, fill: int = -1
    ) -> NDArray[np.int32]:
        """Return the blocks of several sequences, int32 [len(sequences), width].

        Parameters
        ----------
        sequences
            Rows of the table.
        width
            Columns; as many as the longest sequence has blocks if not given.
        fill
            What stands behind the last block of a row.

        Raises
        ------
        UnknownSequence
            There is no such sequence.
        BadSize
            A sequence has more than `width` blocks.
        """
        rows = [self._table(sequence).row() for sequence in sequences]
        longest = max((row.size for row in rows), default=0)
        if width is None:
            width = longest
        elif width < longest:
            raise BadSize(f"width = {width}: the longest sequence has {longest} blocks, give that")
        table = np.full((len(rows), width), fill, np.int32)
        for columns, row in zip(table, rows, strict=True):
            columns[: row.size] = row
        return table

    def take_copies(self) -> list[tuple[int, int]]:
        """Return the block copies that are due, (source, destination), and consider them done.

        They have to be carried out before anything is written. No block appears as a source and as
        a destination, and none twice as a destination.
        """
        taken = [(source, copy) for copy, source in self._copies.items()]
        self._copies.clear()
        self._waiting.clear()
        for source, _ in taken:
            self._release(source)
        return taken

    def reset_prefix_cache(self) -> None:
        """Forget every prefix, as after a change of weights.

        Sequences that are in the cache stay and can go on, but nothing they hold now or append
        later is published: it rests on the old weights.
        """
        self._chains.clear()
        self._index.clear()
        self.pool.evict_idle()

    def blocks_needed(self, num_tokens: int) -> int:
        """Return the blocks that a sequence of `num_tokens` tokens takes up without sharing.

        Raises
        ------
        BadSize
            `num_tokens` is negative.
        """
        return self._blocks_for(checked_size("num_tokens", num_tokens, at_least=0))

    def can_admit(self, tokens: Tokens, *, salt: bytes = b"") -> bool:
        """Return whether `admit` would find room for such a sequence now.

        Raises
        ------
        BadSize
            The tokens are not one-dimensional integers.
        """
        ids = token_array(tokens)
        if not self.prefix_caching:
            return self._blocks_for(ids.size) <= self.num_free
        needed, available = self._demand(_Prompt(ids, self._index, salt))
        return needed <= available

    def _table(self, sequence: Hashable) -> BlockTable:
        try:
            return self._tables[sequence]
        except KeyError:
            raise UnknownSequence(sequence) from None

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _demand(self, prompt: _Prompt) -> tuple[int, int]:
        """Blocks that `prompt` needs besides its hits, and blocks that it can have."""
        idle_hits = sum(self._references[block] == 0 for block in prompt.hits)
        available = self.num_free + self.num_cached_idle - idle_hits
        return self._blocks_for(prompt.num_tokens) - len(prompt.hits), available

    def _is_shared(self, block: int) -> bool:
        """Whether another sequence reads `block`. A pending copy does so before the next write."""
        return self._references[block] - self._waiting.get(block, 0) > 1

    def _publish(self, blocks: list[int], first: int, digests: Iterator[bytes]) -> None:
        for at, digest in enumerate(digests, first):
            self._index.insert(digest, blocks[at])

    def _release(self, block: int) -> None:
        keep = block in self._index.digests
        self.pool.release(block, keep=keep)
        if not keep and self._references[block] == 0 and block in self._copies:
            self._drop_copy(block)

    def _forget(self, evicted: int) -> None:
        self._index.forget(evicted)
        if evicted in self._copies:
            self._drop_copy(evicted)

    def _drop_copy(self, destination: int) -> None:
        source = self._copies.pop(destination)
        self._waiting[source] -= 1
        self._release(source)


class _Prompt:
    """What the index holds of a prompt.

    Digests are computed as they are needed: a prompt that is refused at each step until there is
    room for it costs one digest more than it has hits, not all of them.
    """

    __slots__ = ("_computed", "_digests", "chain", "hits", "num_tokens")

    def __init__(self, ids: NDArray[np.int64], index: PrefixIndex, salt: bytes) -> None:
        self.num_tokens = ids.size
        self.chain = PrefixChain(index.block_size, salt=salt)
        self._digests = self.chain.extend(ids)
        self._computed: list[bytes] = []
        # Not the block of the last token: at least one token has to be computed.
        candidates = max(ids.size - 1, 0) // index.block_size
        self.hits = index.longest_run(self._compute(candidates))

    def missed_digests(self) -> Iterator[bytes]:
        """Digests of the full blocks behind the hits. Exhausting it completes `chain`."""
        return itertools.chain(self._computed[len(self.hits) :], self._digests)

    def _compute(self, count: int) -> Iterator[bytes]:
        for digest in itertools.islice(self._digests, count):
            self._computed.append(digest)
            yield digest
