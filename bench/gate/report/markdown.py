"""A gate run as markdown for a pull request: the verdict, what matters, the rest folded.

Names come from code that is under test. They are written so that they stay text: no markup, no
link, no mention, no cell or block that ends early.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import median_high
from typing import Final

from bench.command.words import one_line, percent, plural, seconds
from bench.gate.record import (
    BenchmarkRecord,
    CounterRecord,
    GateRecord,
    OutputRecord,
    TruthRecord,
)
from bench.gate.report.words import (
    TRIED,
    UNTIMED,
    benchmarks_that_matter,
    bounds,
    by_reason,
    contestant,
    count,
    counter_change,
    counters_that_matter,
    environments,
    error_rates,
    launches,
    on_purpose,
    outputs_that_matter,
    runner_noise,
    said_verdict,
    truth_that_matters,
    untimed,
    without_outputs,
)

ROWS: Final = 40
"""Rows of one table. GitHub takes comments up to 65,536 characters; the record has every row."""

LINES: Final = 20
LINE: Final = 1000
"""Of what is shown as it is, and characters of each."""

CELL: Final = 120
"""Characters of a name that are shown."""

_SPECIAL: Final = re.compile(r"([\\`*_\[\]~|$])")
_AT_THE_START: Final = re.compile(r"^(\s*\d*)([-+=.)])")

# Mentions, references to issues, and addresses that become links by themselves.
_ENTITIES: Final = {"#": "&#35;", "@": "&#64;", "://": "&#58;//", "www.": "www&#46;"}


def markdown(record: GateRecord) -> str:
    """A record as GitHub-flavoured markdown, below 65,536 characters."""
    parts = [
        f"## pagedbench gate: {record.verdict}",
        plain(record.reason),
        *([plain(note)] if (note := on_purpose(record)) else []),
        f"{code(contestant(record.head))} against {code(contestant(record.base))}",
        *_what_matters(record),
        *_folded(record),
        plain(
            f"{runner_noise(record)}; "
            f"{plural(len(record.launches), 'launch', 'launches')} in {record.elapsed_s:.0f} s"
        )
        + "<br>"
        + "<br>".join(plain(line) for line in environments(record)),
    ]
    return "\n\n".join(parts) + "\n"


def code(text: str, *, in_table: bool = False) -> str:
    """Text as a code span that nothing inside can end."""
    text = one_line(text, limit=CELL)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest or not text.strip() else ""
    text = text.replace("|", r"\|") if in_table else text
    return f"{fence}{space}{text or ' '}{space}{fence}"


def plain(text: str, *, limit: int | None = None) -> str:
    """Text in which no character is markup, and nobody is mentioned, for the start of a line."""
    return _AT_THE_START.sub(r"\1\\\2", cell(text, limit=limit))


def cell(text: str, *, limit: int | None = None) -> str:
    """The same within a line or a table."""
    text = one_line(text, limit=limit)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _SPECIAL.sub(r"\\\1", text)
    for mark, entity in _ENTITIES.items():
        text = text.replace(mark, entity)
    return text


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    all_rows = list(rows)
    lines = [header, ["---"] * len(header), *all_rows[:ROWS]]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if len(all_rows) > ROWS:
        text += f"\n\nand {len(all_rows) - ROWS:,} more, in the record"
    return text


def _what_matters(record: GateRecord) -> list[str]:
    parts = [
        f"{each.side} does not build: {code(each.log)}\n\n{_block(each.said)}"
        for each in record.builds
        if each.failed
    ]
    for truth, words in truth_that_matters(record):
        replay = truth.head.replay or truth.base.replay
        parts.append(
            f"{code(truth.subject)} {cell(words, limit=400)}"
            + (f"\n\n{_block(replay)}" if replay else "")
        )
    if outputs := [o for o in outputs_that_matter(record) if o.verdict != "not there"]:
        parts.append(_table(("output", "", "off by", "allowed"), map(_output_row, outputs)))
    if counters := [c for c in counters_that_matter(record) if c.verdict != "not there"]:
        parts.append(
            _table(
                ("counter", "base", "head", "change", "allowed", ""), map(_counter_row, counters)
            )
        )
    if benchmarks := benchmarks_that_matter(record):
        parts.append(
            _table(
                ("benchmark", "head", "95 % bounds", "launches", "verdict", "why"),
                ([*_benchmark_row(each), cell(each.reason, limit=200)] for each in benchmarks),
            )
        )
    for verdict, line in by_reason(untimed(record)):
        parts.append(f"{UNTIMED[verdict].capitalize()}: {cell(line, limit=400)}.")
    return parts


def _block(text: str) -> str:
    """Lines as they are: indented, which no line can end."""
    lines = (one_line(line, limit=LINE) for line in text.splitlines()[-LINES:])
    return "\n".join(f"    {line}" for line in lines)


def _output_row(each: OutputRecord) -> list[str]:
    return [
        f"{code(each.benchmark, in_table=True)} {cell(each.name, limit=CELL)}",
        f"**{each.verdict}**" if each.verdict == "differs" else each.verdict,
        f"{each.difference:.3g}" if each.difference is not None else cell(each.note, limit=CELL),
        "-" if each.limit is None else f"{each.limit:.3g}",
    ]


def _counter_row(each: CounterRecord) -> list[str]:
    return [
        f"{code(each.benchmark, in_table=True)} {cell(each.name, limit=CELL)}",
        cell(count(each.base, each.unit), limit=CELL),
        cell(count(each.head, each.unit), limit=CELL),
        cell(counter_change(each)),
        f"{100 * each.limit:.3g} %",
        "**fail**" if each.fails else each.verdict,
    ]


def _benchmark_row(each: BenchmarkRecord) -> list[str]:
    said = said_verdict(each)
    return [
        code(each.key, in_table=True),
        "-" if each.estimate is None else cell(percent(each.estimate.ratio)),
        cell(bounds(each.estimate)),
        cell(launches(each)),
        f"**{said}**" if said == "fail" else said,
    ]


def _folded(record: GateRecord) -> list[str]:
    parts = []
    if right := [each for each in record.truth if each.head.verdict == "right"]:
        rows = [[code(each.subject, in_table=True), _tried(each)] for each in right]
        title = f"{plural(len(right), 'subject')} right"
        parts.append(_details(title, _table(("subject", "tried"), rows)))
    matter = {each.key for each in benchmarks_that_matter(record)}
    passed = [
        each
        for each in record.benchmarks
        if each.timed and each.verdict == "pass" and each.key not in matter
    ]
    if passed:
        rows = [[*_benchmark_row(each)[:4], _one_call(each), _spread(each)] for each in passed]
        header = ("benchmark", "head", "95 % bounds", "launches", "one call", "SD")
        parts.append(
            _details(f"{plural(len(passed), 'timed benchmark')} passed", _table(header, rows))
        )
    both: list[CounterRecord | OutputRecord] = [*record.counters, *record.outputs]
    compared = [(each.benchmark, each.name, each.verdict) for each in both]
    equal = sum(verdict == "equal" for _, _, verdict in compared)
    absent = [(who, name) for who, name, verdict in compared if verdict == "not there"]
    if compared:
        text = (
            f"{equal} of {len(compared)} counters and outputs are equal{without_outputs(record)}."
        )
        if absent:
            names = (f"{code(who)} {cell(name)}" for who, name in absent[:ROWS])
            text += " One side does not have: " + ", ".join(names) + "."
        parts.append(_details("Counters and outputs that are equal", text))
    if record.noise:
        rows = [
            [
                code(each.benchmark, in_table=True),
                str(each.launches),
                f"{100 * each.launch_sd:.1f} %",
                f"{100 * each.found['0.0']:.1f} %" if "0.0" in each.found else "-",
                "none" if each.detectable is None else f"{100 * each.detectable:.3g} %",
            ]
            for each in record.noise
        ]
        columns = ("on identical code", "launches", "SD", "false alarms", "smallest slowdown seen")
        parts.append(_details("What this runner can see", _table(columns, rows)))
    parts.append(_details("How it was judged", plain(error_rates(record)) + "."))
    return parts


def _tried(each: TruthRecord) -> str:
    return plural(each.head.tried, TRIED[each.kind])


def _details(summary: str, body: str) -> str:
    # GitHub renders markdown inside only after an empty line.
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def _one_call(each: BenchmarkRecord) -> str:
    times = [sample.head_s for sample in each.samples]
    return seconds(median_high(times)) if times else "-"


def _spread(each: BenchmarkRecord) -> str:
    return "-" if each.launch_sd is None else f"{100 * each.launch_sd:.1f} %"
