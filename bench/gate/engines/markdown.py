"""Releases as a page: what is exact first, what was timed beside it, and how to run each again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from bench.command.words import one_line
from bench.gate.engines.history import Step, by_allocator, steps
from bench.gate.engines.record import EnginesRecord
from bench.gate.engines.words import COUNTERS, conditions, counters, row, step_title, where
from bench.gate.report.markdown import cell, code, plain

LARGEST: Final = 3
"""Steps that are explained."""

FUNCTIONS: Final = 8
"""Of each, that are named."""


def page(record: EnginesRecord) -> str:
    """The whole text."""
    parts = [
        *_releases(record),
        "## Findings, since when and until when",
        *_findings(record),
        "## The largest steps, by function",
        *_steps(record),
        "## Counters",
        *_counters(record),
        "## Conditions",
        "\n".join(f"- {cell(line)}" for line in conditions(record)),
    ]
    return "\n\n".join(parts) + "\n"


def _releases(record: EnginesRecord) -> Iterable[str]:
    heads = ["release", "bytecodes, caching off", "on", "ops/CPU-s off", "on", "evictions"]
    for allocator, releases in by_allocator(record.releases).items():
        yield f"## {cell(allocator)}"
        yield rows_of(
            [*heads, "fails"],
            [
                [cell(each.name), *each.bytecodes, *map(cell, each.ratios), each.verdict]
                for each in (row(release, record.anchor) for release in releases)
            ],
        )


def _findings(record: EnginesRecord) -> Iterable[str]:
    if not record.located:
        yield "None."
    for each in record.located:
        yield f"**{cell(where(each))}**"
        if each.replay is not None:
            yield f"    {one_line(each.replay)}"
        if each.replay is not None and each.gone_in is not None:
            yield f"It exits with 0 where the last word is `{each.gone_in}`."
    for release in record.releases:
        for step, why in release.trouble.items():
            yield plain(f"{release.name}: {step} did not come to its end: {why}")


def _steps(record: EnginesRecord) -> Iterable[str]:
    largest: list[Step] = []
    for step in steps(record.releases):
        # Both ways of caching of one release are one step.
        if all(step.after is not known.after for known in largest):
            largest.append(step)
    for step in largest[:LARGEST]:
        yield f"**{cell(step_title(step))}**"
        yield rows_of(
            ["bytecodes", "function"],
            [
                [f"{by:+.1f}", code(name, in_table=True)]
                for name, by in step.by_function[:FUNCTIONS]
            ],
        )
        yield f"    {_again(step)}"


def _again(step: Step) -> str:
    """The command that explains a step once more."""
    environments = " ".join(f"--env {each.name}" for each in (step.before, step.after))
    return f"pagedbench compare --allocator {step.after.allocator} {environments} --explain"


def _counters(record: EnginesRecord) -> Iterable[str]:
    for allocator, releases in by_allocator(record.releases).items():
        yield f"### {cell(allocator)}"
        yield rows_of(
            ["stream", "releases", *COUNTERS],
            [[words, cell(names), *figures] for words, names, figures in counters(releases)],
        )


def rows_of(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
