"""`pagedbench waste` on a page: where the slots went, who waited, and the pool through time."""

from __future__ import annotations

import base64
import json
import shlex
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.console import Console

from bench.command.page.parts import (
    WIDTH,
    Command,
    Lines,
    Map,
    Part,
    Picture,
    Piece,
    Sheet,
    Table,
    Tone,
    flat,
    plain_sheet,
    terminal,
)
from bench.command.page.pictures import COLOURS, as_svg, new_figure, plain_numbers
from bench.command.words import percent, plural
from bench.waste.group_report import groups_table
from bench.waste.plot import KINDS, LINE_COLOURS, TOKEN_SHADES, bars, batches, pool_through_time
from bench.waste.policies import policy_name
from bench.waste.pool_map import TOKEN, PoolMap
from bench.waste.record import WasteRecord, WasteRow
from bench.waste.report import CLASSES, memory_table, reading, service_tables, show
from bench.waste.service_report import latency_table
from bench.waste.whatif import WhatIf, compare
from bench.waste.whatif_report import whatif_reading, whatif_table
from bench.workloads.record import ServedStream

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bench.waste.engine import BesideRecord, BesideRow, Side
    from bench.waste.figures.figure import Figure
    from bench.waste.hit_curve import HitCurve
    from paged.latency import Service

_SIDES: Final = {"engine": ("o", COLOURS[1]), "pagedbench": ("s", COLOURS[0])}
"""How each of two servers is drawn."""

STILL: Final = 1000
"""Columns of a map's picture, most."""

LEAST_SHARE: Final = 0.005
"""Of the pool, that is told."""

MOST: Final = 8
"""Policies of one plot."""


def sheet(record: WasteRecord, maps: Mapping[str, Sequence[PoolMap]] | None = None) -> Sheet:
    """A record on a page; it holds no maps of the pool, which the command itself hands on."""
    ran = [stream for stream in record.streams if record.rows_of(stream.label)]
    said = [_reading(stream, record) for stream in ran]
    first = [lines[0] for lines in said if lines] or ["Nothing was run."]
    return Sheet(
        kind="waste",
        name=", ".join(stream.label for stream in record.streams),
        verdict=" ".join(first) if len(first) < 4 else f"{len(first)} streams were served.",
        tone="" if record.complete else "unsure",
        parts=[
            *(
                part
                for stream, lines in zip(ran, said, strict=True)
                for part in _stream(stream, lines, record, (maps or {}).get(stream.label))
            ),
            terminal(lambda console: show(record, console)),
        ],
        facts={
            "started": record.started_at,
            "took": f"{record.elapsed_s:.1f} s",
            "pool": f"{record.pool.slots:,} slots, {record.pool.gibibytes:.4g} GiB",
            "clock": record.clock.source if record.clock else "steps alone",
            **{stream.label: stream.source for stream in record.streams},
            **flat("", record.machine.model_dump()),
        },
        commands=[Command(shlex.join(["pagedbench", *record.command]))],
    )


