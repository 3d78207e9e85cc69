"""Bookkeeping of blocks: sequences come, grow, fork and go; tables and slots are read.

Each call works on 16 sequences of 250 tokens in blocks of 16 and leaves the pool as it was. What is
compared between the sides is what an engine can rely on, hits and counts and which tokens share a
block; in which order physical blocks are handed out is the allocator's own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.gate.benchmark import Benchmark, Count, Output, Prepared

if TYPE_CHECKING:
    from paged.allocator import PagedAllocator

NUM_SEQUENCES: Final = 16
PROMPT_TOKENS: Final = 250
BLOCK_SIZE: Final = 16
NUM_BLOCKS: Final = 1024
"""For all sequences and their forks: nothing is refused, and without need nothing is evicted."""

ALLOCATOR: Final = "paged.allocator:PagedAllocator"


def _prompts(count: int = NUM_SEQUENCES) -> list[NDArray[np.int64]]:
    """Token ids, no two sequences with a block in common."""
    return list(np.arange(count * PROMPT_TOKENS).reshape(count, PROMPT_TOKENS))


def _pool(*, num_blocks: int = NUM_BLOCKS, prefix_caching: bool = False) -> PagedAllocator:
    from paged.allocator import PagedAllocator

    return PagedAllocator(num_blocks, BLOCK_SIZE, prefix_caching=prefix_caching)


class _Churn:
    """Calls on one pool, and what they came to."""

    def __init__(self, pool: PagedAllocator, body: Callable[[_Churn], object]) -> None:
        self.pool = pool
        self.prompts = _prompts()
        self.body = body
        self.hits: list[int] = []
        self.operations = 0
        self.used: list[int] = []

    def __call__(self) -> None:
        self.hits.clear()
        self.used.clear()
        self.operations = 0
        self.body(self)

    def admit(self) -> None:
        """All sequences come."""
        admit, hits = self.pool.admit, self.hits
        for sequence, prompt in enumerate(self.prompts):
            hits.append(admit(sequence, prompt))
        self.operations += len(self.prompts)
        self.used.append(self.pool.num_used)

    def append(self) -> None:
        """Each gets a block's worth of tokens, one by one."""
        append = self.pool.append
        for token in range(BLOCK_SIZE):
            for sequence in range(NUM_SEQUENCES):
                append(sequence, token)
        self.operations += BLOCK_SIZE * NUM_SEQUENCES
        self.used.append(self.pool.num_used)

    def fork(self) -> None:
        """Each is forked, and the child takes a token, in a copy of the last block."""
        for parent in range(NUM_SEQUENCES):
            self.pool.fork(parent, NUM_SEQUENCES + parent)
            self.pool.append(NUM_SEQUENCES + parent, 0)
        self.operations += 2 * NUM_SEQUENCES
        self.used.append(self.pool.num_used)

    def free(self, *, first: int = 0) -> None:
        """Those from `first` on go."""
        for sequence in range(first, first + NUM_SEQUENCES):
            self.pool.free(sequence)
        self.operations += NUM_SEQUENCES

    def outputs(self) -> Mapping[str, Output]:
        """Cached tokens of each admission."""
        return {"cached_tokens": Output.exact(self.hits)}

    def counters(self) -> Mapping[str, Count]:
        """Of one call."""
        pool = self.pool
        evictions, copies = pool.num_evictions, pool.num_copies
        self()
        return {
            "operations": Count(self.operations, "operations"),
            "peak_blocks": Count(max(self.used), "blocks"),
            "cached_tokens": Count(sum(self.hits), "tokens", more_is_better=True),
            "evictions": Count(pool.num_evictions - evictions, "evictions"),
            "copies": Count(pool.num_copies - copies, "blocks"),
        }


def _prepared(churn: _Churn) -> Prepared:
    return Prepared(call=churn, outputs=churn.outputs, counters=churn.counters)


def _come_grow_go(*, prefix_caching: bool) -> Prepared:
    def body(churn: _Churn) -> None:
        churn.admit()
        churn.append()
        churn.free()
        if prefix_caching:
            churn.pool.reset_prefix_cache()

    return _prepared(_Churn(_pool(prefix_caching=prefix_caching), body))


def _hit() -> Prepared:
    def body(churn: _Churn) -> None:
        churn.admit()
        churn.free()

    churn = _Churn(_pool(prefix_caching=True), body)
    churn()  # from here on every block that can be found is in the cache
    return _prepared(churn)


def _evict() -> Prepared:
    def body(churn: _Churn) -> None:
        for sequence, prompt in enumerate(churn.prompts):
            churn.hits.append(churn.pool.admit(sequence, prompt))
            churn.used.append(churn.pool.num_used)
            churn.pool.free(sequence)
        churn.operations += 2 * len(churn.prompts)

    # Room for four prompts: when one comes again, twelve others have been through.
    return _prepared(_Churn(_pool(num_blocks=64, prefix_caching=True), body))


def _fork() -> Prepared:
    def body(churn: _Churn) -> None:
        churn.fork()
        churn.pool.take_copies()
        churn.free(first=NUM_SEQUENCES)

    churn = _Churn(_pool(), body)
    churn.admit()
    return _prepared(churn)


def _table() -> Prepared:
    pool = _pool()
    for sequence, prompt in enumerate(_prompts()):
        pool.admit(sequence, prompt)
    result: list[Any] = []
    sequences = range(NUM_SEQUENCES)

    def call() -> None:
        result[:] = [pool.block_table(sequences)]

    return Prepared(call=call, outputs=lambda: {"block_table": _relabelled(result[0])})


def _slots() -> Prepared:
    pool = _pool()
    for sequence, prompt in enumerate(_prompts()):
        pool.admit(sequence, prompt)
    result: list[Any] = []

    def call() -> None:
        result[:] = [pool.slots(sequence) for sequence in range(NUM_SEQUENCES)]

    return Prepared(
        call=call, outputs=lambda: {"slots": _relabelled(np.stack(result) // BLOCK_SIZE)}
    )


def _relabelled(blocks: NDArray[Any]) -> Output:
    """Physical blocks by the order in which they first occur: which is which is nobody's business.

    Equal for two tables if and only if they share the same blocks in the same places.
    """
    flat = np.asarray(blocks).ravel()
    _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return Output.exact(rank[inverse].reshape(np.shape(blocks)))


def _benchmark(name: str, title: str, prepare: Callable[[], Prepared], *needs: str) -> Benchmark:
    return Benchmark(
        key=f"allocator/{name}", title=title, prepare=prepare, needs=(ALLOCATOR, *needs)
    )


BENCHMARKS: Final = (
    _benchmark(
        "churn[caching=off]",
        "16 sequences of 250 tokens come, get 16 tokens one by one, and go.",
        partial(_come_grow_go, prefix_caching=False),
    ),
    _benchmark(
        "churn[caching=on]",
        "The same with prefix caching, no two alike, and the cache emptied at the end.",
        partial(_come_grow_go, prefix_caching=True),
    ),
    _benchmark("hit", "16 sequences come, find 240 of their 250 tokens each, and go.", _hit),
    _benchmark("evict", "16 sequences through a cache with room for four.", _evict),
    _benchmark("fork", "16 forks, each of which copies a block and goes.", _fork),
    _benchmark("block_table", "The block table of 16 sequences of 250 tokens.", _table),
    _benchmark("slots", "The slots of all tokens of 16 sequences.", _slots),
)
