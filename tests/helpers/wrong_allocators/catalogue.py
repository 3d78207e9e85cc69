"""What a wrong allocator is on record with, and how it is planted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any, Final
from unittest import mock

from helpers.swapping import SwappingSubject, swapping_allocator
from paged.allocator import PagedAllocator
from paged.eviction import LRU
from paged.pool import BlockPool
from paged.prefix import PrefixChain, PrefixIndex
from paged.subject import PagedSubject, paged_allocator
from paged.table import BlockTable
from reference.allocator.contract import (
    AllocatorCapabilities,
    AllocatorFactory,
    capabilities_of_factory,
)
from reference.allocator.machine import CHECKS
from reference.allocator.programs import Pool, Program, Step

BASES: Final = (
    *(PagedAllocator, PagedSubject, BlockPool, BlockTable, PrefixChain, PrefixIndex, LRU),
    SwappingSubject,
)
"""Classes that a wrong one stands in for."""

OWNERS: Final = "content ownership conservation table answer copies drain capacity"
"""A block has the wrong owners, or none."""


# Steps of programs that are written by hand


def admit(name: str, *tokens: int, first: int | None = None, salt: str = "") -> Step:
    return Step("admit", name, tokens=tokens, num_tokens=first, salt=salt)


def append(name: str, *tokens: int) -> Step:
    return Step("append", name, tokens=tokens)


def fork(child: str, parent: str) -> Step:
    return Step("fork", child, parent=parent)


def free(name: str) -> Step:
    return Step("free", name)


SIX_BY_TWO: Final = Pool(num_blocks=6, block_size=2)
NO_CACHE: Final = replace(SIX_BY_TWO, prefix_caching=False)
WINDOW_OF_TWO: Final = Pool(num_blocks=6, block_size=1, window=2)

A: Final = admit("a", 0, 1, 2)
# A copy is due after these three.
COPY_ON_WRITE: Final = (admit("a", 0), fork("b", "a"), append("b", 1))
# Block 0 is idle after these, with tokens 0 and 1, and another one is free again.
ONE_IDLE: Final = (A, free("a"))
# Of one sequence's blocks the last goes idle first: block 1 before block 0.
CHAIN_OF_TWO: Final = (admit("a", 0, 1, 2, 3), free("a"))
# Blocks 0, then 1, go idle, and then there is room for one block without eviction. Four take it
# and three more, with blocks 0 and 1 among them.
TWO_IDLE: Final = (admit("a", 0, 1), admit("b", 100, 101), free("a"), free("b"))
TAKE_FIVE: Final = admit("c", *range(200, 210))


# Bugs


@dataclass(frozen=True, slots=True)
class Example:
    """A program in which its last step is wrong, or what follows the end, and nothing before."""

    finding: str
    """Pattern: the check, a colon, and what the check says."""
    program: Program
    at_the_end: bool

    @property
    def check(self) -> str:
        return self.finding.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Bug:
    """A wrong allocator."""

    name: str
    """What is wrong."""
    by: frozenset[str]
    """Checks, one of which has to find it."""
    wrong: type
    """The class that is wrong, and stands in for its base."""
    seen: str
    """Where one of the kind was reported; empty if it was thought up."""
    capabilities: AllocatorCapabilities
    """What is declared instead, where that matters."""
    factory: AllocatorFactory
    """Makes the wrong allocators while the bug is planted, the right ones otherwise."""
    hunted: bool
    """Whether `pagedbench fuzz` has to find it; otherwise its example is all there is to it."""
    example: Example | None = None
    """Shows the bug by hand."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Let the wrong class take the place of the right one."""
        base = next(base for base in self.wrong.__mro__[1:] if base in BASES)
        with ExitStack() as stack:
            for module in _holders(base):
                stack.enter_context(mock.patch.object(module, base.__name__, self.wrong))
            yield


def _holders(base: type) -> list[ModuleType]:
    """Modules in which a class is looked up when one of it is made; a host pool stays right."""
    room = "helpers.swapping" if base is SwappingSubject else "paged"
    loaded = [
        sys.modules[name] for name in sorted(sys.modules) if f"{name}.".startswith(f"{room}.")
    ]
    return [module for module in loaded if getattr(module, base.__name__, None) is base]


BUGS: Final[dict[str, Bug]] = {}


def bug(by: str, *, seen: str = "", **declared: Any) -> Callable[[type], type]:
    """Put a class on the list of those that fuzzing has to find."""

    def register(wrong: type) -> type:
        name = "".join(f"_{c.lower()}" if c.isupper() else c for c in wrong.__name__).strip("_")
        example = getattr(wrong, "example", None)
        right = swapping_allocator if issubclass(wrong, SwappingSubject) else paged_allocator
        _put(name, by, wrong, right, seen=seen, declared=declared, hunted=True, example=example)
        return wrong

    return register


def shown(
    finding: str, *steps: Step, pool: Pool = SIX_BY_TWO, at_the_end: bool = False
) -> Callable[[type], type]:
    """Give a class, before it is put on the list, a program by hand."""

    def show(wrong: type) -> type:
        wrong.example = Example(finding, Program(pool, steps), at_the_end)  # type: ignore[attr-defined]
        return wrong

    return show


Change = Callable[..., Any]
"""A wrong call: is given the allocator, the right call, and what it is called with."""


def wrong_calls(base: type, calls: dict[str, Change]) -> type:
    """A subclass in which some calls are wrong."""

    def make(self: Any, *given: Any, **named: Any) -> None:
        base.__init__(self, *given, **named)
        for call, change in calls.items():
            setattr(self, call, partial(change, self, getattr(self, call)))

    return type("Wrong", (base,), {"__init__": make})


def says(
    name: str,
    finding: str,
    *steps: Step,
    pool: Pool = SIX_BY_TWO,
    at_the_end: bool = False,
    right: AllocatorFactory = paged_allocator,
    declared: dict[str, Any] | None = None,
    **calls: Change,
) -> None:
    """Put an allocator on the list that gives a wrong answer, and a program that asks for it."""
    base = SwappingSubject if right is swapping_allocator else PagedSubject
    example = Example(finding, Program(pool, steps), at_the_end)
    wrong = wrong_calls(base, calls)
    _put(name, example.check, wrong, right, declared=declared or {}, hunted=False, example=example)


def _put(
    name: str,
    by: str,
    wrong: type,
    right: AllocatorFactory,
    *,
    declared: dict[str, Any],
    hunted: bool,
    example: Example | None,
    seen: str = "",
) -> None:
    assert name not in BUGS, f"two bugs are called {name}"
    assert set(by.split()) <= CHECKS.keys(), by
    BUGS[name] = Bug(
        name=name,
        by=frozenset(by.split()),
        wrong=wrong,
        seen=seen,
        capabilities=replace(capabilities_of_factory(right), **declared),
        factory=right,
        hunted=hunted,
        example=example,
    )
