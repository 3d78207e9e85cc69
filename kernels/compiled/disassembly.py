"""Machine code as a list of instructions, and the loops in it. Common to SASS and amdgcn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Access:
    """What an instruction does with global memory."""

    kind: str
    """`load`, `async copy` (to shared memory, past the registers), `bulk copy` (by the tensor
    memory accelerator), `store` or `atomic`."""
    bytes: int
    """Of one thread; 0 where the instruction does not say."""

    @property
    def reads(self) -> bool:
        """Whether it brings in what a program reads."""
        return self.kind in {"load", "async copy", "bulk copy"}

    def __str__(self) -> str:
        return f"{self.kind} {self.bytes} B" if self.bytes else self.kind


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction."""

    opcode: str
    """With its modifiers, such as `LDG.E.128`."""
    kind: str
    """Its class; see `sass` and `amdgcn`."""
    access: Access | None
    """Its access to global memory, if it is one."""
    label: str | None
    """Where it branches to, if it does."""
    source: tuple[str, int]
    """(file, line) of the statement that it comes from, innermost function; ("", 0) if unknown."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The instructions of a kernel, and the index of the instruction after each label."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


def main_loop(listing: Listing) -> tuple[Instruction, ...]:
    """The loop that does the work; empty if no loop multiplies.

    Of the innermost loops the one with the most matrix instructions, or multiply-adds where there
    are none. Loops that a kernel peels off for masked tiles have as many: of equals it is the one
    that copies ahead, since what runs once is not pipelined, and then the shortest, since masks are
    work.
    """
    loops = [
        listing.instructions[listing.labels[branch.label] : at + 1]
        for at, branch in enumerate(listing.instructions)
        if branch.label is not None and listing.labels.get(branch.label, at + 1) <= at
    ]
    for kind in ("matrix", "multiply-add"):
        working = [loop for loop in loops if _count(loop, kind)]
        # A loop around another one has all that the inner one has: it is not the one that repeats.
        inner = [loop for loop in working if not any(_inside(o, loop) for o in working)]
        if inner:
            return max(
                inner,
                key=lambda loop: (_count(loop, kind), _count(loop, "async copy") > 0, -len(loop)),
            )
    return ()


def _count(loop: Sequence[Instruction], kind: str) -> int:
    return sum(instruction.kind == kind for instruction in loop)


def _inside(one: Sequence[Instruction], other: Sequence[Instruction]) -> bool:
    """Whether a loop lies within another, longer one."""
    return len(one) < len(other) and any(instruction is one[0] for instruction in other)


def count_classes(instructions: Sequence[Instruction]) -> dict[str, int]:
    """How many instructions there are of each class, the most frequent first."""
    return _ordered(Counter(instruction.kind for instruction in instructions))


def count_matrix(instructions: Sequence[Instruction]) -> dict[str, int]:
    """How many matrix instructions there are of each name."""
    return _ordered(
        Counter(each.opcode.partition(".")[0] for each in instructions if each.kind == "matrix")
    )


def count_memory(instructions: Sequence[Instruction]) -> dict[str, int]:
    """How many accesses to global memory there are of each kind and width."""
    return _ordered(Counter(str(each.access) for each in instructions if each.access))


def count_sources(
    instructions: Sequence[Instruction], name_of: Callable[[tuple[str, int]], str]
) -> dict[str, dict[str, int]]:
    """The loads of each statement, by kind and width. `name_of` names the statement at (file,
    line).
    """
    counts: dict[str, Counter[str]] = {}
    for each in instructions:
        if each.access and each.access.reads:
            counts.setdefault(name_of(each.source), Counter())[str(each.access)] += 1
    return {name: _ordered(counts[name]) for name in sorted(counts)}


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
