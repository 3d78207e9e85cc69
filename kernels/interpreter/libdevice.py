"""Functions of libdevice, NVIDIA's and AMD's mathematics, which stock is not interpreted.

Stock, `libdevice.tanh(x)` raises, and through `triton.language.extra.libdevice`, which stands for
either library, it is None without a word. Here it is numpy's function in the argument's type; what
is quick and rough on a GPU (`fast_expf`) is exact. Other roundings than to the nearest are refused.
"""

from __future__ import annotations

import re
from types import FunctionType
from typing import Any, Final

import numpy as np
import torch
from triton.language.extra import libdevice as either
from triton.language.extra.cuda import libdevice as nvidia
from triton.language.extra.hip import libdevice as amd
from triton.runtime import interpreter as ti

LIBRARIES: Final = (nvidia, amd)


def _special(name: str) -> Any:
    function = getattr(torch.special, name)
    return lambda x: function(torch.from_numpy(np.ascontiguousarray(x))).numpy()


_UNARY: Final = {
    **{
        name: getattr(np, name)
        for name in (
            *("tanh", "tan", "sin", "cos", "sinh", "cosh", "exp", "exp2", "expm1", "log", "log2"),
            *("log10", "log1p", "sqrt", "cbrt", "ceil", "floor", "trunc", "rint", "fabs", "abs"),
            *("isnan", "isinf", "signbit"),
        )
    },
    **{f"a{name}": getattr(np, f"arc{name}") for name in ("sin", "cos", "tan")},
    **{f"a{name}": getattr(np, f"arc{name}") for name in ("sinh", "cosh", "tanh")},
    **{name: _special(name) for name in ("erf", "erfc", "erfinv")},
    "lgamma": _special("gammaln"),
    "exp10": lambda x: np.power(x.dtype.type(10), x),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "nearbyint": np.rint,
    "round": lambda x: np.copysign(np.floor(np.abs(x) + x.dtype.type(0.5)), x),
    "rcp": np.reciprocal,
    "saturate": lambda x: np.clip(np.where(np.isnan(x), 0, x), 0, 1),
    "finite": np.isfinite,
    "isfinite": np.isfinite,
    "float_as_int": lambda x: x.view(np.int32),
    "int_as_float": lambda x: x.view(np.float32),
}
_BINARY: Final = {
    **{name: getattr(np, name) for name in ("fmod", "copysign", "hypot", "nextafter", "fmin")},
    **dict.fromkeys(("pow", "powi"), np.power),
    **dict.fromkeys(("div", "divide"), np.divide),
    "fmax": np.fmax,
    "max": np.maximum,
    "min": np.minimum,
    "atan2": np.arctan2,
    "fdim": lambda x, y: np.maximum(x - y, 0),
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
}
_WIDER: Final = {np.dtype(np.float32): np.float64, np.dtype(np.float64): np.longdouble}

FUNCTIONS: Final = {
    **_UNARY,
    **_BINARY,
    "fma": lambda x, y, z: x.astype(_WIDER[x.dtype]) * y + z,  # rounded once, at the end
}
"""By their names without a library's prefix and a type's suffix."""


def function_of(symbol: str) -> Any:
    """The function of a library's symbol, `__nv_fast_expf` or `__ocml_tanh_f32`."""
    name = re.sub(r"^__(nv|ocml)_(fast_|native_)?", "", symbol)
    name = re.sub(r"(_rn)?(_rte)?(_f16|_f32|_f64)?$", "", name)
    names = re.fullmatch(r"(?=(.*?)[fd]?$)([fd]?)(.*?)[fd]?", name)  # expf, isnand, fdiv
    tried = (name, names[1], name[len(names[2]) :], names[3]) if names else (name,)
    found = next((FUNCTIONS[each] for each in tried if each in FUNCTIONS), None)
    if found is None:
        raise NotImplementedError(
            f"{symbol} of libdevice is not interpreted; what is: {', '.join(sorted(FUNCTIONS))}"
        )
    return found


def interpret_libdevice(builder: type[Any]) -> None:
    """Let a kernel call them by either library's module, or by the one that stands for both."""

    def create_extern_elementwise(self: Any, *told: Any) -> Any:
        _, _, symbol, args, to, _ = told  # library, path, ..., whether it is pure
        function = function_of(symbol)
        with np.errstate(all="ignore"):
            found = function(*(each.data for each in args))
        kind = to.scalar
        return ti.TensorHandle(np.asarray(found).astype(ti._get_np_dtype(kind)), kind)

    builder.create_extern_elementwise = create_extern_elementwise
    for name, stub in vars(either).items():
        if isinstance(stub, FunctionType) and hasattr(nvidia, name):
            made: dict[str, Any] = {}
            source = f"def {name}(*args, **named): return _library.{name}(*args, **named)"
            exec(source, made)  # the stub itself may have been imported by its name: it stays
            stub.__code__ = made[name].__code__
    vars(either)["_library"] = nvidia
