"""Installs the corrections, once, in a process that interprets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

import triton.language as tl
from triton.runtime import interpreter as ti

from kernels.interpreter import arithmetic, language, launch, libdevice, operations, releases

_CORRECTIONS: Final[Mapping[str, Callable[[], None]]] = {
    # What is wrong stock: see `arithmetic`.
    "casts": partial(arithmetic.correct_casts, ti.InterpreterBuilder),
    "arithmetic": partial(arithmetic.correct_arithmetic, ti.InterpreterBuilder),
    "dot": partial(arithmetic.correct_dot, ti.InterpreterBuilder),
    "reductions": partial(arithmetic.correct_reductions, ti.ReduceOps, ti.ScanOps),
    "overflow": partial(arithmetic.overflow_in_silence, ti.GridExecutor),
    # What was wrong in earlier releases.
    "index": partial(releases.index_with_one_element, ti),
    "nan": partial(releases.drop_nan, ti.InterpreterBuilder),
    "bfloat16 constants": partial(releases.bfloat16_constants, ti.InterpreterBuilder),
    # What compiles and is not interpreted: see `language`.
    "libdevice": partial(libdevice.interpret_libdevice, ti.InterpreterBuilder),
    "names": language.call_builtins_by_any_name,
    "and, or": partial(language.combine_blocks_elementwise, ti),
    "constexprs": partial(language.tell_constants, ti),
    # What is slow for a launch or a nested call.
    "language patched once": partial(launch.patch_language_once, ti),
    "direct builtins": partial(launch.call_builtins_directly, ti),
    # What is slow for an operation.
    "dead overflow checks": partial(operations.skip_dead_overflow_checks, ti.interpreter_builder),
    "numpy types": partial(operations.remember_numpy_types, ti),
    "common types": partial(operations.remember_common_types, ti.TritonSemantic),
    "shapes": partial(operations.remember_shapes, tl),
    "equal types": partial(operations.agree_on_equal_types, ti.TritonSemantic),
    "sizes": partial(operations.check_sizes_at_once, ti.TensorHandle),
    "unwrapping": partial(operations.unwrap_at_once, tl.core),
    "same types": partial(operations.compare_a_type_with_itself, tl.dtype, tl.pointer_type),
    "views": partial(operations.broadcast_as_views, ti.TritonSemantic),
}

CORRECTIONS: Final = frozenset(_CORRECTIONS)
"""The names of all corrections."""

_in_force: set[str] = set()


def interpreting() -> bool:
    """Whether this process interprets kernels: TRITON_INTERPRET=1 when triton was imported."""
    return isinstance(tl.max, ti.InterpretedFunction)


def installed() -> bool:
    """Whether the corrections are in force, all of them."""
    return _in_force == CORRECTIONS


def install(*, without: Collection[str] = ()) -> None:
    """Correct and speed up the interpreter, but for `without`; a second call does nothing.

    Raises ValueError: for a name in `without` that no correction has.
    """
    unknown = set(without) - CORRECTIONS
    if unknown:
        raise ValueError(
            f"no corrections {sorted(unknown)}: leave out some of {sorted(CORRECTIONS)}"
        )
    if _in_force or not interpreting():
        return
    for name, correct in _CORRECTIONS.items():
        if name not in without:
            correct()
            _in_force.add(name)


def overflow_checks() -> AbstractContextManager[None]:
    """Within this context an int32 overflow in an interpreted kernel raises."""
    return operations.overflow_checks(ti.interpreter_builder)
