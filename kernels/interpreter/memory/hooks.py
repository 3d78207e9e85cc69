"""Stands between the interpreter and memory: hands out addresses, has every access judged.

The interpreter reaches memory in four functions of its C++ module (load, store and two atomics) and
turns tensors into pointers in one function of its own. Those five are replaced while something is
watched; otherwise watching costs nothing. Above them only what is lost on the way down is looked
at: whether a masked load had an `other`, and whether a load is an atomic one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest import mock

import numpy as np
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime import interpreter as ti

from kernels.interpreter.memory.judge import Judge

UNDEFINED_INTEGER: Final = 0x5A
"""Every byte of an undefined integer lane; as an index it leads far away."""

ATOMIC_ACCESSES: Final = ("create_atomic_load", "create_atomic_store", "create_atomic_poll")
"""Builder methods of later releases that load and store atomically, by way of the plain ones."""


class _Memory:
    """The interpreter's C++ module, with its four accesses to memory judged."""

    def __init__(self, stock: Any, judge: Judge) -> None:
        self._stock = stock
        self._judge = judge
        self.atomic_sem: Any = None  # of the atomic access that a plain one is a part of

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        itemsize = np.dtype(dtype).itemsize
        real, legal = self._judged(self._judge.load, pointers, mask, itemsize, loads=True)
        return self._stock.load(real, legal, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        itemsize = value.dtype.itemsize
        real, legal = self._judged(self._judge.store, pointers, mask, itemsize, loads=False)
        return self._stock.store(real, value, legal)

    def atomic_rmw(self, op: Any, pointers: Any, value: Any, mask: Any, sem: Any) -> Any:
        real, legal = self._updated(pointers, mask, value.dtype.itemsize, sem)
        return self._stock.atomic_rmw(op, real, value, legal, sem)

    def atomic_cas(self, pointers: Any, expected: Any, value: Any, sem: Any) -> Any:
        everywhere = np.ones(pointers.shape, np.bool_)
        real, legal = self._updated(pointers, everywhere, value.dtype.itemsize, sem)
        if legal.all():
            return self._stock.atomic_cas(real, expected, value, sem)
        return np.zeros_like(value)  # it has no mask, and its finding is made

    def _judged(self, plain: Any, pointers: Any, mask: Any, itemsize: int, *, loads: bool) -> Any:
        self._judge.enter(ti.interpreter_builder.grid_idx)
        mask = np.asarray(mask)  # a buffer where Triton 3.6 reads through a descriptor
        if self.atomic_sem is None:
            return plain(pointers, mask, itemsize)
        # By name: the interpreter and the compiler have an enumeration each.
        order = self.atomic_sem.name
        return self._judge.atomic(pointers, mask, itemsize, order, loads=loads, stores=not loads)

    def _updated(self, pointers: Any, mask: Any, itemsize: int, sem: Any) -> Any:
        self._judge.enter(ti.interpreter_builder.grid_idx)
        return self._judge.atomic(pointers, mask, itemsize, sem.name, loads=True, stores=True)


class _HostWrites(TorchDispatchMode):
    """Follows what the host allocates without filling it, and what it fills later."""

    supports_higher_order_operators = True  # FlexAttention is one: a kernel may call it

    def __init__(self, judge: Judge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._judge = judge

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler, to keep that from compiling this: more than a second."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(func, HigherOrderOperator):
            return result
        if "empty" in func._schema.name and isinstance(result, Tensor):
            self._judge.book.fresh(result)
        elif func._schema.is_mutable:
            given = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False))}
            given |= kwargs or {}
            for argument in func._schema.arguments:
                tensor = given.get(argument.name)
                alias = argument.alias_info
                if alias is not None and alias.is_write and isinstance(tensor, Tensor):
                    self._judge.book.overwritten(tensor)
        return result


@contextmanager
def judged(judge: Judge) -> Iterator[None]:
    """Within this context every access of an interpreted kernel goes through a judge."""
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        memory = _Memory(ti._interpreter, judge)
        replace(ti, "_interpreter", memory)
        replace(ti, "_implicit_cvt", _to_virtual(ti._implicit_cvt, judge))
        executor, builder = ti.GridExecutor, ti.InterpreterBuilder
        replace(executor, "__call__", _launch(executor.__call__, judge))
        load = _load_with_undefined_lanes(builder.create_masked_load, judge)
        replace(builder, "create_masked_load", load)
        for name in ATOMIC_ACCESSES:
            if hasattr(builder, name):
                replace(builder, name, _atomic_access(getattr(builder, name), memory))
        stack.enter_context(_HostWrites(judge))
        yield


def _to_virtual(stock: Callable[[Any], Any], judge: Judge) -> Callable[[Any], Any]:
    """Tensors become pointers in ranges of their own."""

    def implicit_cvt(argument: Any) -> Any:
        converted = stock(argument)
        if not hasattr(argument, "data_ptr"):
            return converted
        tensor = argument if isinstance(argument, Tensor) else argument.base
        name = judge.names_of_arguments.get(tensor.data_ptr(), "a tensor")
        virtual = judge.book.virtual_address(tensor, judge.kernel, name)
        converted.handle.data = np.array([virtual], dtype=np.uint64)
        return converted

    return implicit_cvt


def _launch(stock: Any, judge: Judge) -> Any:
    """A launch begins and ends, and its arguments have names."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        given = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        judge.names_of_arguments.clear()
        for name, value in given.items():
            if isinstance(value, Tensor):
                judge.names_of_arguments[value.data_ptr()] = name
        judge.begin_launch(self.fn.__name__)
        try:
            # What the interpreter copies to the host and back is no access of the kernel's.
            with _disable_current_modes():
                stock(self, *args, **kwargs)
        finally:
            judge.end_launch()

    return __call__


def _load_with_undefined_lanes(stock: Any, judge: Judge) -> Any:
    """Lanes that are masked off without an `other` hold what nobody expects, not zero."""

    def create_masked_load(
        self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any, **named: Any
    ) -> Any:
        if other is None and not mask.data.all():
            off = int(mask.data.size - np.count_nonzero(mask.data))
            judge.enter(self.grid_idx)
            judge.undefined_lanes(off, mask.data.size, int(ptrs.data.flat[0]))
            other = _undefined(ptrs)
        return stock(self, ptrs, mask, other, *rest, **named)

    return create_masked_load


def _undefined(pointers: Any) -> Any:
    dtype = pointers.get_element_ty()
    numpy_type = np.dtype(ti._get_np_dtype(dtype))
    if dtype.is_floating() and numpy_type.kind == "f":
        data = np.full(pointers.data.shape, np.nan, numpy_type)
    else:
        # Of bfloat16 and float8 these are bits: a NaN has all of them set but the sign.
        filler = 0x7F if dtype.is_floating() else UNDEFINED_INTEGER
        data = np.full((*pointers.data.shape, numpy_type.itemsize), filler, np.uint8)
        if dtype.is_bf16():
            data[..., 0] = 0xFF
        data = data.view(numpy_type).reshape(pointers.data.shape)
    return ti.TensorHandle(data, dtype)


def _atomic_access(stock: Any, memory: _Memory) -> Any:
    """The plain accesses within are one atomic access."""
    parameters = inspect.signature(stock)

    def access(self: Any, *args: Any, **kwargs: Any) -> Any:
        memory.atomic_sem = parameters.bind(self, *args, **kwargs).arguments["sem"]
        try:
            return stock(self, *args, **kwargs)
        finally:
            memory.atomic_sem = None

    return access
