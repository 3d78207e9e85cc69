"""Installs the corrections, once, in a process that interprets."""

from __future__ import annotations

from contextlib import AbstractContextManager

import triton
import triton.language as tl
from triton.runtime import interpreter as ti

from kernels.interpreter import dispatch, numbers, releases

_installed = False


def interpreting() -> bool:
    """Whether this process interprets kernels: TRITON_INTERPRET=1 when triton was imported."""
    return bool(triton.knobs.runtime.interpret)


def installed() -> bool:
    """Whether the corrections are in force."""
    return _installed


def install() -> None:
    """Correct and speed up the interpreter; a second call does nothing."""
    global _installed  # noqa: PLW0603 - the interpreter that is patched is global as well
    if _installed:
        return
    builder = ti.InterpreterBuilder
    numbers.correct_casts(builder)
    numbers.correct_arithmetic(builder)
    numbers.correct_dot(builder)
    numbers.correct_reductions(ti.ReduceOps)
    releases.maximum_drops_nan(builder)
    releases.patch_language(ti)
    dispatch.patch_language_once(ti)
    dispatch.skip_dead_overflow_checks(ti.interpreter_builder)
    dispatch.share_host_memory(ti.GridExecutor)
    dispatch.remember_numpy_types(ti)
    dispatch.remember_signatures(ti)
    dispatch.remember_shapes(tl)
    dispatch.broadcast_as_views(ti.TritonSemantic)
    _installed = True


def overflow_checks() -> AbstractContextManager[None]:
    """Within this context an int32 overflow in an interpreted kernel raises."""
    return dispatch.overflow_checks(ti.interpreter_builder)
