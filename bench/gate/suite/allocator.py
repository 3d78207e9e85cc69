"""Bookkeeping of blocks: sequences come, grow, fork and go; tables and slots are read.

A call works on 16 sequences of 250 tokens in blocks of 16, or as many as its key says, and leaves
the pool as it was. What is compared between the sides is what an engine can rely on, hits and
counts and which tokens share a block; in which order physical blocks are handed out is the
allocator's own affair.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.gate.benchmark import Count, Output, Prepared, computed, of_group

if TYPE_CHECKING:
    from paged.allocator import PagedAllocator

NUM_SEQUENCES: Final = 16
MANY: Final = 256
PROMPT_TOKENS: Final = 250
BLOCK_SIZE: Final = 16
BLOCK_SIZES: Final = (1, 16, 128)
BLOCKS_PER_SEQUENCE: Final = 64
"""Enough for a fork, too: nothing is refused, and without need nothing is evicted."""

_benchmark = of_group("allocator", "paged.allocator:PagedAllocator")


def _prompts(count: int, tokens: int = PROMPT_TOKENS) -> list[NDArray[np.int64]]:
    """Token ids, no two sequences with a block in common."""
    return list(np.arange(count * tokens).reshape(count, tokens))


def _pool(
    num_blocks: int, *, block_size: int = BLOCK_SIZE, prefix_caching: bool = False
) -> PagedAllocator:
    from paged.allocator import PagedAllocator

    return PagedAllocator(num_blocks, block_size, prefix_caching=prefix_caching)


class _Churn:
    """Calls on one pool, and what they came to."""

    def __init__(
        self,
        body: Callable[[_Churn], object],
        *,
        sequences: int = NUM_SEQUENCES,
        num_blocks: int | None = None,
        prefix_caching: bool = False,
    ) -> None:
        self.pool = _pool(
            num_blocks or sequences * BLOCKS_PER_SEQUENCE, prefix_caching=prefix_caching
        )
        self.prompts = _prompts(sequences)
        self.sequences = range(sequences)
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
            for sequence in self.sequences:
                append(sequence, token)
        self.operations += BLOCK_SIZE * len(self.sequences)
        self.used.append(self.pool.num_used)

    def fork(self) -> None:
        """Each is forked, and the child takes a token, in a copy of the last block."""
        for parent in self.sequences:
            child = len(self.sequences) + parent
            self.pool.fork(parent, child)
            self.pool.append(child, 0)
        self.operations += 2 * len(self.sequences)
        self.used.append(self.pool.num_used)

    def free(self, *, first: int = 0) -> None:
        """Those from `first` on go."""
        for sequence in self.sequences:
            self.pool.free(first + sequence)
        self.operations += len(self.sequences)

    def prepared(self) -> Prepared:
        """With the cached tokens of each admission as its output."""
        return Prepared(
            call=self,
            outputs=lambda: {"cached_tokens": Output.exact(self.hits)},
            counters=self.counters,
        )

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


def _come_grow_go(*, prefix_caching: bool, sequences: int = NUM_SEQUENCES) -> Prepared:
    def body(churn: _Churn) -> None:
        churn.admit()
        churn.append()
        churn.free()
        if prefix_caching:
            churn.pool.reset_prefix_cache()

    return _Churn(body, sequences=sequences, prefix_caching=prefix_caching).prepared()


def _hit(sequences: int = NUM_SEQUENCES) -> Prepared:
    def body(churn: _Churn) -> None:
        churn.admit()
        churn.free()

    churn = _Churn(body, sequences=sequences, prefix_caching=True)
    churn()  # from here on every block that can be found is in the cache
    return churn.prepared()


def _evict() -> Prepared:
    def body(churn: _Churn) -> None:
        for sequence, prompt in enumerate(churn.prompts):
            churn.hits.append(churn.pool.admit(sequence, prompt))
            churn.used.append(churn.pool.num_used)
            churn.pool.free(sequence)
        churn.operations += 2 * len(churn.prompts)

    # Room for four prompts: when one comes again, twelve others have been through.
    return _Churn(body, num_blocks=64, prefix_caching=True).prepared()


def _fork(sequences: int = NUM_SEQUENCES) -> Prepared:
    def body(churn: _Churn) -> None:
        churn.fork()
        churn.pool.take_copies()
        churn.free(first=sequences)

    churn = _Churn(body, sequences=sequences)
    churn.admit()
    return churn.prepared()


def _read(
    read: Callable[[PagedAllocator, range], Any],
    name: str,
    *,
    sequences: int = NUM_SEQUENCES,
    tokens: int = PROMPT_TOKENS,
) -> Prepared:
    """Something is read of a pool that does not change."""
    prompts = _prompts(sequences, tokens)
    pool = _pool(sequences * -(-tokens // BLOCK_SIZE))
    for sequence, prompt in enumerate(prompts):
        pool.admit(sequence, prompt)
    return computed(lambda: read(pool, range(sequences)), lambda found: {name: _relabelled(found)})


def _block_table(pool: PagedAllocator, sequences: range) -> Any:
    return pool.block_table(sequences)


def _slots(pool: PagedAllocator, sequences: range) -> Any:
    return [pool.slots(sequence) for sequence in sequences]


def _relabelled(read: Any) -> Output:
    """Physical blocks by the order in which they first occur: which is which is nobody's business.

    Equal for two tables if and only if they share the same blocks in the same places. Slots, a list
    of those of each sequence, count as their blocks.
    """
    blocks = np.stack(read) // BLOCK_SIZE if isinstance(read, list) else np.asarray(read)
    flat = blocks.ravel()
    _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return Output.exact(rank[inverse].reshape(blocks.shape))


def _situation(run: Callable[[], Mapping[str, Count]]) -> Prepared:
    """What a situation takes, counted in a pool of its own."""
    return computed(
        run,
        lambda found: {name: Output.exact(count.value) for name, count in found.items()},
        lambda found: found,
    )


def _stream(block_size: int) -> Mapping[str, Count]:
    from bench.workloads.builtin import builtin_stream

    stream = builtin_stream("azure-conv", num_requests=128, seed=0)
    pool = _pool(int(stream.final_tokens.sum()), block_size=block_size)
    prompts, outputs = stream.prompt_tokens.tolist(), stream.output_tokens.tolist()
    arrivals = iter(range(len(stream)))
    running: dict[int, int] = {}
    peak = 0
    while True:
        for request in itertools.islice(arrivals, NUM_SEQUENCES - len(running)):
            pool.admit(request, range(prompts[request]))
            running[request] = outputs[request]
        if not running:
            return {"peak_blocks": Count(peak, "blocks")}
        for request in running:
            pool.append(request, 0)
            running[request] -= 1
        peak = max(peak, pool.num_used)
        for request in [request for request, left in running.items() if not left]:
            pool.free(request)
            del running[request]


def _beams(block_size: int) -> Mapping[str, Count]:
    pool = _pool(2048, block_size=block_size)
    pool.admit(0, range(1000))
    for beam in range(1, 8):
        pool.fork(0, beam)
    copies = 0
    for token in range(20):
        for beam in range(8):
            pool.append(beam, token)
        copies += len(pool.take_copies())
    return {"peak_blocks": Count(pool.num_used, "blocks"), "copies": Count(copies, "blocks")}


def _common_prefix(block_size: int) -> Mapping[str, Count]:
    pool = _pool(32 * 600, block_size=block_size, prefix_caching=True)
    common, tails = np.arange(500), np.arange(500, 3700).reshape(32, 100)
    prompts = (np.concatenate((common, tail)) for tail in tails)
    misses = sum(600 - pool.admit(name, prompt) for name, prompt in enumerate(prompts))
    return {"missed_tokens": Count(misses, "tokens")}


def _mixed(num_blocks: int, *, prefix_caching: bool) -> Prepared:
    from paged.subject import PagedSubject
    from subjects.allocators.mixed_stream import mixed_stream, serve

    requests = mixed_stream(1000)

    def serve_all() -> Any:
        pool = _pool(num_blocks, prefix_caching=prefix_caching)
        return serve(PagedSubject(pool), requests, max_running=64, commits=False)

    return computed(
        serve_all, lambda done: {"served": Output.exact([done.operations, done.hit_tokens])}
    )


_SITUATIONS: Final = {
    "stream": (_stream, "128 requests of azure-conv, 16 at a time."),
    "beam": (_beams, "8 beams, each 20 tokens on from a common prompt of 1,000."),
    "common-prefix": (_common_prefix, "32 prompts, each of 100 tokens behind the same 500."),
}

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
    _benchmark(
        "block_table",
        "The block table of 16 sequences of 250 tokens.",
        partial(_read, _block_table, "block_table"),
    ),
    _benchmark(
        "slots", "The slots of all tokens of 16 sequences.", partial(_read, _slots, "slots")
    ),
    *(
        _benchmark(
            f"churn[256,caching={'on' if caching else 'off'}]",
            "256 sequences of 250 tokens come, get 16 tokens one by one, and go.",
            partial(_come_grow_go, prefix_caching=caching, sequences=MANY),
            gated=False,
        )
        for caching in (False, True)
    ),
    _benchmark("hit[256]", "256 sequences find 240 tokens each.", partial(_hit, MANY), gated=False),
    _benchmark("fork[256]", "256 forks, a copy each.", partial(_fork, MANY), gated=False),
    *(
        _benchmark(
            f"{name}[64x2000]",
            f"{name} of 64 sequences of 2,000 tokens.",
            partial(_read, read, name, sequences=64, tokens=2000),
            gated=False,
        )
        for name, read in (("block_table", _block_table), ("slots", _slots))
    ),
    *(
        _benchmark(
            f"mixed-stream[blocks={blocks},caching={'on' if caching else 'off'}]",
            "1,000 requests that come, grow and go, 64 at a time.",
            partial(_mixed, blocks, prefix_caching=caching),
            "subjects.allocators.mixed_stream:serve",
            gated=False,
        )
        for blocks in (16384, 3000)
        for caching in (False, True)
    ),
    *(
        _benchmark(
            f"{name}[block={size}]",
            title,
            partial(_situation, partial(run, size)),
            "bench.workloads.builtin:builtin_stream",
            timed=False,
            gated=False,
        )
        for name, (run, title) in _SITUATIONS.items()
        for size in BLOCK_SIZES
    ),
)
