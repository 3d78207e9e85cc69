"""Occupancy against figures worked out by hand from the makers' tables."""

from __future__ import annotations

import pytest

from kernels.compiled.targets import TARGETS, Occupancy, UnknownTarget, find_target, occupancy


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared", "expected"),
    [
        # 80 registers x 32 = 10 units of 256 a warp: 25 warps, counted in fours 24, so 6 blocks;
        # (38,912 + 1,024) bytes five times in 228 KiB.
        ("sm_90", 4, 80, 38_912, Occupancy(5, 20, "shared memory")),
        ("sm_90", 4, 124, 39_424, Occupancy(4, 16, "registers")),
        ("sm_90", 4, 16, 0, Occupancy(16, 64, "warps")),
        ("sm_90", 1, 16, 0, Occupancy(32, 32, "blocks")),
        ("sm_90", 4, 255, 282_624, Occupancy(0, 0, "shared memory")),
        ("sm_90", 4, 32, 232_448, Occupancy(1, 4, "shared memory")),
        ("sm_80", 4, 80, 38_912, Occupancy(4, 16, "shared memory")),
        ("sm_89", 4, 80, 38_912, Occupancy(2, 8, "shared memory")),
        ("sm_120", 8, 255, 66_048, Occupancy(1, 8, "registers")),
        ("sm_80", 16, 255, 0, Occupancy(0, 0, "registers")),
        # 217 VGPRs: 224 of 512 a lane, two waves on each of four SIMDs.
        ("gfx942", 4, 217, 32_768, Occupancy(2, 8, "registers")),
        ("gfx942", 4, 200, 33_024, Occupancy(1, 4, "shared memory")),
        ("gfx950", 4, 130, 67_520, Occupancy(2, 8, "shared memory")),
        ("gfx942", 8, 512, 0, Occupancy(0, 0, "registers")),
        ("gfx942", 1, 16, 0, Occupancy(32, 32, "warps")),
        ("gfx942", 4, 16, 65_537, Occupancy(0, 0, "shared memory")),
    ],
)
def test_programs_that_fit(target, warps, registers, shared, expected):
    found = occupancy(TARGETS[target], num_warps=warps, registers=registers, shared_bytes=shared)
    assert found == expected


def test_scalar_registers_and_tensor_memory_limit_too():
    few = occupancy(
        TARGETS["gfx942"], num_warps=4, registers=16, shared_bytes=0, scalar_registers=106
    )
    assert few == Occupancy(7, 28, "registers")
    columns = occupancy(
        TARGETS["sm_100"], num_warps=4, registers=32, shared_bytes=0, tensor_columns=256
    )
    assert columns == Occupancy(2, 8, "tensor memory")


def test_an_unknown_target_is_answered_with_those_that_there_are():
    with pytest.raises(UnknownTarget, match=r"sm_70: choose one of sm_80, .*gfx950"):
        find_target("sm_70")
