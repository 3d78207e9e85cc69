"""From a name on the command line to an allocator.

A name is a built-in one, `module:factory`, or `path/to/file.py:factory`. The built-in engines live
in environments of their own, which `make engines` builds; nothing of theirs is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reference.allocator.contract import (
    AllocatorCapabilities,
    AllocatorFactory,
    AllocatorRaised,
    capabilities_of_factory,
)
from subjects.allocators.mixed_stream import Served
from subjects.allocators.remote import TIME_LIMIT_S, RemoteFactory
from subjects.environments import BuiltIn, chosen_interpreter, engine_python
from subjects.loading import SubjectError, load, split
from subjects.starting import PREFIX

MAX_TIME_LIMIT_S: Final = 10**6
"""Longest time limit of a call: timers of the system take no more than 32 bits of seconds."""

ADAPTERS: Final = Path(__file__).parent / "engines"


BUILT_IN: Final = {
    "paged": BuiltIn(f"{PREFIX}paged.subject:paged_allocator"),
    "vllm": BuiltIn(f"{ADAPTERS / 'vllm_kv_cache_manager.py'}:make", "vllm"),
    "sglang": BuiltIn(f"{ADAPTERS / 'sglang_radix_cache.py'}:make", "sglang"),
    "sglang-pages": BuiltIn(f"{ADAPTERS / 'sglang_radix_cache.py'}:make_pages", "sglang"),
    "transformers": BuiltIn(f"{ADAPTERS / 'transformers_paged_cache.py'}:make", "transformers"),
    "torch": BuiltIn(f"{ADAPTERS / 'torch_paged_attention.py'}:make"),
    "paged-system": BuiltIn(f"{PREFIX}paged.system:paged_system"),
    "torch-flex": BuiltIn(f"{ADAPTERS / 'torch_flex_system.py'}:make"),
}
"""Ours and the engines', on equal terms with everybody's: run by the same code."""


@dataclass(frozen=True, slots=True)
class AllocatorSubject:
    """An allocator under test."""

    name: str
    """As it was asked for."""
    factory: AllocatorFactory
    """Makes the allocators."""
    capabilities: AllocatorCapabilities
    """What it declares."""
    version: str
    """What it says of its version; may be empty."""

    def kill(self) -> None:
        """End the process for good, from any thread; nothing where it runs in this one."""
        if isinstance(self.factory, RemoteFactory):
            self.factory.kill()

    def serve(self, **question: Any) -> Served:
        """`mixed_stream.serve`, in the allocator's own process. Raises AllocatorDied,
        AllocatorRaised.
        """
        if self.capabilities.system:
            raise SubjectError(f"{self.name} is a system, not an allocator: `fuzz` takes it")
        if not isinstance(self.factory, RemoteFactory):
            raise SubjectError(f"{self.name} runs in this process: open it without in_process")
        answer = self.factory.ask({"serve": question})
        if "raised" in answer:
            raise AllocatorRaised(answer["raised"])
        return Served(**answer)


def check_allocator_name(name: str) -> None:
    """Raise SubjectError where a name cannot lead to an allocator. Nothing is imported."""
    if name not in BUILT_IN:
        split(name, what="allocator", built_in=tuple(BUILT_IN))


@contextmanager
def open_allocator(
    name: str,
    *,
    python: str | None = None,
    in_process: bool = False,
    time_limit_s: float = TIME_LIMIT_S,
) -> Iterator[AllocatorSubject]:
    """Find an allocator, start its process, and end it afterwards.

    `name` is built-in, `module:factory` or `path/to/file.py:factory`; `python` runs it instead of
    the interpreter that it needs: its path, or exact requirements of one that is then built. With
    `in_process` it is imported here instead: faster, and a crash or a hang is then ours. One call
    may take `time_limit_s` seconds.

    Raises SubjectError: the name leads nowhere, or what the allocator declares makes no sense.
    """
    if not 0 < time_limit_s <= MAX_TIME_LIMIT_S:
        raise SubjectError(
            f"a time limit of {time_limit_s:g} s for a call: give up to {MAX_TIME_LIMIT_S:,} s"
        )
    known = BUILT_IN.get(name)
    where = known.where if known is not None else name
    split(where, what="allocator", built_in=tuple(BUILT_IN))  # the worker knows no short names
    if in_process:
        if python is not None or (known is not None and known.environment):
            raise SubjectError(
                f"{name} runs in an interpreter of its own: it cannot run in process"
            )
        yield _imported(name, where)
        return
    if python is not None:
        python = chosen_interpreter(python)
    elif known is not None and known.environment:
        python = str(engine_python(known.environment))
    with RemoteFactory(where, python=python, time_limit_s=time_limit_s) as factory:
        factory.introduce()
        yield AllocatorSubject(name, factory, factory.capabilities, factory.version)


def _imported(name: str, where: str) -> AllocatorSubject:
    factory = load(where, what="allocator")
    if not callable(factory):
        raise SubjectError(f"{name} is {type(factory).__name__}, not callable: name a factory")
    try:
        capabilities = capabilities_of_factory(factory)
    except (TypeError, ValueError) as error:
        raise SubjectError(f"{name}: {error}") from None
    return AllocatorSubject(name, factory, capabilities, str(getattr(factory, "version", "")))
