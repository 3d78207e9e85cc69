"""bfloat16, float8 and tf32 as bits, and the roundings between them and what numpy has.

The interpreter stores bfloat16 as uint16 and float8 as uint8. These are called narrow types here:
numpy cannot compute with them, so that whoever wants their values has to `widen` the bits first
and to `narrow` the result.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]

_FLOAT8: Final = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
_NARROW: Final = frozenset({"bf16", *_FLOAT8})
_BF16_NAN: Final = 0x7FC0

_UPPER_HALF: Final = {"bf16": (16, _BF16_NAN), "fp8e5": (8, 0x7F)}
"""Types that are the upper half of a numpy type: their width in bits, and their NaN."""


def is_narrow(dtype: Any) -> bool:
    """Whether a scalar Triton type is bfloat16, e4m3 (fp8e4nv) or e5m2 (fp8e5)."""
    return dtype.name in _NARROW


def widen(bits: Array, dtype: Any) -> Array:
    """float32 values of the bits of a narrow type; exact."""
    if dtype.name == "bf16":
        doubled: Array = bits.astype(np.uint32) << 16
        return doubled.view(np.float32)
    values: Array = _float8_values(dtype.name)[bits]
    return values


def narrow(values: Array, dtype: Any) -> Array:
    """Bits of values in a narrow type, rounded once, to nearest even.

    float8 saturates at its largest finite value, infinity included: `cvt.rn.satfinite` (PTX ISA,
    section on cvt), which Triton emits.
    """
    near = _to_float32(values)
    if dtype.name == "bf16":
        bits = np.where(np.isnan(near), np.uint32(_BF16_NAN << 16), near.view(np.uint32))
        rounded: Array = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        return rounded.astype(np.uint16)
    target = _FLOAT8[dtype.name]
    largest = torch.finfo(target).max
    clamped = torch.from_numpy(np.array(near, order="C")).clamp(-largest, largest)
    result: Array = clamped.to(target).view(torch.uint8).numpy()
    return result


def narrow_toward_zero(values: Array, dtype: Any) -> Array:
    """Bits of values in bfloat16 or e5m2, truncated: `fp_downcast_rounding="rtz"`.

    The two are the upper halves of float32 and float16, which is how Triton builds them. Infinity
    stays infinity, and what is too large becomes the largest finite value.

    Raises ValueError: for e4m3, which Triton does not compile.
    """
    if dtype.name not in _UPPER_HALF:
        raise ValueError(f"{dtype.name} rounds to nearest only: leave fp_downcast_rounding out")
    bits, nan = _UPPER_HALF[dtype.name]
    with np.errstate(over="ignore"):
        near = values.astype(f"float{2 * bits}")
    unsigned = near.view(f"uint{2 * bits}")
    truncated: Array = unsigned - (np.abs(near) > np.abs(values))
    return np.where(np.isnan(near), nan, truncated >> bits).astype(f"uint{bits}")


def truncate_to_tf32(values: Array) -> Array:
    """float32 as a tf32 matrix product reads it: Triton emits no rounding, the low 13 bits drop."""
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _to_float32(values: Array) -> Array:
    """float32 of values, inexact ones rounded to odd: whoever rounds it again rounds them once."""
    if values.dtype in (np.float32, np.float16):
        return values.astype(np.float32, copy=False)
    wide = values.astype(np.float64)
    with np.errstate(over="ignore"):
        near = wide.astype(np.float32)
    toward_zero: Array = near.view(np.uint32) - (np.abs(near) > np.abs(wide))
    odd: Array = toward_zero | (near != wide)
    return odd.view(np.float32)


@cache
def _float8_values(name: str) -> Array:
    codes = torch.arange(256, dtype=torch.uint8)
    values: Array = codes.view(_FLOAT8[name]).float().numpy()
    return values
