"""What a request stream needs of a KV cache, by arithmetic: contiguous reservation beside paging.

Everything is counted in *slot-steps*: a slot holds the keys and values of one token, a step is one
decode step of one request. A request with a prompt of `i` tokens and an output of `o` is resident
for `o` steps, with `i + 1, i + 2, ..., i + o` tokens in the cache. Over those steps every slot that
is allocated to it is in one of four states, and the four add up exactly:

    token + reserve + internal + roundup = allocated

* `token`: holds a token;
* `reserve`: empty, and the request will fill it later;
* `internal`: empty, and the request will never fill it;
* `roundup`: empty, and beyond what was asked for (an arena that hands out only certain sizes).

The classes are those of PagedAttention (Kwon et al., SOSP 2023, section 3.1), with rounding apart.
Paging allocates a block when its first token is written, so the tail of a last block is `internal`
at that step whoever fills it later, and there is neither `reserve` nor `roundup`. What no request
owns (holes and the pool's remainder) depends on the order of events and takes a simulation; here
each request stands alone. Sums are exact integers: no step is looped over, nothing is sampled.

A token counts here from the step that generates it, as in the paper. In the paged servers of
`paged` it counts from the next one on, which writes its key and value.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bench.workloads.stream import RequestStream

DEFAULT_BLOCK_SIZE: Final = 16
"""Tokens per block where nothing else is asked for; the PagedAttention paper's default."""

POOL_BYTES: Final = 24 * 2**30
"""Pool for which reports say how many requests fit: what a server with 24 GiB for its cache serves
at once."""

# A request has less than 2**31 tokens (stream.MAX_TOKENS). With reservations and blocks no larger
# than 2**31, no product below exceeds 2**31 * 2**31, so int64 holds what one request takes.
_MAX_GRANULE: Final = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGeometry:
    """What one token takes in the cache.

    The default is Llama-3-8B in a 16-bit type: 2 x 32 layers x 8 KV heads x 128 x 2 bytes = 131,072
    bytes, 128 KiB (Llama 3 report, arXiv 2407.21783, table 3; the product as in vAttention, arXiv
    2405.04437).
    """

    num_layers: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    bytes_per_element: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise ValueError(f"{field.name} is {value}; it must be at least 1")

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one slot: keys and values, all layers and KV heads."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.bytes_per_element


LLAMA_3_8B: Final = CacheGeometry()
"""Llama-3-8B in a 16-bit type, 131,072 bytes a token."""


