"""Bookkeeping of blocks: time of the operations, and exact counts of what they do.

One operation takes microseconds, so it is done for 256 sequences of 250 tokens each, in blocks of
16 where nothing else is said; the last block is partly filled, and a fork has to copy it. What is
counted is the same on every machine; function calls also depend on the versions of Python and
numpy, which the environment fixes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.machine.calls import function_calls
from bench.workloads.builtin import builtin_stream
from paged.allocator import PagedAllocator

NUM_SEQUENCES: Final = 256
PROMPT_TOKENS: Final = 250
BLOCK_SIZE: Final = 16
BLOCK_SIZES: Final = (1, 16, 128)
NUM_BLOCKS: Final = 8192
"""For all sequences and their forks: nothing is refused and nothing evicted."""


class Operations:
    """What an engine's step is made of, without and with prefix caching."""

    version = "1"
    params = (("off", "on"),)
    param_names = ("prefix_caching",)
    rounds = 2
    repeat = (10, 100, 0.3)
    warmup_time = 0.1

    def setup(self, prefix_caching: str) -> None:
        """Fill one allocator and leave another empty, anew for every sample."""
        self.prompts = _prompts()
        self.empty, self.filled = (
            PagedAllocator(NUM_BLOCKS, BLOCK_SIZE, prefix_caching=prefix_caching == "on")
            for _ in range(2)
        )
        _admit(self.filled, self.prompts)

    def time_admit_and_free(self, prefix_caching: str) -> None:
        """256 sequences come, no two alike, and go."""
        _admit(self.empty, self.prompts)
        _free(self.empty)

    def time_append(self, prefix_caching: str) -> None:
        """16 decode steps of 256 sequences: 4,096 tokens one by one, a new block for each 16."""
        _append(self.filled)

    def time_fork_and_copy_on_write(self, prefix_caching: str) -> None:
        """256 sequences are forked; each child takes a token, in a copy of the last block."""
        _fork(self.filled)


class PrefixCache:
    """Sequences whose prefix is in the cache."""

    version = "1"
    rounds = 2
    repeat = (10, 100, 0.3)
    warmup_time = 0.1

    def setup(self) -> None:
        """Leave the blocks of 256 prompts idle in the cache, anew for every sample."""
        self.prompts = _prompts()
        self.allocator = PagedAllocator(NUM_BLOCKS, BLOCK_SIZE, prefix_caching=True)
        _admit(self.allocator, self.prompts)
        _free(self.allocator)

    def time_hit(self) -> None:
        """256 sequences come and find 240 of their 250 tokens each."""
        _admit(self.allocator, self.prompts)


class Calls:
    """Function calls, of Python and of C, that an operation makes; prefix caching is on.

    A loop over tokens that crept in shows here exactly, however noisy the clock is.
    """

    version = "1"
    params = (("admit", "hit", "append", "fork", "free"),)
    param_names = ("operation",)

    def setup(self, operation: str) -> None:
        """Bring an allocator to where the operation begins."""
        prompts = _prompts()
        allocator = PagedAllocator(NUM_BLOCKS, BLOCK_SIZE, prefix_caching=True)
        if operation != "admit":
            _admit(allocator, prompts)
        if operation == "hit":
            _free(allocator)
        operations: dict[str, Callable[[], object]] = {
            "admit": lambda: _admit(allocator, prompts),
            "hit": lambda: _admit(allocator, prompts),
            "append": lambda: _append(allocator),
            "fork": lambda: _fork(allocator),
            "free": lambda: _free(allocator),
        }
        self.operation = operations[operation]

    def track_calls(self, operation: str) -> int:
        """Calls for 256 sequences, as in the timed benchmarks."""
        return function_calls(self.operation)

    track_calls.unit = "calls"  # type: ignore[attr-defined]


class Blocks:
    """What a situation takes, in blocks and in tokens to compute, by block size."""

    version = "1"
    params = (BLOCK_SIZES,)
    param_names = ("block_size",)

    def track_stream_peak(self, block_size: int) -> int:
        """Most blocks in use while 128 requests of azure-conv are served, 16 at a time."""
        stream = builtin_stream("azure-conv", num_requests=128, seed=0)
        allocator = PagedAllocator(int(stream.final_tokens.sum()), block_size)
        prompts, outputs = stream.prompt_tokens.tolist(), stream.output_tokens.tolist()
        arrivals = iter(range(len(stream)))
        running: dict[int, int] = {}
        peak = 0
        while True:
            for request in itertools.islice(arrivals, 16 - len(running)):
                allocator.admit(request, range(prompts[request]))
                running[request] = outputs[request]
            if not running:
                return peak
            for request in running:
                allocator.append(request, 0)
                running[request] -= 1
            peak = max(peak, allocator.num_used)
            for request in [request for request, left in running.items() if not left]:
                allocator.free(request)
                del running[request]

    track_stream_peak.unit = "blocks"  # type: ignore[attr-defined]

    def track_beam(self, block_size: int) -> int:
        """Blocks of 8 beams, each 20 tokens on from a common prompt of 1,000."""
        allocator, _ = _beams(block_size)
        return allocator.num_used

    track_beam.unit = "blocks"  # type: ignore[attr-defined]

    def track_beam_copies(self, block_size: int) -> int:
        """Blocks that those beams copy."""
        _, copies = _beams(block_size)
        return copies

    track_beam_copies.unit = "blocks"  # type: ignore[attr-defined]

    def track_prefix_misses(self, block_size: int) -> int:
        """Tokens left to compute of 32 prompts, each of 100 tokens behind the same 500."""
        allocator = PagedAllocator(32 * 600, block_size, prefix_caching=True)
        common, tails = np.arange(500), np.arange(500, 3700).reshape(32, 100)
        return sum(
            600 - allocator.admit(name, np.concatenate((common, tail)))
            for name, tail in enumerate(tails)
        )

    track_prefix_misses.unit = "tokens"  # type: ignore[attr-defined]


def _prompts() -> list[NDArray[np.int64]]:
    """Token ids of all sequences, no two with a block in common."""
    return list(np.arange(NUM_SEQUENCES * PROMPT_TOKENS).reshape(NUM_SEQUENCES, PROMPT_TOKENS))


def _admit(allocator: PagedAllocator, prompts: list[NDArray[np.int64]]) -> None:
    for sequence, prompt in enumerate(prompts):
        allocator.admit(sequence, prompt)


def _append(allocator: PagedAllocator) -> None:
    for token in range(BLOCK_SIZE):
        for sequence in range(NUM_SEQUENCES):
            allocator.append(sequence, token)


def _fork(allocator: PagedAllocator) -> None:
    for parent in range(NUM_SEQUENCES):
        child = NUM_SEQUENCES + parent
        allocator.fork(parent, child)
        allocator.append(child, 0)
    allocator.take_copies()


def _free(allocator: PagedAllocator) -> None:
    for sequence in range(NUM_SEQUENCES):
        allocator.free(sequence)


def _beams(block_size: int) -> tuple[PagedAllocator, int]:
    """Eight beams over one prompt, and the copies that they took."""
    allocator = PagedAllocator(2048, block_size)
    allocator.admit(0, range(1000))
    for beam in range(1, 8):
        allocator.fork(0, beam)
    copies = 0
    for token in range(20):
        for beam in range(8):
            allocator.append(beam, token)
        copies += len(allocator.take_copies())
    return allocator, copies
