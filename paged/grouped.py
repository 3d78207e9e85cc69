"""The paged server, block by block, of a model whose groups of layers have tables of their own.

It decides as `paged.scheduler` does, by the sum of what all tables need; `paged.layout` says what
that is, and `counting.c` does the same in numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from paged.accounting import Counters, GroupUse
from paged.allocator import PagedAllocator
from paged.arrivals import Request
from paged.errors import checked_size
from paged.group import SequenceGroup
from paged.layout import FOREVER, GroupSums, GroupTables, Layout, checked_layout
from paged.policy import PagedPolicy
from paged.scheduler import Scheduler
from paged.table import BlockTable


class GroupedSequence(SequenceGroup):
    """A request with several tables."""

    def __init__(
        self, request: Request, policy: PagedPolicy, allocator: PagedAllocator, layout: Layout
    ) -> None:
        super().__init__(request, policy, allocator)
        self.slides = -1
        """Step before which blocks behind a window fall due."""
        self.tables: list[tuple[GroupTables, list[BlockTable]]] = []
        """Those of each group; none unless it runs. A state's has one token, in a block of one."""
        self._layout = layout

    def admission_blocks(self) -> tuple[int, int]:
        """Blocks that its admission takes, and blocks that can be had."""
        needed = self._layout.most(self.held, self._policy.token_budget)
        return needed, self._allocator.num_free

    def _more(self, tokens: int) -> int:
        begun = sum(len(table.blocks) for _, tables in self.tables for table in tables)
        return self._layout.blocks(tokens) - begun

    def chunk_blocks(self, chunk: int) -> int:
        """Blocks that computing `chunk` more tokens takes."""
        return self._more(self.computed + chunk)

    def growth_blocks(self, step: int) -> int:
        """Blocks that the step takes, at whose end new ones have begun."""
        return self._more(self.base + step)

    def next_growth(self, step: int) -> int:
        """Step at which a block begins in one of the tables, after `step`."""
        tokens = self.base + step
        sizes = {each.block_size for each in self._layout.groups if each.block_size}
        return step + 1 + min((-tokens % size for size in sizes), default=self.last)

    def admit(self, name: int, *, computed: int, chunk: int) -> int:
        """Begin with tables that are empty but for states."""
        self.sequences = [name]
        self.computed = computed
        for each in self._layout.groups:
            tables = [BlockTable(each.block_size or 1) for _ in range(each.count)]
            if not each.block_size:
                for table in tables:
                    table.grow(1, self._allocator.pool.allocate(1))
            self.tables.append((each, tables))
        return 0

    def extend_prompt(self) -> None:
        """Take the blocks for what was computed of the prompt."""
        self._fill(self.computed)

    def decode_from(self, step: int, names: Iterator[int]) -> int:
        """Start decoding."""
        self._fill(self.held)
        self._tabled = self.held
        return super().decode_from(step, names)

    def grow(self, step: int) -> int:
        """Bring the tables to what the sequence has after a step."""
        self._fill(self.base + step)
        return 0

    def given_up_before(self, step: int) -> int:
        """Blocks that `slide` will give up."""
        tokens = self.tokens_at(step - 1)
        return sum(
            each.behind(tokens) - table.num_released
            for each, tables in self.tables
            for table in tables
        )

    def slide(self, step: int) -> None:
        """Give up what no later token looks at, before a step."""
        tokens = self.tokens_at(step - 1)
        self._fill(tokens)
        self.slides = -1
        for each, tables in self.tables:
            if each.window == FOREVER:
                continue
            behind = each.behind(tokens)
            for table in tables:
                given_up = table.release_before(behind * each.block_size)
                self._allocator.pool.release_all(given_up, keep=())
            due = (behind + 1) * each.block_size + each.window - self.base
            if due <= self.last and not 0 <= self.slides < due:
                self.slides = due

    def release(self, tokens: int) -> int:
        """Give up all blocks."""
        for _, tables in self.tables:
            for table in tables:
                self._allocator.pool.release_all(table.held(), keep=())
        self.tables, self.sequences = [], []
        self.slides = -1
        return super().release(tokens)

    def _fill(self, tokens: int) -> None:
        """Let the tables have so many tokens."""
        for each, tables in self.tables:
            for table in tables if each.block_size else ():
                blocks = self._allocator.pool.allocate(each.begun(tokens) - len(table.blocks))
                table.grow(tokens - table.num_tokens, blocks)


