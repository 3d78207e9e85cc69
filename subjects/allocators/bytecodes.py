"""Bytecodes that an allocator's calls execute: what they cost, without any noise.

The interpreter tells of each one, from Python 3.12 on by `sys.monitoring` (a trace function misses
the first call of a function there), before by `sys.settrace`: the same calls under the same Python
come to the same numbers on any machine. Work inside of C, as in torch, is one bytecode.

The standard library only: it runs in the interpreter of whatever is under test.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

ADAPTERS: Final = str(Path(__file__).parent / "engines")
"""What lies here plays the part of an engine's scheduler, and counts as `ADAPTER`."""

ADAPTER: Final = "adapter"

TOOL: Final = 4
"""Its number among the tools of `sys.monitoring`: debuggers and profilers have others."""

CALLS: Final = ("admit", "append", "append_each", "commit", "free")
"""Methods of an allocator that are counted."""


class CountedAllocator:
    """An allocator whose calls are counted, and nothing between them."""

    def __init__(self, allocator: Any) -> None:
        self._allocator = allocator
        self._counts: Counter[CodeType] = Counter()
        self._modules: dict[CodeType, str] = {}
        for name in CALLS:
            if hasattr(allocator, name):
                setattr(self, name, self._counted(getattr(allocator, name)))

    def counts(self) -> Any:
        """The allocator's own, uncounted."""
        return self._allocator.counts()

    def bytecodes(self) -> dict[str, int]:
        """How many were executed, by function: `module:name`, and `ADAPTER` for all of its own."""
        found: Counter[str] = Counter()
        for code, count in self._counts.items():
            # Python 3.11 has the name with the class.
            name = getattr(code, "co_qualname", code.co_name)
            ours = code.co_filename.startswith(ADAPTERS)
            found[ADAPTER if ours else f"{self._modules[code]}:{name}"] += count
        return dict(found)

    def _counted(self, method: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            # What the collector calls when it happens to run is nobody's.
            collects = gc.isenabled()
            gc.disable()
            self._begin()
            try:
                return method(*given, **named)
            finally:
                self._end()
                if collects:
                    gc.enable()

        return call

    def _begin(self) -> None:
        if sys.version_info < (3, 12):
            sys.settrace(self._enter)
            return
        told = sys.monitoring
        told.use_tool_id(TOOL, __name__)
        told.register_callback(TOOL, told.events.INSTRUCTION, self._executed)
        told.set_events(TOOL, told.events.INSTRUCTION)

    def _end(self) -> None:
        if sys.version_info < (3, 12):
            sys.settrace(None)
            return
        sys.monitoring.set_events(TOOL, 0)
        sys.monitoring.free_tool_id(TOOL)

    def _executed(self, code: CodeType, offset: int) -> None:
        if code.co_filename == __file__:
            return  # around the call
        if code not in self._modules:
            self._modules[code] = str(sys._getframe(1).f_globals.get("__name__"))
        self._counts[code] += 1

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        """The trace function of whoever is called."""
        if frame.f_code.co_filename == __file__:
            return None  # the end of a call
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        self._modules.setdefault(frame.f_code, str(frame.f_globals.get("__name__")))
        counts, code = self._counts, frame.f_code

        def count(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "opcode":
                counts[code] += 1
            return count

        return count
