"""What block events say of reuse: what is stored again, what is stored twice, what is alike."""

from __future__ import annotations

from collections import defaultdict
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.diagnose.observed import CLEARED, REMOVED, STORED, Events

LEAST_BLOCKS: Final = 20
"""Stored blocks below which nothing is said."""

PAUSE_S: Final = 5.0
"""Seconds after which a prompt that goes on where another ended is the next turn, not a chunk."""


class Reuse(NamedTuple):
    """Counts over the blocks that were stored."""

    stored: int
    again: int
    """Stored before, and removed since."""
    blocks_again: int
    """How many distinct blocks those are."""
    roots: int
    """First blocks of a prompt."""
    roots_again: int
    known: int
    """Of prompts, stored for the first time, with a digest of their tokens."""
    elsewhere: int
    """Of those, how many have tokens that an earlier block has behind other tokens."""
    salted: int
    """Of those, how many have tokens that an earlier block at the same place has under another
    salt, LoRA or image."""
    prompts: int
    """Runs of two blocks or more that were stored for the first time, at once."""
    turns: int
    """Of those, how many go on where an earlier request ended, and none or one more goes on."""


def reuse(events: Events) -> Reuse | None:
    """Count. None: too few blocks."""
    present: set[int] = set()
    first_s: dict[int, float] = {}
    """Of every block that was seen."""
    path_of: dict[int, int] = {}
    """What a block and all before it hold, without salts."""
    salt_of: dict[int, int] = {}
    """Engines salt the first block only: what follows hashes differently all the same."""
    salts_at: dict[int, set[int]] = defaultdict(set)
    paths_to: dict[int, set[int]] = defaultdict(set)
    children: dict[int, set[int]] = defaultdict(set)
    alone: dict[int, bool] = {}
    """Whether a block was stored by itself, as decoding fills it."""
    again: list[int] = []
    stored = roots = roots_again = known = elsewhere = salted = prompts = turns = 0
    run, size = _runs(events)
    counted = -1
    columns = (events.time_s, events.kind, events.block, events.parent, events.content)
    rows = zip(*(c.tolist() for c in (*columns, events.extra, run)), strict=True)
    for time_s, kind, block, parent, content, extra, mine in rows:
        if kind == CLEARED:
            present.clear()
        elif kind == REMOVED:
            present.discard(block)
        elif block not in present:
            present.add(block)
            stored += 1
            roots += not parent
            children[parent].add(block)
            if block in first_s:
                again.append(block)
                roots_again += not parent
                continue
            first_s[block] = time_s
            alone[block] = size[mine] == 1
            if size[mine] > 1 and counted != mine:
                counted = mine
                prompts += 1
                waited = time_s - first_s.get(parent, time_s)
                goes_on = parent in alone and len(children[parent]) <= 2
                turns += goes_on and waited > 0 and (alone[parent] or waited > PAUSE_S)
            if content:
                # What is generated is nobody's to share.
                asked = size[mine] > 1 or not parent
                known += asked
                path = path_of[block] = hash((path_of.get(parent, 0), content))
                salt = salt_of[block] = extra or salt_of.get(parent, 0)
                if salts_at[path] - {salt}:
                    salted += asked
                elif paths_to[content] - {path}:
                    elsewhere += asked
                salts_at[path].add(salt)
                paths_to[content].add(path)
    if stored < LEAST_BLOCKS:
        return None
    blocks_again = len(set(again))
    counts = (stored, len(again), blocks_again, roots, roots_again)
    return Reuse(*counts, known, elsewhere, salted, prompts, turns)


def _runs(events: Events) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the runs of blocks that were stored at once, one behind the other; and their sizes."""
    both = (events.kind[1:] == STORED) & (events.kind[:-1] == STORED)
    same = both & (events.time_s[1:] == events.time_s[:-1])
    follows = same & (events.parent[1:] == events.block[:-1])
    run = np.concatenate([[0], np.cumsum(~follows)])[: len(events)]
    return run, np.bincount(run)
