"""What is drawn for allocators: pools, and moves that become steps as the machine goes along.

A move names no sequence: it says `the second live one`, and what that is, is known only when it is
made. Each move is one choice out of a table, simplest first, so that Hypothesis shrinks a program
by leaving moves out and by exchanging them for simpler ones.

The prompts come from a small library of whole blocks, with lengths on and next to the ends of
blocks: prefixes have to meet, and to part, for anything to happen at all. Which token ids stand for
them, a vocabulary says: in some of them tokens differ only in bits that a shorter integer loses.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from hypothesis import strategies as st

from reference.allocator.contract import HOSTILE_CALLS, AllocatorCapabilities
from reference.allocator.machine import NOBODY, AllocatorMachine
from reference.allocator.programs import MAX_TOKEN, Pool, Step
from reference.allocator.shadow import Life

MAX_MOVES: Final = 40
"""Moves of a program, at most. Most calls of a longer one are repetitions."""

BLOCK_SIZES: Final = (1, 2, 3, 4, 5, 6, 7, 8, 16)
MAX_BLOCKS: Final = 16
"""Small pools are full soon, and full pools are where things go wrong."""

AMPLE_BLOCKS: Final = (64, 200)
"""Now and then there is room for everything: what is then not found again was lost."""

APPENDED: Final = (1, 1, 1, 2, 3, 4, 8, 20)
"""Tokens that are appended at a time."""

FEW: Final = 5
"""Sequences that run at once, but for crowds. With more, small pools are full and most calls are
refused."""

SALTS: Final = ("tenant", "tenants", "tendon", "natten", "Tenant", "tenant ", "guests", "")
"""What is mistaken for another by its beginning, its length, its letters, their case or the space
around them. The first is the simplest; the last is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The token ids that stand for the library. They are 0 to 2**31 - 1, as engines have them."""

    first: int = 0
    """The least of all."""
    page: int
    """From a page to the next."""
    step: int = 1
    """From a token of a page to the next."""
    change: int
    """From a token to the one that takes its place in a change."""

    def page_tokens(self, page: int, start: int, count: int, block_size: int) -> list[int]:
        """Tokens at positions `start`.. of one page of the library over and over."""
        base, step = self.first + self.page * page, self.step
        return [base + position % block_size * step for position in range(start, start + count)]

    def fresh(self, number: int) -> int:
        """A token that no page has: another one for each of 4,096 numbers."""
        return self.first + self.page * 3 + number % 4096 * self.step


SMALL: Final = Vocabulary(page=100, change=50)
"""Easy to read."""

VOCABULARIES: Final = (
    SMALL,
    # Changes are lost in 8 bits and in 16, and pages in 8.
    Vocabulary(page=2**8, change=2**16),
    # Places within a page are lost in 8 bits, pages in 16, and changes in 24.
    Vocabulary(page=2**16, step=2**8, change=2**24),
    # Near the largest one, where the numbers of float32 are 128 apart.
    Vocabulary(first=2**31 - 2**13, page=20, change=10),
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Whole pages of the library, a part of one more, and perhaps one change."""

    pages: tuple[int, ...]
    """Pages that it begins with."""
    tail: int = 0
    """Tokens of page 0 behind them, modulo the block size; negative ones count from its end."""
    change: str = ""
    """`last`, `first` or `middle`: that token is another one. `swapped`: the last two tokens have
    changed places."""

    def tokens(self, block_size: int, vocabulary: Vocabulary = SMALL) -> list[int]:
        """The token ids."""
        tokens: list[int] = []
        for page in self.pages:
            tokens += vocabulary.page_tokens(page, 0, block_size, block_size)
        tokens += vocabulary.page_tokens(0, 0, self.tail % block_size, block_size)
        return changed(tokens, self.change, vocabulary)


