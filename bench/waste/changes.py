"""What --whatif changes of a policy: one option, or two together; and what cannot matter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any, Final

from bench.waste.record import WasteRow
from bench.workloads.record import ServedStream
from paged.errors import BadSize
from paged.policy import PagedPolicy

BLOCK_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SMALLEST_SHARED: Final = 8
"""Smallest block size that is tried where the blocks themselves are simulated, not their number:
the time that takes grows with the number of blocks of a prompt."""

WATERMARKS: Final = (0.0, 0.01, 0.02, 0.05, 0.1)
LOOK_AHEAD: Final = (0, 8)
BUDGETS: Final = (2048, 8192)
MAX_RUNNING: Final = (64, 128, 256)

MOST_QUOTAS: Final = 8
"""Most tenants that equal shares of the cache are tried for: quotas are served block by block."""

QUOTA_REQUESTS: Final = 5000
"""Longest stream that they are tried on, likewise."""

PAIR: Final = "pair"
"""The group of two changes together."""

MATTERS: Final = ("block size", "prefix caching", "budget", "quotas")
"""Groups that are always run: what the base did does not say that they change nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """A policy that differs from the base in one option, or two."""

    group: str
    """The option."""
    label: str
    """Its value."""
    policy: PagedPolicy
    changes: Mapping[str, Any]
    """Fields of the policy that differ."""

    @property
    def words(self) -> str:
        """What is changed."""
        return self.label if self.group == PAIR else f"{self.group} {self.label}"


def variations_on(stream: ServedStream, base: PagedPolicy, *, slots: int) -> list[Variation]:
    """Vary each option that may matter on a stream."""
    tenants = len(stream.tenants) if stream.requests <= QUOTA_REQUESTS else 0
    return variations(base, prefixes=stream.prefixes, slots=slots, tenants=tenants)


def variations(
    base: PagedPolicy, *, prefixes: bool, slots: int = 0, tenants: int = 0
) -> list[Variation]:
    """Vary each option of a policy, the others as they are; no two variations are the same.

    `tenants` share a pool of `slots`.
    """
    found: dict[PagedPolicy, Variation] = {}
    for group, label, changes in _changes(prefixes=prefixes):
        _add(found, base, group, label, changes)
    if 2 <= tenants <= MOST_QUOTAS and (share := slots // base.block_size // tenants):
        quotas = tuple((tenant, share) for tenant in range(tenants))
        _add(found, base, "quotas", "equal", {"tenant_quotas": quotas})
    return list(found.values())


def pairs(base: PagedPolicy, singles: Sequence[Variation]) -> list[Variation]:
    """Make every two changes of different options one, in the order of the first."""
    found: dict[PagedPolicy, Variation] = {}
    for one, other in combinations(singles, 2):
        if one.group != other.group:
            changes = {**one.changes, **other.changes}
            _add(found, base, PAIR, f"{one.words} + {other.words}", changes)
    alone = {single.policy for single in singles}
    return [pair for pair in found.values() if pair.policy not in alone]


def _add(
    found: dict[PagedPolicy, Variation],
    base: PagedPolicy,
    group: str,
    label: str,
    changes: Mapping[str, Any],
) -> None:
    try:
        policy = replace(base, **changes)
    except BadSize:
        return
    shared = policy.prefix_caching or policy.samples > 1
    slow = shared and policy.block_size < SMALLEST_SHARED
    if policy != base and not (slow and "block_size" in changes):
        found.setdefault(
            policy, Variation(group=group, label=label, policy=policy, changes=changes)
        )


def _changes(*, prefixes: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for size in BLOCK_SIZES:
        yield "block size", str(size), {"block_size": size}
    if prefixes:
        off = {"prefix_caching": False, "eviction": "lru", "tenant_quotas": ()}
        yield "prefix caching", "off", off
        for eviction in ("lru", "lfu", "fifo"):
            yield "prefix caching", eviction, {"prefix_caching": True, "eviction": eviction}
    for watermark in WATERMARKS:
        yield "watermark", f"{watermark:.0%}", {"watermark": watermark}
    for ahead in LOOK_AHEAD:
        yield "look-ahead", str(ahead), {"look_ahead": ahead}
    for preemption in ("recompute", "swap"):
        yield "preemption", preemption, {"preemption": preemption}
    for budget in BUDGETS:
        yield "budget", f"{budget:,}", {"token_budget": budget}
    for most in MAX_RUNNING:
        yield "max-running", str(most), {"max_running": most}


def cannot_matter(policy: PagedPolicy, base: WasteRow, *, timed: bool) -> bool:
    """Whether a policy serves the stream of a row step for step as the row's own did.

    Told from what never happened there: without a preemption it does not matter what becomes of who
    is preempted. `timed`: requests arrive at times of their own.
    """
    was, total = base.policy, base.total
    if not isinstance(was, PagedPolicy) or base.tiers:
        return False
    changed = [
        field.name
        for field in fields(policy)
        if getattr(policy, field.name) != getattr(was, field.name)
    ]
    match changed:
        case ["preemption"]:
            return not total.preemptions
        case ["eviction"]:
            return not total.evictions
        case ["look_ahead"]:
            waits = total.waiting_short, total.waiting_watermark, total.waiting_limit
            return timed and not (any(waits) or total.waiting_budget)
        case ["max_running"]:
            most = policy.max_running
            return not total.waiting_limit and (most is None or most >= base.peak_requests)
        case ["watermark"]:
            size = base.block_slots
            blocks = total.slots // size
            left = blocks - -(-base.peak_allocated // size)
            # In chunks, an admission asks for more than it takes.
            kept = was.by_counts and was.token_budget is None
            kept = kept and left >= policy.watermark_blocks(blocks)
            return not total.waiting_watermark and (policy.watermark <= was.watermark or kept)
    return False
