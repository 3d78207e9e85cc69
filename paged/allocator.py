"""The allocator: which sequence owns which blocks of the cache.

It moves numbers, not tensors. A step of an engine goes

1. `admit`, `append`, `extend`, `fork`, `release_before` and `free`, in any order;
2. `take_copies`, and every copy it names is carried out;
3. keys and values of the new tokens are written to their `slots`;
4. attention reads through `block_table`.

Three rules keep what the tables promise true:

- *Writes follow program order.* A block is published for reuse by `admit`, `append` or `extend` as
  soon as its last token is known, which is before its keys and values are written. A later `admit`
  may hit it at once; it reads after the writes of the step, so it sees them. The price: what was
  admitted or appended has to be written, even if the sequence is freed, or the block released, in
  the same step. (Blocks that are not full are never published, so tokens of such a block may be
  dropped.)
- *Copies precede writes.* Until its copies are taken, the source of a copy keeps a reference of its
  own: it is neither evicted nor handed out, so no block is source and destination in the same step
  and the copies may run in any order, or all at once. A copy whose destination has become free in
  the meantime is dropped.
- *Tokens are written before a fork of them grows.* Appending to a fork copies the shared, partly
  filled block. What the parent appended in the same step is not in there yet.

One thread at a time: nothing here is locked.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

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
from paged.eviction import EvictionOrder, GhostList
from paged.lookup import KeyedLookup, PromptLookup, length_of, room_for
from paged.pool import BlockPool
from paged.prefix import (
    BlockKey,
    KeyedChain,
    KeyedPrompt,
    PrefixChain,
    PrefixIndex,
    Tokens,
    token_array,
)
from paged.table import BlockTable


class PagedAllocator:
    """Blocks for sequences: on demand, shared between forks, reused for equal prefixes.

    `num_blocks`, 1 to 2**31 - 1, of `block_size` tokens. With `prefix_caching` full blocks are kept
    after their sequence is freed and found again by sequences that begin with the same tokens.
    `eviction` says in which order they are given up when their room is needed, and how much of it
    each tenant may have: an order that is not in use elsewhere, else least recently used first.

    Raises BadSize: a number is out of range, or the order holds blocks already.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_caching: bool = False,
        eviction: EvictionOrder | None = None,
    ) -> None:
        self.pool = BlockPool(num_blocks, on_evict=self._forget, eviction=eviction)
        """The physical blocks. To be read: its references belong to this allocator."""
        self.num_blocks = self.pool.num_blocks
        self.block_size = checked_size("block_size", block_size, at_least=1)
        self.prefix_caching = prefix_caching
        self._watched = prefix_caching and eviction is not None and eviction.watches_content
        self._references = self.pool.reference_counts
        self._index = PrefixIndex(self.block_size)
        self._tables: dict[Hashable, BlockTable] = {}
        # Only sequences whose full blocks are to be published have a chain.
        self._chains: dict[Hashable, PrefixChain | KeyedChain] = {}
        # Whose each sequence is, but for those of tenant 0.
        self._tenants: dict[Hashable, int] = {}
        # Pending copies, source by destination, and how many of them each source waits for. The
        # reference that the writing sequence had on the source is now the copy's.
        self._copies: dict[int, int] = {}
        self._waiting: dict[int, int] = {}
        self._ghosts = GhostList(self.num_blocks)
        self.num_ghost_hits = 0
        """Full blocks of admitted prompts that were looked up in vain and had been evicted within
        the last `num_blocks` evictions: the sign of a cache that is too small. Of a prompt of token
        ids that is admitted in part, only blocks of that part count."""
        self.num_copies = 0
        """Block copies that were handed out by `take_copies`."""

    @property
    def num_free(self) -> int:
        """Blocks without an owner and without content."""
        return self.pool.num_free

    @property
    def num_cached_idle(self) -> int:
        """Blocks without an owner that are kept for sequences with the same prefix."""
        return self.pool.num_cached_idle

    @property
    def num_evictions(self) -> int:
        """Cached blocks whose content was given up so far, for room or for a quota."""
        return self._ghosts.evictions

    @property
    def num_used(self) -> int:
        """Blocks in the table of at least one sequence, or source of a pending copy."""
        return self.pool.num_used

    def admit(
        self,
        sequence: Hashable,
        prompt: Tokens | KeyedPrompt,
        *,
        num_tokens: int | None = None,
        salt: bytes = b"",
        tenant: int | None = None,
    ) -> int:
        """Make room for a new sequence, by a name that is not in use.

        `prompt` has its token ids, [num_tokens], perhaps none; or its length and the keys of its
        blocks: without prefix caching `KeyedPrompt(num_tokens)` is the cheap way to say how long it
        is. With `num_tokens` there is room for so many of its leading tokens only, and in any case
        for those that are cached and one more; the rest comes later, by `extend` for a
        `KeyedPrompt` and by `append` for token ids (chunked prefill). Sequences share cached
        prefixes only with sequences of the same `salt`. `tenant` is whose sequence it is, for the
        quotas of the eviction order: by default the one that a `KeyedPrompt` names, and 0 for token
        ids.

        Returns the leading tokens whose keys and values are in the cache already: whole blocks, and
        at least one token is left to be computed, since its logits are needed.

        Raises DuplicateSequence. BadSize: the tokens are not one-dimensional integers, there are
        more keys than full blocks, `num_tokens` is negative or more than the prompt has, or `salt`
        comes with keys. OutOfBlocks: there is no room now; nothing was changed.
        """
        if sequence in self._tables:
            raise DuplicateSequence(sequence)
        if tenant is None:
            tenant = prompt.tenant if isinstance(prompt, KeyedPrompt) else 0
        table = BlockTable(self.block_size)
        if not self.prefix_caching:
            room = room_for(length_of(prompt), num_tokens)
            table.grow(room, self.pool.allocate(self._blocks_for(room), tenant=tenant))
            self._tables[sequence] = table
            return 0

        lookup = self._look_up(prompt, num_tokens, salt)
        needed, available = self._demand(lookup)
        if needed > available:
            raise OutOfBlocks(needed, available)
        hits = lookup.hits
        missed = lookup.missed()
        if self._ghosts.evictions:
            self.num_ghost_hits += self._ghosts.count(lookup.in_vain(missed))
        # Retained before anything is allocated: an allocation may evict idle blocks, and the idle
        # ones among the hits are not to be among them.
        for block in hits:
            self.pool.retain(block)
        if self._watched:
            for block in hits:
                self.pool.hit(block)
        table.grow(lookup.num_tokens, hits + self.pool.allocate(needed, tenant=tenant))
        self._tables[sequence] = table
        if tenant:
            self._tenants[sequence] = tenant
        if lookup.chain is not None:
            self._chains[sequence] = lookup.chain
        self._publish(sequence, table.blocks, len(hits), missed)
        return len(hits) * self.block_size

    def append(self, sequence: Hashable, tokens: Tokens | int) -> None:
        """Add one token or several to a sequence, and the blocks that they need.

        If the last block is partly filled and shared, the sequence gets a copy of its own; the
        copy is then due in `take_copies`.

        Raises UnknownSequence. BadSize: the tokens are not one-dimensional integers. OutOfBlocks:
        there is no room now. CopyPending: the block to be copied is itself waiting for a copy.
        Nothing was changed then.
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
            key = None if chain is None else chain.push(tokens)
            table.num_tokens += 1
            if key is not None:
                if self._watched:
                    self._publish(sequence, table.blocks, len(table.blocks) - 1, [key])
                else:
                    self._index.insert(key, table.blocks[-1])
            return
        ids = token_array([tokens] if isinstance(tokens, int | np.integer) else tokens)
        if ids.size == 0:
            return
        filled = table.num_tokens // self.block_size
        self._grow(sequence, table, ids.size)
        chain = self._chains.get(sequence)
        if chain is not None:
            self._publish(sequence, table.blocks, filled, chain.extend(ids))

    def extend(self, sequence: Hashable, num_tokens: int) -> None:
        """Add tokens whose ids are unknown to a sequence, and the blocks that they need.

        Of a sequence that was admitted with a `KeyedPrompt`, blocks that have a key are published
        under it as they are filled, and later ones never. One that was admitted with token ids
        publishes nothing more: from here on nobody knows what its blocks hold.

        Raises BadSize: `num_tokens` is negative or no integer. Otherwise it is `append`.
        """
        table = self._tables.get(sequence)
        if table is None:
            raise UnknownSequence(sequence)
        if type(num_tokens) is not int or num_tokens < 1:
            num_tokens = checked_size("num_tokens", num_tokens, at_least=0)
            if num_tokens == 0:
                return
        size = self.block_size
        blocks = table.blocks
        begin = table.num_tokens
        if begin % size and self._references[blocks[-1]] != 1:
            self._grow(sequence, table, num_tokens)
        else:
            end = begin + num_tokens
            needed = -(-end // size) - len(blocks)
            if needed:
                tenant = self._tenants.get(sequence, 0) if self._tenants else 0
                blocks += self.pool.allocate(needed, tenant=tenant)
            table.num_tokens = end
        if sequence in self._chains:
            self._advance(sequence, begin // size, num_tokens)

    def _advance(self, sequence: Hashable, filled: int, num_tokens: int) -> None:
        """Publish what unknown tokens fill, behind `filled` full blocks."""
        chain = self._chains[sequence]
        if isinstance(chain, PrefixChain):
            del self._chains[sequence]
            return
        self._publish(sequence, self._tables[sequence].blocks, filled, chain.advance(num_tokens))
        if chain.exhausted:
            # What follows is never published, and so growing by it costs no more than a block.
            del self._chains[sequence]

    def _grow(self, sequence: Hashable, table: BlockTable, num_tokens: int) -> None:
        """Add tokens and the blocks that they need, with a copy of the last one if it is shared."""
        source = table.blocks[-1] if table.num_tokens % self.block_size else None
        needed = self._blocks_for(table.num_tokens + num_tokens) - len(table.blocks)
        tenant = self._tenants.get(sequence, 0)
        if source is None or not self._is_shared(source):
            table.grow(num_tokens, self.pool.allocate(needed, tenant=tenant))
            return
        if source in self._copies:
            raise CopyPending(source)
        copy, *more = self.pool.allocate(needed + 1, tenant=tenant)
        table.replace_last(copy)
        table.grow(num_tokens, more)
        self._copies[copy] = source
        self._waiting[source] = self._waiting.get(source, 0) + 1

    def fork(self, parent: Hashable, child: Hashable) -> None:
        """Start `child` with the tokens and all blocks of `parent`. UnknownSequence,
        DuplicateSequence.
        """
        table = self._tables.get(parent)
        if table is None:
            raise UnknownSequence(parent)
        if child in self._tables:
            raise DuplicateSequence(child)
        for block in table.held():
            self.pool.retain(block)
        self._tables[child] = table.fork()
        if parent in self._chains:
            self._chains[child] = self._chains[parent].fork()
        if parent in self._tenants:
            self._tenants[child] = self._tenants[parent]

    def free(self, sequence: Hashable, *, own: Sequence[bytes] = (), first: int = 0) -> None:
        """Give up a sequence. Published blocks stay until their room is needed. UnknownSequence.

        Its full blocks from the `first` on are published before, under keys that nobody else has,
        for the same request to come back to (`KeyedPrompt.own`).
        """
        table = self._tables.pop(sequence, None)
        if table is None:
            raise UnknownSequence(sequence)
        self._chains.pop(sequence, None)
        if own:
            self._publish(sequence, table.blocks, first, own)
        if self._tenants:
            self._tenants.pop(sequence, None)
        # Tail first: a block is of use only as long as all those before it are there, so the head
        # has to be evicted last.
        self._release_all(table.held()[::-1])

    def release_before(self, sequence: Hashable, position: int) -> None:
        """Give up the blocks whose tokens all lie before `position`, as behind a sliding window.

        Their places in the table stay, so positions keep their meaning. Published blocks stay for
        reuse until their room is needed, like those of a sequence that is freed.

        Raises UnknownSequence. BadSize: `position` is negative or behind the last token.
        """
        released = self._table(sequence).release_before(position)
        if released:
            self._release_all(released[::-1])

    def slots(self, sequence: Hashable, *, start: int = 0) -> NDArray[np.int64]:
        """Return the slot of each token position from `start` on, int64 [num_tokens - start].

        Raises UnknownSequence. BadSize: `start` is negative, behind the last token, or in a block
        that was released.
        """
        return self._table(sequence).slots(start=start)

    def num_tokens(self, sequence: Hashable) -> int:
        """Return the tokens of a sequence. Raises UnknownSequence."""
        return self._table(sequence).num_tokens

    def num_blocks_of(self, sequence: Hashable) -> int:
        """Return the blocks that a sequence holds, shared ones included, released ones not."""
        table = self._table(sequence)
        return len(table.blocks) - table.num_released

    def block_table(
        self, sequences: Sequence[Hashable], *, width: int | None = None, fill: int = -1
    ) -> NDArray[np.int32]:
        """Return the blocks of several sequences, int32 [len(sequences), width].

        `width` is what the longest sequence has if not given. `fill` stands behind the last block
        of a row, and in the places of released blocks.

        Raises UnknownSequence. BadSize: a sequence has more than `width` blocks.
        """
        tables = [self._table(sequence) for sequence in sequences]
        longest = max((len(table.blocks) for table in tables), default=0)
        if width is None:
            width = longest
        elif width < longest:
            raise BadSize(f"width = {width}: the longest sequence has {longest} blocks, give that")
        rows = np.full((len(tables), width), fill, np.int32)
        for columns, table in zip(rows, tables, strict=True):
            row = table.row()
            columns[: row.size] = row
            if table.num_released:
                columns[: table.num_released] = fill
        return rows

    def take_copies(self) -> list[tuple[int, int]]:
        """Return the block copies that are due, (source, destination), and consider them done.

        They have to be carried out before anything is written. No block appears as a source and as
        a destination, and none twice as a destination.
        """
        taken = [(source, copy) for copy, source in self._copies.items()]
        self.num_copies += len(taken)
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
        if self._watched:
            for block in self._index.digests:
                if self._references[block]:
                    self.pool.forget(block)
        self._chains.clear()
        self._index.clear()
        self._ghosts.clear()
        self.pool.evict_idle()

    def blocks_needed(self, num_tokens: int) -> int:
        """Return the blocks that so many tokens take up without sharing. BadSize: below 0."""
        return self._blocks_for(checked_size("num_tokens", num_tokens, at_least=0))

    def can_admit(
        self, prompt: Tokens | KeyedPrompt, *, num_tokens: int | None = None, salt: bytes = b""
    ) -> bool:
        """Return whether `admit` would find room now. Raises BadSize as it does."""
        needed, available = self._wanted(prompt, num_tokens, salt)
        return needed <= available

    def blocks_for_admission(
        self, prompt: Tokens | KeyedPrompt, num_tokens: int | None = None, *, salt: bytes = b""
    ) -> tuple[int, int]:
        """Return what `admit` would take from the free and idle blocks, and how many there are.

        The difference is what would be left, for a scheduler that keeps a watermark. Idle blocks
        that the prompt hits count as taken. Raises BadSize as `admit` does.
        """
        needed, available = self._wanted(prompt, num_tokens, salt)
        present = self.num_free + self.num_cached_idle
        return needed + present - available, present

    def cached_tokens(self, prompt: Tokens | KeyedPrompt, *, salt: bytes = b"") -> int:
        """Return the leading tokens that `admit` would find cached now. BadSize as it does."""
        if not self.prefix_caching:
            length_of(prompt)
            return 0
        return len(self._look_up(prompt, None, salt).hits) * self.block_size

    def _table(self, sequence: Hashable) -> BlockTable:
        try:
            return self._tables[sequence]
        except KeyError:
            raise UnknownSequence(sequence) from None

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _look_up(
        self, prompt: Tokens | KeyedPrompt, num_tokens: int | None, salt: bytes
    ) -> PromptLookup | KeyedLookup:
        if isinstance(prompt, KeyedPrompt):
            if salt:
                raise BadSize(
                    f"salt = {salt!r} with a keyed prompt: let the keys of tenants differ instead"
                )
            return KeyedLookup(prompt, self._index, num_tokens)
        return PromptLookup(token_array(prompt), self._index, num_tokens, salt)

    def _wanted(
        self, prompt: Tokens | KeyedPrompt, num_tokens: int | None, salt: bytes
    ) -> tuple[int, int]:
        """As `_demand`, of a prompt that may have to be looked up first."""
        if not self.prefix_caching:
            return self._blocks_for(room_for(length_of(prompt), num_tokens)), self.num_free
        return self._demand(self._look_up(prompt, num_tokens, salt))

    def _demand(self, prompt: PromptLookup | KeyedLookup) -> tuple[int, int]:
        """Blocks that `prompt` needs besides its hits, and blocks that it can have."""
        idle_hits = sum(self._references[block] == 0 for block in prompt.hits)
        available = self.num_free + self.num_cached_idle - idle_hits
        return self._blocks_for(prompt.num_tokens) - len(prompt.hits), available

    def _is_shared(self, block: int) -> bool:
        """Whether another sequence reads `block`. A pending copy does so before the next write."""
        return self._references[block] - self._waiting.get(block, 0) > 1

    def _publish(
        self, sequence: Hashable, blocks: list[int], first: int, keys: Iterable[BlockKey]
    ) -> None:
        insert = self._index.insert
        if not self._watched:
            for at, key in enumerate(keys, first):
                insert(key, blocks[at])
            return
        tenant = self._tenants.get(sequence, 0)
        published = [blocks[at] for at, key in enumerate(keys, first) if insert(key, blocks[at])]
        # Tail first here, too, for an order that goes by the moment of publication.
        for block in reversed(published):
            self.pool.publish(block, tenant=tenant)

    def _release_all(self, blocks: list[int]) -> None:
        if self._copies:
            for block in blocks:
                self._release(block)
        else:
            self.pool.release_all(blocks, keep=self._index.digests)

    def _release(self, block: int) -> None:
        keep = block in self._index.digests
        self.pool.release(block, keep=keep)
        if not keep and self._references[block] == 0 and block in self._copies:
            self._drop_copy(block)

    def _forget(self, evicted: int) -> None:
        key = self._index.forget(evicted)
        if key is not None:
            self._ghosts.add(key)
        if self._copies and evicted in self._copies:
            self._drop_copy(evicted)

    def _drop_copy(self, destination: int) -> None:
        source = self._copies.pop(destination)
        self._waiting[source] -= 1
        self._release(source)
