"""Outputs and counters: equal, better, or worse by how much."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.gate.benchmark import Count
from bench.gate.counters import compare_counters, compare_outputs, limit_of
from bench.gate.observing import observed
from bench.machine.dispatched import Dispatched
from helpers.profiles import examples


def compared(base: int | None, head: int | None, **changes: Any) -> Any:
    """One counter, both sides."""
    limits = changes.pop("limits", {})
    sides = [None if n is None else {"n": Count(n, "bytes", **changes)} for n in (base, head)]
    (record,) = compare_counters("bench", sides[0], sides[1], limits)
    return record


@pytest.mark.parametrize(
    ("base", "head", "more_is_better", "verdict"),
    [
        (5, 5, False, "equal"),
        (100, 101, False, "worse"),
        (100, 99, False, "better"),
        (100, 101, True, "better"),
        (100, 99, True, "worse"),
        (0, 0, False, "equal"),
        (None, 3, False, "not there"),
        (3, None, False, "not there"),
    ],
)
def test_less_is_better_unless_more_is(
    base: int | None, head: int | None, verdict: str, *, more_is_better: bool
) -> None:
    record = compared(base, head, more_is_better=more_is_better)
    assert (record.verdict, record.fails) == (verdict, verdict == "worse")
    if base and head:
        assert record.change == pytest.approx((head - base) / base)


def test_from_nothing_to_something_is_beyond_any_limit() -> None:
    record = compared(0, 1, limits={"n": 10.0})
    assert (record.verdict, record.change, record.fails) == ("worse", None, True)


@examples(200)
@given(st.integers(1, 10**12), st.integers(0, 10**12), st.booleans())
def test_every_difference_is_found(base: int, head: int, more: bool) -> None:  # noqa: FBT001
    record = compared(base, head, more_is_better=more)
    other = compared(head, base, more_is_better=more)
    assert (record.verdict == "equal") == (base == head)
    assert record.fails == (record.verdict == "worse")
    if base != head:
        assert {record.verdict, other.verdict} == {"worse", "better"}


def test_the_last_limit_that_fits_holds() -> None:
    limits = {"n": 0.1, "bench/*:n": 0.2, "bench/a[b]:n": 0.3}
    assert limit_of("other", "n", {}) == 0.0
    assert limit_of("other", "n", limits) == 0.1
    assert limit_of("bench/x", "n", limits) == 0.2
    assert limit_of("bench/a[b]", "n", limits) == 0.3
    assert limit_of("any", "calls", {}) == 0.005


def outputs(folder: Path, side: str, round_off: float, **arrays: Any) -> list[dict[str, Any]]:
    described = []
    for name, values in arrays.items():
        file = folder / f"{side}-{name}.npy"
        np.save(file, values)
        described.append({"name": name, "file": str(file), "round_off": round_off})
    return described


def output(folder: Path, base: Any, head: Any, round_off: float = 0.0) -> Any:
    sides = [
        outputs(folder, side, round_off, out=np.asarray(values))
        for side, values in (("base", base), ("head", head))
    ]
    (record,) = compare_outputs("bench", *sides)
    return record


def test_equal_is_bit_for_bit_and_nan_is_nan(tmp_path: Path) -> None:
    values = [1.0, np.nan, np.inf]
    assert output(tmp_path, values, values, 1e-3).verdict == "equal"
    assert output(tmp_path, [1.0, 2.0], [1.0, np.nan], 1e-3).verdict == "differs"
    assert output(tmp_path, [1.0, 2.0], [1.0, np.inf], 1e-3).verdict == "differs"


def test_rounding_is_allowed_where_values_are_rounded(tmp_path: Path) -> None:
    limit = 8 * 1e-3 * 10.0
    just, over = 10.0 - 0.99 * limit, 10.0 - 1.01 * limit
    record = output(tmp_path, [10.0, 10.0], [10.0, just], 1e-3)
    assert record.verdict == "within tolerance"
    assert record.limit == pytest.approx(limit)
    assert output(tmp_path, [10.0, 10.0], [10.0, over], 1e-3).verdict == "differs"
    assert output(tmp_path, [10.0, 10.0], [10.0, just]).verdict == "differs"


def test_shapes_and_names_must_agree(tmp_path: Path) -> None:
    assert "shape" in output(tmp_path, [1, 2], [1, 2, 3]).note
    base = outputs(tmp_path, "base", 0.0, a=[1], b=[2])
    (a, b) = compare_outputs("bench", base, base[:1])
    assert (a.verdict, b.verdict, b.note) == ("equal", "differs", "only base has it")


def test_bytes_are_those_of_what_goes_in_and_out() -> None:
    a, b = torch.ones(8, 4), torch.ones(8, 4)
    with Dispatched() as seen:
        _ = a + b
    assert (seen.operations, seen.bytes) == (1, 3 * 8 * 4 * 4)


def test_views_move_nothing_and_gathers_and_scatters_their_part() -> None:
    cache, rows = torch.zeros(1000, 4), torch.arange(8)
    with Dispatched() as seen:
        cache.view(4, 1000).transpose(0, 1)[2:]
    assert (seen.operations, seen.bytes) == (3, 0)
    with Dispatched() as seen:
        taken = cache.index_select(0, rows)
    assert seen.bytes == 2 * 8 * 4 * 4 + 8 * 8
    with Dispatched() as seen:
        cache[rows] = taken
    assert seen.bytes == 2 * 8 * 4 * 4 + 8 * 8


def test_one_per_cent_more_work_is_one_per_cent() -> None:
    def work(rows: int) -> dict[str, int]:
        parts = [torch.ones(64) for _ in range(rows)]
        return {
            name: count.value for name, count in observed(lambda: list(map(double, parts))).items()
        }

    def double(tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 2

    before, after = work(100), work(101)
    assert after["torch_ops"] / before["torch_ops"] == pytest.approx(1.01)
    assert after["torch_bytes"] / before["torch_bytes"] == pytest.approx(1.01)
    assert after["calls"] > before["calls"]
    assert work(100) == before
