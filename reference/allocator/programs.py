"""Allocator programs: what is done to an allocator, step by step, as plain data.

A program says everything: run again, on this machine or another one, it makes the same calls with
the same arguments. That is what a finding of the fuzzer is saved as.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from reference.allocator.contract import HOSTILE_CALLS
from reference.errors import BadInput

MAX_SLOTS: Final = 2**22
"""Largest pool of a program. At its end the whole pool is asked for, and each slot is then a token
in a Python list, in a line of JSON and in the shadow: 2**22 of them take about half a gigabyte."""

MAX_TOKEN: Final = 2**31 - 1
"""Largest token id of a program: engines keep them in 32 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What a factory is asked for. Raises BadInput: nothing, or more than memory, fits into it."""

    num_blocks: int
    """Blocks of the pool."""
    block_size: int
    """Tokens per block."""
    prefix_caching: bool = True
    """Whether cached prefixes are kept and found again."""
    window: int | None = None
    """Tokens that a query sees, itself included; None for all."""
    batching: bool = False
    """Whether copies, writes and commits wait for a step `settle` instead of following each call.
    """

    def __post_init__(self) -> None:
        if min(self.num_blocks, self.block_size) < 1 or self.num_slots > MAX_SLOTS:
            raise BadInput(
                f"{self}: a pool has 1 to {MAX_SLOTS:,} tokens in all; give fewer blocks, or "
                f"smaller ones"
            )
        if self.window is not None and self.window < 1:
            raise BadInput(f"{self}: a window has 1 token or more")

    @property
    def num_slots(self) -> int:
        """Tokens that the pool has room for."""
        return self.num_blocks * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that a sequence of so many tokens takes up without sharing."""
        return -(-num_tokens // self.block_size)

    def __str__(self) -> str:
        said = f"pool of {self.num_blocks} x {self.block_size} tokens"
        said += "" if self.prefix_caching else ", no prefix caching"
        said += f", window of {self.window}" if self.window is not None else ""
        return said + (", batching" if self.batching else "")


CALLS = (
    "admit", "append", "fork", "free", "preempt", "reset", "settle", "swap_out", "swap_in",
    *HOSTILE_CALLS,
)  # fmt: skip
"""What a step may be: the calls of `reference.allocator.contract.Allocator`, `settle` (carry out
copies, writes and commits), and calls that make no sense."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call."""

    call: str
    """A member of `CALLS`."""
    sequence: str = ""
    """Name of the sequence that it is about, if any; of a fork, the child."""
    parent: str = ""
    """Of a fork."""
    tokens: tuple[int, ...] = ()
    """The whole prompt, or what is appended."""
    num_tokens: int | None = None
    """Leading tokens of a prompt that there is to be room for; None for all."""
    salt: str = ""
    """Of an admission."""

    def __post_init__(self) -> None:
        if self.call not in CALLS:
            raise BadInput(f"step {self.call!r} is unknown; use {', '.join(CALLS)}")
        numbers = (*self.tokens, self.num_tokens or 0)
        if min(numbers) < -MAX_TOKEN or max(numbers) > MAX_TOKEN:
            raise BadInput(f"step {self.call}: tokens, and their number, are {MAX_TOKEN:,} at most")

    def __str__(self) -> str:
        said = f"{self.call} {self.sequence}".rstrip()
        if self.parent:
            said += f" from {self.parent}"
        if self.call == "admit":
            part = "" if self.num_tokens is None else f"the first {self.num_tokens} of "
            said += f": {part}{_shown(self.tokens)}"
        elif self.tokens:
            said += f": {_shown(self.tokens)}"
        return said + (f", salt {self.salt!r}" if self.salt else "")


@dataclass(frozen=True, slots=True)
class Program:
    """A pool, and what is done to it before everything is freed and the pool filled once."""

    pool: Pool
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        lines = [str(self.pool), *(f"{at:>3}. {step}" for at, step in enumerate(self.steps, 1))]
        return "\n".join(lines)


def _shown(tokens: Sequence[int]) -> str:
    """Tokens with runs of consecutive ones drawn together: `6 tokens 0-3 100-101`."""
    runs: list[list[int]] = []
    for token in tokens:
        if runs and token == runs[-1][1] + 1:
            runs[-1][1] = token
        else:
            runs.append([token, token])
    shown = " ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
    return f"{len(tokens)} token{'' if len(tokens) == 1 else 's'} {shown}".rstrip()
