"""Encodes keys and values as the bytes of a cache, and decodes them: `records` has the layouts.

What a kernel is judged by is attention over what the bytes decode to, so the loss of quantising is
never a part of its error.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from reference.attention.records import CODECS, Record

SMALLEST_SCALE: Final = 1e-6
"""Of an element that is zero throughout."""

E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of the four-bit float, by code; bit 3 is the sign."""

ZERO_POINT_BITS: Final = 15
"""Of an int4 scale, which bits are the zero point."""

_LARGEST: Final = {"e4m3": 448.0, "int8": 127.0, "e2m1": 6.0}
_E4M3: Final = torch.float8_e4m3fn


def encode(codec: str, values: Tensor, *, scale: float | Tensor = 1.0, rope: int = 0) -> Tensor:
    """The records of values [..., heads, dim], [..., heads, bytes] uint8.

    `scale` is the one beside the cache: a number, or [heads] of `head_scales`. Scales in the record
    are as small as let nothing saturate; of `fp8-ds-mla` the next power of two, so that elements
    are exact in bfloat16. Rounded is to nearest even. Scales are linear: see `swizzle`.
    """
    record = CODECS[codec]
    values = values.float()
    dim = values.shape[-1]
    rest, rotary = values.split((dim - rope, rope), -1)
    run = record.run or dim - rope
    runs = pad(rest / _outer(scale), (0, -rest.shape[-1] % run)).unflatten(-1, (-1, run))
    if record.numbers == "int4":
        codes, scales = _int4(runs)
    else:
        largest = _LARGEST[record.numbers]
        scales = _scales(record, runs.abs().amax(-1, keepdim=True) / largest)
        shares = runs / torch.where(scales == 0, torch.inf, scales.float())
        codes = _codes(record, shares.clamp(-largest, largest))
    parts = [codes.flatten(-2)[..., : dim - rope]]
    if record.numbers in ("int4", "e2m1"):
        low, high = pad(parts[0], (0, parts[0].shape[-1] % 2)).unflatten(-1, (-1, 2)).unbind(-1)
        parts = [low | high << 4]
    if record.scales:
        parts.append(scales.squeeze(-1).contiguous().view(torch.uint8))
    if rope:
        parts.append(rotary.bfloat16().view(torch.uint8))
    return torch.cat(parts, -1)


def decode(
    codec: str,
    records: Tensor,
    dim: int,
    *,
    scale: float | Tensor = 1.0,
    rope: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """What records [..., heads, bytes] stand for, [..., heads, dim]; exact in float64."""
    record = CODECS[codec]
    rest = dim - rope
    codes, scales, rotary = parts_of(codec, records, dim, rope=rope)
    numbers = _numbers(record, codes)[..., :rest].to(dtype)
    if record.numbers == "int4":
        bits = scales.view(torch.int32)
        numbers = numbers - (bits & ZERO_POINT_BITS).to(dtype)
        scales = (bits & ~ZERO_POINT_BITS).view(torch.float32)
    if record.scales:
        each = scales.to(dtype).repeat_interleave(record.run or rest, -1)
        numbers = numbers * each[..., :rest]
    numbers = numbers * _outer(scale)
    return torch.cat((numbers, rotary.to(dtype)), -1) if rope else numbers


def parts_of(
    codec: str, records: Tensor, dim: int, *, rope: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of the codes in bytes, the scales (float32, e4m3 or bytes) and the rotary part."""
    record = CODECS[codec]
    sizes = record.code_bytes(dim - rope), record.scale_bytes(dim - rope), 2 * rope
    codes, scales, rotary = records.split(sizes, -1)
    scale_type = {"fp32": torch.float32, "e4m3": _E4M3, "": torch.uint8}[record.scales]
    return codes.contiguous(), _as(scale_type, scales), _as(torch.bfloat16, rotary)


def unswizzled_pages(codec: str, pages: Tensor, dim: int) -> Tensor:
    """Whole pages of values [..., block_size, heads, bytes] whose scales lie with their tokens."""
    start = CODECS[codec].code_bytes(dim)
    return torch.cat((pages[..., :start], unswizzle(pages[..., start:])), -1)


def _as(dtype: torch.dtype, part: Tensor) -> Tensor:
    """A copy of some bytes of each record as numbers: as a view they would have to be aligned."""
    shape = (*part.shape[:-1], part.shape[-1] // dtype.itemsize)
    copied = torch.empty(shape, dtype=dtype, device=part.device)
    if copied.numel():
        copied.view(torch.uint8).copy_(part)
    return copied


def views_of(codec: str, pages: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Pages [blocks, block_size, heads, bytes] of a codec with one scale a record as two tensors
    with strides: the codes, as float8, int8 or bytes of two, and scales [.., heads].
    """
    record = CODECS[codec]
    number = {"e4m3": _E4M3, "int8": torch.int8}.get(record.numbers, torch.uint8)
    codes, scales = pages.split((record.code_bytes(dim), record.scale_bytes(dim)), -1)
    return codes.view(number), scales.view(torch.float32).squeeze(3) if record.scales else scales


def head_scales(values: Tensor) -> Tensor:
    """A scale for each head of values [tokens, heads, dim], [heads] float32, none like another."""
    largest = values.float().abs().amax((0, 2)) if len(values) else values.new_ones(values.shape[1])
    spread = 1 + 0.5 * torch.arange(len(largest), device=values.device)
    return (largest * spread / _LARGEST["e4m3"]).clamp(min=SMALLEST_SCALE).float()


def error_bound(
    codec: str, records: Tensor, dim: int, *, scale: float | Tensor = 1.0, rope: int = 0
) -> Tensor:
    """How far what records decode to may be from what was encoded, [..., heads, dim] float64.

    It follows from the scales that the records have, whoever chose them: half a step of the code.
    """
    record = CODECS[codec]
    decoded = decode(codec, records, dim, scale=scale, rope=rope).abs()
    _, scales, _ = parts_of(codec, records, dim, rope=rope)
    rest = dim - rope
    step = torch.ones_like(decoded[..., :rest]) * _outer(scale)
    if record.scales:
        step *= scales.double().repeat_interleave(record.run or rest, -1)[..., :rest]
    if record.numbers == "e4m3":
        half = torch.maximum(decoded[..., :rest] * 2**-4, step * 2**-10)
    elif record.numbers == "e2m1":
        # Between 4 and 6 a step is 2. A scale that is itself rounded to zero loses the block.
        half = step + _LARGEST["e2m1"] * 2**-10 * _outer(scale)
    else:
        # An int4 scale loses four bits to the zero point, and so may the end of the range.
        half = step * (0.5 + 2**-13 * (record.numbers == "int4"))
    bound = torch.cat((half, decoded[..., rest:] * 2**-8), -1)
    return bound * (1 + 2**-16)


def twice_the_numbers(codec: str, records: Tensor, dim: int) -> Tensor:
    """Records of a codec without a scale beside the cache that stand for twice the numbers."""
    record = CODECS[codec]
    start = record.code_bytes(dim)
    doubled = records.clone()
    if len(records):  # where there are none, their strides are not those of bytes
        doubled[..., start:] = (2 * parts_of(codec, records, dim)[1]).view(torch.uint8)
    return doubled


def swizzle(scales: Tensor) -> Tensor:
    """Scales of whole pages [..., block_size, heads, S], each where SM100's kernels look for it."""
    by_four = scales.transpose(-3, -2).unflatten(-1, (4, -1)).unflatten(-3, (-1, 4))
    moved: Tensor = by_four.movedim(-3, -1).flatten(-4, -3).flatten(-2).transpose(-3, -2)
    return moved


def unswizzle(scales: Tensor) -> Tensor:
    """The inverse of `swizzle`."""
    by_four = scales.transpose(-3, -2).unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4))
    moved: Tensor = by_four.movedim(-1, -3).flatten(-4, -3).flatten(-2).transpose(-3, -2)
    return moved


