"""`pagedbench gate` and `compare` on a page: ratios with their bounds, and what was counted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Final

from bench.command.page.parts import (
    Cell,
    Command,
    Lines,
    Part,
    Picture,
    Piece,
    Sheet,
    Table,
    Tone,
    flat,
    terminal,
)
from bench.command.page.pictures import COLOURS, MARKERS, as_svg, new_figure
from bench.command.words import one_line
from bench.gate.record import BenchmarkRecord, ContestantRecord, CounterRecord, GateRecord
from bench.gate.releases import ChainRecord
from bench.gate.report.releases import show_chain
from bench.gate.report.terminal import show
from bench.gate.report.words import (
    contestant,
    count,
    counter_change,
    counters_that_matter,
    error_rates,
    on_purpose,
    outputs_that_matter,
    runner_noise,
    truth_that_matters,
)

TONES: Final[dict[str, Tone]] = {"pass": "good", "inconclusive": "unsure", "interrupted": "unsure"}
COMPILED: Final = "compiled/"
"""Of the counters of machine code; see `bench.gate.machine_code`."""

MOST: Final = 80
"""Benchmarks of one plot."""


def sheet(record: GateRecord) -> Sheet:
    """A record on a page."""
    note = on_purpose(record)
    words = ["pagedbench", "gate", record.base.asked, record.head.asked]
    for pattern in record.parameters.benchmarks:
        words += ["--benchmark", pattern]
    return Sheet(
        kind="gate",
        name=f"{contestant(record.head)} against {contestant(record.base)}",
        verdict=f"{record.verdict}: {record.reason}" + (f" ({note})" if note else ""),
        tone=TONES.get(record.verdict, "bad"),
        parts=[
            *_truth(record),
            *_outputs(record),
            *_times(record),
            *_counters(record),
            Part(
                title="How it was judged",
                pieces=[Lines([f"{error_rates(record)}.", runner_noise(record)])],
                folded=True,
            ),
            terminal(lambda console: show(record, console)),
        ],
        facts={
            "pagedbench": record.pagedbench,
            "started": record.started_at,
            "took": f"{record.elapsed_s:.0f} s",
            "seed": record.parameters.seed,
            **_side("base", record.base),
            **_side("head", record.head),
        },
        commands=[
            Command(
                shlex.join([*words, "--seed", str(record.parameters.seed)]),
                "In the same repository:",
            )
        ],
    )


def chain_sheet(record: ChainRecord) -> Sheet:
    """Releases beside each other on a page."""
    runs = [f"{run.head} against {run.base}: {run.record.verdict}" for run in record.runs]
    worst = max((TONES.get(run.record.verdict, "bad") for run in record.runs), key=_rank)
    return Sheet(
        kind="compare",
        name=", ".join(release.name for release in record.releases),
        verdict="; ".join(runs) or "nothing was measured",
        tone=worst,
        parts=[
            Part(title="Releases", pieces=[_lines(record)]),
            *(
                part
                for run in record.runs
                for part in _times(run.record, f"{run.head} against {run.base}")
            ),
            terminal(lambda console: show_chain(record, console)),
        ],
        facts={
            each.name: f"{each.commit or 'no commit'}; {', '.join(each.key)}"
            for each in record.releases
        },
        commands=[
            Command(shlex.join(["pagedbench", "compare", *(each.name for each in record.releases)]))
        ],
    )


def _rank(tone: Tone) -> int:
    return ("good", "unsure", "bad").index(tone)


def _side(name: str, side: ContestantRecord) -> dict[str, object]:
    where = {} if side.environment is None else side.environment.model_dump()
    return {name: f"{side.asked}, {side.commit or 'no commit'}", **flat(f"{name}: ", where)}


def _truth(record: GateRecord) -> Iterator[Part]:
    pieces: list[Piece] = []
    for truth, words in truth_that_matters(record):
        tone: Tone = "bad" if truth.head.verdict == "wrong" else ""
        pieces.append(Lines([f"{truth.subject} {words}"], tone))
        if replay := truth.head.replay or truth.base.replay:
            pieces.append(Command(replay))
    if pieces:
        yield Part(title="Against the truth", pieces=pieces)


def _outputs(record: GateRecord) -> Iterator[Part]:
    rows = [
        [
            each.benchmark,
            each.name,
            Cell(each.verdict, "bad" if each.verdict == "differs" else ""),
            each.note if each.difference is None else f"{each.difference:.3g}",
            "-" if each.limit is None else f"{each.limit:.3g}",
        ]
        for each in outputs_that_matter(record)
    ]
    if rows:
        head = ["benchmark", "output", "", "off by", "allowed"]
        yield Part(title="Outputs that are not the same bits", pieces=[Table.of("", head, rows)])


def _times(record: GateRecord, title: str = "Time, head over base") -> Iterator[Part]:
    timed = [each for each in record.benchmarks if each.estimate is not None]
    if not timed:
        return
    order = {"fail": 0, "inconclusive": 1}
    timed = sorted(timed, key=lambda each: order.get(each.verdict, 2))
    by = record.parameters
    words = (
        f"Ratio of head's time to base's with its 95 % bounds, and each launch as a point. The "
        f"band is what is allowed ({by.margin:.0%}); a benchmark passes once {by.equivalence:.0%} "
        f"(dotted) is ruled out."
    )
    forest = Picture(_forest(timed[:MOST], record, words), words, wide=True)
    rows = [
        [
            each.key,
            Cell(
                each.verdict,
                {"fail": "bad", "pass": "good"}.get(each.verdict, "unsure"),  # type: ignore[arg-type]
            ),
            f"{each.estimate.ratio:.4f}" if each.estimate else "-",
            str(len(each.samples)),
            each.reason,
        ]
        for each in timed
    ]
    head = ["benchmark", "verdict", "ratio", "launches", "why"]
    yield Part(title=title, pieces=[forest, Table.of("", head, rows)])


def _forest(timed: Sequence[BenchmarkRecord], record: GateRecord, words: str) -> str:
    from math import exp

    by = record.parameters
    figure = new_figure(7.5, 0.32 * len(timed) + 1.2)
    axes = figure.subplots()
    axes.axvspan(1 - by.margin, 1 + by.margin, color=COLOURS[2], alpha=0.15, linewidth=0)
    axes.axvline(1, color="#000000", linewidth=0.8)
    axes.axvline(1 + by.equivalence, color="#000000", linewidth=0.8, linestyle=":")
    for place, each in enumerate(timed):
        ratios = [exp(sample.d_timer) for sample in each.samples]
        axes.plot(ratios, [place + 0.25] * len(ratios), "o", color=COLOURS[5], markersize=3)
        colour = COLOURS[{"fail": 1, "pass": 2}.get(each.verdict, 4)]
        marker = {"fail": "X", "pass": "s"}.get(each.verdict, "D")
        found = each.estimate
        if found is not None:
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place] * 2, color=colour, linewidth=2.2)
            axes.plot([found.ratio], [place], marker, color=colour, markersize=7)
    axes.set_yticks(range(len(timed)), [one_line(each.key, limit=48) for each in timed])
    axes.invert_yaxis()
    axes.set_xlabel("faster  \u2190  head / base  \u2192  slower")
    return as_svg(figure, said=words)


def _counters(record: GateRecord) -> Iterator[Part]:
    changed = counters_that_matter(record)
    for title, code in (("Counters that changed", False), ("Machine code, before and after", True)):
        some = [each for each in changed if each.benchmark.startswith(COMPILED) is code]
        if some:
            head = ["benchmark", "counter", "base", "head", "change", "allowed", ""]
            table = Table.of("", head, [_counter(each) for each in some])
            yield Part(title=title, pieces=[table])
    if not changed and record.counters:
        line = f"All {len(record.counters):,} counters are equal."
        yield Part(title="Counters", pieces=[Lines([line])])


def _counter(each: CounterRecord) -> list[object]:
    tones: dict[str, Tone] = {"better": "good", "worse": "unsure"}
    return [
        each.benchmark,
        each.name,
        count(each.base, each.unit),
        count(each.head, each.unit),
        counter_change(each),
        f"{100 * each.limit:.3g} %",
        Cell(
            "fail" if each.fails else each.verdict,
            "bad" if each.fails else tones.get(each.verdict, ""),
        ),
    ]


def _lines(record: ChainRecord) -> Picture:
    words = f"Time of each benchmark in each release, over that of {record.anchor}."
    figure = new_figure(7.5, 3.6)
    axes = figure.subplots()
    for number, row in enumerate(record.rows):
        points = [
            (at, cell.to_anchor.estimate.ratio if cell.to_anchor else 1.0)
            for at, cell in enumerate(row.cells)
            if cell.release == record.anchor or cell.to_anchor is not None
        ]
        axes.plot(
            [at for at, _ in points],
            [ratio for _, ratio in points],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            label=one_line(row.benchmark, limit=40),
        )
    axes.axhline(1, color="#000000", linewidth=0.6)
    names = [one_line(release.name, limit=20) for release in record.releases]
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel(one_line(f"time / {record.anchor}", limit=40))
    if 0 < len(record.rows) <= 12:
        figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    return Picture(as_svg(figure, said=words), words, wide=True)
