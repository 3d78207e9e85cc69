"""What users feel, in the terminal: rates and percentiles of each policy."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from bench.command.tables import table
from bench.command.words import seconds
from bench.waste.clocks import clock_words
from bench.waste.policies import policy_name
from bench.waste.record import WasteRecord, WasteRow

TIMES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "end to end",
}
"""The distributions of `paged.latency.Service`, and what they are called."""


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
        name = Text(policy_name(row.policy).replace(",", ", "))
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
