"""All steps of all releases: what was kept is not done again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.command.exit_codes import HARNESS_FAILED, INTERRUPTED, RIGHT, WRONG
from bench.command.progress import Progress
from bench.fuzz.campaign import Tally
from bench.fuzz.record import Trace
from bench.fuzz.saving import saved
from bench.gate.engines.assigned import Assigned, assigned
from bench.gate.engines.history import became_wrong, known_traces, locate
from bench.gate.engines.keeping import keep
from bench.gate.engines.measure import count, fuzz, introduce, passes, race, shown
from bench.gate.engines.record import (
    Counts,
    EnginesRecord,
    Fuzzed,
    Introduced,
    Located,
    Races,
    Release,
    Settings,
    Shows,
)
from bench.gate.engines.work import Compared, Work
from bench.machine.facts import cpu_name
from reference.allocator.contract import AllocatorDied, AllocatorRaised
from reference.errors import BadInput
from subjects.allocators.resolve import BUILT_IN


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginesPlan(Compared):
    """What to compare."""

    anchor: str
    settings: Settings


def plan_engines(
    allocators: Sequence[str],
    environments: Sequence[str],
    *,
    anchor: str | None,
    settings: Settings,
    **where: Any,
) -> EnginesPlan:
    """Which allocator runs in which environment.

    Raises BadInput: an environment is for no allocator, or nothing has the anchor's name.
    """
    entries = assigned(allocators, environments, BUILT_IN)
    first = anchor or entries[0].name
    if first not in {entry.name for entry in entries}:
        raise BadInput(
            f"--anchor {first}: it is none of {', '.join(entry.name for entry in entries)}"
        )
    return EnginesPlan(entries=tuple(entries), anchor=first, settings=settings, **where)


def compare_engines(
    plan: EnginesPlan, *, progress: Progress, stop: threading.Event
) -> EnginesRecord:
    """Take every step that has not been taken; KeyboardInterrupt ends it, and what is done counts.

    Raises BadInput: an environment cannot be built, or an allocator is none, or refuses a release.
    """
    work = _Work(plan, progress, stop)
    complete = False
    with suppress(KeyboardInterrupt):
        work.all()
        complete = True
    return work.record(complete=complete)


class _Work(Work[EnginesPlan, Release]):
    """A comparison under way."""

    made, kind, built_in = Release, "allocator", BUILT_IN

    def __init__(self, plan: EnginesPlan, progress: Progress, stop: threading.Event) -> None:
        super().__init__(plan, progress, stop)
        self.cans: dict[str, Introduced] = {}

    def alone(self) -> None:
        """Introduce, count and fuzz every release."""
        entries = self.entries
        self.build()
        self.progress.begin("starting", len(entries))
        for entry in entries:
            self._introduce(entry)
            self.progress.advance(1)
        parts = {
            each.name: len(passes(self.plan.settings, self.cans[each.name])) for each in entries
        }
        self.progress.begin("counting", sum(parts.values()))
        for entry in entries:
            self._count(entry, parts[entry.name])
        for entry in entries:
            self._fuzz(entry)

    def all(self) -> None:
        """Every step, of every release."""
        self.ahead(self.plan)
        self.alone()
        entries = self.entries
        self.progress.begin("running each other's findings", len(entries))
        traces = known_traces(self.releases.values())
        for entry in entries:
            mine = traces.get(entry.subject, {})
            self._replay(entry, [trace for pairs in mine.values() for _, trace in pairs])
            self.progress.advance(1)
        self.progress.begin("racing", self.plan.settings.rounds * (len(entries) - 1))
        for entry in entries:
            self._race(entry)

    def record(self, *, complete: bool) -> EnginesRecord:
        """What is known now."""
        releases = list(self.releases.values())
        located = [self._with_replay(each) for each in locate(releases)]
        code = RIGHT
        if not complete:
            code = INTERRUPTED
        elif any(each.trouble for each in releases):
            code = HARNESS_FAILED
        elif became_wrong(releases):
            code = WRONG
        return EnginesRecord(
            settings=self.plan.settings,
            anchor=self.plan.anchor,
            located=located,
            complete=complete,
            cpu=cpu_name(),
            cores=len(os.sched_getaffinity(0)),
            exit_code=code,
            **self.conditions(),
        )

    def _introduce(self, entry: Assigned) -> None:
        can = self.store.once(
            "introduced",
            entry.name,
            self.key(entry),
            Introduced,
            lambda: introduce(entry),
        )
        self.cans[entry.name] = can
        self.update(entry, version=can.version, batched=can.append_each)

    def _count(self, entry: Assigned, parts: int) -> None:
        settings = self.plan.settings
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self.progress.advance(more)

        asked = settings.model_dump(exclude={"examples", "fuzz_seed", "rounds"})
        with self._troubles(entry, "counting"):
            counts = self.store.once(
                "counted",
                entry.name,
                self.key(entry, settings=asked),
                Counts,
                lambda: count(entry, settings, self.cans[entry.name], advance=advance),
            )
            self.update(entry, counted=counts.counted, bytecodes=counts.bytecodes)
        self.progress.advance(parts - done)

    def _fuzz(self, entry: Assigned) -> None:
        settings = self.plan.settings
        what = f"fuzzing {entry.name}"

        def tell(tally: Tally) -> None:
            found = f", {len(tally.found)} found" if tally.found else ""
            self.progress.tell(f"{what}: {tally.examples:,} of {settings.examples:,}{found}")

        self.progress.begin(what)
        fuzzed = self.store.once(
            "fuzzed",
            entry.name,
            self.key(entry, examples=settings.examples, seed=settings.fuzz_seed),
            Fuzzed,
            lambda: fuzz(entry, settings, tell=tell, stop=self.stop),
        )
        shows = {trace.check: True for trace in fuzzed.traces}
        self.update(entry, fuzzed=fuzzed, shows=shows)

    def _replay(self, entry: Assigned, traces: list[Trace]) -> None:
        own = self.releases[entry.name].shows
        others = [trace for trace in traces if trace.check not in own]
        if not others:
            return
        programs = sorted({f"{trace.check} {trace.program}" for trace in others})
        shows = self.store.once(
            "replayed",
            entry.name,
            self.key(entry, programs=programs),
            Shows,
            lambda: Shows(shows=shown(entry, others)),
        )
        self.update(entry, shows={**shows.shows, **own})

    def _race(self, entry: Assigned) -> None:
        plan, settings = self.plan, self.plan.settings
        if entry.name == plan.anchor:
            return
        anchor = next(each for each in plan.entries if each.name == plan.anchor)
        asked = settings.model_dump(exclude={"examples", "fuzz_seed", "rounds", "short_blocks"})
        key = self.key(entry, anchor=self.key(anchor), settings=asked, cpu=cpu_name())
        file, so_far = self.store.find("raced", entry.name, key, Races)
        so_far = so_far or Races(raced=[])
        self.update(entry, raced=so_far.raced)
        done = min((len(each.rates) for each in so_far.raced), default=0)
        self.progress.advance(min(done, settings.rounds))
        with self._troubles(entry, "racing"):
            races = race(
                entry,
                anchor,
                settings,
                (self.cans[entry.name], self.cans[anchor.name]),
                so_far=so_far,
                keep=lambda races: self._keep_races(entry, file, races),
                advance=self.progress.advance,
            )
            self.update(entry, raced=races.raced)

    def _keep_races(self, entry: Assigned, file: Path, races: Races) -> None:
        keep(file, races)
        self.update(entry, raced=races.raced)

    @contextmanager
    def _troubles(self, entry: Assigned, step: str) -> Iterator[None]:
        """Put down why a step of a release did not come to its end."""
        try:
            yield
        except (AllocatorDied, AllocatorRaised) as error:
            self.trouble(entry, step, error)

    def _with_replay(self, located: Located) -> Located:
        """Save the smallest program of the last release whose campaign found it."""
        found = known_traces(self.releases.values())[located.allocator][located.check]
        last, _ = found[-1]
        traces = [trace for release, trace in found if release is last]
        kept = saved(
            min(traces, key=lambda trace: len(trace.program.steps)), self.plan.store / "findings"
        )
        return located.model_copy(update={"trace": kept.saved_to, "replay": kept.replay})
