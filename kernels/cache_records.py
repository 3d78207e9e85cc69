"""Cache write as records with a scale for each token and head, in Triton."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from reference.attention.codecs import views_of
from reference.attention.records import CODECS


@triton.jit
def store_record(
    row, codes, scale_at, DIM: tl.constexpr, BLOCK_D: tl.constexpr, INT4: tl.constexpr
):
    """Encode the row of a token and head: codes that share a scale, and the scale.

    An int4 scale has its zero point, the code of zero, in its low four bits.
    """
    if INT4:
        pair = tl.arange(0, BLOCK_D // 2)
        real = pair < DIM // 2
        even = tl.load(row + 2 * pair, mask=real, other=0.0).to(tl.float32)
        odd = tl.load(row + 2 * pair + 1, mask=real, other=0.0).to(tl.float32)
        span = tl.max(tl.maximum(tl.maximum(even, odd), 0.0), 0)
        least = tl.min(tl.minimum(tl.minimum(even, odd), 0.0), 0)
        bits = tl.maximum((span - least) / 15.0, 1e-6).to(tl.int32, bitcast=True) & -16
        step = bits.to(tl.float32, bitcast=True)
        zero = tl.minimum(tl.floor(-least / step + 0.5), 15.0)
        low = tl.clamp(tl.floor(even / step + zero + 0.5), 0.0, 15.0).to(tl.int32)
        high = tl.clamp(tl.floor(odd / step + zero + 0.5), 0.0, 15.0).to(tl.int32)
        tl.store(codes + pair, (low | (high << 4)).to(tl.uint8), mask=real)
        tl.store(scale_at, (bits | zero.to(tl.int32)).to(tl.float32, bitcast=True))
    else:
        dim = tl.arange(0, BLOCK_D)
        values = tl.load(row + dim, mask=dim < DIM, other=0.0).to(tl.float32)
        INTEGER: tl.constexpr = codes.dtype.element_ty == tl.int8
        largest = 127.0 if INTEGER else 448.0
        scale = tl.maximum(tl.max(tl.abs(values), 0) / largest, 1e-6)
        share = tl.clamp(values / scale, -largest, largest)
        if INTEGER:
            share = tl.floor(share + 0.5)
        tl.store(codes + dim, share.to(codes.dtype.element_ty), mask=dim < DIM)
        tl.store(scale_at, scale)


@triton.jit
def write_records_kernel(
    keys,
    values,
    key_codes,
    value_codes,
    key_scales,
    value_scales,
    slot_mapping,
    new_strides,
    code_strides,
    scale_strides,
    DIMS: tl.constexpr,
    BLOCK_DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    INT4: tl.constexpr,
):
    """Program (token, head). Strides are those of keys and then of values."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    block = slot // BLOCK_SIZE
    offset = slot % BLOCK_SIZE
    sk, sv = code_strides[:3], code_strides[3:]
    tk, tv = scale_strides[:3], scale_strides[3:]
    store_record(
        keys + token * new_strides[0] + head * new_strides[1],
        key_codes + block * sk[0] + offset * sk[1] + head * sk[2],
        key_scales + block * tk[0] + offset * tk[1] + head * tk[2],
        DIMS[0],
        BLOCK_DIMS[0],
        INT4,
    )
    store_record(
        values + token * new_strides[2] + head * new_strides[3],
        value_codes + block * sv[0] + offset * sv[1] + head * sv[2],
        value_scales + block * tv[0] + offset * tv[1] + head * tv[2],
        DIMS[1],
        BLOCK_DIMS[1],
        INT4,
    )


def write_records(
    codec: str, caches: Sequence[Tensor], new: Sequence[Tensor], slots: Tensor
) -> None:
    """Store keys and values [num_tokens, num_heads, dim] as records with a scale of their own.

    `caches` are uint8 pages, [num_blocks, block_size, num_heads, bytes]. Rounded is to the nearest,
    and up between two codes.
    """
    num_tokens, num_heads, _ = new[0].shape
    if not num_tokens:
        return
    dims = tuple(each.shape[2] for each in new)
    views = [views_of(codec, cache, dim) for cache, dim in zip(caches, dims, strict=True)]
    write_records_kernel[(num_tokens, num_heads)](
        *new,
        *(codes for codes, _ in views),
        *(scales for _, scales in views),
        slots,
        tuple(step for each in new for step in each.stride()[:2]),
        tuple(step for codes, _ in views for step in codes.stride()[:3]),
        tuple(step for _, scales in views for step in scales.stride()),
        DIMS=dims,
        BLOCK_DIMS=tuple(map(triton.next_power_of_2, dims)),
        BLOCK_SIZE=caches[0].shape[1],
        INT4=CODECS[codec].numbers == "int4",
    )
