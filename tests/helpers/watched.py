"""Cache operations whose memory accesses are watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kernels.interpreter.memory import (
    MemoryReport,
    Role,
    copy_roles,
    watch_memory,
    write_roles,
)


class WatchedOperations:
    """Somebody's cache operations, to be called as they are; what was seen is kept."""

    def __init__(self, functions: Any) -> None:
        self._functions = functions
        self._memory: MemoryReport | None = None

    @property
    def findings(self) -> list[str]:
        """Illegal accesses of the last call."""
        return [] if self._memory is None else [str(each) for each in self._memory.findings]

    def bytes_of(self, tensor: str, what: str) -> int:
        """A field of `Traffic` for one tensor of the last call."""
        traffic = {} if self._memory is None else self._memory.traffic
        return getattr(traffic[tensor], what) if tensor in traffic else 0

    def write_slots(
        self,
        key_cache: Tensor,
        value_cache: Tensor,
        keys: Tensor,
        values: Tensor,
        slot_mapping: Tensor,
        **scales: float,
    ) -> None:
        roles = write_roles(key_cache, value_cache, keys, values, slot_mapping)
        write = self._functions.write_slots
        self._watch(
            roles, lambda: write(key_cache, value_cache, keys, values, slot_mapping, **scales)
        )

    def copy_blocks(self, key_cache: Tensor, value_cache: Tensor, pairs: Tensor) -> None:
        copy = self._functions.copy_blocks
        roles = copy_roles(key_cache, value_cache, pairs)
        self._watch(roles, lambda: copy(key_cache, value_cache, pairs))

    def _watch(self, roles: list[Role], call: Callable[[], object]) -> None:
        with watch_memory(roles) as self._memory:
            try:
                call()
            except Exception:
                if not self._memory.findings:
                    raise
