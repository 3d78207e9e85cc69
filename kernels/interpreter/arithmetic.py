"""Casts, elementwise operations, matrix products and reductions of bfloat16 and float8; tf32.

Stock, the interpreter applies numpy to the bits: `tl.dot` of bfloat16 is off by ten orders of
magnitude without a message, a float8 cast by a factor of two where rounding carries. Here every
operation on such a type widens to float32, computes there, and rounds the result once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter as ti

from kernels.interpreter.numbers import (
    is_narrow,
    narrow,
    narrow_toward_zero,
    truncate_to_tf32,
    widen,
)


def correct_casts(builder: type[Any]) -> None:
    """`.to`, and the implicit casts of constants, loads, stores and promotions."""
    stock_cast, stock_fp_to_fp = builder.cast_impl, builder.create_fp_to_fp

    def stock(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source.dtype.scalar.is_fp8() or target.is_fp8():
            return stock_fp_to_fp(self, source, target, rounding)
        return stock_cast(self, source, target)

    def convert(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if is_narrow(source.dtype.scalar):
            source = ti.TensorHandle(widen(source.data, source.dtype.scalar), tl.float32)
        if not is_narrow(target):
            return stock(self, source, target, rounding)
        if source.dtype.scalar.is_fp8():  # one of the float8 types that stay Triton's own
            source = stock(self, source, tl.float32, None)
        to_bits = narrow_toward_zero if rounding == ti._ir.ROUNDING_MODE.RTZ else narrow
        return ti.TensorHandle(to_bits(source.data, target), target)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if is_narrow(src.dtype.scalar) or is_narrow(dst_type.scalar):
            return convert(self, src, dst_type.scalar, ti._ir.ROUNDING_MODE.RTNE)
        return stock_cast(self, src, dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if is_narrow(src.dtype.scalar) or is_narrow(dst_type.scalar):
            return convert(self, src, dst_type.scalar, rounding_mode)
        return stock_fp_to_fp(self, src, dst_type, rounding_mode)

    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp


def correct_arithmetic(builder: type[Any]) -> None:
    """Elementwise operations and comparisons of one, two or three operands."""
    stock_unary, stock_binary = builder.unary_op, builder.binary_op
    stock_ternary, stock_fma = builder.ternary_op, builder.create_fma

    def compute(op: Any, *operands: Any) -> Any:
        dtype = operands[0].dtype.scalar
        values = op(*(widen(operand.data, dtype) for operand in operands))
        if values.dtype == np.bool_:
            return ti.TensorHandle(values, tl.int1)
        return ti.TensorHandle(narrow(values, dtype), dtype)

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        return compute(op, arg) if is_narrow(arg.dtype.scalar) else stock_unary(self, arg, op)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if is_narrow(lhs.dtype.scalar):
            return compute(op, lhs, rhs)
        return stock_binary(self, lhs, rhs, op)

    def ternary_op(self: Any, lhs: Any, rhs: Any, other: Any, op: Any) -> Any:
        # `where` chooses among bits, by a condition.
        if is_narrow(lhs.dtype.scalar) and op is not np.where:
            return compute(op, lhs, rhs, other)
        return stock_ternary(self, lhs, rhs, other, op)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if is_narrow(z.dtype.scalar):
            # The product is exact in float64, and so is the sum of all but far-apart operands.
            return compute(lambda a, b, c: a.astype(np.float64) * b + c, x, y, z)
        return stock_fma(self, x, y, z)

    builder.unary_op = unary_op
    builder.binary_op = binary_op
    builder.ternary_op = ternary_op
    builder.create_fma = create_fma


def correct_dot(builder: type[Any]) -> None:
    """Matrix products: narrow operands widened exactly, tf32 operands truncated."""
    stock = builder.create_dot
    tf32 = ti._ir.INPUT_PRECISION.TF32

    def operand(handle: Any, input_precision: Any) -> Any:
        dtype = handle.dtype.scalar
        if is_narrow(dtype):
            return ti.TensorHandle(widen(handle.data, dtype), tl.float32)
        if dtype.is_fp32() and input_precision == tf32:
            return ti.TensorHandle(truncate_to_tf32(handle.data), tl.float32)
        return handle

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, imprecise: Any) -> Any:
        a, b = operand(a, input_precision), operand(b, input_precision)
        return stock(self, a, b, d, input_precision, imprecise)

    builder.create_dot = create_dot


def correct_reductions(reduce_ops: type[Any], scan_ops: type[Any]) -> None:
    """`tl.sum`, `tl.max`, `tl.cumsum` and the like, for which the interpreter uses numpy."""

    def widened(self: Any, tensor: Any) -> Any:
        return self.to_tensor(widen(tensor.handle.data, tensor.dtype), tl.float32)

    def narrowed(tensor: Any, dtype: Any) -> Any:
        handle = ti.TensorHandle(narrow(tensor.handle.data, dtype), dtype)
        return tl.tensor(handle, tensor.type.with_element_ty(dtype))

    def correct(operations: type[Any], name: str) -> None:
        stock = getattr(operations, name)

        def operation(self: Any, input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
            tensor = input[0] if isinstance(input, tuple) else input
            dtype = tensor.dtype
            if not is_narrow(dtype):
                return stock(self, input, *args, **kwargs)
            result = stock(self, widened(self, tensor), *args, **kwargs)
            if isinstance(result, tl.tensor):
                return narrowed(result, dtype) if result.dtype == tl.float32 else result
            value, *rest = result  # rest: the index of the value, which is an integer
            return type(result)((narrowed(value, dtype), *rest))

        setattr(operations, name, operation)

    correct(reduce_ops, "sum")
    correct(reduce_ops, "min_max")
    correct(scan_ops, "cumsum")
    correct(scan_ops, "cumprod")


def overflow_in_silence(executor: Any) -> None:
    """Let float results that are too large become infinity without a warning, as on a GPU.

    Stock, numpy warns, and where warnings are errors the launch ends: for `exp2` in a soft-cap, for
    example, whose infinity is what the formula wants. Invalid operations still warn.
    """
    stock = executor.__call__

    def __call__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        with np.errstate(over="ignore"):
            stock(self, *args, **kwargs)

    executor.__call__ = __call__
