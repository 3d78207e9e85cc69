"""Who can watch the memory accesses of a kernel in this process."""

from __future__ import annotations

import sys

from reference.conformance.attention import Watch


def watcher() -> Watch | None:
    """The memory checker where Triton kernels are interpreted; None where nothing can be seen.

    Call it when the kernel has been imported: only then is it known whether that needs Triton.
    Where it does, the interpreter has its corrections afterwards.
    """
    if "triton" not in sys.modules:
        return None
    from kernels.interpreter import interpreting
    from kernels.interpreter.memory import watch_attention

    return watch_attention if interpreting() else None
