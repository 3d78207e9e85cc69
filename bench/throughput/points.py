"""What is timed: one attention call over a batch, as data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Final

from bench.workloads.builtin import STREAM_LAWS, builtin_stream
from bench.workloads.running import running_lengths
from reference.attention.problem import MAX_REQUESTS, AttentionProblem, InvalidProblem, Request
from reference.attention.size import shared_blocks
from reference.errors import BadInput

_UNIFORM: Final = re.compile(r"([1-9]\d{0,6})x([1-9]\d{0,8})")
_RAGGED: Final = re.compile(r"([a-z][a-z-]*):([1-9]\d{0,5})")

ALIASES: Final = {"azure": "azure-conv", "mooncake": "mooncake-conv"}
"""Short names of built-in streams."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One attention call."""

    batch: str
    """As it was asked for: `64x4096`, or `azure-conv:32`."""
    problem: AttentionProblem
    """The call. Its seed is that of the lengths and of the tensors."""

    @property
    def kind(self) -> str:
        """`decode` or `prefill`."""
        return "prefill" if self.problem.max_query_len > 1 else "decode"

    @property
    def ragged(self) -> bool:
        """Whether the sequences have lengths of their own."""
        return len(set(self.problem.requests)) > 1

    @property
    def name(self) -> str:
        """All that tells it from other points, `decode 64x4096 h8 g4 d128 b16 bf16`."""
        problem = self.problem
        sizes = f"h{problem.num_kv_heads} g{problem.group_size} d{problem.head_dim}"
        if problem.rope is not None:
            sizes += f" rope={problem.rope}"
        if problem.shared_prefix:
            sizes += f" shared={problem.shared_prefix}"
        name = f"{self.kind} {self.batch} {sizes} b{problem.block_size} {problem.dtype}"
        return f"{name} kv={problem.kv_dtype}" if problem.quantised else name

    @property
    def bytes_per_token(self) -> int:
        """Of the keys and values of one token; a latent record is both, and counts once."""
        problem = self.problem
        elements = problem.num_kv_heads * problem.head_dim * problem.torch_kv_dtype.itemsize
        return elements if problem.kind == "latent" else 2 * elements

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values that some query sees, each once."""
        problem = self.problem
        shared = sum(shared_blocks(problem)) * problem.block_size
        return (problem.cache_tokens - shared) * self.bytes_per_token

    @cached_property
    def flops(self) -> int:
        """Multiplications and additions of the two products, over the keys that a query sees."""
        seen = sum(
            # The queries are a sequence's last; the first of them sees seq_len - query_len + 1.
            request.query_len * (2 * request.seq_len - request.query_len + 1) // 2
            for request in self.problem.requests
        )
        sizes = self.problem.head_dim + self.problem.value_size
        return 2 * self.problem.num_q_heads * sizes * seen

    @property
    def intensity(self) -> float:
        """Floating-point operations for each byte of keys and values."""
        return self.flops / self.kv_bytes


def decode_requests(batch: str, *, seed: int = 0) -> tuple[Request, ...]:
    """Requests of one token each: `BATCHxCONTEXT`, or `STREAM:BATCH`, lengths from a stream."""
    if match := _UNIFORM.fullmatch(batch):
        return (Request(1, int(match[2])),) * _sequences("--batch", batch, match[1])
    match = _RAGGED.fullmatch(batch)
    name = ALIASES.get(match[1], match[1]) if match else ""
    if match is None or name not in STREAM_LAWS:
        raise BadInput(
            f"--batch {batch}: give BATCHxCONTEXT, as in 64x4096, or STREAM:BATCH, as in "
            f"azure-conv:32; streams are {', '.join(STREAM_LAWS)}"
        )
    sequences = _sequences("--batch", batch, match[2])
    lengths = running_lengths(builtin_stream(name), sequences, seed=seed)
    return tuple(Request(1, length) for length in sorted(lengths, reverse=True))


def prefill_requests(batch: str) -> tuple[Request, ...]:
    """Whole prompts, `BATCHxTOKENS`."""
    match = _UNIFORM.fullmatch(batch)
    if match is None:
        raise BadInput(f"--prefill {batch}: give BATCHxTOKENS, as in 16x2048")
    return (Request(int(match[2]), int(match[2])),) * _sequences("--prefill", batch, match[1])


def _sequences(option: str, batch: str, count: str) -> int:
    if int(count) > MAX_REQUESTS:
        raise BadInput(f"{option} {batch}: {count} sequences; give {MAX_REQUESTS:,} at most")
    return int(count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Points by their parts: every combination of them."""

    batches: Sequence[str] = ()
    prefills: Sequence[str] = ()
    """See `decode_requests` and `prefill_requests`."""
    block_sizes: Sequence[int] = (16,)
    heads: Sequence[tuple[int, int]] = ((8, 4),)
    """(KV heads, query heads for each)."""
    head_dims: Sequence[int | tuple[int, int]] = (128,)
    """Head sizes, or of a latent record the value and the rotary part."""
    dtypes: Sequence[str] = ("bf16",)
    kv_dtypes: Sequence[str] = ("",)
    """As in `AttentionProblem`; a cache dtype is empty for the query's."""
    shared: int = 0
    """Tokens that the sequences of a batch begin with in common."""
    seed: int = 0
    """Of the lengths and the tensors."""

    def points(self) -> tuple[Point, ...]:
        """All points, decode first."""
        batches = [(batch, decode_requests(batch, seed=self.seed)) for batch in self.batches]
        batches += [(batch, prefill_requests(batch)) for batch in self.prefills]
        if not batches:
            raise BadInput("no batch: give --batch 64x4096 or --prefill 16x2048")
        sizes = (self.heads, self.head_dims, self.dtypes, self.kv_dtypes, self.block_sizes)
        found = []
        for (batch, requests), (heads, head_dim, dtype, kv, block) in product(
            batches, product(*sizes)
        ):
            latent, rope = head_dim if isinstance(head_dim, tuple) else (head_dim, None)
            try:
                problem = AttentionProblem(
                    requests=requests,
                    num_kv_heads=heads[0],
                    group_size=heads[1],
                    head_dim=latent + (rope or 0),
                    rope=rope,
                    block_size=block,
                    dtype=dtype,
                    kv_dtype=kv,
                    shared_prefix=self.shared,
                    seed=self.seed,
                )
            except InvalidProblem as error:
                raise BadInput(f"{batch}: {error}") from None
            found.append(Point(batch=batch, problem=problem))
        return tuple(dict.fromkeys(found))
