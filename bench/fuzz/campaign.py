"""A search for programs that an allocator gets wrong, within a budget of examples or of time.

Hypothesis draws and shrinks; each program is run from an empty pool. What is found is made smaller,
and the search goes on for other things until the budget is spent. Two findings are the same if the
same check fails in the same kind of call, or the same was raised. A call that makes no sense and
does damage is not made again: what comes of the damage would be found over and over.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hypothesis import Phase
from hypothesis.database import ExampleDatabase

from bench.command.exit_codes import INTERRUPTED, RIGHT, WRONG
from bench.fuzz.databases import Drawer
from bench.fuzz.minimise import minimise, size_of
from bench.fuzz.record import FindingRecord, FuzzRecord, KnownRecord, Subject, Trace, Verdict
from bench.machine.environment import FuzzEnvironment
from bench.search.drawing import draw_each, only_our_constants, still_wrong
from bench.search.lanes import Enough, abandoning
from bench.search.shrink import SHRINK_LIMIT_S, Shrinking
from reference.allocator.contract import HOSTILE_CALLS, AllocatorCapabilities, AllocatorFactory
from reference.allocator.machine import NEEDS, AllocatorMachine, Finding, find_fault
from reference.allocator.moves import MAX_MOVES, Drawn, drawn_programs, run_drawn
from reference.allocator.programs import Program
from reference.system.driving import checks_of, machine_of, run_program

ROUND: Final = 2000
"""Examples that Hypothesis draws at a time: it remembers all of them, and that takes memory."""

MAX_FINDINGS: Final = 10
"""After so many different ones the search ends: the allocator is in no state to be tested."""

EXIT_CODES: Final[Mapping[Verdict, int]] = {
    "no finding": RIGHT,
    "wrong": WRONG,
    "incomplete": INTERRUPTED,
}

SHOWN_BY: Final[Mapping[str, frozenset[str]]] = {
    "attention": frozenset({"a written sequence"}),
    "content": frozenset({"a written sequence"}),
    "table": frozenset({"a sequence"}),
    "ownership": frozenset({"a written sequence"}),
    "copies": frozenset({"a copy"}),
    "refusal": frozenset({"admit"}),
    "promise": frozenset({"admit"}),
    "trace": frozenset({"a refusal", *HOSTILE_CALLS}),
    "hit": frozenset({"a cached admission"}),
    "eviction": frozenset({"an eviction"}),
    "window": frozenset({"a sequence with a window"}),
    "swap": frozenset({"swap_out"}),
    "reset": frozenset({"reset"}),
    "drain": frozenset({"the end"}),
    "capacity": frozenset({"the end"}),
}
"""What a program has to have come to, unharmed, to have shown a check; any step for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """What to do."""

    allocator: Subject
    """Who it is."""
    factory: AllocatorFactory
    """Makes the allocators, here or in a process of their own."""
    capabilities: AllocatorCapabilities
    """What they declare."""
    examples: int | None
    """Programs to run; None for as many as the time allows."""
    seconds: float | None = None
    """Time to spend; None for no limit."""
    seed: int = 0
    """The same seed draws the same programs."""
    database: ExampleDatabase | None = None
    """Where programs that failed are kept; None to keep none."""
    max_findings: int = MAX_FINDINGS
    """Different findings after which to end."""
    shrink_limit_s: float = SHRINK_LIMIT_S
    """Seconds for making one finding smaller."""
    max_moves: int = MAX_MOVES
    """Moves of a program."""
    pool: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the pool that are not drawn."""
    known: Mapping[str, Finding] = field(default_factory=dict)
    """Findings that are known, by a label: they are run first, and not looked for."""
    environment: FuzzEnvironment = field(default_factory=FuzzEnvironment.here)
    """Where it is done."""
    kill: Callable[[], None] = lambda: None
    """Ends the allocator's process for good, whatever it is doing."""

    def __post_init__(self) -> None:
        if self.examples is None and self.seconds is None:
            raise ValueError("a campaign without examples and without seconds would never end")


