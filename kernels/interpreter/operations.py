"""What one operation of a kernel costs in Triton's interpreter.

Stock, an addition of two tiles computes a second sum of which nobody asks the result, and builds
types, shapes and tables that were built a moment ago. Nothing here alters a result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter as ti


def skip_dead_overflow_checks(builder: Any) -> None:
    """Do not compute an int64 copy of every int32 sum when nobody asserts on it."""
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


@contextmanager
def overflow_checks(builder: Any) -> Iterator[None]:
    """Within this context an int32 overflow in a kernel raises, as on a GPU it would not."""
    before = builder.options
    builder.options = dataclasses.replace(before, sanitize_overflow=True, debug=True)
    try:
        yield
    finally:
        builder.options = before


def remember_numpy_types(module: Any) -> None:
    """Look the numpy type of a Triton type up instead of building the table at every call."""
    stock = module._get_np_dtype
    known: dict[str, Any] = {}

    def _get_np_dtype(dtype: Any) -> Any:
        scalar = dtype.scalar
        name = "" if scalar.is_ptr() else scalar.name  # the names of pointers have no end
        if name not in known:
            known[name] = stock(scalar)
        return known[name]

    module._get_np_dtype = _get_np_dtype


def remember_common_types(semantic: type[Any]) -> None:
    """Decide once to which type two types are cast before an operation."""
    stock = semantic.computation_type_impl
    known: dict[Any, Any] = {}

    def computation_type_impl(
        self: Any, a: Any, a_scalar: Any, b: Any, b_scalar: Any, div: Any
    ) -> Any:
        key = a.name, a_scalar, b.name, b_scalar, div
        if key not in known:
            known[key] = stock(self, a, a_scalar, b, b_scalar, div)
        return known[key]

    semantic.computation_type_impl = computation_type_impl


def check_sizes_at_once(handle: type[Any]) -> None:
    """Know how many bytes an element of a type may have instead of asking it for every result."""
    stock = handle.__post_init__

    def init_handle(self: Any, data: Any, dtype: Any, attr: Any = None) -> None:
        self.data = data
        self.dtype = dtype
        self.attr = {} if attr is None else attr
        try:
            most = dtype.most_bytes
        except AttributeError:
            pointer = dtype.is_ptr()
            most = dtype.most_bytes = 8 if pointer else max(8, dtype.primitive_bitwidth) // 8
        if data.itemsize > most:
            stock(self)  # with its error

    handle.__init__ = init_handle


def unwrap_at_once(core: Any) -> None:
    """Hand on what is no `constexpr`, and no list of them, without asking four times what it is."""
    stock = core._unwrap_if_constexpr
    constexpr = core.constexpr
    plain = {int, float, bool, str, type(None), core.tensor, core.dtype, core.pointer_type}
    plain |= {core.block_type, np.ndarray}

    def _unwrap_if_constexpr(value: Any) -> Any:
        kind = type(value)
        if kind in plain:
            return value
        return value.value if kind is constexpr else stock(value)

    core._unwrap_if_constexpr = _unwrap_if_constexpr


def compare_a_type_with_itself(*types: type[Any]) -> None:
    """A type is equal to itself, whatever its name."""
    for each in types:
        each.__eq__ = _or_the_same(each.__eq__)


def _or_the_same(stock: Any) -> Any:
    def equal(self: Any, other: object) -> Any:
        return self is other or stock(self, other)

    return equal


def sizes(block_type: Any) -> tuple[int, ...]:
    """The shape of a block as a tuple of Python's own: Triton's is slow to compare."""
    known: tuple[int, ...] = block_type.sizes
    return known


def remember_shapes(language: Any) -> None:
    """Build the description of a block's shape once, not for every intermediate result."""
    block_type, tensor = language.block_type, language.tensor
    stock_type, stock_tensor = block_type.__init__, tensor.__init__
    of_types: dict[tuple[int, ...], tuple[Any, Any]] = {}
    of_tensors: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def init_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = tuple([getattr(size, "value", size) for size in shape])
        if key not in of_types:
            stock_type(self, element_ty, shape)
            of_types[key] = self.shape, self.numel
        self.element_ty = element_ty
        self.sizes = key
        self.shape, self.numel = of_types[key]

    def init_tensor(self: Any, handle: Any, type: Any) -> None:  # noqa: A002 - stock's name
        try:
            key = type.sizes
        except AttributeError:
            key = ()  # no block
        if key not in of_tensors:
            stock_tensor(self, handle, type)
            of_tensors[key] = self.shape, self.numel
        self.handle = handle
        self.type = type
        self.dtype = type.scalar
        self.shape, self.numel = of_tensors[key]

    # Not a property: a subclass may assign a name of its own.
    name = cached_property(lambda self: f"<{self.shape}, {self.element_ty}>")
    block_type.__init__ = init_type
    block_type.name = name
    name.__set_name__(block_type, "name")
    tensor.__init__ = init_tensor