def hits_sheet(curves: Sequence[HitCurve]) -> Sheet:
    """Hit curves on a page."""
    from bench.waste.hit_curve import show_curves

    pieces: list[Piece] = []
    for curve in curves:
        figure = new_figure(5.2, 3.4)
        axes = figure.subplots()
        for number, (order, rates) in enumerate(curve.rates.items()):
            axes.plot(
                curve.sizes,
                [100 * rate for rate in rates],
                ("-o", "--s", ":^", "-.D")[number % 4],
                color=COLOURS[number % len(COLOURS)],
                label=order,
            )
        axes.axhline(100 * curve.limit, color="#000000", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        plain_numbers(axes)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("size of the cache, tokens; dotted: without a limit")
        axes.set_ylabel("prompt tokens found, %")
        axes.legend(frameon=False, fontsize=8)
        words = f"{curve.stream}: prompt tokens that a cache of each size would have found."
        pieces.append(Picture(as_svg(figure, said=words), words))
    best = [f"{curve.stream}: {curve.limit:.1%} of the prompt tokens at most" for curve in curves]
    return Sheet(
        kind="waste --hits",
        name=", ".join(curve.stream for curve in curves),
        verdict="A prefix cache would have found: " + "; ".join(best) + ".",
        tone="",
        parts=[
            Part(title="Hit curves", pieces=pieces),
            terminal(lambda console: show_curves(curves, console)),
        ],
        facts={
            **{curve.stream: plural(curve.requests, "request") for curve in curves},
            **flat("", {"pagedbench": next((curve.pagedbench for curve in curves), "")}),
        },
    )


def figure_sheet(figure: Figure) -> Sheet:
    """A published figure, reproduced, on a page."""
    from bench.waste.figures.report import show_figure

    name = f"{figure.title}: {'reproduced' if figure.met else 'missed'}"
    facts = {"source": figure.source, "setup": figure.setup, "pagedbench": figure.pagedbench}
    made = plain_sheet("waste --figure", name, facts, lambda console: show_figure(figure, console))
    return replace(made, tone="good" if figure.met else "bad")


def beside_sheet(record: BesideRecord) -> Sheet:
    """An engine's scheduler beside ours on a page."""
    from bench.waste.engine_report import show_beside

    facts = {"slots": record.slots, "clock": record.clock, "pagedbench": record.pagedbench}
    plain = plain_sheet(
        "waste --server", record.engine, facts, lambda console: show_beside(record, console)
    )
    row = record.rows[0] if record.rows else None
    said = "Nothing was run."
    if row is not None:
        theirs, ours = row.engine.requests_per_s, row.ours.requests_per_s
        said = f"{record.engine} serves {theirs:.4g} requests a second, ours {ours:.4g}"
        said += f" ({percent(ours / theirs)})" if theirs else ""
        said += f": {row.stream}, {policy_name(row.policy)}."
    drawn = [
        Part(
            title=f"{each.stream}: {policy_name(each.policy)}",
            pieces=[
                _beside("Requests that run and wait, means of each tenth.", each, _tenths),
                _beside("Share of the pool in use.", each, _used),
                _beside("How long users wait: percentiles.", each, _waits),
            ],
        )
        for each in record.rows[:MOST]
    ]
    tone: Tone = "" if record.complete else "unsure"
    return replace(plain, verdict=said, tone=tone, parts=[*drawn, *plain.parts])


def _beside(words: str, row: BesideRow, draw: Callable[[Axes, str, Side], None]) -> Picture:
    figure = new_figure(5.6, 3.2)
    axes = figure.subplots()
    for name, side in (("engine", row.engine), ("pagedbench", row.ours)):
        draw(axes, name, side)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds")
    axes.legend(frameon=False, fontsize=8)
    return Picture(as_svg(figure, said=words), words)


def _tenths(axes: Axes, name: str, side: Side) -> None:
    times = [part.until_s for part in side.seen]
    look = _SIDES[name]
    axes.plot(
        times,
        [part.running for part in side.seen],
        f"-{look[0]}",
        color=look[1],
        label=f"running, {name}",
    )
    axes.plot(
        times,
        [part.waiting for part in side.seen],
        f":{look[0]}",
        color=look[1],
        label=f"waiting, {name}",
    )
    axes.set_ylabel("requests")


def _used(axes: Axes, name: str, side: Side) -> None:
    look = _SIDES[name]
    axes.plot(
        [part.until_s for part in side.seen],
        [100 * part.blocks for part in side.seen],
        f"-{look[0]}",
        color=look[1],
        label=name,
    )
    axes.set_ylabel("blocks in use, %")


def _waits(axes: Axes, name: str, side: Side) -> None:
    _percentiles(axes, side.service, name, _SIDES[name][1])


def _reading(stream: ServedStream, record: WasteRecord) -> list[str]:
    rows = record.rows_of(stream.label)
    if record.base is None:
        return reading(rows, record) or [_where(rows[0], record.pool.gibibytes)]
    found = compare(record, stream.label)
    return ["The base was not run."] if found is None else whatif_reading(found, record)


def _where(row: WasteRow, pool_gib: float) -> str:
    """Where the memory went, the most first."""
    lost = sorted(
        ((share, CLASSES[name][1]) for name, share in row.shares.items() if name != "token"),
        reverse=True,
    )
    told = [
        f"{share:.1%} ({share * pool_gib:.3g} GiB) is {words}"
        for share, words in lost
        if share >= LEAST_SHARE
    ]
    said = f"{row.typed}: {row.shares['token']:.1%} of the pool holds tokens"
    return f"{said}; {'; '.join(told)}." if told else f"{said}."


def _stream(
    stream: ServedStream,
    lines: Sequence[str],
    record: WasteRecord,
    maps: Sequence[PoolMap] | None,
) -> Iterator[Part]:
    rows = record.rows_of(stream.label)
    found = compare(record, stream.label) if record.base is not None else None
    shown = rows[:MOST]
    if found is not None:
        shown = [found.base, *([found.best.row] if found.best else [])]
    went = [_where(row, record.pool.gibibytes) for row in shown if row.judged.steps]
    pieces: list[Piece] = [Lines(lines), Lines(["Where the memory went:", *went])]
    if found is not None:
        pieces.append(_ranked(found))
    pieces += [
        _plot("Where the slots are, averaged over what is judged.", shown, _bars),
        _plot("Requests that run at once.", shown, batches),
        _plot("Requests that wait.", shown, _queue),
    ]
    if any(row.service for row in shown):
        pieces.append(_plot("How long users wait: percentiles.", shown, _latency))
    if any(row.tiers for row in rows):
        words = "Prompt tokens that were found, and tokens that went to and fro behind the pool."
        pieces.append(
            _plot(words, [row for row in rows if row.total.queried_tokens][:MOST], _tiers)
        )
    yield Part(title=f"{stream.label}: {plural(stream.requests, 'request')}", pieces=pieces)
    yield Part(title="The pool through time", pieces=list(_maps(maps)))
    tables = (
        [whatif_table(found)]
        if found is not None
        else [
            memory_table(rows),
            *filter(None, [groups_table(rows, record)]),
            *service_tables(rows, Console(width=WIDTH)),
            *filter(None, [latency_table(rows)]),
        ]
    )
    yield Part(title="All figures", pieces=[Table.like(each) for each in tables], folded=True)


def _plot(
    words: str, rows: list[WasteRow], draw: Callable[[Axes, list[WasteRow]], None]
) -> Picture:
    figure = new_figure(5.6, 3.6)
    draw(figure.subplots(), rows)
    return Picture(as_svg(figure, said=words), words)


def _bars(axes: Axes, rows: list[WasteRow]) -> None:
    bars(axes, rows)
    axes.set_title("")
    if axes.get_legend() is not None:
        axes.legend(loc="upper left", bbox_to_anchor=(-0.3, -0.2), frameon=False, fontsize=8)


def _queue(axes: Axes, rows: list[WasteRow]) -> None:
    for number, row in enumerate(rows):
        steps = np.array([0, *row.series.steps])
        queued = np.diff([0, *row.series.queued]) / np.diff(steps)
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        axes.plot(steps[1:], queued, color=colour, label=row.typed)
    axes.set_xlabel("steps")
    axes.set_ylabel("requests in the queue")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def _latency(axes: Axes, rows: list[WasteRow]) -> None:
    for number, row in enumerate(rows):
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        _percentiles(axes, row.service, row.typed, colour)


def _percentiles(axes: Axes, service: Service | None, label: str, colour: str) -> None:
    shares = (50, 90, 99, 100)
    for name, style in (("ttft", "-o"), ("tpot", "--s"), ("e2e", ":^")):
        found = None if service is None else getattr(service, name)
        if found is None:
            continue
        times = (found.p50_ns, found.p90_ns, found.p99_ns, found.max_ns)
        said = f"{name.upper()}, {label}"
        axes.plot(range(4), [t / 1e9 for t in times], style, color=colour, label=said)
    axes.set_xticks(range(4), [f"p{share}" if share < 100 else "longest" for share in shares])
    axes.set_yscale("log")
    plain_numbers(axes)
    axes.set_ylabel("seconds")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7)


