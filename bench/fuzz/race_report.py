"""`pagedbench race` in the terminal: one table."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from bench.command.tables import table
from bench.fuzz.race import RaceRecord


def show(record: RaceRecord, console: Console) -> None:
    """Print a record. Ratios are to the first allocator, with the same caching."""
    rows = table("caching")
    rows.add_column("allocator", no_wrap=True)
    for column in ("ops/s", "ratio", "slowest", "hit tokens"):
        rows.add_column(column, justify="right")
    first: dict[bool, float] = {}
    for entry in record.entries:
        first.setdefault(entry.prefix_caching, entry.rate)
        caching = "on" if entry.prefix_caching else "off"
        who = (entry.version or entry.allocator) + (", batched" if entry.batched else "")
        if not entry.rates:
            rows.add_row(caching, who, Text(entry.failed or "not run", style="red"))
            continue
        to = first[entry.prefix_caching]
        rows.add_row(
            caching,
            who,
            f"{entry.rate:,.0f}",
            f"{entry.rate / to:.2f}x" if to else "-",
            f"{min(entry.rates):,.0f}",
            f"{entry.hit_tokens:,}" if entry.prefix_caching else "-",
        )
    console.print(rows)
    said = (
        f"{record.requests:,} requests, {record.max_running} running, "
        f"{record.num_blocks:,} blocks of {record.block_size}; admissions, appends and frees per "
        f"CPU-second, fastest of {record.rounds} rounds; ratio: of the rate to the first one's"
    )
    if any(entry.batched for entry in record.entries):
        said += "; batched: one call appends to all that run"
    console.print(Text(said))
    console.print(Text(f"{record.cpu}, Python {record.python}"))