class MemoryNeed(BaseModel):
    """What a stream needs of the cache under one policy."""

    model_config = ConfigDict(frozen=True)

    policy: Literal["contiguous", "paged"]
    granule_tokens: int
    """Slots in what is handed out at once: a whole reservation, or a block."""
    token: int
    reserve: int
    internal: int
    roundup: int
    allocated: int
    """Slot-steps, as the module's text defines them."""
    waste_fraction: float
    """Share of the allocated slot-steps that holds no token, 0 to 1."""
    bytes_per_request: float
    """Bytes allocated per running request, averaged over its steps."""
    requests_in_pool: int
    """Running requests that the pool holds at once.

    Exact for reservations, which are all alike. For paging it is the mean: requests of average
    size at an average moment, whole blocks only, with no room kept back against preemption.
    """
    request_steps: int = Field(default=0, exclude=True)
    """Steps of all requests together, the tokens that they generate. Not in the stored record."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        classes = (self.token, self.reserve, self.internal, self.roundup)
        if min(classes) < 0 or sum(classes) != self.allocated:
            raise ValueError(
                f"token {self.token} + reserve {self.reserve} + internal {self.internal} + roundup "
                f"{self.roundup} is {sum(classes)}, not the {self.allocated} slot-steps allocated; "
                f"every allocated slot must be in one class"
            )
        return self

    @property
    def waste(self) -> int:
        """Slot-steps that are allocated and hold no token."""
        return self.allocated - self.token

    @property
    def tokens_per_request(self) -> float:
        """Tokens in the cache per running request, averaged over its steps."""
        return self.token / self.request_steps


def default_max_model_len(stream: RequestStream) -> int:
    """Find the smallest power of two that holds the longest request of the stream, in tokens."""
    return 1 << (max(1, int(stream.final_tokens.max())) - 1).bit_length()


def contiguous_need(
    stream: RequestStream,
    *,
    max_model_len: int | None = None,
    chunk_tokens: int | None = None,
    geometry: CacheGeometry = LLAMA_3_8B,
    pool_bytes: int = POOL_BYTES,
) -> MemoryNeed:
    """Count what reserving the maximal length for every request takes.

    Parameters
    ----------
    stream
        The requests.
    max_model_len
        Tokens reserved for each; None is `default_max_model_len`.
    chunk_tokens
        Slots that the arena hands out for one reservation, where it rounds up (a buddy allocator:
        the next power of two); None is `max_model_len`, no rounding.
    geometry
        What one token takes.
    pool_bytes
        Pool for which `requests_in_pool` is given.

    Raises ValueError where a request does not fit, the chunk is smaller than the reservation, a
    figure is out of range, or the stream generates nothing.
    """
    final, output = stream.final_tokens, stream.output_tokens
    reserved = default_max_model_len(stream) if max_model_len is None else max_model_len
    chunk = reserved if chunk_tokens is None else chunk_tokens
    _check_granule("max_model_len", reserved)
    _check_granule("chunk_tokens", chunk)
    if chunk < reserved:
        raise ValueError(f"chunk_tokens is {chunk}; it must hold max_model_len, {reserved} tokens")
    if (longer := np.flatnonzero(final > reserved)).size:
        raise ValueError(
            f"request {longer[0]} of {stream.name!r} ends with {final[longer[0]]} tokens, more "
            f"than max_model_len {reserved}; raise it, or drop such requests with stream.fitting"
        )
    request_steps = _request_steps(stream)
    return _need(
        "contiguous",
        granule_tokens=chunk,
        request_steps=request_steps,
        token=_exact_sum(_token_steps(stream)),
        # o - 1 slots are still to be filled at the first step, none at the last.
        reserve=_exact_sum(output * (output - 1) // 2),
        internal=_exact_sum(output * (reserved - final)),
        roundup=request_steps * (chunk - reserved),
        allocated=request_steps * chunk,
        bytes_per_token=geometry.bytes_per_token,
        pool_bytes=pool_bytes,
    )


def paged_need(
    stream: RequestStream,
    *,
    block_size: int = DEFAULT_BLOCK_SIZE,
    geometry: CacheGeometry = LLAMA_3_8B,
    pool_bytes: int = POOL_BYTES,
) -> MemoryNeed:
    """Count what paging takes: each request holds the blocks that its tokens have reached.

    No block is shared, since lengths alone do not say what could be. Raises ValueError for a block
    size out of range, or a stream that generates nothing. `geometry` and `pool_bytes` as in
    `contiguous_need`.
    """
    _check_granule("block_size", block_size)
    token = _exact_sum(_token_steps(stream))
    allocated = block_size * _exact_sum(
        _blocks_up_to(stream.final_tokens, block_size)
        - _blocks_up_to(stream.prompt_tokens, block_size)
    )
    return _need(
        "paged",
        granule_tokens=block_size,
        request_steps=_request_steps(stream),
        token=token,
        reserve=0,
        internal=allocated - token,
        roundup=0,
        allocated=allocated,
        bytes_per_token=geometry.bytes_per_token,
        pool_bytes=pool_bytes,
    )


def _need(
    policy: Literal["contiguous", "paged"],
    *,
    granule_tokens: int,
    request_steps: int,
    allocated: int,
    bytes_per_token: int,
    pool_bytes: int,
    **classes: int,
) -> MemoryNeed:
    if pool_bytes < 0:
        raise ValueError(f"pool_bytes is {pool_bytes}; it must not be negative")
    granules = pool_bytes // (granule_tokens * bytes_per_token)
    return MemoryNeed(
        policy=policy,
        granule_tokens=granule_tokens,
        allocated=allocated,
        waste_fraction=(allocated - classes["token"]) / allocated,
        bytes_per_request=allocated / request_steps * bytes_per_token,
        requests_in_pool=granules * granule_tokens * request_steps // allocated,
        request_steps=request_steps,
        **classes,
    )


def _check_granule(name: str, value: int) -> None:
    if not 1 <= value <= _MAX_GRANULE:
        raise ValueError(f"{name} is {value} tokens; it must be from 1 to {_MAX_GRANULE}")


def _request_steps(stream: RequestStream) -> int:
    if not (steps := _exact_sum(stream.output_tokens)):
        raise ValueError(
            f"no request of {stream.name!r} generates a token, so none is ever resident; "
            f"memory over time needs outputs"
        )
    return steps


def _token_steps(stream: RequestStream) -> NDArray[np.int64]:
    """Tokens held by each request, summed over its steps: (i + 1) + ... + (i + o)."""
    prompt, output = stream.prompt_tokens, stream.output_tokens
    return output * prompt + output * (output + 1) // 2


def _blocks_up_to(tokens: NDArray[np.int64], block_size: int) -> NDArray[np.int64]:
    """Sum the blocks that 1 token needs, 2 need, ... and `tokens` need."""
    full, rest = np.divmod(tokens, block_size)
    steps: NDArray[np.int64] = block_size * (full * (full + 1) // 2) + rest * (full + 1)
    return steps


def _exact_sum(values: NDArray[np.int64]) -> int:
    """Sum without overflow: the halves of int64 entries cannot, for fewer than 2**31 of them."""
    high, low = np.divmod(values, 2**32)
    return int(high.sum()) * 2**32 + int(low.sum())
