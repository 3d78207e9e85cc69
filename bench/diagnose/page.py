"""`pagedbench diagnose` on a page: the cause, the figures that decide, and the series."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from bench.command.page.parts import (
    Command,
    Lines,
    Part,
    Picture,
    Sheet,
    Table,
    Tone,
    flat,
    terminal,
)
from bench.command.page.pictures import COLOURS, as_svg, new_figure
from bench.command.words import one_line
from bench.diagnose.plot import figure_of
from bench.diagnose.record import Cause, Diagnosis
from bench.diagnose.report import clock, show

TONES: Final[dict[str, Tone]] = {"healthy": "good", "found": "bad", "cannot tell": "unsure"}
SERIES: Final = "The series that were read. Dotted: the level changes."
MARKED: Final = " Shaded: what decides; thick: since when the cause is seen."


def sheet(found: Diagnosis) -> Sheet:
    """A diagnosis on a page."""
    first = found.causes[0].says if found.causes else found.says
    return Sheet(
        kind="diagnose",
        name=one_line(", ".join(given.path for given in found.given), limit=120),
        verdict=f"{found.verdict}: {first}" if first != found.verdict else first,
        tone=TONES[found.verdict],
        parts=[
            *(_cause(cause) for cause in found.causes),
            *_series(found),
            *_moments(found),
            Part(title="How likely", pieces=[_likely(found)]),
            terminal(lambda console: show(found, console)),
        ],
        facts={
            **{
                given.path: f"{given.format}, {given.items:,} items, "
                + ("" if given.start_s is None else f"from {clock(given.start_s)}")
                for given in found.given
            },
            **found.config,
            **flat("", {"pagedbench": found.pagedbench}),
        },
        commands=[
            Command(shlex.join(["pagedbench", "diagnose", *(given.path for given in found.given)]))
        ],
    )


def _cause(cause: Cause) -> Part:
    rows = [
        [
            evidence.says,
            f"{evidence.figure.value:.4g}",
            f"{evidence.figure.low:.4g} to {evidence.figure.high:.4g}",
            evidence.figure.series,
            f"{evidence.weight:+.1f}",
        ]
        for evidence in cause.evidence
    ]
    head = ["what decides", "figure", "90 % interval", "series", "weight"]
    not_this = [f"not {ruled.mode}: {ruled.why}" for ruled in cause.not_this]
    return Part(
        title=f"{cause.mode}: {cause.says}",
        pieces=[
            Lines([f"Remedy: {cause.remedy}"]),
            Table.of("", head, rows),
            *([Lines(not_this)] if not_this else []),
            *([Command(cause.alert, "An alert for it:")] if cause.alert else []),
        ],
    )


def _series(found: Diagnosis) -> Iterator[Part]:
    if found.series:
        words = SERIES + MARKED * bool(found.causes)
        picture = Picture(as_svg(figure_of(found), said=words), words, wide=True)
        yield Part(title="Series", pieces=[picture])
    else:
        lines = ["The record holds no series: pagedbench diagnose PATH writes one that does."]
        yield Part(title="Series", pieces=[Lines(lines, "dim")])


def _moments(found: Diagnosis) -> Iterator[Part]:
    if found.timeline:
        rows = [[clock(each.time_s), each.says, each.engine] for each in found.timeline]
        table = Table.of("", ["UTC", "what changed", "engine"], rows)
        yield Part(title="What changed", pieces=[table])


def _likely(found: Diagnosis) -> Picture:
    likely = list(found.probabilities.items())[:8]
    figure = new_figure(5.2, 0.28 * len(likely) + 0.9)
    axes = figure.subplots()
    axes.barh(range(len(likely)), [100 * share for _, share in likely], color=COLOURS[0])
    axes.set_yticks(range(len(likely)), [one_line(name, limit=40) for name, _ in likely])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("probability, %")
    words = "What it may be: the probability of each cause."
    return Picture(as_svg(figure, said=words), words)
