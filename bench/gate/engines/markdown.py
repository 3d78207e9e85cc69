"""Releases as a page: what is exact first, what was timed beside it, and how to run each again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from bench.command.words import one_line
from bench.gate.engines.history import Step, by_allocator, steps
from bench.gate.engines.record import Counted, EnginesRecord, Release
from bench.gate.engines.words import (
    NOT_MEASURED,
    RACES,
    bytecodes,
    conditions,
    ratio,
    short,
    step_title,
    verdict,
    where,
)
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
                [
                    cell(short(each.name)),
                    *(bytecodes(each, caching=caching) for caching in (False, True)),
                    *(cell(ratio(each, record.anchor, heat)) for heat in RACES),
                    verdict(each),
                ]
                for each in releases
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
    """A table for each allocator; neighbours that came to the same are one row."""
    for allocator, releases in by_allocator(record.releases).items():
        passes = list(dict.fromkeys(each.of for release in releases for each in release.counted))
        rows = []
        for of in passes:
            for first, last, counted in _runs(releases, of_words=of.words):
                named = short(first) if first == last else f"{short(first)} to {short(last)}"
                rows.append([of.words, cell(named), *_figures(counted)])
        yield f"### {cell(allocator)}"
        yield rows_of(["stream", "releases", "hit tokens", "blocks at peak", "preemptions"], rows)


def _runs(releases: Sequence[Release], *, of_words: str) -> list[tuple[str, str, Counted | None]]:
    """Neighbours that came to the same."""
    runs: list[tuple[str, str, Counted | None]] = []
    for release in releases:
        found = next((each for each in release.counted if each.of.words == of_words), None)
        if runs and _figures(runs[-1][2]) == _figures(found):
            runs[-1] = (runs[-1][0], release.name, found)
        else:
            runs.append((release.name, release.name, found))
    return runs


def _figures(counted: Counted | None) -> tuple[str, str, str]:
    if counted is None:
        return NOT_MEASURED, NOT_MEASURED, NOT_MEASURED
    figures = counted.hit_tokens, counted.peak_blocks, counted.preemptions
    return f"{figures[0]:,}", f"{figures[1]:,}", f"{figures[2]:,}"


def rows_of(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