@dataclass(slots=True)
class Tally:
    """What has been done so far; it grows while the campaign runs."""

    examples: int = 0
    steps: int = 0
    """Programs and calls that were run in the search, shrinking aside."""
    seconds: float = 0.0
    """Time that took."""
    calls: Counter[str] = field(default_factory=Counter)
    """Steps by call."""
    states: set[int] = field(default_factory=set)
    """Different states that were seen, as hashes; see `AllocatorMachine.state`."""
    shown: set[str] = field(default_factory=set)
    """What programs have come to unharmed: calls, and what `SHOWN_BY` names."""
    found: list[Trace] = field(default_factory=list)
    """Findings, in order."""
    known: dict[str, bool] = field(default_factory=dict)
    """Whether each known finding still shows, by its label."""
    shrinking: int = 0
    """Attempts at making the present finding smaller; 0 while searching."""
    complete: bool = False
    """Whether the budget was spent, or enough was found."""
    trouble: Exception | None = None
    """What ended the search and is ours; findings before it stand."""

    def add(self, other: Tally) -> None:
        """Take in what was done with another seed: a finding once, as the first seed shows it."""
        kinds = {_kind(trace.finding) for trace in self.found}
        for trace in other.found:
            if _kind(trace.finding) not in kinds:
                kinds.add(_kind(trace.finding))
                self.found.append(trace)
        self.examples += other.examples
        self.steps += other.steps
        self.seconds += other.seconds
        self.calls += other.calls
        self.states |= other.states
        self.shown |= other.shown
        for name, shows in other.known.items():
            self.known[name] = self.known.get(name, False) or shows
        self.complete &= other.complete
        self.trouble = self.trouble or other.trouble

    @property
    def steps_per_s(self) -> float:
        """Calls a second, with everything that is drawn and checked between them."""
        return self.steps / self.seconds if self.seconds else 0.0