def _outer(scale: float | Tensor) -> float | Tensor:
    """The scale beside the cache against [..., heads, dim]."""
    return scale.unsqueeze(-1) if isinstance(scale, Tensor) else scale


def _scales(record: Record, wanted: Tensor) -> Tensor:
    """The scales as they are stored; ones where there are none."""
    if not record.scales:
        return torch.ones_like(wanted)
    if record.scales == "e4m3":
        return wanted.clamp(max=_LARGEST["e4m3"]).to(_E4M3)
    wanted = wanted.clamp(min=SMALLEST_SCALE)
    return torch.exp2(wanted.log2().ceil()) if record.latent else wanted


def _codes(record: Record, shares: Tensor) -> Tensor:
    """The codes of elements in units of their scales, a byte each."""
    if record.numbers == "e4m3":
        return shares.to(_E4M3).view(torch.uint8)
    if record.numbers == "int8":
        return shares.round().to(torch.int8).view(torch.uint8)
    # Beside a tie the even code: 0.25 is 0 and 0.75 is 1.
    magnitudes = torch.tensor(E2M1, device=shares.device)
    between = (magnitudes[1:] + magnitudes[:-1]) / 2
    size = shares.abs()
    below = torch.bucketize(size, between)
    tie = (size == between[below.clamp(max=len(between) - 1)]) & (below % 2 == 1)
    return (below + tie + 8 * shares.signbit()).to(torch.uint8)


def _int4(runs: Tensor) -> tuple[Tensor, Tensor]:
    """Codes from 0 to 15 that include zero exactly, and scales with their zero point."""
    least, most = runs.amin(-1, keepdim=True).clamp(max=0), runs.amax(-1, keepdim=True).clamp(min=0)
    bits = ((most - least) / 15).clamp(min=SMALLEST_SCALE).contiguous().view(torch.int32)
    step = (bits & ~ZERO_POINT_BITS).view(torch.float32)
    zero = (-least / step).round().clamp(0, 15)
    codes = (runs / step + zero).round().clamp(0, 15).to(torch.uint8)
    scales = (step.view(torch.int32) | zero.int()).view(torch.float32)
    return codes, scales


def _numbers(record: Record, codes: Tensor) -> Tensor:
    """What the codes in bytes are, without scale and zero point."""
    if record.numbers == "e4m3":
        return codes.view(_E4M3)
    if record.numbers == "int8":
        return codes.view(torch.int8)
    nibbles = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    if record.numbers == "int4":
        return nibbles
    magnitudes = torch.tensor(E2M1, device=codes.device)[(nibbles & 7).long()]
    return torch.where(nibbles > 7, -magnitudes, magnitudes)
