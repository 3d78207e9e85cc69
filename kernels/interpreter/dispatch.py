"""What a launch and a nested call cost in Triton's interpreter.

Stock, a quarter of the time goes into int32 overflow checks whose result is thrown away, another
into re-patching the whole language at every nested call of a @jit function, `tl.max` and `tl.sum`
among them. None of the changes here alters a result.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter as ti


class _NothingToRestore:
    """A patch scope whose patches stay: the next launch would make the same ones."""

    def restore(self) -> None:
        pass


def patch_language_once(module: Any) -> None:
    """Patch `triton.language` at the first launch of a module's kernels and leave it patched.

    Stock, every launch and every nested call walks all members of the language: 3 ms each. The
    process interprets anyway, and nothing in it can compile (the mode is fixed at import).
    """
    stock = module._patch_lang
    patched: set[frozenset[int]] = set()

    def _patch_lang(fn: Any) -> _NothingToRestore:
        key = _languages(fn)
        if key not in patched:
            stock(fn)
            patched.add(key)
        return _NothingToRestore()

    module._patch_lang = _patch_lang


@cache
def _languages(fn: Any) -> frozenset[int]:
    # The interpreter patches the language modules that the kernel's globals name.
    return frozenset(id(value) for value in fn.__globals__.values() if value in (tl, tl.core))


def skip_dead_overflow_checks(builder: Any) -> None:
    """Do not compute an int64 copy of every int32 sum when nobody asserts on it."""
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


@contextmanager
def overflow_checks(builder: Any) -> Iterator[None]:
    """Within this context an int32 overflow in a kernel raises, as on a GPU it would not.

    A product of a block index and a stride that wraps reads another sequence's cache: it shows
    in no small problem, and here at once.
    """
    before = builder.options
    builder.options = dataclasses.replace(before, sanitize_overflow=True, debug=True)
    try:
        yield
    finally:
        builder.options = before


def share_host_memory(executor: type[Any]) -> None:
    """Hand CPU tensors to the kernel as they are.

    Stock, arguments are rebuilt on a copy of their storage and the whole storage is copied back
    after the launch: for tensors on the CPU onto itself.
    """
    stock_init, stock_restore = executor._init_args_hst, executor._restore_args_dev

    def _init_args_hst(self: Any, args: Any, kwargs: Any) -> Any:
        if _all_on_cpu(args) and _all_on_cpu(kwargs.values()):
            return list(args), dict(kwargs)
        return stock_init(self, args, kwargs)

    def _restore_args_dev(self: Any, args: Any, host: Any, kwargs: Any, host_kwargs: Any) -> None:
        if not (_all_on_cpu(args) and _all_on_cpu(kwargs.values())):
            stock_restore(self, args, host, kwargs, host_kwargs)

    executor._init_args_hst = _init_args_hst
    executor._restore_args_dev = _restore_args_dev


def _all_on_cpu(args: Any) -> bool:
    for arg in args:
        device = getattr(arg, "device", None)
        if device is None:
            if hasattr(arg, "data_ptr") or hasattr(arg, "base") or isinstance(arg, tuple):
                return False
        elif device.type != "cpu":
            return False
    return True


def remember_numpy_types(module: Any) -> None:
    """Look the numpy type of a Triton type up instead of building the table at every call."""
    stock = module._get_np_dtype
    known: dict[Any, Any] = {}

    def _get_np_dtype(dtype: Any) -> Any:
        if isinstance(dtype, (tl.pointer_type, tl.block_type)):
            return stock(dtype) if not hasattr(dtype, "element_ty") else _of_element(dtype)
        name = dtype.name
        if name not in known:
            known[name] = stock(dtype)
        return known[name]

    uint64 = stock(tl.pointer_type(tl.int8))

    def _of_element(dtype: Any) -> Any:
        if isinstance(dtype, tl.pointer_type) or isinstance(dtype.element_ty, tl.pointer_type):
            return uint64
        return _get_np_dtype(dtype.element_ty)

    module._get_np_dtype = _get_np_dtype


def remember_signatures(module: Any) -> None:
    """Inspect a kernel's signature once, not at every launch."""

    class _Inspect:
        """The module's `inspect`, with the two costly calls remembered."""

        getfullargspec = staticmethod(cache(inspect.getfullargspec))
        get_annotations = staticmethod(cache(inspect.get_annotations))

        def __getattr__(self, name: str) -> Any:
            return getattr(inspect, name)

    module.inspect = _Inspect()


def remember_shapes(language: Any) -> None:
    """Build the description of a block's shape once, not for every intermediate result.

    Types and tensors share the immutable parts (`shape`, `numel`); the printed name of a type is
    made when somebody reads it.
    """
    block_type, tensor = language.block_type, language.tensor
    stock_type, stock_tensor = block_type.__init__, tensor.__init__
    of_types: dict[Any, dict[str, Any]] = {}
    of_tensors: dict[Any, dict[str, Any]] = {}

    def init_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = tuple([getattr(size, "value", size) for size in shape])
        parts = of_types.get(key)
        if parts is None:
            stock_type(self, element_ty, shape)
            parts = {name: vars(self)[name] for name in ("shape", "numel")}
            of_types[key] = parts
        vars(self).update(parts)
        self.element_ty = element_ty

    def name(self: Any) -> str:
        return f"<{self.shape}, {self.element_ty}>"

    def init_tensor(self: Any, handle: Any, type: Any) -> None:  # noqa: A002 - stock's name
        key = id(type.shape) if type.is_block() else None
        parts = of_tensors.get(key)
        if parts is None:
            stock_tensor(self, handle, type)
            of_tensors[key] = {name: vars(self)[name] for name in ("shape", "numel")}
            return
        vars(self).update(parts)
        self.handle = handle
        self.type = type
        self.dtype = type.scalar

    block_type.__init__ = init_type
    block_type.name = property(name, lambda self, value: None)
    tensor.__init__ = init_tensor


def broadcast_as_views(semantic: type[Any]) -> None:
    """Broadcast operands with numpy's views instead of filled copies and compared shape tuples."""
    stock = semantic.broadcast_impl_value
    view = np.broadcast_to

    def as_block(tensor: Any, like: Any) -> Any:
        handle = tensor.handle
        data = view(handle.data.reshape(()), like.handle.data.shape)
        block_type = like.type.with_element_ty(tensor.type.scalar)
        return tl.tensor(ti.TensorHandle(data, handle.dtype), block_type)

    def stretched(tensor: Any, shape: tuple[int, ...]) -> Any:
        handle = tensor.handle
        if handle.data.shape == shape:
            return tensor
        block_type = tl.block_type(tensor.type.scalar, list(shape))
        return tl.tensor(ti.TensorHandle(view(handle.data, shape), handle.dtype), block_type)

    def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> Any:
        blocks = lhs.type.is_block(), rhs.type.is_block()
        if blocks == (True, True):
            one, other = lhs.handle.data.shape, rhs.handle.data.shape
            if one == other:
                return lhs, rhs
            if len(one) == len(other) and all(
                a == b or 1 in {a, b} for a, b in zip(one, other, strict=True)
            ):
                shape = tuple(map(max, one, other))
                return stretched(lhs, shape), stretched(rhs, shape)
        elif blocks == (True, False) and rhs.handle.data.size == 1:
            return lhs, as_block(rhs, lhs)
        elif blocks == (False, True) and lhs.handle.data.size == 1:
            return as_block(lhs, rhs), rhs
        return stock(self, lhs, rhs)  # and its errors

    semantic.broadcast_impl_value = broadcast_impl_value