def run_campaign(
    campaign: Campaign,
    *,
    tell: Callable[[Tally], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> Tally:
    """Search until the budget is spent or `stop` is set, and return what was done and found."""
    loop = _Loop(campaign, tell, stop or threading.Event())
    try:
        with abandoning(loop.abandon, over=loop.stop.is_set):
            loop.run()
    except Enough:
        pass
    except Exception as error:
        if not loop.tally.found:
            raise
        loop.tally.trouble = error
    loop.count_time()
    loop.tally.complete = not loop.stop.is_set() and not loop.tally.trouble
    return loop.tally


class _Loop:
    def __init__(
        self, campaign: Campaign, tell: Callable[[Tally], None], stop: threading.Event
    ) -> None:
        self.campaign = campaign
        self.tally = Tally()
        self.tell = tell
        self.stop = stop
        self._abandoned = False
        self._began = time.monotonic()
        self._shrunk_s = 0.0
        self._rounds = 0
        self._known: set[tuple[str, str]] = set()
        self._can = campaign.capabilities
        self._shrinking = self._no_failure_yet()

    def run(self) -> None:
        """See what is known, run what failed in earlier campaigns, then search."""
        for label, finding in self.campaign.known.items():
            shown = self._shown_by(finding.program)
            self.tally.known[label] = shown is not None and shown.check == finding.check
        for finding in self.campaign.known.values():
            self._put_aside(finding)
        if self.campaign.database is not None:
            for drawer in range(self.campaign.max_findings):  # each finding has one of its own
                if not self.over():
                    self._search([Phase.reuse, Phase.shrink], drawer=drawer, examples=ROUND)
        while not self.over():
            self._round()

    def abandon(self) -> None:
        """End the allocator's process: what its death shows is no finding."""
        self._abandoned = True
        self.campaign.kill()

    def over(self) -> bool:
        return self._spent() or len(self.tally.found) >= self.campaign.max_findings

    def count_time(self) -> None:
        self.tally.seconds = max(time.monotonic() - self._began - self._shrunk_s, 1e-9)

    def _spent(self) -> bool:
        plan = self.campaign
        return (
            self.stop.is_set()
            or (plan.examples is not None and self.tally.examples >= plan.examples)
            or (plan.seconds is not None and self._late(plan.seconds))
        )

    def _late(self, seconds: float) -> bool:
        """After at least one program: a search without any has not found nothing."""
        return self.tally.examples > 0 and time.monotonic() - self._began >= seconds

    def _round(self) -> None:
        """Draw programs until one shows something new, or enough for one round."""
        left = ROUND
        if self.campaign.examples is not None:
            left = min(left, self.campaign.examples - self.tally.examples)
        self._rounds += 1
        drawer = len(self.tally.found)
        self._search([Phase.generate, Phase.shrink], drawer=drawer, examples=left)

    def _search(self, phases: list[Phase], *, drawer: int, examples: int) -> None:
        plan = self.campaign
        database = plan.database
        if database is not None:
            database = Drawer(database, f"pagedbench fuzz {plan.allocator.name} {drawer}")
        self._shrinking = self._no_failure_yet()
        with self._shrinking.ended(), only_our_constants():
            draw_each(
                drawn_programs(plan.capabilities, max_moves=plan.max_moves, **plan.pool),
                count=examples,
                seed_of_draw=f"{plan.seed} {self._rounds}",
                example=self._example,
                phases=phases,
                database=database,
            )
        if self._shrinking.smallest is not None:
            self._keep(self._shrinking.smallest)
        self._shrinking = self._no_failure_yet()
        self.tally.shrinking = 0

    def _no_failure_yet(self) -> Shrinking[Drawn | Program, Finding]:
        return Shrinking(
            self._smaller,
            same=self._same,
            size=lambda finding: size_of(finding.program),
            attempts=math.inf,
            seconds=self.campaign.shrink_limit_s,
            stopped=self.stop.is_set,
        )

    def _example(self, drawn: Drawn) -> None:
        """Return, or raise StillWrong where it shows anything new, or the same again."""
        if self._shrinking.first is not None:
            if self._shrinking.still_shows(drawn):
                still_wrong()
            return
        if self._spent():
            raise Enough
        calls: Counter[str] = Counter()
        finding = self._run(drawn, calls, self._saw)
        if self._abandoned:
            raise Enough
        self.tally.examples += 1
        self.tally.calls += calls
        self.tally.steps += calls.total() - calls["copy"]
        self.count_time()
        self.tell(self.tally)
        if finding is None:
            self.tally.shown.add("the end")
        elif _kind(finding) not in self._known:
            self._shrinking.begin(finding)
            still_wrong()

    def _smaller(self, example: Drawn | Program) -> Finding | None:
        """What a smaller program shows, as it is drawn or with some of its steps left out."""
        self.tally.shrinking = self._shrinking.attempts
        if isinstance(example, Program):
            finding = self._shown_by(example)
        else:
            finding = self._run(example, Counter(), lambda _: None)
        self.tell(self.tally)
        return finding

    def _same(self, first: Finding, seen: Finding) -> bool:
        if seen.check == "answer":
            return _kind(seen) == _kind(first)
        return seen.check == first.check and _kind(seen) not in self._known

    def _shown_by(self, program: Program) -> Finding | None:
        if self.stop.is_set():
            raise Enough
        finding = run_program(self.campaign.factory, program, capabilities=self._can)
        if self._abandoned:
            raise Enough
        return finding

    def _run(
        self, drawn: Drawn, calls: Counter[str], saw: Callable[[AllocatorMachine], None]
    ) -> Finding | None:
        def run(machine: AllocatorMachine) -> None:
            machine.on_step = saw
            try:
                run_drawn(drawn, machine)
            finally:
                calls.update(machine.calls)

        return find_fault(
            self.campaign.factory,
            drawn.pool,
            run,
            capabilities=self._can,
            machine=machine_of(self._can),
        )

    def _saw(self, machine: AllocatorMachine) -> None:
        """Remember what a program has come to: its last step did no harm."""
        self.tally.states.add(machine.state())
        step, shown = machine.steps[-1], self.tally.shown
        shown.add(step.call)
        if step.call in ("admit", "fork", "swap_in") and step.sequence not in machine.lives:
            shown.add("a refusal")
        if step.call == "admit" and machine.pool.prefix_caching:
            shown.add("a cached admission")
        if machine.calls["copy"]:
            shown.add("a copy")
        if machine.evictions:
            shown.add("an eviction")
        if machine.lives:
            shown.add("a sequence")
            if machine.pool.window is not None:
                shown.add("a sequence with a window")
            if any(life.written for life in machine.lives.values()):
                shown.add("a written sequence")

    def _keep(self, first: Finding) -> None:
        shrinking = self._shrinking
        first_steps = len(shrinking.first.program.steps) if shrinking.first else 0

        def still_shows(program: Program) -> Program | None:
            shows = shrinking.still_shows(program)
            return shrinking.smallest.program if shows and shrinking.smallest else None

        smallest = first
        try:
            program = minimise(first.program, still_shows)
            again = self._shown_by(program)
            if again is None or again.check != first.check:
                shrinking.repeats = False
            smallest = again or first
        except Enough:
            smallest = shrinking.smallest or first
        if not shrinking.repeats and shrinking.first is not None:
            # What a smaller program shows now and then says nothing of the steps that showed this.
            smallest = shrinking.first
        self._known.add(_kind(first))
        self._put_aside(smallest)
        self._shrunk_s += min(shrinking.seconds, self.campaign.shrink_limit_s)
        self.tally.found.append(
            Trace(
                allocator=self.campaign.allocator,
                check=smallest.check,
                message=smallest.message,
                at_the_end=smallest.at_the_end,
                repeats=shrinking.repeats,
                program=smallest.program,
                examples=self.tally.examples,
                first_steps=first_steps,
                attempts=shrinking.attempts,
                seed=self.campaign.seed,
                environment=self.campaign.environment,
            )
        )

    def _put_aside(self, finding: Finding) -> None:
        """Look for a finding no more, and make no more calls that made no sense in it."""
        self._known.add(_kind(finding))
        made = {step.call for step in finding.program.steps}
        self._can = replace(self._can, hostile=self._can.hostile - made)


def _kind(finding: Finding) -> tuple[str, str]:
    """What two findings have in common that are the same one."""
    steps = finding.program.steps
    if finding.check == "answer":
        # What was raised says more than in which call; numbers are those of blocks, as a rule.
        return finding.check, re.sub(r"\d+", "#", finding.message)
    return finding.check, "" if finding.at_the_end or not steps else steps[-1].call


def checks_run(capabilities: AllocatorCapabilities, tally: Tally) -> dict[str, str]:
    """By check what came of it: `passed`, `failed`, or `not run: REASON`."""
    failed = {trace.check for trace in tally.found}
    return {
        check: "failed" if check in failed else _passed(check, capabilities, tally.shown)
        for check in checks_of(capabilities)
    }


def _passed(check: str, capabilities: AllocatorCapabilities, shown: set[str]) -> str:
    needs = NEEDS.get(check)
    if needs is not None and not getattr(capabilities, needs):
        return f"not run: no {needs}"
    if not shown & SHOWN_BY.get(check, frozenset(shown)):
        return "not run: no program came to it"
    return "passed"


def campaign_record(
    campaign: Campaign,
    tally: Tally,
    findings: list[FindingRecord],
    *,
    last_seed: int | None = None,
) -> FuzzRecord:
    """Put a campaign down."""
    verdict: Verdict = "no finding"
    if findings:
        verdict = "wrong"
    elif not tally.complete:
        verdict = "incomplete"
    return FuzzRecord(
        allocator=campaign.allocator,
        seed=campaign.seed,
        last_seed=last_seed,
        asked_examples=campaign.examples,
        asked_seconds=campaign.seconds,
        examples=tally.examples,
        steps=tally.steps,
        seconds=tally.seconds,
        steps_per_s=tally.steps_per_s,
        states=len(tally.states),
        calls=dict(tally.calls.most_common()),
        checks=checks_run(campaign.capabilities, tally),
        not_asked=[
            call
            for call in HOSTILE_CALLS
            if not (campaign.capabilities.system or call in campaign.capabilities.hostile)
        ],
        known=[
            KnownRecord(file=file, check=campaign.known[file].check, still_shows=still)
            for file, still in tally.known.items()
        ],
        findings=findings,
        verdict=verdict,
        exit_code=EXIT_CODES[verdict],
        environment=campaign.environment,
    )
