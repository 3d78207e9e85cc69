"""Roundings between float32 and the narrow types, for arrays of any shape and layout.

That every value is right is shown through kernels: see probes.py.
"""

import numpy as np
import pytest
import torch
import triton.language as tl

from kernels.interpreter.numbers import is_narrow, narrow, narrow_toward_zero, widen

NARROW = {
    "bf16": (tl.bfloat16, torch.bfloat16, torch.uint16),
    "e4m3": (tl.float8e4nv, torch.float8_e4m3fn, torch.uint8),
    "e5m2": (tl.float8e5, torch.float8_e5m2, torch.uint8),
}

VALUES = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
LAYOUTS = {
    "contiguous": VALUES,
    "transposed": VALUES.T,
    "strided": VALUES[:, ::2],
    "reversed": VALUES[::-1, ::-1],
    "broadcast": np.broadcast_to(VALUES[0], (3, 6)),
    "one element": VALUES[:1, :1],
    "0-d": VALUES[1, 1].reshape(()),
    "empty": VALUES[:0],
}


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_narrowed_and_widened_in_its_shape(name: str, layout: str) -> None:
    dtype, in_torch, unsigned = NARROW[name]
    values = LAYOUTS[layout]
    before = values.copy()
    bits = narrow(values, dtype)
    expected = torch.from_numpy(np.array(values)).to(in_torch)
    assert bits.shape == values.shape
    assert np.array_equal(bits, expected.view(unsigned).numpy())
    assert np.array_equal(widen(bits, dtype), expected.float().numpy())
    assert widen(bits, dtype).shape == values.shape
    assert np.array_equal(values, before)


@pytest.mark.parametrize("name", ["bf16", "e5m2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncation_in_any_layout(name: str, layout: str) -> None:
    dtype, _, _ = NARROW[name]
    values = LAYOUTS[layout]
    truncated = widen(narrow_toward_zero(values, dtype), dtype)
    assert truncated.shape == values.shape
    assert (np.abs(truncated) <= np.abs(values)).all()
    assert (np.abs(truncated) > 0.75 * np.abs(values)).all()


def test_truncation_to_e4m3_is_refused_as_the_compiler_does() -> None:
    with pytest.raises(ValueError, match="fp8e4nv rounds to nearest only: leave fp_downcast"):
        narrow_toward_zero(VALUES, tl.float8e4nv)


@pytest.mark.parametrize("name", NARROW)
def test_special_scalars_need_no_warning(name: str) -> None:
    dtype, _, _ = NARROW[name]
    for value in (np.nan, -np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0.0):
        for wide in (np.float32, np.float64):
            bits = narrow(np.asarray(value, dtype=wide), dtype)
            assert np.isnan(widen(bits, dtype)) == np.isnan(value)


def test_only_three_types_are_narrow() -> None:
    types = [tl.bfloat16, tl.float8e4nv, tl.float8e5, tl.float8e4b8, tl.float8e5b16]
    types += [tl.float16, tl.float32, tl.int8, tl.uint16, tl.pointer_type(tl.bfloat16)]
    assert [is_narrow(dtype) for dtype in types] == [True] * 3 + [False] * 7
