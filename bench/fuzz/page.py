"""`pagedbench fuzz` on a page: each shrunk program as a film of its pool."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Set
from itertools import pairwise
from typing import Final

from bench.command.page.parts import (
    Block,
    Command,
    Film,
    Frame,
    Lines,
    Part,
    Piece,
    Sheet,
    Strip,
    Table,
    Tone,
    flat,
    terminal,
)
from bench.command.words import plural, some_of
from bench.fuzz.film import Reel, Seen
from bench.fuzz.record import FindingRecord, FuzzRecord, Trace
from bench.fuzz.report import show
from reference.allocator.machine import CHECKS
from reference.system import contract as system

LEGEND: Final = (
    ("owned", "in one table, with its sequence"),
    ("shared", "in several tables"),
    ("idle", "in none, kept as cached"),
    ("free", "in none"),
)

SHADES: Final = 6
"""Colours of owners."""

_HELD: Final = re.compile(r"(.+) writes to slot \d+ of block (\d+), which (.+) holds too")

MAX_BLOCKS: Final = 400
"""Blocks of a pool up to which a film shows all of them."""


def sheet(record: FuzzRecord) -> Sheet:
    """A record on a page."""
    tones: dict[str, Tone] = {"no finding": "good", "wrong": "bad"}
    seeds = ["--seed", str(record.seed)]
    if record.last_seed is not None:
        seeds = ["--seeds", f"{record.seed}..{record.last_seed}"]
    budget = [] if record.asked_examples is None else ["--examples", str(record.asked_examples)]
    words = ["pagedbench", "fuzz", "--allocator", record.allocator.name, *seeds, *budget]
    passed = [
        [check, status, {**system.CHECKS, **CHECKS}.get(check, "")]
        for check, status in record.checks.items()
    ]
    return Sheet(
        kind="fuzz",
        name=record.allocator.name,
        verdict=_verdict(record),
        tone=tones.get(record.verdict, "unsure"),
        parts=[
            *(_finding(found) for found in record.findings),
            Part(
                title="Checks",
                pieces=[Table.of("", ["check", "status", "what must hold"], passed)],
                folded=bool(record.findings),
            ),
            terminal(lambda console: show(record, console)),
        ],
        facts={
            "version of the allocator": record.allocator.version or "it says none",
            "programs": f"{record.examples:,}",
            "steps": f"{record.steps:,} in {record.seconds:.1f} s",
            "states": f"{record.states:,}",
            **flat("", record.environment.model_dump()),
        },
        commands=[Command(shlex.join(words), "The same search:")],
    )


def trace_sheet(trace: Trace, reel: Reel | None, replay: str) -> Sheet:
    """A saved finding on a page."""
    found = FindingRecord(trace=trace, saved_to=None, pytest_file=None, replay=replay, film=reel)
    return Sheet(
        kind="fuzz",
        name=trace.allocator.name,
        verdict=f"{trace.allocator.name} is wrong: {trace.finding}",
        tone="bad",
        parts=[_finding(found)],
        facts=flat("", trace.environment.model_dump()),
    )


def _verdict(record: FuzzRecord) -> str:
    programs = plural(record.examples, "program")
    if not record.findings:
        return f"{record.allocator.name}: {record.verdict} in {programs}."
    checks = some_of(list(dict.fromkeys(found.trace.check for found in record.findings)))
    count = plural(len(record.findings), "finding")
    films = ((found.trace, found.film) for found in record.findings if found.film is not None)
    early = max((_too_early(*each) for each in films), key=_sure, default="")
    said = f"{record.allocator.name} is wrong: {checks}; {count} in {programs}."
    return f"{said} {early}".rstrip()


def _sure(words: str) -> int:
    return words.startswith("Freed") + bool(words)


def _finding(found: FindingRecord) -> Part:
    trace = found.trace
    law = {**system.CHECKS, **CHECKS}.get(trace.check, "")
    early = "" if found.film is None else _too_early(trace, found.film)
    said = [early, str(trace.finding)] if early else [str(trace.finding)]
    pieces: list[Piece] = [Lines(said, "bad"), Lines([f"{trace.check}: {law}"])]
    if not trace.repeats:
        pieces.append(Lines(["The same steps did not show it again: it depends on chance."], "dim"))
    if found.film is not None and found.film.frames:
        pieces.append(_film(trace, found.film))
    else:
        steps = [[str(at), str(step)] for at, step in enumerate(trace.program.steps, 1)]
        pieces.append(Table.of(f"The program, on a {trace.program.pool}", ["", "step"], steps))
        why = "The record holds no film of it: pagedbench report FILE --allocator NAME makes one."
        pieces.append(Lines([why], "dim"))
    if found.replay:
        pieces.append(Command(found.replay, "To run it again:"))
    return Part(title=f"{trace.check}: {plural(len(trace.program.steps), 'step')}", pieces=pieces)


def _given_back(blocks: int, before: Seen, seen: Seen) -> set[int]:
    """Blocks that a sequence has no more, that the pool counts as free, and that another has."""
    owners = _owners(seen)
    if seen.free + len(set(seen.idle) - owners.keys()) + len(owners) <= blocks:
        return set()
    return {
        block
        for block, names in _owners(before).items()
        if block in owners and set(names) - set(owners[block])
    }


def _too_early(trace: Trace, reel: Reel) -> str:
    """Which block was given back while a table still has it, and by whom."""
    blocks = trace.program.pool.num_blocks
    for number, (before, seen) in enumerate(pairwise(reel.frames), reel.left_out + 1):
        owners = _owners(seen)
        if gone := _given_back(blocks, before, seen):
            block = min(gone)
            others = f", and {plural(len(gone) - 1, 'block')} more" if len(gone) > 1 else ""
            giver = some_of([name for name in _owners(before)[block] if name not in owners[block]])
            return (
                f"Freed too early: {giver} gives back block {block}{others} in step {number} "
                f"({seen.step}), while the table of {some_of(owners[block])} still has it."
            )
        if owners and blocks >= seen.free > blocks - len(owners.keys() | set(seen.idle)):
            some = some_of(sorted(map(str, owners)))
            return (
                f"After step {number} ({seen.step}) {seen.free} of {plural(blocks, 'block')} count "
                f"as free, while tables still have {len(owners)} ({some}): "
                "one of them was freed too early, or a free one is counted twice."
            )
    return _handed_out(trace, reel)


def _handed_out(trace: Trace, reel: Reel) -> str:
    """Which block the last step hands out while a table still has it, and who gave it back."""
    said = _HELD.fullmatch(trace.message)
    if said is None or len(reel.frames) < 2 or trace.program.pool.prefix_caching:
        return ""  # what is found cached is shared, and nobody freed it
    taker, block, holder = said[1], int(said[2]), said[3]
    if taker in _owners(reel.frames[-2]).get(block, []):
        return ""  # and so is what was forked
    last = reel.left_out + len(reel.frames) - 1
    for number, (before, seen) in reversed(
        list(enumerate(pairwise(reel.frames), last - len(reel.frames) + 2))
    ):
        had, has = (_owners(each).get(block, []) for each in (before, seen))
        if holder in has and (gone := [name for name in had if name not in has]):
            return (
                f"Freed too early: {some_of(gone)} gives back block {block} in step {number} "
                f"({seen.step}), while the table of {holder} still has it; step {last} hands it "
                f"to {taker}."
            )
    return (
        f"Freed too early: step {last} hands block {block} to {taker}, while the table of "
        f"{holder} still has it."
    )


def _owners(seen: Seen) -> dict[int, list[str]]:
    owners: dict[int, list[str]] = {}
    for name, table in seen.tables.items():
        for block in table:
            if block >= 0:
                owners.setdefault(block, []).append(name)
    return owners


def _film(trace: Trace, reel: Reel) -> Film:
    names = list(dict.fromkeys(name for seen in reel.frames for name in seen.tables))
    shades = {name: at % SHADES for at, name in enumerate(names)}
    frames: list[Frame] = []
    before: dict[int, tuple[str, str]] = {}
    early: set[int] = set()
    for number, seen in enumerate(reel.frames):
        last = number == len(reel.frames) - 1
        if number:
            early |= _given_back(trace.program.pool.num_blocks, reel.frames[number - 1], seen)
        pool, before = _pool(trace.program.pool.num_blocks, seen, shades, before, early)
        frames.append(
            Frame(
                title=f"{number + reel.left_out}. {seen.step}",
                strips=[pool, *_tables(seen, shades, trace.program.pool.block_size)],
                lines=[f"{trace.check}: {trace.message}"] if last else [],
                wrong=last,
            )
        )
    return Film(
        caption=f"The shrunk program, step by step, on a {trace.program.pool}. Arrow keys step; "
        "framed blocks have changed. The last step is the one that is wrong: below it stands what "
        "was found against what the shadow cache expects.",
        frames=frames,
        legend=[*LEGEND, *([("lost", "given back, and still in a table")] if early else [])],
        left_out=reel.left_out,
    )


def _pool(
    blocks: int,
    seen: Seen,
    shades: dict[str, int],
    before: dict[int, tuple[str, str]],
    early: Set[int],
) -> tuple[Strip, dict[int, tuple[str, str]]]:
    owners = _owners(seen)
    made, now = [], {}
    for block in range(min(blocks, MAX_BLOCKS)):
        who = owners.get(block, [])
        state = "shared" if len(set(who)) > 1 else "owned" if who else "free"
        state = "idle" if not who and block in seen.idle else state
        state = "lost" if who and block in early else state
        now[block] = state, ", ".join(who)
        held = seen.written.get(block)
        made.append(
            Block(
                label=str(block),
                state=state,
                owner=", ".join(who),
                shade=shades[who[0]] if who else 0,
                hint=f"block {block}: {state}" + (f"; holds tokens of {held}" if held else ""),
                changed=bool(before) and before.get(block) != now[block],
            )
        )
    note = "" if blocks <= MAX_BLOCKS else f"and {blocks - MAX_BLOCKS:,} blocks more"
    words = [f"block {block} holds tokens of {who}" for block, who in seen.written.items()]
    note = "; ".join([*([note] if note else []), *words[:8]])
    return Strip(name=f"pool, {seen.free:,} free", blocks=made, note=note), now


def _tables(seen: Seen, shades: dict[str, int], size: int) -> Iterator[Strip]:
    for name, table in seen.tables.items():
        yield Strip(
            name=f"{name}: {plural(seen.tokens.get(name, 0), 'token')}",
            blocks=[
                Block(
                    label="-" if block < 0 else str(block),
                    state="free" if block < 0 else "owned",
                    shade=shades[name],
                    hint=f"positions {at * size} to {(at + 1) * size - 1}",
                )
                for at, block in enumerate(table[:MAX_BLOCKS])
            ],
        )
