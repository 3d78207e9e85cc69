"""What users feel, in the terminal: rates and percentiles of each policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from rich.table import Table
from rich.text import Text

from bench.command.tables import table
from bench.command.words import one_line, seconds
from bench.waste.clocks import clock_words
from bench.waste.drawings import mean_words
from bench.waste.policies import Policy, policy_words
from bench.waste.record import WasteRecord, WasteRow
from bench.workloads.record import ServedStream
from paged.latency import OTHERS, Quantiles, TenantService
from paged.policy import PagedPolicy

TIMES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "end to end",
}
"""The distributions of `paged.latency.Service`, and what they are called."""

FEW_TENANTS = 4
"""Most tenants that a sentence is about."""

SHOWN_TENANTS = 8
"""Most tenants that are shown, those with most requests; the record has more."""


def latency_table(rows: Sequence[WasteRow]) -> Table | None:
    """Percentiles of what requests waited for; None where no row has any."""
    made = table("policy", name_width=20, collapse_padding=True)
    made.columns[0].min_width = 16
    made.add_column("time")
    for head in ("mean", "p50", "p90", "p99", "longest"):
        made.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        if row.service is None:
            continue
        name = Text(row.typed.replace(",", ", "))
        for field, words in TIMES.items():
            found = getattr(row.service, field)
            if found is None:
                continue
            figures = (found.mean_ns, found.p50_ns, found.p90_ns, found.p99_ns, found.max_ns)
            made.add_row(name, words, *(seconds(figure / 1e9) for figure in figures))
            name = Text()
    if not made.row_count:
        return None
    made.caption = Text(
        "By the server's clock, over the whole run. TTFT: from arrival to the first token. TPOT: "
        "between tokens, mean of a request. ITL: from one token to the next. A backlog has no "
        "arrivals, and so neither TTFT nor end to end."
    )
    made.caption_justify = "left"
    return made


def drawings_table(
    names: Mapping[Policy, str], stream: ServedStream, record: WasteRecord
) -> Table | None:
    """Figures of policies over all drawings of a stream; None where it was drawn but once."""
    drawings = record.drawings_of(stream.label)
    served = {
        name: [rows[p] for rows in drawings.values() if p in rows] for p, name in names.items()
    }
    served = {name: rows for name, rows in served.items() if len(rows) > 1}
    if not served:
        return None
    columns = [
        (head, cells)
        for head, of, write in _DRAWN_COLUMNS
        if (head != "req/s" or record.slo is None)
        and any(cells := [_over(rows, of, write) for rows in served.values()])
    ]
    made = table("", (head for head, _ in columns), name_width=20, collapse_padding=True)
    made.columns[0].min_width = 16
    for at, name in enumerate(served):
        name_cell = Text(name.replace(",", ", "))
        made.add_row(name_cell, *(cells[at] or "-" for _, cells in columns))
    made.caption, made.caption_justify = (
        Text(
            f"Mean of {len(drawings)} drawings of the stream, each with its own seed, and its 95 % "
            f"interval as a share."
        ),
        "left",
    )
    return made


def _over(
    rows: Sequence[WasteRow],
    of: Callable[[WasteRow], float | None],
    write: Callable[[float], str],
) -> str:
    found = [value for row in rows if (value := of(row)) is not None]
    return mean_words(found, write) if len(found) == len(rows) else ""


def _p90_s(name: str) -> Callable[[WasteRow], float | None]:
    def of(row: WasteRow) -> float | None:
        found = None if row.service is None else getattr(row.service, name)
        return None if found is None else found.p90_ns / 1e9

    return of


_DRAWN_COLUMNS: Final[
    tuple[tuple[str, Callable[[WasteRow], float | None], Callable[[float], str]], ...]
] = (
    ("req/s", lambda row: row.requests_per_s, "{:,.3g}".format),
    ("good/s", lambda row: row.goodput_per_s, "{:,.3g}".format),
    ("TTFT p90", _p90_s("ttft"), seconds),
    ("TPOT p90", _p90_s("tpot"), seconds),
    ("e2e p90", _p90_s("e2e"), seconds),
)


def tenant_tables(rows: Sequence[WasteRow], stream: ServedStream) -> Iterator[Table]:
    """What each tenant gets, a table for each policy."""
    for row in rows:
        service = row.service
        if service is None or not service.tenants:
            continue
        shown = sorted(service.tenants, key=lambda each: (-each.completed, each.tenant))
        columns = [
            (head, [written(each, service.makespan_ns) for each in shown])
            for head, written in _TENANT_COLUMNS.items()
        ]
        columns = [(head, cells) for head, cells in columns if any(cells)]
        made = table(
            "tenant",
            (head for head, _ in columns),
            name_width=20,
            collapse_padding=True,
            title=policy_words(row.policy),
            title_justify="left",
            title_style="",
        )
        made.columns[0].min_width = 14
        for at, each in enumerate(shown[:SHOWN_TENANTS]):
            made.add_row(
                Text(tenant_name(each.tenant, stream)), *(cells[at] or "-" for _, cells in columns)
            )
        said = "By tenant, over the whole run. req/s: completed a second of the span."
        if len(shown) > SHOWN_TENANTS:
            said += f" {len(shown) - SHOWN_TENANTS} more, with fewer requests, are in the record."
        made.caption, made.caption_justify = Text(said), "left"
        yield made


def quota_lines(rows: Sequence[WasteRow], stream: ServedStream) -> Iterator[str]:
    """Say what quotas do for each tenant, against the same policy without them."""
    plain = {row.policy: row for row in rows}
    for row in rows:
        if not isinstance(row.policy, PagedPolicy) or not row.policy.tenant_quotas:
            continue
        without = plain.get(replace(row.policy, tenant_quotas=()))
        if without is not None:
            yield f"{policy_words(row.policy)}: {tenants_words(row, without, stream)}."


def tenants_words(row: WasteRow, base: WasteRow, stream: ServedStream) -> str:
    """What the tenants with most requests find in the prefix cache, and wait, against a base."""
    if row.service is None or base.service is None:
        return "nobody looked"
    before = {each.tenant: each for each in base.service.tenants}
    said = []
    for each in sorted(row.service.tenants, key=lambda each: -each.completed)[:FEW_TENANTS]:
        was = before.get(each.tenant)
        if was is None:
            continue
        words = f"{tenant_name(each.tenant, stream)} finds {_hits(each, 0) or '0%'} of its prompt"
        words += f" tokens instead of {_hits(was, 0) or '0%'}"
        if each.ttft is not None and was.ttft is not None:
            words += f", TTFT p90 {_time(each.ttft, 'p90_ns')} instead of "
            words += _time(was.ttft, "p90_ns")
        said.append(words)
    return "; ".join(said)


def tenant_name(tenant: int, stream: ServedStream) -> str:
    """What a tenant is called."""
    if tenant == OTHERS:
        return "all others"
    known = stream.tenants
    return one_line(known[tenant], limit=40) if tenant < len(known) else str(tenant)


def _rate(count: int | None, span_ns: int) -> str:
    return f"{count / span_ns * 1e9:.3g}" if count is not None and span_ns else ""


def _hits(each: TenantService, span_ns: int) -> str:
    return f"{each.hit_tokens / each.queried_tokens:.1%}" if each.queried_tokens else ""


def _time(found: Quantiles | None, name: str) -> str:
    return "" if found is None else seconds(getattr(found, name) / 1e9)


_TENANT_COLUMNS: Final[dict[str, Callable[[TenantService, int], str]]] = {
    "done": lambda each, span_ns: f"{each.completed:,}",
    "req/s": lambda each, span_ns: _rate(each.completed, span_ns),
    "good/s": lambda each, span_ns: _rate(each.good, span_ns),
    "hits": _hits,
    "TTFT\np50": lambda each, span_ns: _time(each.ttft, "p50_ns"),
    "TTFT\np99": lambda each, span_ns: _time(each.ttft, "p99_ns"),
    "TPOT\np99": lambda each, span_ns: _time(each.tpot, "p99_ns"),
    "e2e\np99": lambda each, span_ns: _time(each.e2e, "p99_ns"),
}


def clock_line(record: WasteRecord) -> str:
    """Say what a step takes, and where that is from."""
    source = "as recorded" if record.clock is None else record.clock.source
    said = f"clock: {clock_words(record.time)} ({source})"
    if record.clock is not None and record.clock.errors:
        errors = ", ".join(f"{name} {share:+.1%}" for name, share in record.clock.errors.items())
        said += f"; it misses what was measured by: {errors}"
    return said


def slo_words(record: WasteRecord) -> str:
    """Say what counts as good."""
    slo = record.slo
    if slo is None:
        return ""
    limits = {"TTFT": slo.ttft_ns, "TPOT": slo.tpot_ns, "end to end": slo.e2e_ns}
    return ", ".join(
        f"{name} within {seconds(limit / 1e9)}" for name, limit in limits.items() if limit
    )
