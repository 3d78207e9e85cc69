"""Tiles of prefill: which device gets which, and what they may never be."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kernels import prefill
from kernels.compiled.stub_driver import StubDriver
from kernels.compiled.targets import TARGETS
from kernels.launch import prefill_tiles


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch):
    """Makes the prefill kernel's module believe that a target is there."""

    def believe(name: str) -> None:
        told = SimpleNamespace(
            knobs=SimpleNamespace(runtime=SimpleNamespace(interpret=False)),
            runtime=SimpleNamespace(driver=SimpleNamespace(active=StubDriver(TARGETS[name]))),
        )
        monkeypatch.setattr(prefill, "triton", told)

    return believe


@pytest.mark.parametrize("name", TARGETS)
def test_wide_key_tiles_where_products_read_shared_memory(name: str, on) -> None:
    on(name)
    wide = name in {"sm_90", "sm_100"}
    assert prefill.multiplies_from_shared_memory() == wide
    long = prefill_tiles(group_size=4, head_dim=128, max_query_len=512, is_float32=False)
    assert (long.block_m, long.block_n, long.num_warps) == (128, 64 if wide else 32, 8)
    short = prefill_tiles(group_size=4, head_dim=128, max_query_len=4, is_float32=False)
    assert (short.block_m, short.block_n) == (16, 64)


def test_nothing_is_asked_of_a_driver_in_the_interpreter() -> None:
    assert not prefill.multiplies_from_shared_memory()


@pytest.mark.parametrize("group_size", [1, 3, 20, 71])
@pytest.mark.parametrize("head_dim", [16, 80, 128, 256])
@pytest.mark.parametrize("is_float32", [False, True])
def test_a_tile_holds_a_whole_group(*, group_size: int, head_dim: int, is_float32: bool) -> None:
    for max_query_len in (2, 9, 4096):
        tiles = prefill_tiles(
            group_size=group_size,
            head_dim=head_dim,
            max_query_len=max_query_len,
            is_float32=is_float32,
        )
        assert tiles.block_m >= max(16, group_size)
        assert tiles.block_m & (tiles.block_m - 1) == 0
        assert tiles.block_n >= 16