def changed(tokens: list[int], change: str, vocabulary: Vocabulary = SMALL) -> list[int]:
    """The tokens with one change of `Prompt.change`."""
    if not tokens or not change:
        return tokens
    if change == "swapped":
        return [*tokens[:-2], *reversed(tokens[-2:])]
    at = {"last": -1, "first": 0, "middle": len(tokens) // 2}[change]
    tokens = tokens.copy()
    token = tokens[at] + vocabulary.change
    tokens[at] = token if token <= MAX_TOKEN else tokens[at] - vocabulary.change
    return tokens


PROMPTS: Final = tuple(
    Prompt(pages, tail, change)
    for change in ("", "last", "first", "middle", "swapped")
    for pages in ((0,), (), (0, 0), (1,), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (0, 0, 0, 0))
    for tail in (0, 1, -1, 2)
    if not change or tail == 0 or len(pages) == 1
)

TOO_LONG: Final = Prompt((2,))
"""Stands for a prompt that is longer than the pool."""


@dataclass(frozen=True, slots=True)
class Move:
    """Something to do, to whomever it fits."""

    kind: str
    """A call, or one of those of `steps_of`."""
    target: int = 0
    """Which of the sequences in question, the oldest being 0; modulo how many there are."""
    prompt: Prompt | None = None
    """Of an admission."""
    count: int = 0
    """Tokens to append, or to keep of another sequence's; children to fork; for `revisit`, what
    part of the pool a prompt fills."""
    page: int = 0
    """Page of the library that is appended."""
    salt: str | None = None
    """Of an admission; None for none, or that of the sequence that it is like."""
    chunk: str = ""
    """`one` or `half`: how much of a prompt there is to be room for at first."""
    change: str = ""
    """As in `Prompt`, to what another sequence holds."""


STOP: Final = Move("stop")

_TABLE_SIZE: Final = 1500
"""Moves of a table, about: enough for small shares to come out right."""


@cache
def move_table(can: AllocatorCapabilities, *, batching: bool) -> tuple[Move, ...]:
    """Every move that may be drawn, simplest first, the frequent ones several times."""
    targets, chunks = range(3), ("one", "half")
    some = PROMPTS[: len(PROMPTS) // 2]
    likes = [
        Move("admit_like", t, count=count, change=change)
        for change in ("", "last", "first", "swapped")
        for count in (0, -1, 1, 2, 3)
        for t in targets
    ]
    # (share of what is drawn, per cent; moves), as far as the allocator can do it.
    groups: list[tuple[float, bool, list[Move]]] = [
        (10, True, [Move("free", t) for t in targets]),
        (13, True, [Move("append", t, count=n) for n in APPENDED for t in targets]),
        (5, True, [Move("append", t, count=n, page=1) for n in (1, 2, 4) for t in targets]),
        (6, True, [Move("append_to_the_end", t, count=n) for n in (-1, 0, 1) for t in targets]),
        (8, True, [Move("decode", page=page) for page in (0, 0, 0, 1)]),
        (14, True, [Move("admit", prompt=prompt) for prompt in PROMPTS]),
        (1, True, [Move("admit", prompt=TOO_LONG, count=n) for n in (1, -1, 0, 0)]),
        (10, True, likes),
        (6, True, [Move("replace", t, prompt=prompt) for prompt in some for t in targets]),
        (2, can.salt, [Move("admit", prompt=p, salt=s) for p in PROMPTS[:4] for s in SALTS]),
        (0.8, can.salt, [Move("tenants", prompt=p, count=n) for p in PROMPTS[1:4] for n in (0, 4)]),
        (4, can.salt, [Move("admit_like", t, salt=s) for s in SALTS for t in targets]),
        (5, can.chunked_prefill, [Move("admit", prompt=p, chunk=c) for p in some for c in chunks]),
        (5, can.chunked_prefill, [Move("prefill", t, count=n) for n in (1, 3, 0) for t in targets]),
        (1, can.chunked_prefill, [Move("abort", prompt=p, chunk="half") for p in some]),
        (8, can.fork, [Move("fork", t, count=n) for n in (1, 1, 2, 3) for t in targets]),
        (6, can.fork, [Move("beam", t, count=n) for n in (1, 2) for t in targets]),
        (0.3, can.fork, [Move("crowd", t, count=n) for n in (17, 9) for t in range(2)]),
        (0.3, can.prefix_caching, [Move("crowd_like", t, count=17, page=1) for t in targets]),
        (2, can.prefix_caching, [Move("revisit", count=n) for n in (2, 3, 2, 2)]),
        (3, True, [Move("preempt", t) for t in targets]),
        (3, True, [Move("resume", t) for t in range(2)]),
        (3, can.swap, [Move("swap_out", t) for t in targets]),
        (4, can.swap, [Move("swap_in", t) for t in range(2)]),
        (10, batching, [Move("settle")]),
        (2, can.reset, [Move("reset", page=page, count=n) for n in (0, 1) for page in (0, 1)]),
        (4, True, [Move(c, t) for c in HOSTILE_CALLS if c in can.hostile for t in range(2)]),
    ]
    placed = []
    for share, possible, group in groups:
        if possible and group:
            wanted = max(round(share * _TABLE_SIZE / 100), len(group))
            # Every part of the table holds the same mixture, for Hypothesis draws the beginning of
            # a list more often than the rest; within each group the simplest still come first.
            placed += [
                ((at + 0.5) / wanted, group[at * len(group) // wanted]) for at in range(wanted)
            ]
    placed.sort(key=lambda entry: entry[0])
    return (STOP, *(move for _, move in placed))


def steps_of(
    move: Move,
    machine: AllocatorMachine,
    names: Iterator[str],
    vocabulary: Vocabulary = SMALL,
) -> Iterator[Step]:
    """The steps of a move, one at a time: the second may depend on what the first one did."""
    for step in _steps_of(move, machine, names, vocabulary):
        arrives = step.call in ("admit", "fork", "swap_in") and not move.kind.startswith("crowd")
        if arrives and len(machine.lives) >= FEW:
            continue
        if step.call == "append" and machine.can.single_appends:
            yield from (replace(step, tokens=(token,)) for token in step.tokens)
        else:
            yield step


def _steps_of(
    move: Move, machine: AllocatorMachine, names: Iterator[str], words: Vocabulary
) -> Iterator[Step]:
    size = machine.pool.block_size
    kind = move.kind
    if kind in ("admit", "abort"):
        yield from _admission(move, machine, next(names), words)
        if kind == "abort" and machine.lives:
            yield Step("free", next(reversed(machine.lives)))
    elif kind == "decode":
        for name in list(machine.lives):
            yield _append(name, machine.lives[name], 1, move.page, size, words)
    elif kind == "settle":
        yield Step("settle")
    elif kind == "reset":
        yield Step("reset")
        # What runs on fills blocks that rest on the old weights.
        for name in list(machine.lives) * move.count:
            yield _append(name, machine.lives[name], size, move.page, size, words)
    elif kind == "tenants":
        # One after the other asks the same, and nobody else does in between.
        assert move.prompt is not None
        alike = Step("admit", tokens=tuple(move.prompt.tokens(size, words)))
        for salt in (*SALTS[move.count :], *SALTS[: move.count]):
            name = next(names)
            yield replace(alike, sequence=name, salt=salt)
            yield Step("free", name)
    elif kind == "revisit":
        yield from _revisit(move, machine, names, words)
    elif kind == "resume":
        for name, life in _pick(machine.waiting, move.target):
            yield Step("admit", name, tokens=(*life.tokens, *life.rest), salt=life.salt)
    elif kind == "swap_in":
        for name, _ in _pick(machine.swapped, move.target):
            yield Step("swap_in", name)
    elif kind in HOSTILE_CALLS:
        yield from _hostile(move, machine, words)
    else:
        for name, life in _pick(machine.lives, move.target):
            yield from _on_a_live_one(move, machine, names, name, life, words)


def _on_a_live_one(
    move: Move,
    machine: AllocatorMachine,
    names: Iterator[str],
    name: str,
    life: Life,
    words: Vocabulary,
) -> Iterator[Step]:
    size = machine.pool.block_size
    kind = move.kind
    if kind in ("free", "preempt", "swap_out"):
        yield Step(kind, name)
    elif kind == "append":
        yield _append(name, life, move.count, move.page, size, words)
    elif kind == "append_to_the_end":
        # To the end of the block, one token short of it, or one beyond.
        yield _append(name, life, -len(life.tokens) % size + move.count, move.page, size, words)
    elif kind == "prefill":
        if life.rest:
            count = min(move.count or len(life.rest), len(life.rest))
            yield _append(name, life, count, 0, size, words)
    elif kind == "fork":
        for _ in range(move.count):
            yield Step("fork", next(names), parent=name)
    elif kind == "beam":
        # As beam search goes on: children that each take a token, and the parent is dropped.
        for page in range(move.count):
            child = next(names)
            yield Step("fork", child, parent=name)
            if child in machine.lives:
                yield _append(child, machine.lives[child], 1, page, size, words)
        yield Step("free", name)
    elif kind.startswith("crowd"):
        # Many hold what one held, and all but that one go again.
        crowd = [next(names) for _ in range(move.count)]
        alike = Step("admit", tokens=(*life.tokens, *life.rest), salt=life.salt)
        for child in crowd:
            yield replace(alike, sequence=child) if move.page else Step("fork", child, parent=name)
        yield from (Step("free", child) for child in crowd)
    elif kind == "replace":
        salt = life.salt
        yield Step("free", name)
        assert move.prompt is not None
        yield Step("admit", next(names), tokens=tuple(move.prompt.tokens(size, words)), salt=salt)
    elif kind == "admit_like":
        held = [*life.tokens, *life.rest]
        # Whole, without its last token, or so many whole blocks of it.
        keep = {0: len(held), -1: len(held) - 1}.get(move.count, move.count * size)
        salt = life.salt if move.salt is None else move.salt
        tokens = tuple(changed(held[: max(keep, 0)], move.change, words))
        yield Step("admit", next(names), tokens=tokens, salt=salt)


def _revisit(
    move: Move, machine: AllocatorMachine, names: Iterator[str], words: Vocabulary
) -> Iterator[Step]:
    """Two prompts that nobody had come and go, each of half a pool or less, and come once more."""
    size = machine.pool.block_size
    count = machine.pool.num_blocks // move.count * size
    number = len(machine.steps)
    prompts = [
        (words.fresh(number + which), *words.page_tokens(0, 1, count, size)) for which in (0, 1)
    ]
    for tokens in (*prompts, *prompts):
        name = next(names)
        yield Step("admit", name, tokens=tokens)
        if name in machine.lives:
            yield Step("free", name)


def _admission(
    move: Move, machine: AllocatorMachine, name: str, words: Vocabulary
) -> Iterator[Step]:
    size = machine.pool.block_size
    assert move.prompt is not None
    tokens = move.prompt.tokens(size, words)
    if move.prompt is TOO_LONG:
        tokens = words.page_tokens(2, 0, machine.pool.num_slots + move.count, size)
    num_tokens = None
    if move.chunk and len(tokens) > 1:
        num_tokens = 1 if move.chunk == "one" else len(tokens) // 2
    salt = move.salt or ""
    yield Step("admit", name, tokens=tuple(tokens), num_tokens=num_tokens, salt=salt)


def _append(
    name: str, life: Life, count: int, page: int, block_size: int, words: Vocabulary
) -> Step:
    count = max(count, 0)
    more = life.rest[:count]
    length = len(life.tokens) + len(more)
    more = [*more, *words.page_tokens(page, length, count - len(more), block_size)]
    return Step("append", name, tokens=tuple(more))


def _hostile(move: Move, machine: AllocatorMachine, words: Vocabulary) -> Iterator[Step]:
    live = [name for name, _ in _pick(machine.lives, move.target)]
    tokens = tuple(words.page_tokens(0, 0, machine.pool.block_size, machine.pool.block_size))
    if move.kind == "admit_live":
        yield from (Step(move.kind, name, tokens=tokens) for name in live)
    elif move.kind == "fork_onto_live":
        others = (other for other in machine.lives if other not in live)
        yield from (Step(move.kind, name, parent=next(others, name)) for name in live)
    elif move.kind.startswith("admit"):
        yield Step(move.kind, NOBODY, tokens=tokens)
    else:
        yield Step(move.kind)


def _pick(lives: dict[str, Life], target: int) -> list[tuple[str, Life]]:
    """The one at `target`, modulo how many there are; none if there is none."""
    if not lives:
        return []
    return [next(itertools.islice(lives.items(), target % len(lives), None))]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A pool, moves to be made in it, and the token ids that they are about."""

    pool: Pool
    moves: tuple[Move, ...]
    vocabulary: Vocabulary = SMALL


@st.composite
def drawn_programs(
    draw: st.DrawFn, /, can: AllocatorCapabilities, *, max_moves: int = MAX_MOVES, **fixed: Any
) -> Drawn:
    """Pools and moves for an allocator; `fixed` are fields of the `Pool` that are not drawn."""
    pool = Pool(**({**draw(_pools(can)), **fixed}))
    vocabulary = draw(st.sampled_from(VOCABULARIES))
    choice = _choice(can, batching=pool.batching)
    moves: list[Move] = []
    while len(moves) < max_moves and (move := draw(choice)) is not STOP:
        moves.append(move)
    return Drawn(pool, tuple(moves), vocabulary)


@cache
def _choice(can: AllocatorCapabilities, *, batching: bool) -> st.SearchStrategy[Move]:
    # Made once: Hypothesis hashes all of a table before it draws from it.
    return st.sampled_from(move_table(can, batching=batching))


@cache
def _pools(can: AllocatorCapabilities) -> st.SearchStrategy[dict[str, Any]]:
    sizes = sorted(can.block_sizes) if can.block_sizes else BLOCK_SIZES
    smallest = can.min_blocks
    blocks = [*range(smallest, smallest + MAX_BLOCKS), *(max(b, smallest) for b in AMPLE_BLOCKS)]
    windows: list[int | None] = [None]
    if can.sliding_window:
        windows = [None] * 30 + [*range(1, 10), 16]
    pools = [
        {"prefix_caching": caching, "window": window, "batching": batching}
        for window in windows
        for batching in ([False, True] if can.batching else [False])
        for caching in ([False, True, True] if can.prefix_caching else [False])
        if window is None or not caching or can.window_with_caching
    ]
    return st.builds(
        lambda pool, blocks, size: {**pool, "num_blocks": blocks, "block_size": size},
        st.sampled_from(pools),
        st.sampled_from(blocks),
        st.sampled_from(sizes),
    )


def run_drawn(drawn: Drawn, machine: AllocatorMachine) -> None:
    """Make the moves, and end. Raises CheckFailed: as the machine does."""
    names = (f"s{number}" for number in itertools.count(1))
    for move in drawn.moves:
        for step in steps_of(move, machine, names, drawn.vocabulary):
            machine.run(step)
    machine.finish()
