"""Who can watch the memory accesses of a kernel in this process."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from reference.attention.contract import AttentionKernel, PagedBatch

if TYPE_CHECKING:
    from reference.attention.checks import Watch  # not where a kernel has a process for itself


def watcher() -> Watch | None:
    """The memory checker where Triton kernels are interpreted, once one has been imported."""
    if "triton" not in sys.modules:
        return None
    from kernels.interpreter import interpreting
    from kernels.interpreter.memory import watch_attention

    return watch_attention if interpreting() else None


def bytes_moved(kernel: AttentionKernel, batch: PagedBatch) -> dict[str, dict[str, int]] | None:
    """Bytes that a Triton kernel moves of each tensor; None where nothing can be seen."""
    if watcher() is None:
        return None
    from kernels.interpreter.memory import attention_roles, watch_memory

    with watch_memory(attention_roles(batch)) as memory:
        kernel(batch)
    if not memory.launches:
        return None
    return {name: asdict(traffic) for name, traffic in memory.traffic.items()}
