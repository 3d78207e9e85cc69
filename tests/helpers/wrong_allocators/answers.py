"""Wrong allocators that give one wrong answer each, and the program that asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from helpers.swapping import swapping_allocator
from helpers.wrong_allocators.catalogue import (
    CHAIN_OF_TWO,
    COPY_ON_WRITE,
    NO_CACHE,
    ONE_IDLE,
    SIX_BY_TWO,
    TAKE_FIVE,
    WINDOW_OF_TWO,
    A,
    Change,
    admit,
    append,
    free,
    says,
)
from reference.allocator.contract import AllocatorDied
from reference.allocator.machine import NOBODY
from reference.allocator.programs import Step

# Five blocks of six are in use after this, and `REFUSED` takes two.
FIVE = admit("a", *range(10))
REFUSED = admit("b", 100, 101, 102, 103)
SWAP_OUT = (A, Step("swap_out", "a"))
SWAP_BOTH = (*SWAP_OUT, Step("swap_in", "a"))


def always(*, answer: Any) -> Change:
    """Say this without doing anything."""
    return lambda it, right, *given, **named: answer


def then(change: Any) -> Change:
    """Do what is right, and say what `change` makes of the right answer."""
    return lambda it, right, *given, **named: change(right(*given, **named))


def takes_a_block(it: Any, right: Any, *given: Any, **named: Any) -> Any:
    answer = right(*given, **named)
    it.allocator.pool.allocate(1)
    return answer


# Tables

for name, finding, num_tokens, change in (
    ("one_slot_too_few", "a has 3 tokens and 2 slots", 3, lambda s: s[:-1]),
    ("slots_are_reversed", "a: position 0 is in slot 1; .*offset p % 2", 2, lambda s: s[::-1]),
    ("second_block_is_turned_round", "a: position 2 is in slot 3; ", 4, lambda s: [0, 1, 3, 2]),
    ("block_outside_the_pool", r"a holds blocks \[6\], not all of the pool's", 1, lambda s: [12]),
    ("one_block_twice", r"a holds blocks \[0, 0\]: one of them twice", 4, lambda s: s[:2] * 2),
    ("first_slot_is_missing", "a: no slot for the positions before 1", 2, lambda s: [-1, s[1]]),
):
    says(name, f"table: {finding}", admit("a", *range(num_tokens)), slots=then(change))
says(
    "part_of_a_block_is_gone",
    "table: a: no slot for the positions before 1",
    admit("a", 0, 1),
    pool=replace(SIX_BY_TWO, window=8),
    slots=then(lambda s: [-1, s[1]]),
)

# Copies


def keeps_what_it_writes_to(it: Any, right: Any) -> Any:
    it.idle_blocks = lambda: (0,)
    return right()


says(
    "writes_to_what_is_idle",
    "ownership: a writes to block 0, which is kept as idle",
    admit("a", 0),
    append("a", 1),
    take_copies=keeps_what_it_writes_to,
)
for name, more, message in (
    ("copies_in_a_chain", (1, 2), r"\[\(0, 1\), \(1, 2\)\]: their order would matter"),
    ("two_copies_to_one_place", (2, 1), r"\[\(0, 1\), \(2, 1\)\]: their order would matter"),
):
    says(
        name,
        f"copies: {message}",
        *COPY_ON_WRITE,
        take_copies=then(lambda copies, more=more: copies and [*copies, more]),
    )
for name, block, message in (
    ("copy_to_no_block", 6, r"\[\(0, 6\)\]: there is no block 6"),
    ("copy_to_a_free_block", 5, r"\[\(0, 5\)\]: nobody holds block 5"),
):
    says(
        name,
        f"copies: {message}",
        *COPY_ON_WRITE,
        take_copies=then(lambda copies, block=block: [(source, block) for source, _ in copies]),
    )

# Counts


def idle_without_a_cache(it: Any, right: Any, sequence: str) -> None:
    right(sequence)
    it.counts = lambda: (5, 1, 0)


def names_what_is_in_use(it: Any, right: Any) -> Any:
    references = it.allocator.pool.reference_counts
    used, idle = [b for b, count in enumerate(references) if count], right()
    return used if used and idle else idle


says(
    "block_in_use_from_the_start",
    "conservation: an empty pool shows 5 free, 0 idle and 1 used blocks",
    counts=then(lambda counts: (counts[0] - 1, counts[1], counts[2] + 1)),
)
says(
    "block_is_lost",
    "conservation: 4 free, 0 idle and 1 used blocks: the pool has 6",
    admit("a", 0),
    counts=then(lambda counts: (counts[0] - (counts[2] > 0), *counts[1:])),
)
says(
    "block_is_not_freed",
    "conservation: 4 free, 0 idle and 2 used blocks, and tables hold block 1",
    *(admit("a", 0), admit("b", 100), free("a")),
    free=takes_a_block,
)
says(
    "keeps_what_nobody_asked_for",
    "conservation: 5 free, 1 idle and 0 used blocks without prefix caching",
    *ONE_IDLE,
    pool=NO_CACHE,
    free=idle_without_a_cache,
)
says(
    "idle_blocks_are_not_named",
    "conservation: 5 free, 1 idle and 0 used blocks, and idle are none",
    *ONE_IDLE,
    idle_blocks=always(answer=[]),
)
says(
    "block_in_use_is_named_as_idle",
    "conservation: block 2 idle, and in tables",
    *(A, admit("b", 100), free("a")),
    idle_blocks=names_what_is_in_use,
)

# Room

says(
    "nothing_is_admitted",
    "refusal: 1 tokens refused: they take at most 1 blocks, and there are 6 free, 0 idle",
    admit("a", 0),
    declared={"can_admit": False},
    admit=lambda it, right, sequence, tokens, **_: None if len(tokens) == 1 else 0,
)
says(
    "nothing_is_appended",
    "refusal: 2 more tokens refused: they take at most 1 blocks",
    *(admit("a", 0), append("a", 1, 2)),
    append=always(answer=False),
)
says(
    "nothing_is_forked",
    "refusal: a fork refused: they take at most 1 blocks",
    *COPY_ON_WRITE[:2],
    fork=always(answer=False),
)
says(
    "nothing_comes_back",
    "refusal: 3 swapped tokens refused: they take at most 2 blocks",
    *SWAP_BOTH,
    right=swapping_allocator,
    swap_in=always(answer=None),
)
says(
    "promises_everything",
    "promise: can_admit said True, admit refused",
    *(FIVE, REFUSED),
    can_admit=always(answer=True),
)
says(
    "promises_nothing",
    "promise: can_admit said False, admit admitted",
    admit("a", 0),
    can_admit=always(answer=False),
)


# What was refused or makes no sense, and leaves a trace


def refusal_takes_a_block(it: Any, right: Any, *given: Any, **named: Any) -> Any:
    hit = right(*given, **named)
    if hit is None:
        it.allocator.pool.allocate(1)
    return hit


def moves_what_is_idle(it: Any, right: Any, sequence: str) -> None:
    if sequence == NOBODY:
        idle = it.idle_blocks
        it.idle_blocks = lambda: [block + 1 for block in idle()]
    right(sequence)


def moves_the_tables(it: Any, right: Any, sequence: str, tokens: Sequence[int]) -> Any:
    if sequence == NOBODY:
        slots = it.slots
        it.slots = lambda sequence: [slot + 2 for slot in slots(sequence)]
    return right(sequence, tokens)


def swap_takes_a_block(it: Any, right: Any, sequence: str) -> None:
    it.allocator.pool.allocate(1)


says(
    "refusal_takes_a_block",
    "trace: what was refused: there were 1 free, 0 idle and 5 used blocks, now 0 free",
    *(FIVE, REFUSED),
    admit=refusal_takes_a_block,
)
says(
    "idle_blocks_change",
    "trace: free_unknown: other blocks are idle now",
    *(*ONE_IDLE, Step("free_unknown")),
    free=moves_what_is_idle,
)
says(
    "table_changes",
    r"trace: append_unknown: a held blocks \[0\], now \[1\]",
    *(admit("a", 0), Step("append_unknown")),
    append=moves_the_tables,
)
says(
    "asking_takes_a_block",
    "trace: can_admit: there were 6 free, 0 idle and 0 used blocks, now 5",
    admit("a", 0),
    can_admit=takes_a_block,
)
says(
    "refused_swap_takes_a_block",
    "trace: a swap that was refused: there were 5 free",
    *(admit("a", 0), Step("swap_out", "a")),
    right=swapping_allocator,
    swap_out=swap_takes_a_block,
)

# Hits

says(
    "hits_without_a_cache",
    "hit: 2 tokens found cached without prefix caching",
    A,
    pool=NO_CACHE,
    admit=then(lambda hit: 2),
)
says(
    "half_a_block_is_a_hit",
    "hit: 1 tokens found cached: that is not whole blocks",
    admit("a", 0, 1),
    admit=then(lambda hit: 1),
)
says(
    "nothing_is_found_again",
    "hit: 0 tokens found cached, although 2 are that were not evicted",
    *(*ONE_IDLE, admit("b", 0, 1, 9)),
    admit=then(lambda hit: hit and 0),
)


# The order of eviction


def evicts_the_last(it: Any, right: Any, *given: Any, **named: Any) -> Any:
    order = it.allocator.pool._idle
    order.pop = lambda **_: order._recency.popitem()[0]
    return right(*given, **named)


says(
    "parent_is_evicted_before_its_child",
    "eviction: block 0 evicted, although block 1 goes on from there",
    *(*CHAIN_OF_TWO, TAKE_FIVE),
    declared={"eviction": "leaf"},
    admit=evicts_the_last,
)


# The window


def gives_up_before_it_is_written(it: Any, right: Any, sequence: str, tokens: Any) -> Any:
    granted = right(sequence, tokens)
    it.allocator.release_before(sequence, it.allocator.num_tokens(sequence))
    return granted


def keeps_one_more(it: Any, right: Any, sequence: str) -> None:
    it.allocator.release_before(sequence, max(it.allocator.num_tokens(sequence) - 3, 0))


says(
    "nothing_is_given_up",
    "window: a holds 2 blocks of tokens before 2, which no query sees",
    A,
    pool=WINDOW_OF_TWO,
    commit=always(answer=None),
)
says(
    "more_than_the_slack_is_kept",
    "window: a holds 2 blocks of tokens before 3, which no query sees",
    admit("a", 0, 1, 2, 3),
    pool=WINDOW_OF_TWO,
    declared={"window_slack": 1},
    commit=keeps_one_more,
)
says(
    "given_up_before_it_is_written",
    "window: a: the positions before 3 are to be written, and gone",
    *(admit("a", 0, 1), append("a", 2)),
    pool=WINDOW_OF_TWO,
    append=gives_up_before_it_is_written,
)


# Swapping


def part_of_it_comes_back(it: Any, right: Any, sequence: str) -> Any:
    it.allocator.pool._free.reverse()  # to blocks that hold something else
    return right(sequence)[:1]


says(
    "block_stays_behind",
    r"swap: blocks \[0, 1\] to be swapped out, and it names \[\(1, \d+\)\]",
    *SWAP_OUT,
    right=swapping_allocator,
    swap_out=then(lambda pairs: pairs[1:]),
)
for name, steps, hosts in (
    ("two_blocks_to_one_place", SWAP_OUT, r"\[7, 7\]"),
    (
        "two_sequences_to_one_place",
        (admit("a", 0), admit("b", 100), Step("swap_out", "a"), Step("swap_out", "b")),
        r"\[7\]",
    ),
):
    says(
        name,
        f"swap: host blocks {hosts}: one is taken, or named twice",
        *steps,
        right=swapping_allocator,
        swap_out=then(lambda pairs: [(block, 7) for block, _ in pairs]),
    )
says(
    "comes_from_elsewhere",
    "swap: host block 23 to block .: there is none such",
    *SWAP_BOTH,
    right=swapping_allocator,
    swap_in=then(lambda pairs: [(23, block) for _, block in pairs]),
)
says(
    "goes_nowhere",
    "swap: host block . to block 6: there is none such",
    *SWAP_BOTH,
    right=swapping_allocator,
    swap_in=then(lambda pairs: [(host, 6) for host, _ in pairs]),
)
says(
    "part_of_it_comes_back",
    "content: a, position 2 .*never written",
    *SWAP_BOTH,
    right=swapping_allocator,
    swap_in=part_of_it_comes_back,
)

# Resets and ends

for name, answer, message in (
    ("reset_is_always_refused", False, "refused, although there is no sequence"),
    ("reset_forgets_nothing", True, "after a reset 5 free, 1 idle and 0 used blocks"),
):
    says(name, f"reset: {message}", *ONE_IDLE, Step("reset"), reset=always(answer=answer))


def raises(error: Exception, *, only: str | None = None) -> Change:
    def call(it: Any, right: Any, sequence: str, tokens: Sequence[int]) -> Any:
        if only in (None, sequence):
            raise error
        return right(sequence, tokens)

    return call


for name, message, steps, wrong in (
    (
        "raises_on_a_legal_call",
        "answer: raised KeyError: 'a'",
        (admit("a", 0), append("a", 1)),
        raises(KeyError("a")),
    ),
    (
        "dies_on_a_legal_call",
        "died: killed by SIGSEGV",
        (admit("a", 0), append("a", 1)),
        raises(AllocatorDied("killed by SIGSEGV", timed_out=False)),
    ),
    (
        "dies_on_a_call_that_makes_no_sense",
        "died: gave no answer",
        (admit("a", 0), Step("append_unknown")),
        raises(AllocatorDied("gave no answer", timed_out=True), only=NOBODY),
    ),
):
    says(name, message, *steps, append=wrong)
