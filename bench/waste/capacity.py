"""How many tokens and requests of a model a pool holds, group by group of its layers."""

from __future__ import annotations

from typing import Final

from bench.machine.record import Record
from bench.waste.models import Model
from bench.waste.tables import Tables, tables_of

LENGTHS: Final = (2_048, 8_192, 32_768)
"""Requests of so many tokens are counted."""

NOTICEABLE: Final = 0.02
"""Share of a group's blocks that is left empty, from which on it is said."""

MOST_TOKENS: Final = 2**30
"""Longest request that is looked for: where all layers have windows, any fits."""


class GroupRecord(Record):
    """Layers that keep the same for each token, on one GPU."""

    layers: int
    window: int | None
    """Latest tokens that they keep; None: all."""
    bytes_per_token: int
    state_bytes: int = 0
    """Bytes of a request's state in all of them instead, whatever its length."""
    tables: int = 1
    """Block tables that they are parted into."""
    block_size: int | None = None
    """Tokens of a block of theirs; None in older records."""
    padding: float = 0.0
    """Share of a full block's bytes that they leave empty, 0 to 1."""


class CapacityRecord(Record):
    """A pool of a model's cache."""

    model: str
    groups: list[GroupRecord]
    longest_request: int
    """Tokens of one that has the pool for itself, in the tables of `bench.waste.tables`."""
    concurrency: dict[int, int]
    """Requests at once, by their tokens."""
    behind_windows: dict[int, float]
    """Share of such a request's bytes that lies behind the windows where all layers have the same
    blocks, 0 to 1."""
    blocks: int | None = None
    """Blocks of the pool; None in older records."""


def longest_request(
    tables: Tables, blocks: int, *, in_flight: int = 1, most: int = MOST_TOKENS
) -> int:
    """Tokens of the longest request that so many blocks hold, up to `most`."""
    fits, over = 0, most + 1
    while over - fits > 1:
        middle = (fits + over) // 2
        enough = tables.blocks(middle, in_flight=in_flight) <= blocks
        fits, over = (middle, over) if enough else (fits, middle)
    return fits


def capacity(
    model: Model, pool_bytes: int, *, block_size: int, in_flight: int = 1
) -> CapacityRecord:
    """Count what a pool holds, where `in_flight` tokens of a request are computed at once."""
    tables = tables_of(model, block_size=block_size)
    blocks = pool_bytes // tables.block_bytes
    needed = {tokens: tables.blocks(tokens, in_flight=in_flight) for tokens in LENGTHS}
    return CapacityRecord(
        model=model.name,
        groups=[
            GroupRecord(
                layers=table.group.layers,
                window=table.group.window,
                bytes_per_token=model.group_bytes(table.group),
                state_bytes=model.layers_of(table.group) * model.state_of(table.group),
                tables=table.count,
                block_size=table.block_size,
                padding=tables.waste(table),
            )
            for table in tables.tables
        ],
        longest_request=longest_request(tables, blocks, in_flight=in_flight),
        concurrency={tokens: blocks // many for tokens, many in needed.items()},
        behind_windows={
            tokens: max(0.0, 1 - many * tables.block_bytes / (tokens * model.bytes_per_token))
            for tokens, many in needed.items()
        },
        blocks=blocks,
    )


def capacity_words(found: CapacityRecord) -> str:
    """Say it in a sentence or two."""
    at_once = ", ".join(
        f"{many:,} of {tokens:,}" for tokens, many in found.concurrency.items() if many
    )
    said = (
        f"{found.model}: bytes of a token: {', '.join(map(_group_words, found.groups))}. The pool "
        f"holds a request of {found.longest_request:,} tokens"
    )
    said += f", or at once {at_once}." if at_once else "."
    longest = max(found.behind_windows)
    if len(found.groups) > 1 and any(group.window for group in found.groups):
        said += (
            f" That is with blocks for each group; with the same blocks for all layers "
            f"{found.behind_windows[longest]:.0%} of a request of {longest:,} "
            f"tokens would lie behind the windows."
        )
    empty = [group for group in found.groups if group.padding >= NOTICEABLE]
    for group in empty:
        said += (
            f" A block of the pool is as large for all groups: the {group.layers} layers "
            f"{'with a state ' if group.state_bytes else ''}leave {group.padding:.0%} of theirs "
            f"empty."
        )
    return said


def _group_words(group: GroupRecord) -> str:
    if group.state_bytes:
        return f"none in {group.layers} layers, but {group.state_bytes:,} a request"
    said = f"{group.bytes_per_token:,} in {group.layers} layers"
    return said if group.window is None else f"{said} that keep {group.window:,} tokens"
