"""The tables, as `tests/snapshots/waste-tables.txt` has them, and what holds for any record."""

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from pydantic import TypeAdapter
from rich.cells import cell_len
from rich.console import Console

from bench.waste.changes import variations
from bench.waste.figures.figure import Component, Figure
from bench.waste.figures.report import show_figure
from bench.waste.policies import format_policy, parse_policy, policy_name
from bench.waste.record import WasteRecord, WasteRow
from bench.waste.report import show
from bench.waste.service_report import quota_lines
from bench.workloads.record import served_stream
from bench.workloads.source import head
from bench.workloads.spec import parse_source
from helpers.places import ROOT
from helpers.snapshots import assert_as_stored
from helpers.waste_records import job, simulated, waste_record
from paged.latency import Slo

STREAM = "alpaca-fit:requests=200,system=64,prompts=2"
POLICIES = ("max/buddy", "oracle/first-fit", "paged", "paged:prefix=lru,watermark=0.05")


def rows_of(*policies: str, slots: int = 2500) -> list[WasteRow]:
    return [simulated(job(policy, STREAM, slots=slots)) for policy in policies]


def with_counters(row: WasteRow, **changes: int) -> WasteRow:
    """The same row with other counters, in what is judged, too."""
    counters = replace(row.total, **changes)
    return row.model_copy(update={"total": counters, "loaded": counters})


def half_idle(row: WasteRow) -> WasteRow:
    """The same row after a run of twice the steps, half of them over an empty pool."""
    total = row.total
    idle = total.slot_steps + total.free_frag + total.free_short + total.free_idle
    return with_counters(row, steps=2 * total.steps, free_frag=0, free_short=0, free_idle=idle)


def calm(row: WasteRow) -> WasteRow:
    """The same row with nobody waiting."""
    idle = row.total.free_idle + row.total.free_short
    return with_counters(row, free_short=0, free_idle=idle, waiting_short=0)


def records() -> dict[str, WasteRecord]:
    rows = rows_of(*POLICIES)
    base = "paged:block=64"
    varied = [format_policy(v.policy) for v in variations(parse_policy(base), prefixes=True)]
    whatif = waste_record(*rows_of(base, *varied), stream=STREAM, base=base)
    never = rows[2].model_copy(update={"loaded": rows[2].total - rows[2].total})
    small = rows_of("paged:block=16", slots=400_000)[0]
    stuck = rows_of("paged:block=1", "paged:block=256")
    made = lambda *rows, **changes: waste_record(*rows, stream=STREAM, **changes)  # noqa: E731
    return {
        "four policies": made(*rows),
        "one policy": made(rows[2]),
        "refused": made(*rows_of("max/buddy:max-model-len=100", "paged")),
        "cut short": made(rows[2], complete=False, asked=5),
        "nothing was run": made(rows[2], complete=False, asked=5).model_copy(update={"rows": []}),
        "never loaded": made(never),
        "the load is small": made(half_idle(rows[0]), half_idle(rows[2])),
        "what if": whatif,
        "what if nothing helps": made(*stuck, base="paged:block=1"),
        "what if nobody waits": made(calm(small), base="paged:block=16"),
        "what if without its base": made(rows[2], base="paged:block=64"),
        "stored": stored("waste", WasteRecord),
        "stored what if": stored("waste-whatif", WasteRecord),
    }


def stored(name: str, kind: type[Any]) -> Any:
    text = (ROOT / "tests" / "frozen" / "records" / f"{name}.json").read_text()
    return TypeAdapter(kind).validate_json(text)


def figures() -> dict[str, Figure]:
    met = Component(
        bar="Orca", name="token", unit="%", published=20.4, measured=21.0, lowest=17.9, highest=22.9
    )
    shown = replace(met, name="batch", unit="requests", lowest=None, highest=None)
    exact = replace(met, bar="vLLM", measured=7.0, published=None, lowest=7.0, highest=7.0)
    components = (met, shown, exact, replace(exact, highest=None), replace(exact, lowest=None))
    figure = Figure(
        name="made",
        title="A figure",
        source="Nobody",
        setup="None.",
        components=components,
        notes=("To be believed.",),
    )
    return {
        "figure met": figure,
        "figure missed": replace(figure, components=(met, replace(met, measured=17.8))),
        "figure stored": stored("waste-figure", Figure),
    }


def printed(show_it: Callable[..., None], subject: Any) -> str:
    output = StringIO()
    show_it(subject, Console(file=output, width=80))
    return output.getvalue()


