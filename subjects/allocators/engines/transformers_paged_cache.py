"""transformers' paged cache of continuous batching behind the allocator contract, full attention.

The adapter runs where requirements/engines/transformers.txt is installed and imports nothing of
pagedbench. It plays the parts of `scheduler.py`, `offloading_manager.py` and `continuous_api.py` in
`transformers/generation/continuous_batching`; the comments name the functions that it stands for.

The cache is handed out in sectors, a multiple of 128 bytes. With one layer and one head of 32 half
precision values a block takes 128 bytes a token, so that sectors are blocks, as they are in nearly
any real model with full attention only, and every number of blocks is possible. Two sectors in
front take the reads and writes of padding. The contract's block `b` is block `b + 2` there.

There is no sliding window here: transformers keeps position `p` in slot `p % window` of a ring. A
block then holds the newest tokens and the oldest ones at once, what leads a prompt longer than the
window has no slot at all, and the contract has words for neither.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final

import torch

DISTRIBUTION: Final = "transformers"

KNOWN: Final = "5.21 to 5.24"
"""Releases that this adapter drives."""

_FOUND = importlib.metadata.distributions(name=DISTRIBUTION)
VERSION: Final = next((found.version for found in _FOUND), "")
"""Of the wheel; empty if it is not installed."""


def _check_known() -> None:
    """Raise ImportError: this adapter was not tried with the release that is installed."""
    first, last, this = (re.findall(r"\d+", each) for each in (*KNOWN.split(" to "), VERSION))
    if not [*map(int, first)] <= [*map(int, this[: len(first)])] <= [*map(int, last)]:
        raise ImportError(f"{DISTRIBUTION} {VERSION}: this adapter drives {KNOWN}; install one")


def _import_engine() -> SimpleNamespace:
    """Import what is driven, by its names in transformers."""
    batching = f"{DISTRIBUTION}.generation.continuous_batching"
    places = {
        "ContinuousBatchingConfig": DISTRIBUTION,
        "DistributedHelper": f"{batching}.distributed",
        "PagedAttentionCache": f"{batching}.cache",
        "PreTrainedConfig": DISTRIBUTION,
        "RequestState": f"{batching}.requests",
    }
    return SimpleNamespace(
        **{name: getattr(importlib.import_module(place), name) for name, place in places.items()}
    )


class TransformersAllocator:
    """A `PagedAttentionCache` with one group of layers; with caching requests share blocks."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool) -> None:
        model = _engine.PreTrainedConfig(
            vocab_size=1,
            hidden_size=32,
            head_dim=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
        batching = _engine.ContinuousBatchingConfig(
            page_size=block_size,
            num_blocks=num_blocks,
            max_batch_tokens=1,  # masks are paid for by it, on paper
            max_memory_percent=0.9,
            max_blocks_per_request=0,
            allow_block_sharing=prefix_caching,
        )
        helper = _engine.DistributedHelper(None, None)
        self._cache = _engine.PagedAttentionCache(model, batching, "cpu", helper, torch.float16)
        ((self._group, self._blocks),) = self._cache.cache_allocators.items()
        self._ledger = self._blocks.ledger
        self._pool = self._cache.pool
        self._first: int = self._pool.num_reserved_sectors * self._blocks.blocks_per_sector
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._states: dict[str, Any] = {}
        self._complete: dict[str, list[dict[str, int]]] = {}
        self._copies: list[tuple[int, int]] = []

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        """`add_request`, and what `Scheduler._process_candidates` does with a waiting request."""
        state = _engine.RequestState(sequence, list(tokens), max_new_tokens=None)
        hit: int = self._cache.search_prefix_match(sequence, state.remaining_prefill_tokens)
        state.position_offset = hit
        if not self._store(state, max(num_tokens, min(hit + 1, len(tokens))) - hit):
            # There, a request that found its prefix and no room keeps the prefix, and waits among
            # the active ones. Here it is withdrawn, as by `clear_cancelled_requests`.
            if hit:
                self._cache.free_blocks(sequence)
            return None
        self._states[sequence] = state
        return hit

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        """`_process_candidates` for the next part of a prompt, or for a token just generated."""
        state = self._states[sequence]
        if not self._store(state, len(tokens)):
            return False
        new = state.position_offset - len(state.initial_tokens) - len(state.generated_tokens)
        if new > 0:
            state.generated_tokens.extend(tokens[-new:])
        return True

    def free(self, sequence: str, **how: bool) -> None:
        """`Scheduler.finish_request`. It asks the cache whether or not it knows the request."""
        self._cache.free_blocks(sequence, **how)
        self._states.pop(sequence, None)
        self._complete.pop(sequence, None)

    def preempt(self, sequence: str) -> None:
        """`OffloadingManager.offload_requests`: blocks of nobody else do not stay in the cache."""
        self.free(sequence, no_cache=True)

    def fork(self, parent: str, child: str) -> bool:
        """What `ContinuousBatchProcessor.update_batch` does for one child.

        There, a child without room starts over from its prompt. The contract wants no refusal as
        long as eviction helps, and so the cached blocks go first here, as for any other request.
        """
        state = self._states.get(parent) or _engine.RequestState(parent, [])
        copies: dict[str, tuple[list[int], list[int]]] = {self._group: ([], [])}
        self._pool.try_to_free_sectors()
        if not self._cache.prepare_fork_request(state, [child], copies):
            needed = self._blocks.count_non_shareable_blocks(parent, state.current_len())
            if not self._evict_for(needed):
                return False
            if not self._cache.prepare_fork_request(state, [child], copies):
                return False
        self._states[child] = state.fork(child)
        # Next comes `perform_cache_copy`, which is the driver's part here.
        first = self._first
        self._copies += [
            (source - first, to - first) for source, to in zip(*copies[self._group], strict=True)
        ]
        return True

    def take_copies(self) -> list[tuple[int, int]]:
        """What `perform_cache_copy` would have copied."""
        copies, self._copies = self._copies, []
        return copies

    def commit(self, sequence: str) -> None:
        """`update_batch`: publish the blocks that the last forward pass has filled.

        A block of which there is another one with the same hash is given up for that one.
        """
        for complete in self._complete.pop(sequence, ()):
            self._cache.mark_complete_blocks(self._states[sequence], complete)

    def slots(self, sequence: str) -> list[int]:
        """The rows that attention reads. A block has a row of keys and one of values per token."""
        length = self._states[sequence].current_len()
        stride, size, first = self._blocks.block_physical_stride, self._block_size, self._first
        rows = self._blocks.get_read_indices(sequence, length, 0)
        return [(row // stride - first) * size + row % stride for row in rows]

    def counts(self) -> tuple[int, int, int]:
        """The pool counts free blocks and sectors, and the ledger those that it keeps cached."""
        free, idle = self._num_free(), len(self._ledger.cached_blocks)
        return free, idle, self._num_blocks - free - idle

    def idle_blocks(self) -> list[int]:
        """Blocks that the ledger keeps cached."""
        return [block - self._first for block in self._ledger.cached_blocks]

    def reset(self) -> bool:
        """`PagedAttentionCache.reset`, which ends every request."""
        if self._states:
            return False
        self._cache.reset()
        return True

    def _store(self, state: Any, count: int) -> bool:
        """Make room for more tokens of a request, and note the blocks that they fill.

        Where there is no room the scheduler's batch stays empty, `offload_requests` evicts every
        cached block, and the scheduler tries once more.
        """
        cache = self._cache
        if not cache.can_store_request_tokens(state, count):
            past = state.current_len()
            needed = self._blocks.needs_new_blocks(state.request_id, past, count)
            if not self._evict_for(needed) or not cache.can_store_request_tokens(state, count):
                return False
        complete = cache.count_new_complete_blocks(state, count)
        if complete:
            self._complete.setdefault(state.request_id, []).append(complete)
        state.position_offset += count  # `prepare_batch_tensors`
        return True

    def _evict_for(self, needed: int) -> bool:
        """Evict every cached block if that makes enough free.

        `offload_requests` does so in any case, and goes on to preempt; one that refuses does not.
        """
        idle = len(self._ledger.cached_blocks)
        if not idle or needed > self._num_free() + idle:
            return False
        self._cache.evict_cached_blocks()
        self._pool.try_to_free_sectors()
        return True

    def _num_free(self) -> int:
        sectors: int = self._pool.num_free_sectors * self._blocks.blocks_per_sector
        blocks: int = self._pool.count_free_blocks(self._blocks.index)
        return sectors + blocks


def make(
    num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
) -> TransformersAllocator:
    """An empty allocator. Raises ImportError: no wheel is installed. ValueError: a window."""
    if _engine is None:
        raise ImportError(
            f"{DISTRIBUTION} is not installed in {sys.prefix}; "
            f"requirements/engines/transformers.txt says what this adapter needs"
        )
    if window is not None:
        raise ValueError(f"window {window}: this adapter drives layers with full attention only")
    return TransformersAllocator(num_blocks, block_size, prefix_caching=prefix_caching)


make.version = f"{DISTRIBUTION} {VERSION or '(not installed)'}"  # type: ignore[attr-defined]
make.capabilities = {  # type: ignore[attr-defined]
    "prefix_caching": True,
    "fork": True,
    "chunked_prefill": True,
    "commit": True,
    "preempt": True,
    "reset": True,
    "reset_while_running": False,
    # Requests are scheduled in batches, but the copies of a fork are made before anything else
    # happens: the cache does not hold on to their sources.
    "batching": False,
    # Nothing is published before `commit`.
    "abort_before_write": True,
    # But for what is preempted: that is dropped from the cache, needed or not.
    "finds_every_prefix": True,
    "eviction": "all",
    # The hashes of blocks know tokens only, so there is no `salt`. `swap` takes pinned memory, and
    # there is none without an accelerator. Whether a request fits cannot be asked without taking
    # the prefix that it finds, so there is no `can_admit`.
    #
    # Appending goes by the state of a request, which an unknown one has not. A negative number of
    # tokens cannot come up: it is the length of a list.
    "hostile": [
        "free_twice", "free_unknown", "fork_unknown", "fork_onto_live", "admit_live",
        "admit_oversized",
    ],
}  # fmt: skip

# At once, so that whoever is forked off this process has it; and where it is not installed, one can
# still ask for the capabilities.
if VERSION:
    _check_known()
_engine: Any = _import_engine() if VERSION else None
