"""A request in a paged server: its sequences, their lengths by arithmetic, and their blocks.

The samples of a request share the blocks of its prompt; a partly filled last one is copied when the
first of them writes into it. All samples are of one length, and grow, end and give way together.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from paged.allocator import PagedAllocator
from paged.arrivals import Request
from paged.policy import PagedPolicy
from paged.prefix import KeyedPrompt


def most_blocks(request: Request, policy: PagedPolicy) -> int:
    """Blocks that a request may come to need, at most."""
    # The last token is never written.
    return _blocks(request, policy, request.prompt_tokens + max(0, request.output_tokens - 1))


def _blocks(request: Request, policy: PagedPolicy, tokens: int) -> int:
    """Blocks of all sequences with `tokens` tokens each, the prompt's shared."""
    blocks = -(-tokens // policy.block_size)
    if policy.samples == 1 or tokens <= request.prompt_tokens:
        return blocks
    # Beams part and join again behind the prompt, but all of them begin with its full blocks.
    shared = request.prompt_tokens // policy.block_size
    return shared + policy.samples * (blocks - shared)


class SequenceGroup:
    """The sequences of one request."""

    def __init__(self, request: Request, policy: PagedPolicy, allocator: PagedAllocator) -> None:
        self.request = request
        self.number = -1
        """Its place in the order of first admission; -1 before that."""
        self.sequences: list[int] = []
        """Their names in the allocator; empty unless it runs."""
        self.generated = self.computed = self.lost = 0
        """Output tokens of each when it last began to run; tokens of `target` that are computed,
        all of them while it decodes; tokens that had been when it was preempted."""
        self.host = 0
        """Blocks that it held then."""
        self.base = 0
        self.last = -1
        """While it decodes: each has `base + step` tokens after a step, and ends with `last`."""
        self.grows = self.saturates = self.releases = -1
        """Steps at which the next block, the full window, blocks behind it fall due."""
        self.size = policy.block_size
        self._policy = policy
        self._allocator = allocator
        self._prompt = KeyedPrompt(
            request.prompt_tokens,
            request.keys if policy.prefix_caching else (),
            tenant=request.tenant,
        )
        # Keys of its blocks behind those with a key that were kept when it gave way.
        self._own: list[bytes] = []
        # Tokens in the first sequence's table: those computed when it last needed a block.
        self._tabled = 0
        # Tokens of these sequences that lie in a block counted before; see `release`.
        self._duplicate = 0
        self._beams: random.Random | None = None

    @property
    def held(self) -> int:
        """Tokens of each sequence that the prompt's computation writes; it generates the next."""
        return self.request.prompt_tokens + self.generated

    @property
    def target(self) -> int:
        """Tokens that have to be in the cache before decoding: the prompt, and each sample's."""
        return self.request.prompt_tokens + self._policy.samples * self.generated

    def tokens_at(self, step: int) -> int:
        """Tokens of each sequence at the end of a step."""
        return self.base + step if self.last >= 0 else self._in_first(self.computed)

    def live(self, tokens: int) -> int:
        """Those of a sequence's tokens that attention still looks at."""
        window = self._policy.sliding_window
        return tokens if window is None or tokens < window else window

    # -- blocks ----------------------------------------------------------------------------------

    def _blocks(self, tokens: int) -> int:
        return _blocks(self.request, self._policy, tokens)

    def admission_blocks(self) -> tuple[int, int]:
        """Blocks that its admission takes, and blocks that can be had."""
        needed = self._blocks(self.held)
        if not self._policy.prefix_caching:
            return needed, self._allocator.num_free
        prompt_needs, available = self._allocator.blocks_for_admission(self._prompt)
        return needed - -(-self._prompt.num_tokens // self.size) + prompt_needs, available

    def chunk_blocks(self, chunk: int) -> int:
        """Blocks that computing `chunk` more tokens takes."""
        after = self.computed + chunk
        tokens = self.held if after == self.target else self._in_first(after)
        return self._blocks(tokens) - -(-self._tabled // self.size)

    def growth_blocks(self, step: int) -> int:
        """Blocks that the step takes, at whose end a new one has begun."""
        samples = self._policy.samples
        if (self.base + step - 1) % self.size == 0:
            return samples
        # Who shares a last block gets a copy of it, but for the last of them.
        return samples - len({self._row(sequence)[-1] for sequence in self.sequences})

    def held_blocks(self) -> int:
        """Distinct blocks that it holds."""
        return len({block for name in self.sequences for block in self._row(name) if block >= 0})

    # -- the course of things --------------------------------------------------------------------

    def cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache has."""
        if not self._policy.prefix_caching:
            return 0
        return self._allocator.cached_tokens(self._prompt)

    def admit(self, name: int, *, computed: int, chunk: int) -> int:
        """Take blocks for computed tokens and a chunk; returns those that others are using."""
        self.computed = computed
        found = self.cached_tokens()
        del self._own[max(0, found // self.size - len(self.request.keys)) :]
        least = found + 1 if self._policy.keeps_all else 0
        self._tabled = min(computed + chunk, max(self.request.prompt_tokens, least))
        hits = self._allocator.admit(name, self._prompt, num_tokens=self._tabled)
        self.sequences = [name]
        if not hits:
            return 0
        references = self._allocator.pool.reference_counts
        row = self._row(name)[: hits // self.size]
        return self.size * sum(references[block] > 1 for block in row)

    def extend_prompt(self) -> None:
        """Take the blocks for what was computed of the prompt."""
        tokens = self._in_first(self.computed)
        if tokens > self._tabled:
            self._allocator.extend(self.sequences[0], tokens - self._tabled)
            self._tabled = tokens

    def decode_from(self, step: int, names: Iterator[int]) -> int:
        """Start decoding, a token for each sequence; returns tokens in blocks counted before."""
        prompt, output = self.request.prompt_tokens, self.request.output_tokens
        samples, extend = self._policy.samples, self._allocator.extend
        tokens = self.held
        first = self.sequences[0]
        if tokens > self._tabled and samples == 1:
            extend(first, tokens - self._tabled)
        elif samples > 1:
            if prompt > self._tabled:
                extend(first, prompt - self._tabled)
            for _ in range(samples - 1):
                name = next(names)
                self._allocator.fork(first, name)
                self.sequences.append(name)
            if tokens > prompt:
                for name in self.sequences:
                    extend(name, tokens - prompt)
            if self._policy.beam_keep is not None:
                self._beams = random.Random(self._policy.seed << 32 | self.number)
        self._tabled = tokens
        # Who has written nothing yet reads the last block of the prompt with the others.
        shared = prompt if tokens == prompt else prompt - prompt % self.size
        self._duplicate = (samples - 1) * shared
        self.base = tokens - step
        self.last = prompt + output - 1 - self.base
        return self._duplicate

    def next_growth(self, step: int) -> int:
        """Step at which it needs to be looked at again, after `step`."""
        # Beams may part at any step, samples at their first token; others need something only where
        # a block begins.
        tokens = self.base + step
        parting = len(self.sequences) > 1 and tokens == self.request.prompt_tokens
        return step + 1 if parting or self._beams is not None else step + 1 + -tokens % self.size

    def reshuffle(self, names: Iterator[int]) -> None:
        """Let each beam go on from one drawn at random, in some of the steps."""
        random_ = self._beams
        if random_ is None or random_.random() < (self._policy.beam_keep or 0):
            return
        parents = random_.choices(self.sequences, k=len(self.sequences))
        heirs: list[int] = []
        for parent in parents:
            if parent in heirs:
                name = next(names)
                self._allocator.fork(parent, name)
                heirs.append(name)
            else:
                heirs.append(parent)
        for name in self.sequences:
            if name not in heirs:
                self._allocator.free(name)
        self.sequences = heirs

    def grow(self, step: int) -> int:
        """Bring the tables to what the sequences have after a step; returns more tokens counted
        before.
        """
        tokens = self.base + step
        more = tokens - self._tabled
        for name in self.sequences:
            self._allocator.extend(name, more)
        self._tabled = tokens
        if len(self.sequences) == 1:
            return 0
        # Each has written into its last block, so that is its own; all others are full.
        samples, last = len(self.sequences), (tokens - 1) % self.size + 1
        physical = (self.held_blocks() - samples) * self.size + samples * last
        before, self._duplicate = self._duplicate, samples * tokens - physical
        return self._duplicate - before

    def suspend(self, step: int) -> None:
        """Note what it had at the end of `step`, to go on from there."""
        if self.last >= 0:
            self.generated = self.base + step + 1 - self.request.prompt_tokens
            self.computed = self.target - len(self.sequences)
        self.lost = max(self.lost, self.computed)

    def release(self, tokens: int) -> int:
        """Give up all blocks, of so many tokens each; returns the tokens counted elsewhere, too, or
        several times.
        """
        allocator = self._allocator
        duplicate = self._duplicate
        if self._policy.prefix_caching:
            # Others come and go, so what is shared is counted when it ends.
            duplicate = 0
            references = allocator.pool.reference_counts
            full, rest = divmod(self.request.prompt_tokens, self.size)
            for name in self.sequences:
                row = self._row(name)
                duplicate += self.size * sum(references[block] > 1 for block in row[:full])
                duplicate += rest * sum(references[block] > 1 for block in row[full : full + 1])
                allocator.free(name, **self._keep(name, tokens))
        else:
            for name in self.sequences:
                allocator.free(name)
        self.sequences = []
        self._tabled = self._duplicate = 0
        self._beams = None
        self.computed = 0
        self.last = self.grows = self.saturates = self.releases = -1
        return duplicate

    def _keep(self, name: int, tokens: int) -> dict[str, Any]:
        """Keys for the full blocks of so many tokens that have none, and where they begin."""
        request = self.request
        first = len(request.keys) + len(self._own)
        full = tokens // self.size
        if not self._policy.keeps_all or full <= first:
            own = []
        else:
            own = [(name << 32 | at).to_bytes(16) for at in range(first, full)]
            self._own += own
        if self._policy.keeps_all:
            self._prompt = KeyedPrompt(self.held, request.keys, request.tenant, own=self._own)
        return {"own": own, "first": first}

    def _in_first(self, computed: int) -> int:
        """Of the tokens computed towards `target`, those that the first sequence has so far."""
        # The others' own tokens are counted with the prompt, but have blocks only once they are.
        return computed if self._policy.samples == 1 else min(computed, self.request.prompt_tokens)

    def _row(self, name: int) -> list[int]:
        row: list[int] = self._allocator.block_table([name])[0].tolist()
        return row
