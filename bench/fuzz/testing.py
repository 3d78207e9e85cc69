"""The fuzzer of allocators in anybody's own test file, with pytest.

    from pagedbench.testing import parametrize_with_allocators

    @parametrize_with_allocators(["my_pool.py:make"])
    def test_allocator(allocator, fuzz):
        fuzz(allocator)

The allocator runs in a process of its own. Nothing else of pagedbench's fuzzer imports pytest.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console

from bench.command.project import subjects_under_test
from bench.fuzz.campaign import Campaign, run_campaign
from bench.fuzz.record import Subject
from bench.fuzz.report import show_finding
from bench.fuzz.saving import saved
from subjects.allocators.resolve import open_allocator

EXAMPLES: Final = 300
"""Programs for each allocator: seconds for one in Python."""

FOLDER: Final = Path(".pagedbench") / "findings"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorFuzz:
    """A search of fixed size: what a test calls."""

    examples: int
    """Programs to run."""
    seed: int
    """The same seed draws the same programs."""

    def __repr__(self) -> str:
        return "fuzz"

    def __call__(self, allocator: str) -> None:
        """Fuzz an allocator; fails with the smallest program that it gets wrong."""
        __tracebackhide__ = True
        with open_allocator(allocator) as subject:
            tally = run_campaign(
                Campaign(
                    allocator=Subject(name=allocator, version=subject.version),
                    factory=subject.factory,
                    kill=subject.kill,
                    capabilities=subject.capabilities,
                    examples=self.examples,
                    seed=self.seed,
                    max_findings=1,
                )
            )
        for trace in tally.found:
            said = io.StringIO()
            show_finding(saved(trace, FOLDER), Console(file=said, width=100, no_color=True))
            pytest.fail(f"{allocator} fails {said.getvalue().rstrip()}", pytrace=False)


def parametrize_with_allocators(
    allocators: Sequence[str] | None = None, *, examples: int = EXAMPLES, seed: int = 0
) -> pytest.MarkDecorator:
    """Decorate a test of (allocator, fuzz): it runs once for each allocator.

    `allocators` are names as for `pagedbench fuzz --allocator`; left out, they are those of the
    project's pyproject.toml. `examples` programs are drawn for each.

    Raises ValueError: there is no allocator, or a number is out of range.
    """
    if isinstance(allocators, str):
        raise ValueError(f"allocators={allocators!r}: give a list")
    names = subjects_under_test("allocators", allocators)
    if not names:
        raise ValueError("there is no allocator: name one, here or in [tool.pagedbench]")
    if examples < 1:
        raise ValueError(f"examples={examples}: run at least 1")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: seeds are 0 to {2**32 - 1}")
    fuzz = AllocatorFuzz(examples=examples, seed=seed)
    return pytest.mark.parametrize(
        ("allocator", "fuzz"), [pytest.param(name, fuzz, id=name) for name in names]
    )
