"""Groups of layers with tables of their own, in blocks of one pool.

A block has the same bytes for every group. Layers that keep everything take one for each
`block_size` tokens; those with a window give up what no later token looks at, before the step that
comes next; a state takes one, however long its request is. Several tables of a group are alike.

So a request takes, after a step that has computed its tokens from `seen` on up to `tokens`, in each
table `begun(tokens) - behind(seen)` blocks. It is admitted when there is room for the most that its
prompt will take at once: behind a window no more than that and the tokens of one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from paged.accounting import GroupUse
from paged.errors import BadSize, checked_size
from paged.policy import PagedPolicy

FOREVER: Final = 2**62
"""The window, in tokens, of who keeps everything; and the tokens in a state."""


class GroupSums(NamedTuple):
    """Sums over the steps, of one of a group's tables for each request."""

    begun: int
    """Blocks that were begun, those given up included; and those given up."""
    gone: int
    live: int
    """Tokens that are still looked at; of states, their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTables:
    """The tables of a group, one like the other."""

    count: int
    """How many they are."""
    block_size: int
    """Tokens of a block; 0: a state, which has one block for all."""
    window: int = FOREVER
    """Tokens that attention looks back, the present one included."""
    token_bytes: int
    """Bytes of a token in all of its layers; of a state."""

    def __post_init__(self) -> None:
        checked_size("count", self.count, at_least=1)
        checked_size("block_size", self.block_size, at_least=0)
        checked_size("window", self.window, at_least=1, at_most=FOREVER)
        if not self.block_size and self.window != FOREVER:
            raise BadSize(f"window = {self.window} of a state: it has none; leave it out")

    def begun(self, tokens: int) -> int:
        """Blocks of a table that so many tokens have begun."""
        return -(-tokens // self.block_size) if self.block_size else 1

    def behind(self, seen: int) -> int:
        """Blocks at its beginning that nobody looks at once so many tokens are there."""
        return (seen + 1 - self.window) // self.block_size if seen >= self.window else 0

    def live(self, tokens: int) -> int:
        """Those of so many tokens that are still looked at."""
        return min(tokens, self.window) if self.block_size else 1

    def cap(self, budget: int | None) -> int:
        """Blocks of a table that a request takes at most, if a step computes `budget` tokens."""
        if self.window == FOREVER or budget is None:
            return FOREVER
        return -(-(self.window - 1 + budget) // self.block_size) + 1

    def use(self, sums: GroupSums, tokens: int, block_bytes: int) -> GroupUse:
        """What its blocks were used for, of requests with so many token-steps."""
        held, size = sums.begun - sums.gone, self.block_size
        empty = (sums.begun * size - tokens) * self.token_bytes if size else 0
        full = held * max(size, 1) * self.token_bytes
        token = sums.live * self.token_bytes
        return GroupUse(
            blocks=held * self.count,
            token=token,
            behind=full - empty - token,
            internal=empty,
            padding=held * self.count * block_bytes - full,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the groups of a model share a pool. Raises BadSize: a group's does not fit a block."""

    block_bytes: int
    groups: tuple[GroupTables, ...]

    def __post_init__(self) -> None:
        for each in self.groups:
            checked_size(
                "token_bytes",
                each.token_bytes,
                at_least=1,
                at_most=each.count * self.block_bytes // max(each.block_size, 1),
            )

    def blocks(self, tokens: int) -> int:
        """Blocks that so many tokens have begun, in all tables."""
        return sum(each.count * each.begun(tokens) for each in self.groups)

    def most(self, tokens: int, budget: int | None) -> int:
        """Blocks that a request takes at most until it has so many tokens."""
        return sum(each.count * min(each.begun(tokens), each.cap(budget)) for each in self.groups)

    def uses(self, sums: Sequence[GroupSums], tokens: int) -> tuple[GroupUse, ...]:
        """What each group's blocks were used for."""
        return tuple(
            each.use(of, tokens, self.block_bytes)
            for each, of in zip(self.groups, sums, strict=True)
        )


def takes_groups(policy: PagedPolicy) -> bool:
    """Whether a policy can be served with tables for each group: blocks are nobody else's, and what
    is preempted is computed again.
    """
    shared = policy.samples > 1 or policy.prefix_caching or policy.sliding_window is not None
    return not shared and policy.preemption == "recompute"


def checked_layout(layout: Layout, policy: PagedPolicy) -> Layout:
    """Return a layout that a policy goes with. Raises BadSize: it does not."""
    if not takes_groups(policy):
        raise BadSize(
            f"groups with {policy}: leave out samples, prefix_caching, sliding_window and swap"
        )
    return layout
