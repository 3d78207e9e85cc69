"""How many tokens and requests of a model a pool holds, group by group of its layers."""

from __future__ import annotations

from typing import Final

from bench.machine.record import Record
from bench.waste.models import Model

LENGTHS: Final = (2_048, 8_192, 32_768)
"""Requests of so many tokens are counted."""

MOST_TOKENS: Final = 2**30
"""Longest request that is looked for: where all layers have windows, any fits."""


class GroupRecord(Record):
    """Layers that keep the same for each token, on one GPU."""

    layers: int
    window: int | None
    """Latest tokens that they keep; None: all."""
    bytes_per_token: int


class CapacityRecord(Record):
    """A pool of a model's cache."""

    model: str
    groups: list[GroupRecord]
    longest_request: int
    """Tokens of one that has the pool for itself, each group in blocks of its own."""
    concurrency: dict[int, int]
    """Requests at once, by their tokens."""
    behind_windows: dict[int, float]
    """Share of such a request's bytes that lies behind the windows where all layers have the same
    blocks, as in the server that is simulated; 0 to 1."""


def capacity(model: Model, pool_bytes: int, *, block_size: int) -> CapacityRecord:
    """Count what a pool holds."""

    def held(tokens: int) -> int:
        return model.bytes_of(tokens, block_size=block_size)

    fits, over = 0, MOST_TOKENS
    while over - fits > 1:
        middle = (fits + over) // 2
        fits, over = (middle, over) if held(middle) <= pool_bytes else (fits, middle)
    return CapacityRecord(
        model=model.name,
        groups=[
            GroupRecord(
                layers=group.layers,
                window=group.window,
                bytes_per_token=model.group_bytes(group),
            )
            for group in model.groups
        ],
        longest_request=fits,
        concurrency={tokens: pool_bytes // held(tokens) for tokens in LENGTHS},
        behind_windows={
            tokens: max(0.0, 1 - held(tokens) / (tokens * model.bytes_per_token))
            for tokens in LENGTHS
        },
    )


def capacity_words(found: CapacityRecord) -> str:
    """Say it in a sentence or two."""
    groups = ", ".join(
        f"{group.bytes_per_token:,} in {group.layers} layers"
        + ("" if group.window is None else f" that keep {group.window:,} tokens")
        for group in found.groups
    )
    at_once = ", ".join(
        f"{many:,} of {tokens:,}" for tokens, many in found.concurrency.items() if many
    )
    said = (
        f"{found.model}: bytes of a token: {groups}. The pool holds a request of "
        f"{found.longest_request:,} tokens"
    )
    said += f", or at once {at_once}." if at_once else "."
    longest = max(found.behind_windows)
    if (share := found.behind_windows[longest]) > 0:
        said += (
            f" That is with blocks for each group; with the same blocks for all layers, as "
            f"simulated here, {share:.0%} of a request of {longest:,} tokens would lie behind the "
            f"windows."
        )
    return said
