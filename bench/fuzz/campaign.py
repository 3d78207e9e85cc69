"""A search for programs that an allocator gets wrong, within a budget of examples or of time.

Hypothesis draws and shrinks; each program is run from an empty pool. What is found is made smaller,
and the search goes on for other things until the budget is spent. Two findings are the same if the
same check fails in the same kind of call, or the same was raised. A call that makes no sense and
does damage is not made again: what comes of the damage would be found over and over.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from unittest import SkipTest

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.database import ExampleDatabase
from hypothesis.errors import Flaky

from bench.fuzz.databases import Drawer
from bench.fuzz.minimise import minimise
from bench.search.drawing import only_our_constants
from reference.allocator.contract import AllocatorCapabilities, AllocatorFactory
from reference.allocator.machine import (
    CHECKS,
    NEEDS,
    AllocatorMachine,
    Finding,
    find_fault,
    run_program,
)
from reference.allocator.moves import MAX_MOVES, Drawn, drawn_programs, run_drawn
from reference.allocator.programs import Program

ROUND: Final = 2000
"""Examples that Hypothesis draws at a time: it remembers all of them, and that takes memory."""

SHRINK_LIMIT_S: Final = 60.0
"""For making one finding smaller; what was reached by then is reported."""

MAX_FINDINGS: Final = 10
"""After so many different ones the search ends: the allocator is in no state to be tested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """What to do."""

    name: str
    """Of the allocator, as it was asked for."""
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

    def __post_init__(self) -> None:
        if self.examples is None and self.seconds is None:
            raise ValueError("a campaign without examples and without seconds would never end")


@dataclass(frozen=True, slots=True)
class Found:
    """A finding, and how it was come by."""

    finding: Finding
    """The smallest program that shows it."""
    examples: int
    """Programs that it took, this one included."""
    first_steps: int
    """Steps of the program as it was drawn."""
    attempts: int
    """Programs that were run to make it smaller."""
    repeats: bool
    """Whether it shows every time: False where the same program did not show it again."""


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
    found: list[Found] = field(default_factory=list)
    """Findings, in order."""
    known: dict[str, bool] = field(default_factory=dict)
    """Whether each known finding still shows, by its label."""
    shrinking: int = 0
    """Attempts at making the present finding smaller; 0 while searching."""
    complete: bool = False
    """Whether the budget was spent, or enough was found."""

    @property
    def steps_per_s(self) -> float:
        """Calls a second, with everything that is drawn and checked between them."""
        return self.steps / self.seconds if self.seconds else 0.0


class _Shown(Exception):
    """Tells Hypothesis that a program shows something."""


class _Enough(BaseException):
    """Ends a search from within; Hypothesis lets it pass."""