def _tiers(axes: Axes, rows: list[WasteRow]) -> None:
    bars_of: list[tuple[str, int, str]] = []
    for row in rows:
        found = f"{row.hit_rate:.0%} of those looked up"
        bars_of.append((f"{row.typed}: found, {found}", row.total.hit_tokens, COLOURS[2]))
        for use in row.tiers:
            bars_of.append((f"loaded from {use.name}", use.loaded_tokens, COLOURS[0]))
            bars_of.append((f"stored to {use.name}", use.stored_tokens, COLOURS[4]))
    for at, (_, tokens, colour) in enumerate(bars_of):
        axes.barh(at, tokens, color=colour)
    axes.set_yticks(range(len(bars_of)), [words for words, _, _ in bars_of], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("tokens")


def _ranked(found: WhatIf) -> Picture:
    effects = sorted((each for each in found.effects if each.alike), key=lambda each: -each.gain)
    figure = new_figure(5.6, 0.24 * len(effects) + 1.1)
    axes = figure.subplots()
    axes.axvspan(-100 * found.error, 100 * found.error, color="#888888", alpha=0.25, linewidth=0)
    for at, each in enumerate(effects):
        told = abs(each.gain) > max(found.error, each.margin)
        colour = COLOURS[2 if each.gain > 0 else 1] if told else "#888888"
        axes.barh(at, 100 * each.gain, color=colour, xerr=100 * each.margin, ecolor="#000000")
    axes.set_yticks(range(len(effects)), [f"{each.group} {each.label}" for each in effects])
    axes.invert_yaxis()
    axes.set_xlabel(f"gain in {found.unit.words}, %")
    words = (
        f"What each change would give, the best first. The band is {found.error:.1%}, below which "
        f"a change cannot be told from none; the lines are the 95 % intervals over drawings of the "
        f"stream. Grey: not told from none."
    )
    return Picture(as_svg(figure, said=words), words)


def _maps(maps: Sequence[PoolMap] | None) -> Iterator[Piece]:
    if maps is None:
        yield Lines(
            ["The record holds no map: the command below draws them with --html FILE."], "dim"
        )
        return
    kinds = dict.fromkeys(int(kind) for pool in maps for kind in np.unique(pool.classes))
    for pool in maps:
        figure = new_figure(5.6, 3.0)
        pool_through_time(figure.subplots(), _still(pool))
        every = int(pool.steps[0]) if len(pool.steps) else 1
        words = f"{policy_name(pool.policy)}: what is in each slot, "
        words += "step by step." if every == 1 else f"every {every} steps."
        if pool.slots_per_row > 1:
            words += f" A row is {pool.slots_per_row} slots, and shows what most of them are."
        yield Map(svg=as_svg(figure, said=words), caption=words, data=runs_of(pool))
    yield _legend([KINDS[kind] for kind in kinds])


def _still(pool: PoolMap) -> PoolMap:
    """As many columns as the picture has points: the map to zoom into has all."""
    at = slice((by := -(-len(pool.steps) // STILL) or 1) - 1, None, by)
    return replace(
        pool,
        steps=pool.steps[at],
        classes=pool.classes[:, at],
        owners=pool.owners[:, at],
        counts=pool.counts[at],
    )


def _legend(kinds: Sequence[tuple[str, str]]) -> Picture:
    from matplotlib.patches import Patch

    figure = new_figure(5.6, 0.3 * -(-len(kinds) // 2) + 0.2)
    handles = [Patch(facecolor=colour, edgecolor="#888888", label=name) for colour, name in kinds]
    figure.legend(handles=handles, loc="center", frameon=False, fontsize=8, ncols=2)
    words = "Colours of the maps."
    return Picture(as_svg(figure, said=words), words)


def runs_of(pool: PoolMap) -> dict[str, Any]:
    """A map as runs along its rows: [first column, class, owner] wherever one of both changes."""
    rows = []
    for classes, owners in zip(pool.classes, pool.owners, strict=True):
        changed = (np.diff(classes.astype(int)) != 0) | (np.diff(owners) != 0)
        starts = [0, *(np.flatnonzero(changed) + 1).tolist()] if len(classes) else []
        rows.append([[at, int(classes[at]), int(owners[at])] for at in starts])
    runs = zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 9)
    return {
        "runs": base64.b64encode(runs).decode(),
        "steps": pool.steps.tolist(),
        "slots": pool.slots,
        "slotsPerRow": pool.slots_per_row,
        "kinds": {str(kind): [colour, words] for kind, (colour, words) in KINDS.items()},
        "shades": list(TOKEN_SHADES),
        "token": TOKEN,
    }
