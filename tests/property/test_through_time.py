"""Pool, tables, prefix index, cache and kernel together, through time.

Sequences are admitted, grow, fork, end and push each other out of the pool. After every step the
attention of every sequence, read through its block table, is compared with a contiguous twin that
knows nothing of blocks. Blocks that belong to nobody are filled with NaN at once.
"""

import hashlib
from functools import cache

import torch
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

import kernels.interpreter  # noqa: F401 - corrects the interpreter
from helpers.profiles import examples
from kernels import attention as triton_attention
from kernels import cache_ops
from paged import attention as torch_attention
from paged import cache as torch_cache
from paged.allocator import PagedAllocator
from paged.cache import KVCache
from paged.errors import OutOfBlocks
from reference.attention.contract import PagedBatch
from reference.attention.inputs import Inputs
from reference.attention.problem import AttentionProblem, Request
from reference.attention.tolerance import worst_excess
from reference.attention.truth import attend

HEADS, GROUP, HEAD_DIM = 2, 2, 16

# Prompts made of few tokens, so that equal prefixes, and prefixes one token apart, are common.
tokens = st.lists(st.integers(0, 1), max_size=14)


@cache
def content_of(prefix: bytes) -> torch.Tensor:
    """Key and value of a token, [2, heads, head_dim]: like a model's, they depend on its prefix."""
    seed = int.from_bytes(hashlib.blake2b(prefix, digest_size=6).digest(), "big")
    return torch.randn(2, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


def contents(tokens_so_far: list[int], start: int) -> torch.Tensor:
    """[2, num_tokens - start, heads, head_dim] of the tokens from `start`."""
    raw = bytes(tokens_so_far)
    parts = [content_of(raw[: at + 1]) for at in range(start, len(raw))]
    return torch.stack(parts, dim=1) if parts else torch.zeros(2, 0, HEADS, HEAD_DIM)


class Serving(RuleBasedStateMachine):
    """An engine's step, one operation at a time; subclasses name the kernel."""

    attention = staticmethod(torch_attention.paged_attention)
    write_slots = staticmethod(torch_cache.write_slots)
    copy_blocks = staticmethod(torch_cache.copy_blocks)

    sequences = Bundle("sequences")

    @initialize(
        num_blocks=st.integers(1, 14),
        block_size=st.sampled_from((4, 1, 2)),
        prefix_caching=st.booleans(),
    )
    def start(self, num_blocks, block_size, prefix_caching):
        self.allocator = PagedAllocator(num_blocks, block_size, prefix_caching=prefix_caching)
        self.cache = KVCache.allocate(
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=HEADS,
            head_dim=HEAD_DIM,
            dtype=torch.float32,
        )
        self.twins: dict[int, list[int]] = {}
        self.names = 0
        self.poison_free_blocks()

    @rule(target=sequences, prompt=tokens)
    def admit(self, prompt):
        name = self.new_name()
        try:
            cached = self.allocator.admit(name, prompt)
        except OutOfBlocks:
            return name
        self.twins[name] = list(prompt)
        self.write(name, start=cached)
        self.compare(queries={name: len(prompt) - cached})
        return name

    @rule(target=sequences, parent=sequences, more=tokens)
    def admit_a_continuation(self, parent, more):
        return self.admit([*self.twins.get(parent, []), *more])

    @rule(name=sequences, new=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def append(self, name, new):
        if name not in self.twins:
            return
        before = len(self.twins[name])
        try:
            self.allocator.append(name, new)
        except OutOfBlocks:
            return
        self.twins[name] += new
        self.write(name, start=before)
        self.compare(queries={name: len(new)})

    @rule(target=sequences, parent=sequences)
    def fork(self, parent):
        name = self.new_name()
        if parent in self.twins:
            self.allocator.fork(parent, name)
            self.twins[name] = list(self.twins[parent])
            self.compare()
        return name

    @rule(name=consumes(sequences))
    def free(self, name):
        if self.twins.pop(name, None) is not None:
            self.allocator.free(name)
            self.compare()

    @rule()
    def reset_prefix_cache(self):
        self.allocator.reset_prefix_cache()
        self.compare()

    def teardown(self):
        for name in list(getattr(self, "twins", ())):
            self.free(name)
        if hasattr(self, "allocator"):
            assert self.allocator.num_used == 0

    def new_name(self):
        self.names += 1
        return self.names

    def write(self, name, *, start):
        """Carry out the copies that are due, then store the keys and values of new tokens."""
        copies = torch.tensor(self.allocator.take_copies(), dtype=torch.int64).reshape(-1, 2)
        self.copy_blocks(self.cache.key_cache, self.cache.value_cache, copies)
        slots = torch.from_numpy(self.allocator.slots(name, start=start))
        keys, values = contents(self.twins[name], start)
        self.write_slots(self.cache.key_cache, self.cache.value_cache, keys, values, slots)

    def poison_free_blocks(self):
        pool = self.allocator.pool
        kept = set(pool.eviction_order())
        free = [b for b, n in enumerate(pool.reference_counts) if n == 0 and b not in kept]
        self.cache.key_cache[free] = torch.nan
        self.cache.value_cache[free] = torch.nan

    def compare(self, queries=None):
        """Attention of every sequence's last tokens, paged, against its contiguous twin."""
        self.poison_free_blocks()
        names = sorted(self.twins)
        if not names:
            return
        requests = tuple(
            Request(min((queries or {}).get(name, 1), length) if length else 1, length)
            for name in names
            for length in [len(self.twins[name])]
        )
        problem = AttentionProblem(
            requests=requests,
            num_kv_heads=HEADS,
            group_size=GROUP,
            head_dim=HEAD_DIM,
            block_size=self.allocator.block_size,
            dtype="fp32",
        )
        query = torch.randn(
            problem.num_tokens,
            problem.num_q_heads,
            HEAD_DIM,
            generator=torch.Generator().manual_seed(len(names)),
        )
        keys, values = torch.cat([contents(self.twins[name], 0) for name in names], dim=1)
        outside = self.allocator.num_blocks + 5
        table = self.allocator.block_table(names, fill=outside)
        batch = PagedBatch(
            query=query,
            key_cache=self.cache.key_cache,
            value_cache=self.cache.value_cache,
            block_table=torch.from_numpy(table),
            seq_lens=torch.tensor([r.seq_len for r in requests], dtype=torch.int32),
            query_start_loc=torch.tensor(problem.query_starts, dtype=torch.int32),
            out=torch.full_like(query, torch.nan),
            lse=torch.full(query.shape[:2], torch.nan),
            max_query_len=problem.max_query_len,
            max_seq_len=problem.max_seq_len,
            scale=problem.softmax_scale,
        )
        self.attention(batch)
        truth = attend(Inputs(problem, query, keys, values, None, None))
        excess = worst_excess(problem, truth, batch.out, batch.lse)
        assert excess is None, f"{problem}: {excess}"


class ServingOnTriton(Serving):
    """The same engine on the Triton kernels, interpreted."""

    attention = staticmethod(triton_attention.paged_attention)
    write_slots = staticmethod(cache_ops.write_slots)
    copy_blocks = staticmethod(cache_ops.copy_blocks)


TestServingOnTorch = Serving.TestCase
TestServingOnTorch.settings = examples(20, stateful_step_count=40)

TestServingOnTriton = ServingOnTriton.TestCase
TestServingOnTriton.settings = examples(5, stateful_step_count=20)
