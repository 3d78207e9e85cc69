"""Time of one attention call: contiguous and paged, by block size and context.

The shape is one layer of Llama-3-8B in bfloat16: 8 KV heads, 4 query heads to each, head size 128.
Every sequence has `context_tokens` tokens in the cache; keys and values are random, pages shuffled.

`time_decode` is one query token for each of 8 sequences. `time_prefill` is a chunk of 128 query
tokens at the end of one sequence, as in chunked prefill.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, TypeVar

import torch

from bench.check.timing import DecodeShape, decode_batches
from paged.attention import paged_attention
from reference.attention.contiguous import ContiguousBatch, contiguous_attention
from reference.attention.contract import AttentionCall, PagedBatch

BLOCK_SIZES: Final = (1, 16, 128)
CONTEXT_TOKENS: Final = (512, 2048)
SEED: Final = 0

GPU_CALLS: Final = 20
"""Calls in one sample on a GPU, queued before waiting once: launching overlaps with computing."""

_Contiguous = tuple[ContiguousBatch, ContiguousBatch]
_Paged = tuple[PagedBatch, PagedBatch]
_Call = TypeVar("_Call", bound=AttentionCall)


class ContiguousTorch:
    """`reference.attention.contiguous` on the CPU: what paging is compared with."""

    version = "1"
    params = (CONTEXT_TOKENS,)
    param_names = ("context_tokens",)
    rounds = 2
    repeat = (5, 20, 0.5)
    warmup_time = 0.1

    def setup(self, context_tokens: int) -> None:
        """Take the batches that this process has built."""
        (self.decode, self.prefill), _ = _batches(context_tokens)

    def time_decode(self, context_tokens: int) -> None:
        """One decode step of 8 sequences."""
        contiguous_attention(self.decode)

    def time_prefill(self, context_tokens: int) -> None:
        """One prefill chunk of 128 tokens."""
        contiguous_attention(self.prefill)


class PagedTorch:
    """`paged.attention` on the CPU."""

    version = "1"
    params = (BLOCK_SIZES, CONTEXT_TOKENS)
    param_names = ("block_size", "context_tokens")
    rounds = 2
    repeat = (5, 20, 0.5)
    warmup_time = 0.1

    def setup(self, block_size: int, context_tokens: int) -> None:
        """Take the batches that this process has built."""
        _, (self.decode, self.prefill) = _batches(context_tokens, block_size=block_size)

    def time_decode(self, block_size: int, context_tokens: int) -> None:
        """One decode step of 8 sequences."""
        paged_attention(self.decode)

    def time_prefill(self, block_size: int, context_tokens: int) -> None:
        """One prefill chunk of 128 tokens."""
        paged_attention(self.prefill)


class PagedTriton:
    """`kernels.attention`, compiled; not applicable without a CUDA device.

    64 sequences and chunks of 512 tokens: 1 GiB of keys and values, beyond any cache.
    """

    version = "1"
    params = (BLOCK_SIZES, (4096,))
    param_names = ("block_size", "context_tokens")
    rounds = 2
    repeat = (5, 20, 0.5)
    warmup_time = 0.1

    def setup(self, block_size: int, context_tokens: int) -> None:
        """Take the batches; raises NotImplementedError, asv's n/a, where nothing is compiled."""
        if not torch.cuda.is_available():
            raise NotImplementedError("needs a CUDA device")
        from kernels.attention import paged_attention as triton_attention
        from kernels.interpreter import interpreting

        if interpreting():
            raise NotImplementedError("needs compiled kernels: unset TRITON_INTERPRET")
        self.attention = triton_attention
        _, (self.decode, self.prefill) = _batches(
            context_tokens, block_size=block_size, num_seqs=64, chunk_tokens=512, device="cuda"
        )
        torch.cuda.synchronize()

    def time_decode(self, block_size: int, context_tokens: int) -> None:
        """Twenty decode steps of 64 sequences."""
        for _ in range(GPU_CALLS):
            self.attention(self.decode)
        torch.cuda.synchronize()

    def time_prefill(self, block_size: int, context_tokens: int) -> None:
        """Twenty prefill chunks of 512 tokens."""
        for _ in range(GPU_CALLS):
            self.attention(self.prefill)
        torch.cuda.synchronize()


@lru_cache(maxsize=1)
def _batches(
    context_tokens: int,
    *,
    block_size: int = 16,
    num_seqs: int = 8,
    chunk_tokens: int = 128,
    device: str = "cpu",
) -> tuple[_Contiguous, _Paged]:
    """Decode and prefill over the same tokens, in a contiguous cache and in shuffled pages."""
    shape = DecodeShape(
        batch_size=num_seqs,
        num_kv_heads=8,
        group_size=4,
        head_dim=128,
        block_size=block_size,
        dtype=torch.bfloat16,
    )
    lengths = [context_tokens] * num_seqs
    contiguous, paged = decode_batches(lengths, shape=shape, device=device, seed=SEED)
    rng = torch.Generator(device=device).manual_seed(SEED + 1)
    query = paged.query.new_empty(chunk_tokens, *paged.query.shape[1:]).normal_(generator=rng)
    return (
        (
            contiguous.replace(query=query[:num_seqs]),
            _first_sequence(contiguous, query).replace(
                key_cache=contiguous.key_cache[:1], value_cache=contiguous.value_cache[:1]
            ),
        ),
        (
            paged.replace(query=query[:num_seqs]),
            _first_sequence(paged, query).replace(
                block_table=paged.block_table[:1], max_query_len=chunk_tokens
            ),
        ),
    )


def _first_sequence(call: _Call, query: torch.Tensor) -> _Call:
    """The first sequence of a call, with `query` as the last of its tokens."""
    starts = torch.tensor([0, len(query)], dtype=torch.int32, device=query.device)
    return call.replace(
        query=query,
        seq_lens=call.seq_lens[:1],
        query_start_loc=starts,
        out=torch.empty_like(query),
    )
