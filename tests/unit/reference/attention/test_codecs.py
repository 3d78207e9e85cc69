"""The codecs of a cache: bytes by hand, the bound of a round trip, the swizzle by its formula."""

from __future__ import annotations

import struct

import pytest
import torch

from reference.attention.codecs import (
    E2M1,
    decode,
    encode,
    error_bound,
    head_scales,
    swizzle,
    unswizzle,
)
from reference.attention.records import CODECS


def fp32(number: float) -> list[int]:
    return [*struct.pack("<f", number)]


def numbers(codec: str, dim: int, *, gain: float = 1.0, shape: tuple[int, ...] = (7, 3)):
    rng = torch.Generator().manual_seed(dim)
    drawn = torch.randn((*shape, dim), generator=rng) * gain
    drawn[0, 0] = 0
    drawn[1, 1] = drawn[1, 1].abs() + 3  # of one sign
    return drawn


def outer(codec: str, values: torch.Tensor) -> float | torch.Tensor:
    beside = CODECS[codec].outer
    return (
        head_scales(values)
        if beside == "head"
        else 1.0
        if beside == ""
        else float(values.abs().max()) / 200
    )


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("dim", "rope"), [(64, 0), (24, 0), (80, 16), (576, 64)])
@pytest.mark.parametrize("gain", [1.0, 1e-3, 40.0])
def test_a_round_trip_is_within_half_a_step(codec: str, dim: int, rope: int, gain: float) -> None:
    values = numbers(codec, dim, gain=gain)
    scale = outer(codec, values)
    records = encode(codec, values, scale=scale, rope=rope)
    assert records.dtype == torch.uint8
    assert records.shape == (7, 3, CODECS[codec].bytes_of(dim, rope))
    decoded = decode(codec, records, dim, scale=scale, rope=rope)
    bound = error_bound(codec, records, dim, scale=scale, rope=rope)
    error = (decoded - values.double()).abs()
    assert bool((error <= bound).all()), float((error - bound).max())
    assert not decoded[0, 0].any()
    assert float((bound / values.abs().amax((-1, -2)).view(-1, 1, 1).clamp(min=1e-3)).max()) < 0.4


@pytest.mark.parametrize("codec", CODECS)
def test_float32_decodes_to_the_same_within_its_rounding(codec: str) -> None:
    values = numbers(codec, 64)
    scale = outer(codec, values)
    records = encode(codec, values, scale=scale)
    exact, near = (
        decode(codec, records, 64, scale=scale, dtype=dtype).double()
        for dtype in (torch.float64, torch.float32)
    )
    assert bool(((near - exact).abs() <= 2**-22 * exact.abs()).all())


ROW = [0.0, 127.0, -127.0, 64.0, 1.0, -1.0, 2.0, 3.0]

BY_HAND = {
    "int8-token-head": (ROW, 1.0, [0, 127, 129, 64, 1, 255, 2, 3, *fp32(1.0)]),
    "e4m3-token-head": (
        [0.0, 448.0, -448.0, 1.0, 2.0, -1.5, 0.5, 16.0], 1.0,
        [0, 0x7E, 0xFE, 0x38, 0x40, 0xBC, 0x30, 0x58, *fp32(1.0)],
    ),
    # -2 .. 13: a step is 1, and zero is code 2, which the low bits of the scale say.
    "int4-token-head": (
        [0.0, 13.0, -2.0, 1.0, 2.0, -1.0, 5.0, 3.0], 1.0,
        [0xF2, 0x30, 0x14, 0x57, 2, 0, 0x80, 0x3F],
    ),
    "nvfp4": (
        [0.0, 12.0, -12.0, 1.0, 2.0, -3.0, 4.0, 8.0], 2.0,
        [0x70, 0x1F, 0xB2, 0x64, 0x38],
    ),
    "e4m3-head": (ROW, 0.5, [0, 0x78, 0xF8, 0x70, 0x40, 0xC0, 0x48, 0x4C]),
}  # fmt: skip


@pytest.mark.parametrize("codec", BY_HAND)
def test_bytes_are_those_written_by_hand(codec: str) -> None:
    row, scale, expected = BY_HAND[codec]
    values = torch.tensor(row).view(1, 1, -1)
    beside = torch.tensor([scale]) if CODECS[codec].outer == "head" else scale
    records = encode(codec, values, scale=beside)
    assert records.flatten().tolist() == expected
    decoded = decode(codec, records, len(row), scale=beside)
    assert bool(((decoded - values).abs() <= error_bound(codec, records, 8, scale=beside)).all())
    if codec != "e4m3-head":  # which rounds 127 to 128
        assert decoded.flatten().tolist() == row


def test_a_latent_record_has_its_parts_where_they_are_documented() -> None:
    values = torch.zeros(1, 1, 576)
    values[..., :512] = torch.arange(4).repeat_interleave(128).exp2() * 448
    values[..., 512:] = 1.5
    record = encode("fp8-ds-mla", values, rope=64).flatten()
    assert len(record) == 656
    assert record[:512].tolist() == [0x7E] * 512
    assert record[512:528].tolist() == [*fp32(1.0), *fp32(2.0), *fp32(4.0), *fp32(8.0)]
    assert record[528:].tolist() == [0xC0, 0x3F] * 64
    odd = encode("fp8-ds-mla", torch.randn(3, 1, 576), rope=64)
    scales = odd[..., 512:528].contiguous().view(torch.float32)
    assert torch.equal(scales, scales.log2().round().exp2())  # so that bfloat16 has the products


def test_every_code_of_e2m1_comes_back() -> None:
    rows = torch.tensor([*E2M1, *(-each for each in E2M1)])
    records = encode("nvfp4", rows.view(1, 1, 16))
    assert records.flatten().tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, 0x38]
    assert torch.equal(decode("nvfp4", records, 16).flatten(), rows.double())
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    even = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]
    assert decode("nvfp4", encode("nvfp4", ties.view(1, 1, 8)), 8).flatten().tolist() == even


def test_swizzled_scales_lie_where_the_formula_says() -> None:
    pages = torch.randint(0, 255, (2, 8, 3, 12), dtype=torch.uint8)
    moved = swizzle(pages)
    for t in range(8):
        for s in range(12):
            at, place = t // 4 * 4 + s // 3, s % 3 * 4 + t % 4
            assert torch.equal(moved[:, at, :, place], pages[:, t, :, s])
    assert torch.equal(unswizzle(moved), pages)


@pytest.mark.parametrize("codec", CODECS)
def test_bytes_of_ones_are_not_a_number(codec: str) -> None:
    spoilt = torch.full((2, 1, CODECS[codec].bytes_of(64, 16)), 255, dtype=torch.uint8)
    assert bool(decode(codec, spoilt, 64, rope=16).isnan().all())