class GroupedScheduler(Scheduler):
    """A server and its queue; `slots` are bytes."""

    def __init__(
        self,
        requests: Iterable[Request],
        policy: PagedPolicy,
        *,
        slots: int,
        layout: Layout,
        **others: Any,
    ) -> None:
        self.layout = checked_layout(layout, policy)
        self._bytes = checked_size("slots", slots, at_least=layout.block_bytes)
        self._sliding: defaultdict[int, list[GroupedSequence]] = defaultdict(list)
        self._group_sums = [[0, 0, 0] for _ in layout.groups]
        # Above it, as many slots as one table would have in these blocks are counted.
        blocks = slots // layout.block_bytes
        super().__init__(requests, policy, slots=blocks * policy.block_size, **others)

    def moment(self) -> Counters:
        """Return what was counted so far, in bytes."""
        known, uses = self._counted(), self.uses()
        size, block_bytes = self.policy.block_size, self.layout.block_bytes
        waiting = known["waiting_short"] + known["waiting_watermark"]
        allocated = (known["token"] + known["internal"]) // size * block_bytes
        short = known["free_short"] // size * block_bytes
        short += (self._bytes - self.num_blocks * block_bytes) * waiting
        token, padding = sum(use.token for use in uses), sum(use.padding for use in uses)
        in_bytes = {
            "slots": self._bytes,
            "token": token,
            "internal": allocated - token - padding,
            "roundup": padding,
            "free_short": short,
            "free_idle": self._bytes * self.step - allocated - short,
        }
        return Counters(**known | in_bytes)

    def uses(self) -> tuple[GroupUse, ...]:
        """What the blocks of each group were used for so far."""
        sums = [GroupSums(*each) for each in self._group_sums]
        return self.layout.uses(sums, self._sums["logical_token"])

    def _most_blocks(self, request: Request) -> int:
        tokens = request.prompt_tokens + request.output_tokens - 1
        return self.layout.most(tokens, self.policy.token_budget)

    def _group(self, request: Request) -> GroupedSequence:
        return GroupedSequence(request, self.policy, self.allocator, self.layout)

    def _slide_before(self, step: int) -> None:
        for group in self._sliding.pop(step, ()):
            if group.slides == step:
                group.slide(step)
                if group.slides >= 0:
                    self._sliding[group.slides].append(group)

    def _grow(self, left: int | None) -> tuple[int, int | None]:
        gave_way = False
        while not self._suffices(left):
            gave_way = True
            self._preempt(self._running[next(reversed(self._running))])
        self._slide_before(self.step)
        grown = super()._grow(left)
        self._gave_way = gave_way
        return grown

    def _suffices(self, left: int | None) -> bool:
        """Whether each, in order of admission, may give up its own blocks before it takes more."""
        free = self.allocator.num_free
        if not self._prefilling:
            step = self.step
            due = [group for group in self._growing.get(step, ()) if group.grows == step]
            if sum(group.growth_blocks(step) for group in due) <= free:
                return True
        for group in self._running.values():
            assert isinstance(group, GroupedSequence)
            free += group.given_up_before(self.step)
            if group.number in self._prefilling:
                chunk = group.target - group.computed
                if left is not None:
                    chunk = min(chunk, left)
                    left -= chunk
                free -= group.chunk_blocks(chunk)
            else:
                free -= group.growth_blocks(self.step)
            if free < 0:
                return False
        return True

    def _compute(self, group: SequenceGroup, chunk: int) -> None:
        super()._compute(group, chunk)
        assert isinstance(group, GroupedSequence)
        group.slides = self.step + 1
        self._sliding[group.slides].append(group)

    def _count(self, prefill: int) -> None:
        super()._count(prefill)
        used = self.allocator.num_used * self.layout.block_bytes
        self.peaks["peak_allocated"] = max(self.peaks["peak_allocated"], used)
        for group in self._running.values():
            assert isinstance(group, GroupedSequence)
            tokens = group.tokens_at(self.step)
            for (each, (table, *_)), sums in zip(group.tables, self._group_sums, strict=True):
                sums[0] += len(table.blocks)
                sums[1] += table.num_released
                sums[2] += each.live(tokens)