def run_campaign(
    campaign: Campaign,
    *,
    tell: Callable[[Tally], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> Tally:
    """Search until the budget is spent, and return what was done and found.

    Parameters
    ----------
    campaign
        What to do.
    tell
        Called after each program.
    stop
        Set it to end early; what was found until then is returned.
    """
    tally = Tally()
    search = _Search(campaign, tally, tell, stop or threading.Event())
    try:
        search.see_what_is_known()
        search.again()
        while not search.over():
            search.round()
    except _Enough:
        pass
    search.count_time()
    tally.complete = not search.stop.is_set()
    return tally


class _Search:
    def __init__(
        self,
        campaign: Campaign,
        tally: Tally,
        tell: Callable[[Tally], None],
        stop: threading.Event,
    ) -> None:
        self.campaign = campaign
        self.tally = tally
        self.tell = tell
        self.stop = stop
        self._began = time.monotonic()
        self._shrunk_s = 0.0
        self._rounds = 0
        self._known: set[tuple[str, str]] = set()
        self._can = campaign.capabilities
        self._best: Finding | None = None
        self._first_steps = 0
        self._deadline = float("inf")

    def spent(self) -> bool:
        """Whether the budget is."""
        plan = self.campaign
        return (
            self.stop.is_set()
            or (plan.examples is not None and self.tally.examples >= plan.examples)
            or (plan.seconds is not None and time.monotonic() - self._began >= plan.seconds)
        )

    def count_time(self) -> None:
        """Bring the time of the search up to date."""
        self.tally.seconds = max(time.monotonic() - self._began - self._shrunk_s, 1e-9)

    def over(self) -> bool:
        """Whether the budget is spent, or enough was found."""
        return self.spent() or len(self.tally.found) >= self.campaign.max_findings

    def see_what_is_known(self) -> None:
        """Run the known findings, and look for them no more."""
        for label, finding in self.campaign.known.items():
            shown = run_program(self.campaign.factory, finding.program, capabilities=self._can)
            self.tally.known[label] = shown is not None and shown.check == finding.check
        for finding in self.campaign.known.values():
            self._put_aside(finding)

    def again(self) -> None:
        """Run what failed in earlier campaigns: each finding has a compartment of its own."""
        if self.campaign.database is not None:
            for number in range(self.campaign.max_findings):
                if not self.over():
                    self._search([Phase.reuse, Phase.shrink], drawer=number, examples=ROUND)

    def round(self) -> None:
        """Draw programs until one shows something new, or enough for one round."""
        left = ROUND
        if self.campaign.examples is not None:
            left = min(left, self.campaign.examples - self.tally.examples)
        self._rounds += 1
        drawer = len(self.tally.found)
        self._search([Phase.generate, Phase.shrink], drawer=drawer, examples=left)

    def _search(self, phases: list[Phase], *, drawer: int, examples: int) -> None:
        plan = self.campaign
        self._best = None
        self.tally.shrinking = 0
        database = plan.database
        if database is not None:
            database = Drawer(database, f"pagedbench fuzz {plan.name} {drawer}")

        @given(drawn_programs(plan.capabilities, max_moves=plan.max_moves, **plan.pool))
        def test(drawn: Drawn) -> None:
            if self._shows_something(drawn):
                raise _Shown

        # A seed takes the database away: the settings come after it.
        test = seed(f"{plan.seed} {self._rounds}")(test)
        test = settings(
            max_examples=examples,
            database=database,
            phases=phases,
            deadline=None,
            derandomize=False,
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )(test)
        repeats = True
        try:
            with only_our_constants():
                test()
        except (_Shown, SkipTest):
            pass  # skipped: nothing is kept in this drawer
        except Flaky:
            repeats = False
        except _Enough:
            # The time for shrinking is over, or that for everything.
            if self._best is None:
                raise
        if self._best is not None:
            self._keep(repeats=repeats)

    def _shows_something(self, drawn: Drawn) -> bool:
        """Run a program; whether it shows what is looked for: anything new, or the same again."""
        if self._best is not None:
            self._may_go_on_shrinking()
            self.tally.shrinking += 1
            finding = self._run(drawn, Counter())
            self.tell(self.tally)
            if finding is None or not self._is_the_same(finding):
                return False
            self._best = finding
            return True
        if self.spent():
            raise _Enough
        calls: Counter[str] = Counter()
        finding = self._run(drawn, calls)
        self.tally.examples += 1
        self.tally.calls += calls
        self.tally.steps += calls.total() - calls["copy"]
        self.count_time()
        self.tell(self.tally)
        if finding is None or _kind(finding) in self._known:
            return False
        self._best = finding
        self._first_steps = len(finding.program.steps)
        self._deadline = time.monotonic() + self.campaign.shrink_limit_s
        return True

    def _run(self, drawn: Drawn, calls: Counter[str]) -> Finding | None:
        def run(machine: AllocatorMachine) -> None:
            machine.on_step = self._saw
            try:
                run_drawn(drawn, machine)
            finally:
                calls.update(machine.calls)

        return find_fault(self.campaign.factory, drawn.pool, run, capabilities=self._can)

    def _saw(self, machine: AllocatorMachine) -> None:
        if self._best is None:
            self.tally.states.add(machine.state())

    def _is_the_same(self, finding: Finding) -> bool:
        assert self._best is not None
        if finding.check == "answer":
            return _kind(finding) == _kind(self._best)
        return finding.check == self._best.check and _kind(finding) not in self._known

    def _may_go_on_shrinking(self) -> None:
        if self.stop.is_set() or time.monotonic() > self._deadline:
            raise _Enough

    def _keep(self, *, repeats: bool) -> None:
        """Make the finding smaller still, and put it down."""
        assert self._best is not None
        first = self._best

        def still_shows(program: Program) -> Program | None:
            self._may_go_on_shrinking()
            self.tally.shrinking += 1
            self.tell(self.tally)
            finding = run_program(self.campaign.factory, program, capabilities=self._can)
            if finding is None or not self._is_the_same(finding):
                return None
            self._best = finding
            return finding.program

        smallest = first
        try:
            program = minimise(first.program, still_shows)
            again = run_program(self.campaign.factory, program, capabilities=self._can)
            if again is None or again.check != first.check:
                repeats = False
            smallest = again if repeats and again is not None else replace(first, program=program)
        except _Enough:
            smallest = self._best
        self._known.add(_kind(first))
        self._put_aside(smallest)
        self._shrunk_s += self.campaign.shrink_limit_s - max(self._deadline - time.monotonic(), 0.0)
        self.tally.found.append(
            Found(
                finding=smallest,
                examples=self.tally.examples,
                first_steps=self._first_steps,
                attempts=self.tally.shrinking,
                repeats=repeats,
            )
        )
        self._best = None
        self.tally.shrinking = 0

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


def checks_run(capabilities: AllocatorCapabilities) -> dict[str, str]:
    """Each check, and why it was not run; an empty string where it was."""
    reasons = {}
    for check in CHECKS:
        needs = NEEDS.get(check)
        missing = needs is not None and not getattr(capabilities, needs)
        reasons[check] = f"no {needs}" if missing else ""
    return reasons
