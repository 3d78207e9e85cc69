"""System prompts that requests share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.workloads.prefix import PrefixBlocks, ragged
from bench.workloads.source import StreamSource, Wrapped, check_draw
from bench.workloads.stream import RequestStream

SYSTEM_PREFIX_TOKENS: Final = 16
"""Tokens of a prefix block before which a system prompt was set, where the source has none."""

# So that chunks take a few dozen MB at most.
_BLOCKS_AT_ONCE: Final = 2**20

# Beside the seed, so that what is drawn here is independent of lengths drawn with the same seed.
_PROMPTS: Final = 0x737973


MAX_SYSTEM_TOKENS: Final = 2**20
"""Longest system prompt: the longest context that is served. Every request lists its blocks."""


def with_system_prompt(
    source: StreamSource, tokens: int, *, prompts: int = 1, seed: int = 0
) -> StreamSource:
    """Set a system prompt before every prompt, so that requests share a prefix.

    The prompts become longer by `tokens`. Each request gets one of the system prompts, drawn
    evenly. Behind it, prefix blocks of the source are kept, apart for each system prompt, and
    `tokens` must fill whole ones; where the source has none, every request is made of blocks of its
    own, and multiples of `SYSTEM_PREFIX_TOKENS` are the quickest.

    Raises ValueError: for tokens, prompts or a seed out of range; when read, for tokens that do not
    fill whole prefix blocks of the source.
    """
    return _SystemPrompt(of=source, tokens=tokens, prompts=prompts, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SystemPrompt(Wrapped):
    tokens: int
    prompts: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MAX_SYSTEM_TOKENS:
            raise ValueError(
                f"a system prompt of {self.tokens} tokens; use 1 to {MAX_SYSTEM_TOKENS:,}"
            )
        if self.prompts < 1:
            raise ValueError(f"{self.prompts} system prompts; use 1 or more")
        check_draw(seed=self.seed)

    @property
    def change(self) -> str:
        prompts = (
            "a system prompt" if self.prompts == 1 else f"one of {self.prompts} system prompts"
        )
        return f"behind {prompts} of {self.tokens} tokens"

    def chunks(self) -> Iterator[RequestStream]:
        draw = np.random.Generator(np.random.PCG64([self.seed, _PROMPTS]))
        next_own = 0
        for chunk in self._pieces():
            which = (draw.random(len(chunk)) * self.prompts).astype(np.int64)
            if chunk.prefix is None:
                size = gcd(self.tokens, SYSTEM_PREFIX_TOKENS)
                counts = -(-chunk.prompt_tokens // size)
                _, _, offsets = ragged(counts)
                own = np.arange(next_own, next_own + int(offsets[-1]))
                next_own += own.size
            else:
                size = chunk.prefix.tokens_per_block
                counts, own = np.diff(chunk.prefix.offsets), chunk.prefix.ids
                if self.tokens % size:
                    raise ValueError(
                        f"a system prompt of {self.tokens} tokens before prefix blocks of {size}: "
                        f"use a multiple of {size} tokens, or a source without prefix blocks"
                    )
            yield replace(
                chunk,
                prompt_tokens=chunk.prompt_tokens + self.tokens,
                prefix=self._prefix(which, counts, own, size),
            )

    def _pieces(self) -> Iterator[RequestStream]:
        """Yield the requests, fewer at a time where each will have many prefix blocks."""
        for chunk in self.of.chunks():
            size = gcd(self.tokens, SYSTEM_PREFIX_TOKENS)
            if chunk.prefix is not None:
                size = chunk.prefix.tokens_per_block
            longest = (int(chunk.prompt_tokens.max()) + self.tokens) // size + 1
            at_once = max(1, _BLOCKS_AT_ONCE // longest)
            for start in range(0, len(chunk), at_once):
                yield chunk.between(start, start + at_once)

    def _prefix(
        self, which: NDArray[np.int64], counts: NDArray[np.int64], own: NDArray[np.int64], size: int
    ) -> PrefixBlocks:
        """Join blocks of system prompts `which` and the requests' own, `counts` each."""
        blocks = self.tokens // size
        request, index, offsets = ragged(counts + blocks)
        # System prompts take the first ids. The same text behind another one is another prefix.
        first_own = blocks * self.prompts
        behind = PrefixBlocks(
            ids=own, offsets=np.concatenate(([0], np.cumsum(counts))), tokens_per_block=size
        )
        apart = behind.apart(np.repeat(which, counts), owners=self.prompts, what="system prompts")
        ids = np.empty(request.size, dtype=np.int64)
        system = index < blocks
        ids[system] = which[request[system]] * blocks + index[system]
        ids[~system] = apart.ids + first_own
        return PrefixBlocks(ids=ids, offsets=offsets, tokens_per_block=size)
