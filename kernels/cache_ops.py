"""Cache write by slot mapping, with optional float8 quantisation, and block copy, in Triton.

Same signatures and results, bit for bit, as `paged.cache.write_slots` and `copy_blocks`; sizes
and slots are not checked, because a check would wait for the device.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

COPY_BYTES: Final = 4096
"""Bytes of keys, and as many of values, that one program of `copy_kernel` moves: 16 for each lane
of four warps of 64, as AMD has them, and 32 for each lane of NVIDIA's."""

LANE_BYTES: Final = 16
"""Bytes of a token's keys that one lane of `write_kernel` moves: the widest load there is."""

MAX_WARPS: Final = 8


@triton.jit
def write_kernel(
    new_keys,
    new_values,
    key_cache,
    value_cache,
    slot_mapping,
    k_scale,
    v_scale,
    largest,
    stride_token_k,
    stride_head_k,
    stride_token_v,
    stride_head_v,
    stride_block_kc,
    stride_slot_kc,
    stride_head_kc,
    stride_block_vc,
    stride_slot_vc,
    stride_head_vc,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUANTISE: tl.constexpr,
):
    """Program (token): all its heads."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    block = slot // BLOCK_SIZE
    offset = slot % BLOCK_SIZE
    head = tl.arange(0, BLOCK_HEADS)
    dim = tl.arange(0, BLOCK_D)
    real = (head < NUM_HEADS)[:, None] & (dim < HEAD_DIM)[None, :]
    keys_at = new_keys + token * stride_token_k + head[:, None] * stride_head_k + dim[None, :]
    values_at = new_values + token * stride_token_v + head[:, None] * stride_head_v + dim[None, :]
    keys = tl.load(keys_at, mask=real, other=0.0)
    values = tl.load(values_at, mask=real, other=0.0)
    if QUANTISE:
        # A plain division is approximate on a GPU; the cache must hold the same bits everywhere.
        keys = tl.div_rn(keys.to(tl.float32), tl.zeros_like(keys).to(tl.float32) + k_scale)
        values = tl.div_rn(values.to(tl.float32), tl.zeros_like(values).to(tl.float32) + v_scale)
        keys = tl.clamp(keys, -largest, largest, propagate_nan=tl.PropagateNan.ALL)
        values = tl.clamp(values, -largest, largest, propagate_nan=tl.PropagateNan.ALL)
    key_cache += block * stride_block_kc + offset * stride_slot_kc
    value_cache += block * stride_block_vc + offset * stride_slot_vc
    key_to = key_cache + head[:, None] * stride_head_kc + dim[None, :]
    value_to = value_cache + head[:, None] * stride_head_vc + dim[None, :]
    tl.store(key_to, keys.to(key_cache.dtype.element_ty), mask=real)
    tl.store(value_to, values.to(value_cache.dtype.element_ty), mask=real)


@triton.jit
def copy_kernel(
    key_cache,
    value_cache,
    pairs,
    stride_block_k,
    stride_slot_k,
    stride_block_v,
    stride_slot_v,
    SLOT_ELEMENTS: tl.constexpr,
    BLOCK_ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (pair, part of a block). Heads of a slot are contiguous; slots may be apart."""
    pair = tl.program_id(0).to(tl.int64)
    source = tl.load(pairs + 2 * pair)
    destination = tl.load(pairs + 2 * pair + 1)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot = element // SLOT_ELEMENTS
    within = element % SLOT_ELEMENTS
    real = element < BLOCK_ELEMENTS
    key_at = slot * stride_slot_k + within
    value_at = slot * stride_slot_v + within
    keys = tl.load(key_cache + source * stride_block_k + key_at, mask=real, other=0)
    values = tl.load(value_cache + source * stride_block_v + value_at, mask=real, other=0)
    tl.store(key_cache + destination * stride_block_k + key_at, keys, mask=real)
    tl.store(value_cache + destination * stride_block_v + value_at, values, mask=real)


def write_slots(
    key_cache: Tensor,
    value_cache: Tensor,
    keys: Tensor,
    values: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Store the keys and values of tokens at their slots; see `paged.cache.write_slots`.

    A negative slot marks padding. Slots are int64: a cache may have more than 2^31 elements.
    """
    num_tokens, num_heads, head_dim = keys.shape
    if not num_tokens:
        return
    quantised = key_cache.element_size() == 1
    block_heads, block_d = triton.next_power_of_2(num_heads), triton.next_power_of_2(head_dim)
    token_bytes = block_heads * block_d * keys.element_size()
    write_kernel[(num_tokens,)](
        keys,
        values,
        key_cache,
        value_cache,
        slot_mapping,
        k_scale,
        v_scale,
        torch.finfo(key_cache.dtype).max,
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        BLOCK_HEADS=block_heads,
        BLOCK_D=block_d,
        BLOCK_SIZE=key_cache.shape[1],
        QUANTISE=quantised,
        num_warps=min(max(token_bytes // (LANE_BYTES * _lanes_of_a_warp()), 1), MAX_WARPS),
    )


def copy_blocks(key_cache: Tensor, value_cache: Tensor, pairs: Tensor) -> None:
    """Copy whole blocks within the cache; see `paged.cache.copy_blocks`.

    The heads of a slot are contiguous, and so is `pairs`. Raises ValueError: if the heads are not.
    """
    if not pairs.numel():
        return
    _, block_size, num_heads, head_dim = key_cache.shape
    if key_cache.stride()[2:] != (head_dim, 1) or value_cache.stride()[2:] != (head_dim, 1):
        raise ValueError(
            f"caches with strides {key_cache.stride()} and {value_cache.stride()}: "
            f"the heads of a slot must be contiguous"
        )
    # A copy moves bits: integers of the same size need no arithmetic on the element type.
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[key_cache.element_size()]
    slot_elements = num_heads * head_dim
    block_elements = block_size * slot_elements
    block = min(COPY_BYTES // key_cache.element_size(), triton.next_power_of_2(block_elements))
    copy_kernel[(pairs.shape[0], triton.cdiv(block_elements, block))](
        key_cache.view(integers),
        value_cache.view(integers),
        pairs,
        *key_cache.stride()[:2],
        *value_cache.stride()[:2],
        SLOT_ELEMENTS=slot_elements,
        BLOCK_ELEMENTS=block_elements,
        BLOCK=block,
    )


def _lanes_of_a_warp() -> int:
    """Threads of a warp, or of a wave: 64 on AMD. Nothing depends on it in the interpreter."""
    if triton.knobs.runtime.interpret:
        return 32
    lanes: int = triton.runtime.driver.active.get_current_target().warp_size
    return lanes
