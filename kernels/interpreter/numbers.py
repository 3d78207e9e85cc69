"""bfloat16, float8 and tf32 as a GPU computes them, in Triton's interpreter.

The interpreter stores bfloat16 as uint16 and float8 as uint8, and applies numpy to those bits:
`tl.dot` of bfloat16 is off by 1e8, a float8 cast by a factor of two where rounding carries. Here
every operation on such a type widens to float32, computes, and rounds to nearest even, which is
what the hardware's instructions and Triton's lowering to them do.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter as ti

Array = NDArray[Any]

_TORCH_FLOAT8: Final = {
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
}


def is_narrow(dtype: Any) -> bool:
    """Whether the interpreter keeps values of a type as bare bits: bfloat16 and float8."""
    return dtype == tl.bfloat16 or dtype.name in _TORCH_FLOAT8


def widen(bits: Array, dtype: Any) -> Array:
    """float32 values of bfloat16 or float8 bits; exact."""
    if dtype == tl.bfloat16:
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return _float8_values(dtype.name)[bits]


def narrow(values: Array, dtype: Any) -> Array:
    """Bits of float32 values in bfloat16 or float8: round to nearest even; float8 saturates.

    Saturation is that of `cvt.rn.satfinite` (PTX ISA, section on cvt), which Triton emits.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if dtype == tl.bfloat16:
        bits = values.view(np.uint32)
        rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        result = (rounded >> np.uint32(16)).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FC0), result)
    target = _TORCH_FLOAT8[dtype.name]
    largest = torch.finfo(target).max
    clamped = torch.from_numpy(np.array(values)).clamp(-largest, largest)
    return clamped.to(target).view(torch.uint8).numpy()


def convert(handle: ti.TensorHandle, dst_type: Any) -> ti.TensorHandle:
    """Cast between any two types of which one at least is narrow."""
    source, target = handle.dtype.scalar, dst_type.scalar
    values = widen(handle.data, source) if is_narrow(source) else handle.data
    if is_narrow(target):
        return ti.TensorHandle(narrow(values.astype(np.float32), target), target)
    with np.errstate(invalid="ignore"):
        return ti.TensorHandle(values.astype(ti._get_np_dtype(target)), target)


def truncate_to_tf32(values: Array) -> Array:
    """float32 as a tf32 matrix product reads it: Triton emits no rounding, the low 13 bits drop."""
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


@cache
def _float8_values(name: str) -> Array:
    bits = torch.arange(256, dtype=torch.uint8)
    values: Array = bits.view(_TORCH_FLOAT8[name]).float().numpy()
    return values


def _touches_narrow(*dtypes: Any) -> bool:
    return any(is_narrow(dtype.scalar) for dtype in dtypes)


def correct_casts(builder: type[Any]) -> None:
    """`.to`, and the implicit casts of loads, stores and promotions."""
    stock_cast, stock_fp_to_fp = builder.cast_impl, builder.create_fp_to_fp

    def cast_impl(self: Any, src: ti.TensorHandle, dst_type: Any) -> ti.TensorHandle:
        if _touches_narrow(src.dtype, dst_type):
            return convert(src, dst_type)
        return stock_cast(self, src, dst_type)  # type: ignore[no-any-return]

    def create_fp_to_fp(
        self: Any, src: ti.TensorHandle, dst_type: Any, rounding_mode: Any
    ) -> ti.TensorHandle:
        if _touches_narrow(src.dtype, dst_type):
            return convert(src, dst_type)
        return stock_fp_to_fp(self, src, dst_type, rounding_mode)  # type: ignore[no-any-return]

    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp


def correct_arithmetic(builder: type[Any]) -> None:
    """Elementwise operations and comparisons."""
    stock_binary, stock_unary = builder.binary_op, builder.unary_op

    def binary_op(self: Any, lhs: ti.TensorHandle, rhs: ti.TensorHandle, op: Any) -> Any:
        dtype = lhs.dtype.scalar
        if not is_narrow(dtype):
            return stock_binary(self, lhs, rhs, op)
        values = op(widen(lhs.data, dtype), widen(rhs.data, rhs.dtype.scalar))
        data = values if values.dtype == np.bool_ else narrow(values, dtype)
        return ti.TensorHandle(data, tl.int1 if values.dtype == np.bool_ else dtype)

    def unary_op(self: Any, arg: ti.TensorHandle, op: Any) -> Any:
        dtype = arg.dtype.scalar
        if not is_narrow(dtype):
            return stock_unary(self, arg, op)
        return ti.TensorHandle(narrow(op(widen(arg.data, dtype)), dtype), dtype)

    builder.binary_op = binary_op
    builder.unary_op = unary_op


def correct_dot(builder: type[Any]) -> None:
    """Matrix products: narrow operands widened exactly, tf32 operands truncated."""
    tf32 = getattr(ti._ir.INPUT_PRECISION, "TF32", None)

    def create_dot(  # noqa: PLR0913, PLR0917 - the builder's own signature
        self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any
    ) -> ti.TensorHandle:
        operands = []
        for handle in (a, b):
            data, dtype = handle.data, handle.dtype.scalar
            if is_narrow(dtype):
                data = widen(data, dtype)
            elif dtype == tl.float32 and input_precision == tf32:
                data = truncate_to_tf32(np.ascontiguousarray(data))
            operands.append(data)
        product = np.matmul(*operands, dtype=d.data.dtype)
        return ti.TensorHandle(product + d.data, d.dtype.scalar)

    builder.create_dot = create_dot


def correct_reductions(reduce_ops: type[Any]) -> None:
    """`tl.sum`, `tl.max` and the like, which numpy would apply to the bits."""
    stock = reduce_ops.apply_impl

    def apply_impl(self: Any, inputs: tuple[Any, ...]) -> Any:
        if not any(is_narrow(tensor.dtype) for tensor in inputs):
            return stock(self, inputs)
        dtype = inputs[0].dtype
        wide = tuple(self.to_tensor(widen(t.handle.data, t.dtype), tl.float32) for t in inputs)
        result = stock(self, wide)
        value, *rest = result if isinstance(result, (tuple, list)) else (result,)
        data = narrow(value.handle.data, dtype)
        return (self.to_tensor(data if value.type.is_block() else data.item(), dtype), *rest)

    reduce_ops.apply_impl = apply_impl
