"""Groups of layers with tables of their own: counted, moved, and as the tables have them."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import currently_in_test_context, event, example, given, reject
from hypothesis import strategies as st

from helpers.profiles import examples
from helpers.serving import SLO, TIME, plain_policies, streams
from paged import compiled
from paged.accounting import IdentityBroken, Series, Serving
from paged.arrivals import Request
from paged.counting import serve_by_counts
from paged.grouped import GroupedScheduler, GroupedSequence
from paged.layout import FOREVER, GroupTables, Layout
from paged.policy import PagedPolicy
from paged.scheduler import Scheduler, serve

BLOCK_BYTES = 36


@st.composite
def groups(draw: st.DrawFn) -> GroupTables:
    """Everything, a window or a state."""
    kind = draw(st.sampled_from(["full", "window", "window", "state"]))
    size = 0 if kind == "state" else draw(st.integers(1, 9))
    count = draw(st.integers(1, 2))
    return GroupTables(
        count=count,
        block_size=size,
        window=draw(st.integers(1, 30)) if kind == "window" else FOREVER,
        token_bytes=draw(st.integers(1, count * BLOCK_BYTES // max(size, 1))),
    )


@st.composite
def policies(draw: st.DrawFn) -> PagedPolicy:
    return replace(
        draw(plain_policies()),
        preemption="recompute",
        look_ahead=draw(st.sampled_from([0, 0, 1, 3])),
        token_budget=draw(st.none() | st.integers(1, 30)),
    )


LAYOUTS = st.lists(groups(), min_size=1, max_size=3).map(
    lambda drawn: Layout(block_bytes=BLOCK_BYTES, groups=tuple(drawn))
)
DRAWN = {
    "requests": streams(),
    "policy": policies(),
    "layout": LAYOUTS,
    "pool": st.integers(BLOCK_BYTES, 50 * BLOCK_BYTES),
}


def table(size: int, token_bytes: int, *, count: int = 1, window: int = FOREVER) -> GroupTables:
    return GroupTables(count=count, block_size=size, window=window, token_bytes=token_bytes)


# Windows that fill while others give way, prompts in chunks, blocks of several sizes and a state.
BUSY = {
    "requests": [Request(*each) for each in ((17, 19), (8, 28), (25, 18), (3, 3), (30, 9))],
    "policy": PagedPolicy(block_size=4, look_ahead=1, token_budget=11),
    "layout": Layout(
        block_bytes=BLOCK_BYTES,
        groups=(table(4, 9), table(3, 20, count=2, window=10), table(0, 36, count=1)),
    ),
    "pool": 28 * BLOCK_BYTES + 5,
    "warmup": 1,
    "clients": None,
}


class SparseSeries(Series):
    def __init__(self) -> None:
        super().__init__()
        self._stride = self.due = 7


def by_blocks(requests: list[Request], policy: PagedPolicy, layout: Layout, **rest: Any) -> Serving:
    return serve(requests, policy, kind=partial(GroupedScheduler, layout=layout), **rest)


@pytest.mark.skipif(compiled.library() is None, reason="there is no C compiler")
@examples(80)
@given(**DRAWN, warmup=st.integers(0, 3), clients=st.none() | st.integers(1, 4))
@example(**BUSY)
def test_counting_and_moving_blocks_agree_to_the_last_byte(**drawn: Any) -> None:
    check_agreement(**drawn)


def check_agreement(
    requests: list[Request],
    policy: PagedPolicy,
    layout: Layout,
    pool: int,
    warmup: int,
    clients: int | None,
) -> None:
    if requests[0].arrival_ns is not None:
        clients = None
    rest = {"slots": pool, "warmup": warmup, "time": TIME, "clients": clients, "slo": SLO}
    with mock.patch.dict(serve.__globals__, {"Series": SparseSeries}):
        moved = by_blocks(requests, policy, layout, **rest)
    with mock.patch.dict(serve_by_counts.__globals__, {"Series": SparseSeries}):
        counted = serve_by_counts(requests, policy, layout=layout, **rest)
    if currently_in_test_context():
        event(f"preemptions: {min(moved.total.preemptions, 3)}")
        event(f"behind a window: {any(use.behind for use in moved.groups)}")
    assert counted == moved


# Each would go unseen if the server in machine code were not held to the other.
BUGS = {
    "blocks are given up a step early": (
        "kind->leaving[kind->phase]",
        "kind->leaving[(s->step + 1) % kind->of.size]",
    ),
    "a chunk leaves too much behind": ("behind(&kind->of, now) -", "behind(&kind->of, now + 9) -"),
}


@pytest.mark.skipif(compiled.library() is None, reason="there is no C compiler")
def test_planted_bugs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_agreement(**BUSY)
    source = Path(compiled.__file__).with_name("counting.c")
    for right, wrong in BUGS.values():
        changed = tmp_path / "counting.c"
        changed.write_text(source.read_text().replace(right, wrong))
        assert changed.read_text() != source.read_text()
        library = compiled.built(changed, tmp_path)
        monkeypatch.setattr(compiled, "library", lambda library=library: library)
        with pytest.raises((AssertionError, IdentityBroken)):
            check_agreement(**BUSY)


@examples(60)
@given(**DRAWN)
def test_what_is_counted_is_what_the_tables_hold(
    requests: list[Request], policy: PagedPolicy, layout: Layout, pool: int
) -> None:
    before = [0] * len(layout.groups)

    def look(server: Scheduler) -> None:
        assert isinstance(server, GroupedScheduler)
        held: list[int] = []
        uses = server.uses()
        for at, use in enumerate(uses):
            of_group = []
            for group in server._running.values():
                assert isinstance(group, GroupedSequence)
                each, tables = group.tables[at]
                tokens = group.tokens_at(server.step)
                for table in tables:
                    of_group += table.held()
                    # What the next token looks at is there.
                    first = max(0, tokens + 1 - each.window)
                    if each.block_size:
                        assert table.num_released * each.block_size <= first
            assert use.blocks - before[at] == len(of_group)
            before[at] = use.blocks
            held += of_group
        assert len(set(held)) == len(held) == server.allocator.num_used
        total = server.moment()
        assert sum(use.allocated for use in uses) == total.allocated
        assert total.allocated == sum(use.blocks for use in uses) * BLOCK_BYTES
        assert sum(use.token for use in uses) == total.token

    total = by_blocks(requests, policy, layout, slots=pool, time=TIME, observe=look).total
    assert (
        total.admitted
        == total.completed
        == total.arrived - total.refused
        == len(requests) - total.refused
    )


@examples(60)
@given(
    requests=streams(),
    policy=policies(),
    slots=st.integers(1, 120),
    serve=st.sampled_from([by_blocks, serve_by_counts]),
)
def test_one_group_that_keeps_everything_is_the_plain_server(
    requests: list[Request], policy: PagedPolicy, slots: int, serve: Any
) -> None:
    size = policy.block_size
    if slots < size or (serve is serve_by_counts and compiled.library() is None):
        reject()
    one = GroupTables(count=1, block_size=size, token_bytes=1)
    layout = Layout(block_bytes=size, groups=(one,))
    grouped = serve(requests, policy, layout=layout, slots=slots, time=TIME)
    assert len(grouped.groups) == 1
    plain = serve_by_counts(requests, policy, slots=slots, time=TIME)
    assert replace(grouped, groups=()) == plain
