"""`pagedbench throughput` on a page: the roofline, and shares of the roof."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from bench.command.page.parts import (
    Command,
    Part,
    Picture,
    Sheet,
    Table,
    Tone,
    flat,
    terminal,
)
from bench.command.page.pictures import COLOURS, MARKERS, as_svg, new_figure
from bench.command.words import one_line, plural, some_of
from bench.throughput.plot import figure_of
from bench.throughput.record import TIMED, ThroughputRecord
from bench.throughput.report import show

ROOFLINE = "Each subject on each point against the roofs that were measured in the same run."
SHARES = "Share of the copy bandwidth that each subject reaches, by block size."

PEERS = "Time of each subject over that of another on the same point, with its 95 % interval."
MOST = 40
"""Pairs that are drawn."""


def sheet(record: ThroughputRecord) -> Sheet:
    """A record on a page."""
    return Sheet(
        kind="throughput",
        name=record.environment.device,
        verdict=_verdict(record),
        tone=_tone(record),
        parts=[
            Part(
                title="Roofline",
                pieces=[
                    Picture(as_svg(figure_of(record), said=ROOFLINE), ROOFLINE),
                    *_shares(record),
                    *_peers(record),
                ],
            ),
            Part(title="Everything that was timed", pieces=[_timed(record)]),
            terminal(lambda console: show(record, console)),
        ],
        facts={
            "started": record.started_at,
            "took": f"{record.elapsed_s:.0f} s",
            "clock": record.clock,
            "GPU clocks": record.clocks,
            "rounds": record.rounds,
            "seed": record.seed,
            **flat("", record.environment.model_dump()),
        },
        commands=[
            Command(
                shlex.join(
                    [
                        "pagedbench",
                        "throughput",
                        *(
                            word
                            for point in record.points
                            for word in (
                                "--prefill" if point.kind == "prefill" else "--batch",
                                point.batch,
                            )
                        ),
                        *("--seed", str(record.seed), "--device", record.device),
                    ]
                ),
                "The same batches, in the usual shapes:",
            )
        ],
    )


def _tone(record: ThroughputRecord) -> Tone:
    if record.wrong or any(bar.state == "missed" for bar in record.bars):
        return "bad"
    return "good" if record.complete else "unsure"


def _verdict(record: ThroughputRecord) -> str:
    if record.wrong:
        said = some_of([f"{who.name} on {point.name}" for point, who in record.wrong], most=2)
        return f"A wrong answer in a timed round: {said}."
    shares = [
        (each.bandwidth_share, each.name, point.name)
        for point in record.points
        for each in point.subjects
        if each.bandwidth_share is not None
    ]
    missed = [bar for bar in record.bars if bar.state == "missed"]
    said = f"{plural(len(record.points), 'point')} timed, every answer right"
    said += f"; {plural(len(missed), 'bar')} missed" if missed else ""
    if shares:
        share, name, point = max(shares)
        said += f"; the best is {name} with {share:.0%} of the copy bandwidth, on {point}"
    return said + ("." if record.complete else "; it was interrupted.")


def _shares(record: ThroughputRecord) -> Iterator[Picture]:
    found: dict[str, list[tuple[int, float]]] = {}
    for point in record.points:
        for each in point.subjects:
            if each.bandwidth_share is not None:
                found.setdefault(each.name, []).append((point.block_size, each.bandwidth_share))
    if not found:
        return
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    for number, (name, points) in enumerate(found.items()):
        axes.plot(
            [size for size, _ in points],
            [100 * share for _, share in points],
            MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            label=one_line(name, limit=30),
        )
    sizes = sorted({size for points in found.values() for size, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("block size, tokens")
    axes.set_ylabel("% of the copy bandwidth")
    axes.legend(frameon=False, fontsize=8)
    yield Picture(as_svg(figure, said=SHARES), SHARES)


def _peers(record: ThroughputRecord) -> Iterator[Picture]:
    pairs = [
        (f"{each.name} / {other}, {point.name}", found)
        for point in record.points
        for at, each in enumerate(point.subjects)
        for other, found in each.times_of.items()
        if other in {before.name for before in point.subjects[:at]}
    ][:MOST]
    if not pairs:
        return
    figure = new_figure(7.5, 0.3 * len(pairs) + 1.0)
    axes = figure.subplots()
    axes.axvline(1, color="#000000", linewidth=0.8)
    for at, (_, found) in enumerate(pairs):
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [at] * 2, color=COLOURS[0], linewidth=2)
        axes.plot([found.median], [at], "s", color=COLOURS[0])
    names = [one_line(name, limit=60) for name, _ in pairs]
    axes.set_yticks(range(len(pairs)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("faster  \u2190  time / the other's of the same round  \u2192  slower")
    yield Picture(as_svg(figure, said=PEERS), PEERS, wide=True)


def _timed(record: ThroughputRecord) -> Table:
    head = ["point", "subject", "ms", "GB/s", "of copy", "of read", "against the others"]
    rows = []
    for point in record.points:
        for each in point.subjects:
            others = ", ".join(
                f"{found.median:.3f} x {name}" for name, found in each.times_of.items()
            )
            timed = each.status == TIMED and each.seconds is not None
            share = each.bandwidth_share
            rows.append(
                [
                    point.name,
                    each.name,
                    f"{1e3 * each.seconds.median:.4g}" if timed and each.seconds else "-",
                    "-" if each.gigabytes_per_s is None else f"{each.gigabytes_per_s:.4g}",
                    "-" if share is None else f"{share:.1%}",
                    "-" if each.read_share is None else f"{each.read_share:.1%}",
                    others if timed else f"{each.status}: {each.why}",
                ]
            )
    return Table.of("Medians over inputs in turn", head, rows)