def agree_on_equal_types(semantic: type[Any]) -> None:
    """Two tensors of one type need no common type to be found, and no cast to it.

    Neither does a tensor of int32 with a whole number that one holds: the number's tensor is made
    once.
    """
    stock = semantic.binary_op_type_checking_impl
    least, most = -(2**31), 2**31

    @lru_cache(maxsize=4096)
    def constant(made_by: Any, number: int) -> Any:
        return made_by.scalar_constant(number, dtype=tl.int32)

    def binary_op_type_checking_impl(
        self: Any, lhs: Any, rhs: Any, *rules: Any, **named: Any
    ) -> Any:
        # The fourth rule: a division takes place in a wider type.
        div_or_mod = named.get("div_or_mod", any(rules[3:]))
        if isinstance(lhs, tl.tensor) and not div_or_mod:
            known = lhs.dtype
            if known is tl.int32 and type(rhs) is int and least <= rhs < most:
                return self.broadcast_impl_value(lhs, constant(self, rhs))
            if isinstance(rhs, tl.tensor) and known is rhs.dtype and not known.is_ptr():
                return self.broadcast_impl_value(lhs, rhs)
        return stock(self, lhs, rhs, *rules, **named)

    semantic.binary_op_type_checking_impl = binary_op_type_checking_impl


def broadcast_as_views(semantic: type[Any]) -> None:
    """Broadcast operands with numpy's views instead of filled copies and compared shape tuples."""
    stock = semantic.broadcast_impl_value

    def with_type(tensor: Any, data: Any, shape: tuple[int, ...]) -> Any:
        handle = ti.TensorHandle(data, tensor.handle.dtype)
        return tl.tensor(handle, tl.block_type(tensor.dtype, list(shape)))

    def repeatable(scalar: Any, block: Any) -> bool:
        # Beside a block in another order than C's, a filled copy in C order decides the order of
        # the result, and that the order of a sum over it: only stock's own gives stock's bits.
        return bool(scalar.handle.data.size == 1 and block.handle.data.flags.c_contiguous)

    def repeated(scalar: Any, block: Any) -> Any:
        data, shape = scalar.handle.data, sizes(block.type)
        view: Any = np.ndarray(shape, data.dtype, data, strides=(0,) * len(shape))
        return with_type(scalar, view, shape)

    def stretched(tensor: Any, shape: tuple[int, ...]) -> Any:
        if sizes(tensor.type) == shape:
            return tensor
        return with_type(tensor, np.broadcast_to(tensor.handle.data, shape), shape)

    def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> Any:
        if lhs.type.is_block() and rhs.type.is_block():
            one, other = sizes(lhs.type), sizes(rhs.type)
            if one == other:
                return lhs, rhs
            if len(one) == len(other) and all(
                a == b or 1 in {a, b} for a, b in zip(one, other, strict=True)
            ):
                shape = tuple(map(max, one, other))
                return stretched(lhs, shape), stretched(rhs, shape)
        elif lhs.type.is_block() and repeatable(rhs, lhs):
            return lhs, repeated(rhs, lhs)
        elif rhs.type.is_block() and repeatable(lhs, rhs):
            return repeated(lhs, rhs), rhs
        return stock(self, lhs, rhs)  # with its errors

    semantic.broadcast_impl_value = broadcast_impl_value
