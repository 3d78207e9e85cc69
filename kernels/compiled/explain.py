"""Puts what changed between two compiles of one kernel into words, and says if it is worse.

Figures of one source under one compiler are equal to the last digit, so every difference has a
cause. A difference within the slack is said, and does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict

from kernels.compiled.figures import Counts, LaunchFigures, LoopFigures


class Judgement(StrEnum):
    """What a change means."""

    WORSE = "worse"
    BETTER = "better"
    NOTED = "noted"
    """A cause or a side effect: what it costs is judged elsewhere."""
    WITHIN = "within slack"


class Change(BaseModel):
    """One difference between two compiles, in words."""

    model_config = ConfigDict(frozen=True)

    judgement: Judgement
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack:
    """How far figures may move before it counts.

    The values are chosen, not measured: below them a change of the source that does nothing wrong
    (another order of statements, one address more) moves the figures, too.
    """

    spill_instructions: int = 8
    spill_bytes: int = 32
    """ptxas 13 spills a few bytes at a register count that suits it, far from any limit."""
    registers: int = 8
    """One unit of allocation: 256 registers of a warp, 8 of a thread."""
    shared_bytes: int = 1024
    """Barriers and small reductions."""
    loop: float = 0.05
    """Share by which the main loop, per KV token, may grow."""
    kernel: float = 0.10
    """Share by which a kernel without a main loop may grow."""


SLACK: Final = Slack()

_PLURALS: Final = {
    "load": "loads",
    "async copy": "asynchronous copies",
    "bulk copy": "bulk copies",
    "store": "stores",
}
_ASYNCHRONOUS: Final = ("async copy", "bulk copy")
_ONE_WARP, _WARP_GROUP, _TENSOR_MEMORY = range(3)
_UNITS: Final = {
    _ONE_WARP: "instructions of one warp",
    _WARP_GROUP: "instructions of a warp group",
    _TENSOR_MEMORY: "instructions on tensor memory",
}


def explain(base: LaunchFigures, now: LaunchFigures) -> tuple[Change, ...]:
    """Every difference between two compiles of one kernel, causes first."""
    changes = [
        *_launch(base, now),
        *_specialisation(base, now),
        *_fit(base, now),
        *_matrix_units(base, now),
        *_spills(base, now),
        *_loads(base, now),
        *_stores(base, now),
        *_pipeline(base, now),
        *_residency(base, now),
        *_size(base, now),
        *_resources(base, now),
    ]
    return (*changes, *_rest(base, now, changes))


def is_worse(changes: tuple[Change, ...]) -> bool:
    """Whether one of them is for the worse."""
    return any(change.judgement is Judgement.WORSE for change in changes)


def is_better(changes: tuple[Change, ...]) -> bool:
    """Whether there is one for the better, and none for the worse."""
    return not is_worse(changes) and any(c.judgement is Judgement.BETTER for c in changes)


def worse(words: str) -> Change:
    """A change for the worse."""
    return Change(judgement=Judgement.WORSE, words=words)


def better(words: str) -> Change:
    """A change for the better."""
    return Change(judgement=Judgement.BETTER, words=words)


def _noted(words: str) -> Change:
    return Change(judgement=Judgement.NOTED, words=words)


def _rose_or_fell(what: str, words: str, *, rose: bool) -> Change:
    return better(f"{what} rose {words}") if rose else worse(f"{what} fell {words}")


def _launch(base: LaunchFigures, now: LaunchFigures) -> Iterator[Change]:
    before = base.constexprs | {"num_warps": base.num_warps, "num_stages": base.num_stages}
    after = now.constexprs | {"num_warps": now.num_warps, "num_stages": now.num_stages}
    changed = [
        f"{name} {before.get(name, 'absent')} became {after.get(name, 'absent')}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]
    if base.register_limit != now.register_limit:
        changed.append(f"the register limit {base.register_limit} became {now.register_limit}")
    if changed:
        yield _noted(f"the launch changed: {', '.join(changed)}")
    if base.launches != now.launches:
        yield _noted(f"launched {now.launches} times instead of {base.launches}")


def _specialisation(base: LaunchFigures, now: LaunchFigures) -> Iterator[Change]:
    lost, won = [], []
    for name, before in base.arguments.items():
        after = now.arguments.get(name, before)
        if before.endswith(":16") and after in {before.removesuffix(":16"), "i32:1"}:
            lost.append(f"`{name}`")
        elif after.endswith(":16") and before == after.removesuffix(":16"):
            won.append(f"`{name}`")
        elif before != after:
            yield _noted(f"`{name}` was {before} and is {after}")
    if lost:
        yield _noted(f"no longer known to be divisible by 16: {', '.join(lost)}")
    if won:
        yield _noted(f"now known to be divisible by 16: {', '.join(won)}")


def _fit(base: LaunchFigures, now: LaunchFigures) -> Iterator[Change]:
    if base.fits and not now.fits:
        yield worse(does_not_fit(now))
    elif now.fits and not base.fits:
        yield better(f"fits on a processor, which it did not: {now.shared_bytes:,} bytes")


def does_not_fit(figures: LaunchFigures) -> str:
    """Why not one program fits on a processor."""
    if figures.limited_by == "shared memory":
        have = f"{figures.shared_bytes:,} of {figures.shared_limit:,} bytes"
        return f"does not fit in shared memory: {have}"
    return (
        f"does not fit on a processor, by {figures.limited_by}: {figures.num_warps} warps of "
        f"{figures.registers} registers a thread"
    )


def _matrix_units(base: LaunchFigures, now: LaunchFigures) -> Iterator[Change]:
    before, after = base.loop or base, now.loop or now
    was, is_now = sum(before.matrix.values()), sum(after.matrix.values())
    units = "tensor cores" if _is_nvidia(base) else "matrix cores"
    fma = "FFMA" if _is_nvidia(base) else "multiply-adds"
    there, here = _listed(before.matrix), _listed(after.matrix)
    multiply_adds = after.classes.get("multiply-add", 0)
    if was and not is_now:
        yield worse(f"the product left the {units}: {there} became {multiply_adds:,} {fma}")
    elif is_now and not was:
        gone = before.classes.get("multiply-add", 0)
        yield better(f"the product went to the {units}: {gone:,} {fma} became {here}")
    elif was and is_now:
        rank, new_rank = _rank(before.matrix), _rank(after.matrix)
        if rank != new_rank:
            words = f"{_UNITS[rank]} to {_UNITS[new_rank]}: {there} became {here}"
            yield _rose_or_fell("the product", f"from {words}", rose=new_rank > rank)
        else:
            yield from _matrix_work(base, now, units, fma)


def _matrix_work(base: LaunchFigures, now: LaunchFigures, units: str, fma: str) -> Iterator[Change]:
    """Where both use matrix instructions of one kind: how many, for as many keys."""
    if not (base.loop and now.loop and base.loop.keys and now.loop.keys):
        return
    # Machine code is that of one warp: fewer warps have more to do for as many keys.
    scale = now.loop.keys * base.num_warps / (base.loop.keys * now.num_warps)
    was, is_now = (sum(loop.matrix.values()) for loop in (base.loop, now.loop))
    added = now.loop.classes.get("multiply-add", 0)
    expected = scale * base.loop.classes.get("multiply-add", 0)
    words = f"{_listed(base.loop.matrix)} for {base.loop.keys} keys became "
    words += f"{_listed(now.loop.matrix)} for {now.loop.keys}"
    if is_now < 0.75 * scale * was and added > 4 * expected + now.loop.keys:
        yield worse(f"part of the product left the {units}: {words}, and {added:,} {fma}")
    elif is_now > 1.25 * scale * was:
        yield worse(f"the product takes more matrix instructions: {words}")
    elif is_now < 0.75 * scale * was:
        yield better(f"the product takes fewer matrix instructions: {words}")


def _rank(matrix: Counts) -> int:
    """The most capable unit that is used."""
    names = [name for name in matrix if not name.startswith("v_")]
    if any(name.startswith("UTC") for name in names):
        return _TENSOR_MEMORY
    return _WARP_GROUP if any(name.endswith("GMMA") for name in names) else _ONE_WARP


def _spills(base: LaunchFigures, now: LaunchFigures) -> Iterator[Change]:
    more = now.spill_instructions - base.spill_instructions
    more_bytes = now.spill_bytes - base.spill_bytes
    if more > SLACK.spill_instructions or more_bytes > SLACK.spill_bytes:
        words = f"spills {now.spill_instructions:,} instructions, {now.spill_bytes:,} bytes"
        limit = now.register_limit
        at_limit = f" at the register limit of {limit}" if now.registers >= limit - 8 else ""
        yield worse(f"{words}{at_limit}; it spilled {base.spill_instructions:,}")
    elif more < -SLACK.spill_instructions or more_bytes < -SLACK.spill_bytes:
        now_said = f"{now.spill_instructions:,}" if now.spill_instructions else "nothing"
        yield better(f"spills {now_said}; it spilled {base.spill_instructions:,} instructions")
    before, after = base.scalar_spills or 0, now.scalar_spills or 0
    if after > before + SLACK.registers:
        yield _noted(f"spills {after} SGPRs to lanes of VGPRs; it spilled {before}")


def _loads(base: LaunchFigures, now: LaunchFigures) -> Iterator[Change]:
    in_loops = base.loop is not None and now.loop is not None
    before = base.loop.sources if base.loop and in_loops else base.sources
    after = now.loop.sources if now.loop and in_loops else now.sources
    before, after = _renamed(before, after)
    fell: dict[str, list[str]] = {}
    rose: dict[str, list[str]] = {}
    for name in before:
        if name not in after:
            continue
        was, is_now = typical_access(before[name]), typical_access(after[name])
        if was == is_now:
            yield from _more_loads(name, before[name], after[name], base, now)
            continue
        words = f"from {_accesses(was)} to {_accesses(is_now)}"
        (fell if _value(is_now) < _value(was) else rose).setdefault(words, []).append(f"`{name}`")
    yield from (worse(f"{' and '.join(names)} fell {words}") for words, names in fell.items())
    yield from (better(f"{' and '.join(names)} rose {words}") for words, names in rose.items())
    where = "in the main loop" if in_loops else "at all"
    for name in sorted(set(after) - set(before)):
        yield worse(f"`{name}` is loaded {where}, and was not: {_told(after[name])}")
    for name in sorted(set(before) - set(after)):
        yield better(f"`{name}` is no longer loaded {where}: {_told(before[name])} less")


def _more_loads(
    name: str, before: Counts, after: Counts, base: LaunchFigures, now: LaunchFigures
) -> Iterator[Change]:
    """Loads of one width: a larger tile has more of them, and needs more."""
    scale = 1.0
    if base.loop and now.loop and base.loop.keys and now.loop.keys:
        scale = now.loop.keys * base.num_warps / (base.loop.keys * now.num_warps)
    was, is_now = sum(before.values()), sum(after.values())
    words = f"`{name}` takes {is_now} loads an iteration where it took {was}"
    if is_now > max(1.25 * scale * was, was + 1):
        yield worse(words)
    elif was > max(1.25 * is_now / scale, is_now + 1):
        yield better(words)


def _renamed(
    before: Mapping[str, Counts], after: Mapping[str, Counts]
) -> tuple[dict[str, Counts], dict[str, Counts]]:
    """Without the pairs of which one has gone, the other has come, and the loads are equal."""
    gone = {name: before[name] for name in before if name not in after}
    come = {name: after[name] for name in after if name not in before}
    for name, counts in gone.items():
        same = next((other for other in come if come[other] == counts), None)
        if same is not None:
            del come[same]
            before = {key: value for key, value in before.items() if key != name}
            after = {key: value for key, value in after.items() if key != same}
    return dict(before), dict(after)


def _stores(base: LaunchFigures, now: LaunchFigures) -> Iterator[Change]:
    stored = [
        {access: count for access, count in each.memory.items() if access.startswith("store")}
        for each in (base, now)
    ]
    if not all(stored):
        return
    was, is_now = typical_access(stored[0]), typical_access(stored[1])
    words = f"from {_accesses(was)} to {_accesses(is_now)}"
    if is_now[1] != was[1]:
        yield _rose_or_fell("results", words, rose=is_now[1] > was[1])


def _pipeline(base: LaunchFigures, now: LaunchFigures) -> Iterator[Change]:
    was, is_now = (_asynchronous(each.loop) for each in (base, now))
    if was and not is_now:
        yield worse("the pipeline is gone: no asynchronous copies")
    elif is_now and not was:
        yield better(f"there is a pipeline: {is_now} asynchronous copies an iteration")


def _asynchronous(loop: LoopFigures | None) -> int:
    if loop is None:
        return 0
    return sum(n for access, n in loop.memory.items() if access.startswith(_ASYNCHRONOUS))


def _residency(base: LaunchFigures, now: LaunchFigures) -> Iterator[Change]:
    if base.warps == now.warps or not (base.fits and now.fits):
        return
    programs = f"{base.blocks} program{'s' if base.blocks != 1 else ''}"
    words = (
        f"from {programs} on a processor ({base.occupancy:.0%} of its warps) to "
        f"{now.blocks} ({now.occupancy:.0%}), limited by {now.limited_by}"
    )
    yield _rose_or_fell("occupancy", words, rose=now.warps > base.warps)


def _size(base: LaunchFigures, now: LaunchFigures) -> Iterator[Change]:
    if base.loop is None and now.loop is None:
        words = f"from {base.instructions:,} to {now.instructions:,} instructions"
        yield from _grew("kernel", base.instructions, now.instructions, words, SLACK.kernel)
    elif base.loop is None or now.loop is None:
        yield _noted(f"there is {'no' if now.loop is None else 'a'} loop that multiplies")
    else:
        was, is_now = base.loop.instructions_per_key, now.loop.instructions_per_key
        if was is None or is_now is None:
            was, is_now = float(base.loop.instructions), float(now.loop.instructions)
            words = f"from {was:,.0f} to {is_now:,.0f} instructions"
        else:
            was, is_now = was * base.num_warps, is_now * now.num_warps
            words = f"from {was:.1f} to {is_now:.1f} instructions per key, all warps together"
            if base.num_warps == now.num_warps:
                was, is_now = was / base.num_warps, is_now / now.num_warps
                words = f"from {was:.1f} to {is_now:.1f} instructions per key"
        words += _most_by(base, now)
        yield from _grew("main loop", was, is_now, words, SLACK.loop)


def _grew(what: str, was: float, is_now: float, words: str, share: float) -> Iterator[Change]:
    if is_now > was * (1 + share):
        yield worse(f"the {what} grew {words}")
    elif is_now < was * (1 - share):
        yield better(f"the {what} shrank {words}")


def _most_by(base: LaunchFigures, now: LaunchFigures) -> str:
    """The class that changed most, for as many keys and by as many warps as now."""
    if base.loop is None or now.loop is None:
        return ""
    scale = base.num_warps / now.num_warps
    if base.loop.keys and now.loop.keys:
        scale *= now.loop.keys / base.loop.keys
    differences = {
        kind: now.loop.classes.get(kind, 0) - scale * base.loop.classes.get(kind, 0)
        for kind in {*base.loop.classes, *now.loop.classes}
    }
    grew = sum(differences.values()) > 0
    choose: Callable[..., str] = max if grew else min
    kind = choose(sorted(differences), key=lambda each: differences[each])
    return f", most by {kind} ({differences[kind]:+,.0f} an iteration)"


def _resources(base: LaunchFigures, now: LaunchFigures) -> Iterator[Change]:
    if abs(now.registers - base.registers) > SLACK.registers:
        yield _noted(f"registers: {base.registers} became {now.registers}")
    if abs(now.shared_bytes - base.shared_bytes) > SLACK.shared_bytes and now.fits:
        yield _noted(f"shared memory: {base.shared_bytes:,} bytes became {now.shared_bytes:,}")


def _rest(base: LaunchFigures, now: LaunchFigures, said: list[Change]) -> Iterator[Change]:
    """What differs and was not said: nothing that is compared is passed over."""
    if said or base == now:
        return
    names = (
        "registers", "accumulation_registers", "scalar_registers", "spill_instructions",
        "spill_bytes", "scalar_spills", "stack_bytes", "shared_bytes", "instructions",
    )  # fmt: skip
    parts = [
        f"{name.replace('_', ' ')} {getattr(base, name)} became {getattr(now, name)}"
        for name in names
        if getattr(base, name) != getattr(now, name)
    ]
    yield Change(
        judgement=Judgement.WITHIN,
        words=f"within the slack: {', '.join(parts) or 'other instructions, as many'}",
    )


def _is_nvidia(figures: LaunchFigures) -> bool:
    return figures.scalar_registers is None


def _listed(matrix: Counts) -> str:
    return " and ".join(f"{count:,} {name}" for name, count in matrix.items())


def typical_access(counts: Counts) -> tuple[str, int]:
    """The kind and bytes of the access that moves the most, among some that are counted."""
    split = {access: _parse(access) for access in counts}
    return split[max(counts, key=lambda access: counts[access] * (split[access][1] or 256))]


def _parse(access: str) -> tuple[str, int]:
    words = access.split()
    return (" ".join(words[:-2]), int(words[-2])) if words[-1] == "B" else (access, 0)


def _value(access: tuple[str, int]) -> tuple[int, bool]:
    """What orders accesses from bad to good: wide before narrow, then past the registers."""
    kind, size = access
    return (size or 256, kind in _ASYNCHRONOUS)


def _accesses(access: tuple[str, int]) -> str:
    kind, size = access
    return f"{size}-byte {_PLURALS[kind]}" if size else _PLURALS[kind]


def _told(counts: Counts) -> str:
    total: Counter[tuple[str, int]] = Counter()
    for access, count in counts.items():
        total[_parse(access)] += count
    return ", ".join(f"{count} {_accesses(access)}" for access, count in total.items())
