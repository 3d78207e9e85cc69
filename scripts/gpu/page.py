"""The part of docs/performance.md that only a GPU can fill, from the record of `make gpu`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from scripts.gpu.steps import STEPS, typed

BEGIN: Final = "<!-- make gpu writes this -->"
END: Final = "<!-- end of what make gpu writes -->"

NOT_MEASURED: Final = "not measured"
SHARE: Final = "share of the read bandwidth"
BESIDE: Final = "speed beside "

Record = Mapping[str, Any]
Row = Sequence[str]


def write_page(page: Path, record: Record) -> None:
    """Put the tables of a record in place of the last ones."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page}: the lines {BEGIN} and {END} are not in it")
    page.write_text(f"{before}{begin}\n\n{rendered(record)}\n{end}{after}", encoding="utf-8")


def rendered(record: Record) -> str:
    """All tables; those of steps that have not run say so."""
    steps = record["steps"]
    parts = [
        _where(_own(steps, "machine"), _own(steps, "bars")),
        *_bars(_own(steps, "bars")),
        *_timed("Splits", _own(steps, "splits")),
        *_timed("Batch invariance", _own(steps, "invariance")),
        *_gate(_own(steps, "gate, same code")),
        *_sanitizer(_own(steps, "sanitizer")),
        *_taken(steps),
    ]
    return "\n\n".join(parts) + "\n"


def _own(steps: Record, name: str) -> Any:
    """The record that a step wrote; None where it has not run."""
    return (steps.get(name) or {}).get("record")


def _where(machine: Record | None, bars: Record | None) -> str:
    if machine is None:
        return (
            "Nothing here was run on a GPU yet: `make gpu` measures all of it, and writes it here."
        )
    words = [
        f"{machine['device']}, driver {machine['driver']}, torch {machine['torch']}, "
        f"triton {machine['triton']}, Python {machine['python']}; clocks: {machine['clocks']}."
    ]
    if bars is not None:
        roof = bars["roof"]
        words.append(
            f"In the run of the bars it read {roof['read_gigabytes_per_s']:,.0f} GB/s, copied "
            f"{roof['copy_gigabytes_per_s']:,.0f} GB/s, and multiplied "
            f"{roof['matrix_teraflops_per_s']:,.0f} TFLOP/s in {roof['matrix_dtype']}; "
            f"{bars['rounds']} rounds; SM clocks {_clocks(bars)}."
        )
    return "\n".join(words)


def _clocks(bars: Record) -> str:
    read = [mhz for p in bars["points"] for each in p["subjects"] for mhz in each["sm_mhz"]]
    return f"{min(read)} to {max(read)} MHz" if read else "not read"


def _bars(measured: Record | None) -> Iterator[str]:
    """Shares and peers in a row for each point; then the other bars."""
    from bench.throughput.bars import PEERS, judge_bars

    bars = [bar.model_dump() for bar in judge_bars([], device="cuda")]
    if measured is not None:
        bars = measured["bars"]
    by_point: dict[str, dict[str, Record]] = {}
    for bar in bars:
        by_point.setdefault(bar["point"], {})[bar["what"]] = bar
    rows = []
    for point, found in by_point.items():
        if SHARE in found:
            beside = [_figure(found.pop(f"{BESIDE}{peer}")) for peer in PEERS]
            share = found.pop(SHARE)
            rows.append([point, f"{share['wanted']:.0%}", _figure(share), *beside])
    yield _table(["point", "asked for", "of the read bandwidth", *PEERS], rows)
    yield (
        "Beside peers: their time over ours of the same rounds, asked for: 1.0. In bold what "
        "misses its bar."
    )
    others = [
        [bar["what"], point, f"{bar['wanted']:.2f}", _figure(bar)]
        for point, found in by_point.items()
        for bar in found.values()
    ]
    yield _table(["what", "point", "asked for", "measured"], others)


def _figure(bar: Record) -> str:
    """A bar's figure, in bold where it is missed, or why there is none."""
    if bar["got"] is None:
        why = bar["why"]
        return NOT_MEASURED if why.startswith("not a ") else f"{NOT_MEASURED}: {_cell(why)}"
    figure = f"{bar['got']:.1%}" if bar["what"].startswith("share") else f"{bar['got']:.2f}"
    return figure if bar["state"] == "met" else f"**{figure}**"


def _timed(title: str, measured: Record | None) -> Iterator[str]:
    """Who was timed on each point, beside the first."""
    if measured is None:
        return
    rows = []
    for point in measured["points"]:
        first = point["subjects"][0]["name"]
        for each in point["subjects"]:
            if each["seconds"] is None:
                rows.append([point["name"], each["name"], each["status"], "", ""])
                continue
            ratio = each["times_of"].get(first)
            beside = "1.00" if ratio is None else f"{ratio['median']:.2f}"
            milliseconds = f"{1e3 * each['seconds']['median']:.3f}"
            share = f"{each['read_share']:.0%}"
            rows.append([point["name"], each["name"], milliseconds, share, beside])
    yield f"### {title}"
    yield _table(["point", "subject", "ms", "of read", "time over the first"], rows)


def _gate(measured: Record | None) -> Iterator[str]:
    """What each benchmark moved in a second, on identical code."""
    if measured is None:
        return
    moved = {
        each["benchmark"]: each["base"] for each in measured["counters"] if each["name"] == "bytes"
    }
    copied = measured["base"]["environment"]["copy_gbs"]
    rows = []
    for each in measured["benchmarks"]:
        if each["samples"] and each["key"] in moved:
            rate = moved[each["key"]] / each["samples"][0]["base_s"] / 1e9
            rows.append([each["key"], f"{rate:,.0f}", f"{rate / copied:.0%}", each["verdict"]])
    yield "### The gate on identical code"
    yield f"{_cell(measured['reason'])} Copy bandwidth {copied:,.0f} GB/s; {_states(measured)}."
    yield _table(["benchmark", "GB/s", "of copy", "verdict"], rows)


def _states(measured: Record) -> str:
    """Clock, power and heat over all launches."""
    states = [state for each in measured["launches"] for state in each["gpu"]]
    if not states:
        return "clocks and power were not read"
    words = []
    for name, unit in (("sm_mhz", "MHz"), ("power_w", "W"), ("temperature_c", "degrees Celsius")):
        values = [state[name] for state in states]
        words.append(f"{min(values):,.0f} to {max(values):,.0f} {unit}")
    slowed = sorted({reason for state in states for reason in state["slowed_by"]})
    return ", ".join([*words, f"slowed by {', '.join(slowed) or 'nothing'}"])


def _sanitizer(measured: Sequence[Record] | None) -> Iterator[str]:
    """What our checker and each tool say of a planted bug."""
    if measured is None:
        return
    tools = [name for name in measured[0] if name not in {"bug", "problem"}]
    rows = [
        [each["bug"] or f"none, {each['problem']}", *(_cell(each[tool]) or "-" for tool in tools)]
        for each in measured
    ]
    yield "### Memory bugs, ours and compute-sanitizer's findings"
    yield _table(["planted", *tools], rows)


def _taken(steps: Record) -> Iterator[str]:
    """Every step, and how it ended."""
    rows = []
    for step in STEPS:
        taken = steps.get(step.name)
        ended = "not run yet"
        if taken is not None:
            last = _cell((taken["said"] or [""])[-1])
            ended = f"{taken['ended']}, exit code {taken['code']}, {taken['seconds']:.0f} s: {last}"
        rows.append([step.name, f"`{typed(step.command)}`", ended])
    yield "### Steps"
    yield _table(["step", "command", "how it ended"], rows)


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
