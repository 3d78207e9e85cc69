"""Hit curves: the share of prompt tokens that a prefix cache of each size would have found.

The rules are those of `bench.waste.prefix_replay`. Least recently used first, one pass does for all
sizes: a cache of any size holds what lies in the upper part of one stack, so a block is found by
every cache that is at least as large as the block's depth in it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from rich.console import Console
from rich.text import Text

from bench.command.tables import table
from bench.command.words import seconds
from bench.waste.prefix_replay import ReplayOrder, prompts_of, replay, tokens_per_block
from bench.workloads.source import StreamSource, Wrapped, read_all
from bench.workloads.traces import TraceSource
from paged.tiers import Tier

ORDERS: Final[tuple[ReplayOrder, ...]] = ("lru", "lfu", "fifo", "belady")
SHARES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Sizes that are tried, as shares of the different blocks of the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """A tier, and what is in front of it."""

    tier: Tier
    pool_slots: int
    """Tokens that the pool in front of it, and the tiers between them, hold."""
    prompt_ns: int
    """To compute a token instead of loading it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierWorth:
    """What a tier would have saved over a stream, by LRU: what it has is what the pool gave up."""

    behind: Behind
    found_tokens: int
    """Prompt tokens that the tier has, and what is in front of it has not."""
    stored_tokens: int
    """Tokens that are copied to it: each that what is in front of it gave up, once."""
    saved_s: float
    loading_s: float
    """To compute them, and to load them instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HitCurve:
    """Token hit rates of a stream, 0 to 1."""

    stream: str
    requests: int
    prompt_tokens: int
    tokens_per_block: int
    unique_blocks: int
    """Different blocks of the stream: a cache of so many never gives any up."""
    sizes: tuple[int, ...]
    """Sizes of the cache, tokens."""
    rates: dict[ReplayOrder, tuple[float, ...]]
    """By order of eviction, one for each size; `belady` is the optimum, which knows the future."""
    limit: float
    """Without a limit."""
    tiers: tuple[TierWorth, ...] = ()
    """What each tier behind the pool would be worth."""
    pagedbench: str = ""
    """The release that made it; empty in a record of before."""


class _Depths:
    """A stack of blocks; how deep each lies, by a tree of sums over the moments of last use."""

    def __init__(self, moments: int) -> None:
        self._tree = [0] * (moments + 1)
        self._last: dict[int, int] = {}
        self._now = 0

    def __len__(self) -> int:
        return len(self._last)

    def depth(self, key: int) -> int | None:
        """How many blocks lie above and at it, used since its last use; None: it is new."""
        at = self._last.get(key)
        if at is None:
            return None
        below, tree = 0, self._tree
        while at:
            below += tree[at]
            at &= at - 1
        return len(self._last) - below + 1

    def use(self, key: int) -> None:
        """Put it on top."""
        if (before := self._last.get(key)) is not None:
            self._add(before, -1)
        self._now += 1
        self._last[key] = self._now
        self._add(self._now, 1)

    def _add(self, at: int, change: int) -> None:
        tree = self._tree
        while at < len(tree):
            tree[at] += change
            at += at & -at


def lru_tokens(source: StreamSource) -> tuple[dict[int, int], int, int, int]:
    """Tokens found first at each size of the cache, in blocks; requests, prompt tokens, blocks."""
    size = tokens_per_block(source)
    references = sum(
        int(part.prefix.ids.size) for part in source.chunks() if part.prefix is not None
    )
    stack = _Depths(references)
    found: dict[int, int] = {}
    requests = prompt_tokens = 0
    for tokens, keys, _ in prompts_of(source):
        requests += 1
        prompt_tokens += tokens
        deepest = 0
        for at, key in enumerate(keys):
            depth = stack.depth(key)
            if depth is None:
                break
            # A block is of use only where those before it are there, too.
            deepest = max(deepest, depth)
            found[deepest] = found.get(deepest, 0) + min(size, tokens - at * size)
        for key in reversed(keys):
            stack.use(key)
    return found, requests, prompt_tokens, len(stack)


def behind_pool(tiers: Sequence[Tier], *, pool_slots: int, prompt_ns: int) -> list[Behind]:
    """Tiers one behind the other."""
    sums = accumulate((tier.slots for tier in tiers), initial=pool_slots)
    return [
        Behind(tier=tier, pool_slots=front, prompt_ns=prompt_ns)
        for tier, front in zip(tiers, sums, strict=False)
    ]


def hit_curve(
    source: StreamSource,
    label: str,
    *,
    tiers: Sequence[Behind] = (),
    done: Callable[[], None] = lambda: None,
) -> HitCurve:
    """Compute the curves of a stream; `done` is called after each part of the work."""
    if isinstance(source, Wrapped | TraceSource):
        source = read_all(source)  # once, not for each curve
    found, requests, prompt_tokens, unique = lru_tokens(source)
    size = tokens_per_block(source)
    done()
    blocks = sorted({max(1, round(share * unique)) for share in SHARES})
    depths = sorted(found)
    sums = [0, *accumulate(found[depth] for depth in depths)]
    rates: dict[ReplayOrder, tuple[float, ...]] = {
        "lru": tuple(sums[bisect_right(depths, many)] / prompt_tokens for many in blocks)
    }
    for order in ORDERS[1:]:
        rates[order] = tuple(_replayed(source, order, [many * size for many in blocks], done))
    return HitCurve(
        stream=label,
        requests=requests,
        prompt_tokens=prompt_tokens,
        tokens_per_block=size,
        unique_blocks=unique,
        sizes=tuple(many * size for many in blocks),
        rates=rates,
        limit=sums[-1] / prompt_tokens,
        tiers=tuple(_worth(each, source, depths, sums) for each in tiers),
    )


def _worth(
    behind: Behind, source: StreamSource, depths: Sequence[int], sums: Sequence[int]
) -> TierWorth:
    size = tokens_per_block(source)
    front, tier = behind.pool_slots, behind.tier
    pool, both = front // size, (front + tier.slots) // size
    found = sums[bisect_right(depths, both)] - sums[bisect_right(depths, pool)]
    stored = replay(source, max(1, pool) * size, "lru").evictions * size
    return TierWorth(
        behind=behind,
        found_tokens=found,
        stored_tokens=stored,
        saved_s=found * behind.prompt_ns / 1e9,
        loading_s=found * tier.load_ps_per_token / 1e12,
    )


def _replayed(
    source: StreamSource, order: ReplayOrder, sizes: Sequence[int], done: Callable[[], None]
) -> Iterator[float]:
    for tokens in sizes:
        yield replay(source, tokens, order).hit_rate
        done()


def show_curves(curves: Sequence[HitCurve], console: Console) -> None:
    """Print the curves of each stream."""
    for curve in curves:
        _show(curve, console)


def _show(curve: HitCurve, console: Console) -> None:
    console.print(
        Text(
            f"{curve.stream}: {curve.requests:,} requests, {curve.prompt_tokens:,} prompt tokens, "
            f"{curve.unique_blocks:,} different blocks of {curve.tokens_per_block:,}",
            style="bold",
        )
    )
    made = table("cache, tokens", [*(order.upper() for order in ORDERS[:-1]), "optimum"])
    for at, size in enumerate(curve.sizes):
        made.add_row(f"{size:,}", *(f"{curve.rates[order][at]:.1%}" for order in ORDERS))
    made.add_row("no limit", *[f"{curve.limit:.1%}"] * len(ORDERS))
    console.print(made)
    half = next((at for at, rate in enumerate(curve.rates["lru"]) if rate >= curve.limit / 2), None)
    if not curve.limit:
        said = "No prompt begins like an earlier one: no cache finds anything."
    elif half is None:
        said = "Less than half of what can be found is found by LRU at any of these sizes."
    else:
        said = f"LRU finds half of what can be found with {curve.sizes[half]:,} tokens of cache."
    console.print(Text(said))
    for worth in curve.tiers:
        console.print(Text(tier_words(worth, curve.prompt_tokens)))


def tier_words(worth: TierWorth, prompt_tokens: int) -> str:
    """Say what a tier would be worth."""
    tier, front = worth.behind.tier, worth.behind.pool_slots
    said = (
        f"{tier.name} holds {tier.slots:,} tokens behind a pool of {front:,}: it finds "
        f"{worth.found_tokens:,} prompt tokens more, {worth.found_tokens / prompt_tokens:.1%}; "
        f"computing them takes {seconds(worth.saved_s)}, loading them {seconds(worth.loading_s)}. "
    )
    if worth.found_tokens == 0:
        return said + "It is not worth it: it finds nothing."
    if worth.loading_s >= worth.saved_s:
        return said + "It is not worth it: loading takes as long as computing, or longer."
    return (
        said + f"It is worth it: {seconds(worth.saved_s - worth.loading_s)} less. Storing copies "
        f"{worth.stored_tokens:,} tokens the other way, beside the computing."
    )