def test_tables_are_as_they_are_stored() -> None:
    shown = {name: printed(show, record) for name, record in records().items()}
    shown |= {name: printed(show_figure, figure) for name, figure in figures().items()}
    assert max(cell_len(line) for text in shown.values() for line in text.splitlines()) <= 80
    parts = [f"==== {name}\n{text}" for name, text in shown.items()]
    assert_as_stored("waste-tables.txt", "\n".join(parts))


def test_a_table_shows_what_the_record_holds() -> None:
    record = waste_record(*rows_of(*POLICIES[:3]), stream=STREAM)
    lines = printed(show, record).splitlines()
    for row in record.rows:
        name = policy_name(row.policy)
        memory, service, _ = (line.split() for line in lines if line.split()[:1] == [name])
        assert memory[1] == f"{100 * row.shares['token']:.1f}"
        assert memory[-2:] == [f"{row.mean_batch:.2f}", str(row.peak_requests)]
        assert service[1] == f"{row.requests_per_s:,.3g}"


@pytest.mark.parametrize("name", ["[bold]s[/]", "[/]", "x" * 200, "猫" * 60])
def test_a_name_is_text_and_fits(name: str) -> None:
    record = waste_record(*rows_of("paged"), stream=STREAM)
    row, stream = record.rows[0], record.streams[0]
    renamed = record.model_copy(
        update={
            "streams": [stream.model_copy(update={"label": name})],
            "rows": [row.model_copy(update={"stream": name})],
        }
    )
    text = printed(show, renamed)
    assert name in text.replace("\n", "")
    assert max(cell_len(line) for line in text.splitlines()) <= 80


TENANTS = "sharegpt-fit:system=512,prompts=8+azure-code-fit:share=0.2,system=256+:rate=4"


def test_each_tenant_is_shown_under_each_policy_and_sums_to_the_whole() -> None:
    source = head(parse_source(TENANTS), 120)
    rows = [
        simulated(job(policy, source, slots=30_000, slo=Slo(ttft_ns=10**9)))
        for policy in ("paged", "paged:prefix=lru", "paged:prefix=lru,quota=0:5,samples=2")
    ]
    for row in rows:
        assert row.service is not None
        first, second = row.service.tenants
        assert first.completed + second.completed == row.service.completed == 120
        assert (first.good or 0) + (second.good or 0) == row.service.good
        assert first.hit_tokens + second.hit_tokens == row.total.hit_tokens
    described = served_stream(source, label="s")
    record = waste_record(*rows).model_copy(update={"streams": [described]})
    text = printed(show, record)
    assert text.count("azure-code-fit") == len(rows)
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert text.count("waits for: why") == 1  # nothing is cut
    quotas = [
        replace_policy(row, policy)
        for row, policy in zip(
            rows[1:], ("paged:prefix=lru", "paged:prefix=lru,quota=0:5"), strict=True
        )
    ]
    (line,) = quota_lines(quotas, described)
    assert line.startswith("paged, block 16, prefix=lru, quota=0:5: sharegpt-fit finds ")
    assert "azure-code-fit finds" in line
    assert list(quota_lines(rows[:2], described)) == []


def replace_policy(row: WasteRow, policy: str) -> WasteRow:
    return row.model_copy(update={"policy": parse_policy(policy)})


def test_policies_that_drawings_do_not_tell_apart_are_said_not_to_be():
    row = with_counters(rows_of("paged", slots=600)[0])
    other = replace_policy(row, "paged:block=8")
    drawn = [
        faster.model_copy(update={"drawing": number})
        for number, share in enumerate((1.2, 0.9, 1.1))
        for faster in (row, at_rate(other, share))
    ]
    text = " ".join(printed(show, waste_record(*drawn, stream=STREAM)).split())
    assert "block 8, completes" in text
    assert "in the mean of 3 drawings, but between" in text


def at_rate(row: WasteRow, share: float) -> WasteRow:
    """The same row on a clock that is so much faster."""
    return with_counters(row, time_ns=round(row.total.time_ns / share))


def test_a_table_that_is_too_wide_is_two() -> None:
    row = rows_of("paged:prefix=lru,watermark=0.05,max-running=6")[0]
    waits = {"waiting_short": 9, "waiting_limit": 9, "waiting_watermark": 9}
    wide = with_counters(row, preemptions=9, recomputed_tokens=99, **waits)
    text = printed(show, waste_record(wide, stream=STREAM))
    for cause in ("memory", "watermark", "max-running"):
        assert f"{cause} {9 / row.total.steps:.0%}" in text
