"""A program as a film: what was seen of the pool after each of its steps."""

from __future__ import annotations

from typing import Final

from bench.machine.record import StrictRecord
from reference.allocator.contract import AllocatorCapabilities, AllocatorFactory
from reference.allocator.machine import AllocatorMachine, find_fault
from reference.allocator.programs import Program, Step
from reference.system.driving import machine_of

MAX_FRAMES: Final = 60
"""Steps of a film, the last ones."""


class Seen(StrictRecord):
    """The pool after a step."""

    step: str
    """What was called."""
    tables: dict[str, list[int]]
    """Blocks of each live sequence, -1 where one was given up."""
    tokens: dict[str, int]
    """Tokens of each live sequence."""
    idle: list[int]
    """Blocks that are kept as cached; empty too where the allocator does not name them."""
    free: int
    """Blocks that it counts as free."""
    written: dict[int, str] = {}
    """By block: whose tokens were last written there, by what the shadow holds."""


class Reel(StrictRecord):
    """A film, and how many steps came before it."""

    frames: list[Seen]
    left_out: int = 0


def film(factory: AllocatorFactory, program: Program, capabilities: AllocatorCapabilities) -> Reel:
    """Run a program again and watch it: the last frame is where it goes wrong, if it does."""
    if machine_of(capabilities) is not AllocatorMachine:
        return Reel(frames=[])  # of a system there are no blocks to see
    frames: list[Seen] = []
    seen_last: list[AllocatorMachine] = []

    def watch(machine: AllocatorMachine) -> None:
        frames.append(_seen(machine, str(machine.steps[-1]) if machine.steps else "the empty pool"))

    def run(machine: AllocatorMachine) -> None:
        seen_last.append(machine)
        frames.append(_seen(machine, "the empty pool"))
        machine.on_step = watch
        for step in program.steps:
            machine.run(step)
        machine.finish()

    made = find_fault(factory, program.pool, run, capabilities=capabilities)
    if made is not None and seen_last:
        machine = seen_last[-1]
        step = machine.steps[-1] if machine.steps else Step("settle")
        words = "everything is freed" if made.at_the_end else str(step)
        frames.append(_seen(machine, words))
    kept = frames[-MAX_FRAMES:]
    return Reel(frames=kept, left_out=len(frames) - len(kept))


def _seen(machine: AllocatorMachine, step: str) -> Seen:
    sight = machine.sight
    # What it sees may be of before a call that went wrong: of sequences that are gone already.
    return Seen(
        step=step,
        tables={name: list(view.blocks) for name, view in sight.views.items()},
        tokens={
            name: len(machine.lives[name].tokens) for name in sight.views if name in machine.lives
        },
        idle=sorted(sight.idle or ()),
        free=sight.counts.free,
        written=_written(machine),
    )


def _written(machine: AllocatorMachine) -> dict[int, str]:
    """Sequences whose prefixes the shadow holds, by block."""
    owners = {
        int(value): name
        for name, life in machine.lives.items()
        for value in life.hashes[: life.written]
    }
    blocks = machine.shadow.prefixes.reshape(machine.pool.num_blocks, machine.pool.block_size)
    found = {}
    for number, slots in enumerate(blocks):
        names = [owners[int(value)] for value in slots if int(value) in owners]
        if names:
            found[number] = ", ".join(dict.fromkeys(names))
        elif slots.any():
            found[number] = "what nobody reads any more"
    return found
