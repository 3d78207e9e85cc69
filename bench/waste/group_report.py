"""Groups of layers with tables of their own: what each wastes, and what that saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from bench.command.tables import table
from bench.waste.capacity import GroupRecord
from bench.waste.policies import policy_words
from bench.waste.record import WasteRecord, WasteRow
from paged.layout import takes_groups
from paged.policy import PagedPolicy

_COLUMNS: Final = {"token": "token", "behind": "behind", "internal": "intern", "padding": "pad"}
"""Head of the column of each figure."""


def groups_table(rows: Sequence[WasteRow], record: WasteRecord) -> Table | None:
    """What each group does with its blocks, in per cent of the pool; None where none has any."""
    rows = [row for row in rows if row.groups]
    if not rows or record.capacity is None:
        return None
    made = table("group of layers", ["tables", "block", "pool", *_COLUMNS.values()], name_width=26)
    for row in rows:
        if len(rows) > 1:
            made.add_row(Text(row.typed.replace(",", ", "), style="italic"))
        judged = row.judged
        for group, use in zip(record.capacity.groups, row.groups, strict=True):
            made.add_row(
                _group(group),
                str(group.tables),
                "-" if group.state_bytes else f"{group.block_size:,}",
                f"{100 * judged.share(use.allocated):.1f}",
                *(f"{100 * judged.share(getattr(use, name)):.1f}" for name in _COLUMNS),
            )
    made.caption = Text(
        "% of the pool's bytes. tables: block tables of a request; block: tokens of a block; pool: "
        "all blocks of the group; token: a token that is still looked at, or a state; behind: "
        "behind the window, in a block that is kept; intern: empty behind the last token; pad: "
        "left empty of every block, which is as large for all groups."
    )
    made.caption_justify = "left"
    return made


def group_lines(rows: Sequence[WasteRow], record: WasteRecord) -> Iterator[str]:
    """Say of each policy what tables for each group save, or why there are none."""
    alike = {row.policy: row for row in rows if not row.groups and not row.tiers}
    for row in rows:
        if row.groups and row.policy in alike:
            yield _saved(row, alike[row.policy], record)
    if record.capacity is None or not any(_differs(group) for group in record.capacity.groups):
        return
    for policy in alike:
        if isinstance(policy, PagedPolicy) and not takes_groups(policy):
            yield (
                f"{policy_words(policy)}: served as if all layers were full attention; a prefix "
                f"cache, samples, a window and swap are not served with tables for each group."
            )


def _differs(group: GroupRecord) -> bool:
    return bool(group.window or group.state_bytes)


def _saved(row: WasteRow, alike: WasteRow, record: WasteRecord) -> str:
    now, was = _mib_each(row, 1), _mib_each(alike, record.pool.bytes_per_token)
    said = (
        f"{policy_words(row.policy)}, with tables for each group of layers: a request that runs "
        f"holds {now:,.4g} MiB in the mean; as if all layers were full attention, {was:,.4g} MiB"
    )
    if row.peak_requests != alike.peak_requests:
        said += f". At most {row.peak_requests:,} run at once instead of {alike.peak_requests:,}"
    before, after = alike.requests_per_s, row.requests_per_s
    if not before or not after or row.total.refused != alike.total.refused:
        refused = f"{row.total.refused:,} are refused instead of {alike.total.refused:,}"
        return f"{said}; {refused}."
    error = 0.0 if record.clock is None else record.clock.error
    if abs(after / before - 1) <= error:
        return f"{said}; requests a second are the same within {error:.0%}."
    return f"{said}; {after:,.3g} requests a second instead of {before:,.3g}."


def _mib_each(row: WasteRow, slot_bytes: int) -> float:
    judged = row.judged
    held = judged.allocated * slot_bytes / 2**20
    return held / judged.running_requests if judged.running_requests else 0.0


def _group(group: GroupRecord) -> str:
    if group.state_bytes:
        return f"{group.layers} with a state"
    if group.window is None:
        return f"{group.layers} that keep all"
    return f"{group.layers} behind {group.window:,} tokens"
