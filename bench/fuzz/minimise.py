"""Makes a program smaller that still shows the same thing.

Hypothesis has made it small already, but it cannot leave out a step without shifting whom the later
ones are about. Here steps have names: what is left out is left out, and nothing else changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from reference.allocator.programs import Pool, Program, Step

MAX_PAIRED: Final = 16
"""Steps of a program of which two are tried to be left out at once: all pairs are many."""


def minimise(
    program: Program, still_shows: Callable[[Program], Program | None], *, attempts: int = 1000
) -> Program:
    """The smallest program found; `still_shows` gives what was run of one that shows the same."""
    left = attempts
    improved = True
    while improved:
        improved = False
        for simpler in _simpler(program):
            if left == 0:
                return program
            left -= 1
            shown = still_shows(simpler)
            if shown is not None and size_of(shown) < size_of(program):
                program = shown
                improved = True
                break
    return program


def size_of(program: Program) -> tuple[int, ...]:
    """What is to be small, in this order: steps, what is special about the pool, tokens, names."""
    pool = program.pool
    return (
        len(program.steps),
        pool.batching + (pool.window is not None),
        sum(len(step.tokens) for step in program.steps),
        sum(bool(step.salt) + (step.num_tokens is not None) for step in program.steps),
        pool.num_slots,
        pool.prefix_caching,
        sum(sum(step.tokens) for step in program.steps),
    )


def _simpler(program: Program) -> Iterator[Program]:
    steps = program.steps
    size = max(len(steps) // 2, 1)
    while size:
        for at in range(len(steps) - size, -1, -1):
            yield replace(program, steps=steps[:at] + steps[at + size :])
        size //= 2
    for pool in _simpler_pools(program.pool):
        yield replace(program, pool=pool)
    if len(steps) <= MAX_PAIRED:
        # A smaller pool often takes one step less to fill; what is admitted has to be freed.
        for at in range(len(steps)):
            for pool in _simpler_pools(program.pool):
                yield Program(pool, steps[:at] + steps[at + 1 :])
        for at, beyond in itertools.combinations(range(len(steps)), 2):
            yield replace(program, steps=steps[:at] + steps[at + 1 : beyond] + steps[beyond + 1 :])
    for at, step in enumerate(steps):
        for simpler in _simpler_steps(step):
            yield replace(program, steps=(*steps[:at], simpler, *steps[at + 1 :]))


def _simpler_pools(pool: Pool) -> Iterator[Pool]:
    if pool.batching:
        yield replace(pool, batching=False)
    if pool.window is not None:
        yield replace(pool, window=None)
    if pool.prefix_caching:
        yield replace(pool, prefix_caching=False)
    for fewer in (pool.num_blocks // 2, pool.num_blocks - 1):
        if fewer:
            yield replace(pool, num_blocks=fewer)


def _simpler_steps(step: Step) -> Iterator[Step]:
    count = len(step.tokens)
    for shorter in sorted({count // 2, count - 1}):
        if 0 <= shorter < count:
            yield replace(step, tokens=step.tokens[:shorter])
    if step.num_tokens is not None:
        yield replace(step, num_tokens=None)
    if step.salt:
        yield replace(step, salt="")
    if any(step.tokens):
        yield replace(step, tokens=(0,) * count)
