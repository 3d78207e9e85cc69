"""The search for wrong programs: what it finds, when it ends, and what it keeps."""

from __future__ import annotations

import math
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis.database import (
    DirectoryBasedExampleDatabase,
    InMemoryExampleDatabase,
    MultiplexedDatabase,
)

import bench.fuzz.campaign
import bench.search.lanes
import bench.search.shrink
from bench.fuzz.campaign import SHOWN_BY, Campaign, Tally, checks_run, run_campaign
from bench.fuzz.databases import Drawer, open_database
from bench.fuzz.minimise import minimise
from bench.fuzz.record import Subject
from helpers.wrong_allocators import BUGS
from paged.allocator import PagedAllocator
from paged.subject import PagedSubject, paged_allocator
from reference.allocator.contract import (
    HOSTILE_CALLS,
    AllocatorCapabilities,
    AllocatorDied,
    capabilities_of_factory,
)
from reference.allocator.machine import CHECKS, Finding, run_program
from reference.allocator.programs import Pool, Program, Step
from reference.errors import BadInput

PAGED = capabilities_of_factory(paged_allocator)

PLANTED = BUGS["missing_copy_on_write"]


def campaign(**changes: Any) -> Campaign:
    usual: dict[str, Any] = {
        "allocator": Subject(name="paged"),
        "factory": paged_allocator,
        "capabilities": PAGED,
        "examples": 150,
        "max_moves": 12,
        "shrink_limit_s": math.inf,
    }
    return Campaign(**(usual | changes))


AS_DRAWN = {"shrink_limit_s": 0.0}
"""For whoever does not ask how small a finding becomes."""


def made_of(kind: type[PagedSubject]) -> Callable[..., PagedSubject]:
    def make(
        num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
    ) -> PagedSubject:
        allocator = PagedAllocator(num_blocks, block_size, prefix_caching=prefix_caching)
        return kind(allocator, window=window)

    return make


class RefusesForks(PagedSubject):
    def fork(self, parent: str, child: str) -> bool:
        return False


class RefusesForksAndLongAppends(RefusesForks):
    def append(self, sequence: str, tokens: Any) -> bool:
        return len(tokens) < 4 and super().append(sequence, tokens)


def programs_run(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """Everything that is run by the campaign, drawn or made smaller."""
    seen: list[Program] = []
    find_fault = bench.fuzz.campaign.find_fault

    def watched(factory: Any, pool: Pool, run: Any, **options: Any) -> Finding | None:
        machines = []

        def watching(machine: Any) -> None:
            machines.append(machine)
            run(machine)

        try:
            return find_fault(factory, pool, watching, **options)
        finally:
            seen.append(Program(pool, tuple(machines[0].steps) if machines else ()))

    monkeypatch.setattr(bench.fuzz.campaign, "find_fault", watched)
    return seen


# What is found


def test_a_planted_bug_is_found_and_made_small() -> None:
    with PLANTED.planted():
        tally = run_campaign(campaign(examples=1000, max_findings=1))
    (found,) = tally.found
    assert found.finding.check == "ownership"
    steps = found.finding.program.steps
    assert [step.call for step in steps] == ["admit", "fork", "append"]
    assert found.first_steps >= len(steps)
    assert found.examples == tally.examples <= 1000
    assert found.attempts > 0
    assert found.repeats
    assert tally.complete
    with PLANTED.planted():
        assert run_program(paged_allocator, found.finding.program) == found.finding
    assert run_program(paged_allocator, found.finding.program) is None


def test_the_right_one_is_run_to_the_end_of_the_budget() -> None:
    told: list[int] = []
    tally = run_campaign(campaign(examples=123), tell=lambda t: told.append(t.examples))
    assert tally.found == []
    assert tally.complete
    assert tally.examples == 123
    assert told == list(range(1, 124))
    assert tally.steps == tally.calls.total() - tally.calls["copy"] > 123
    assert len(tally.states) > 123
    assert tally.seconds > 0
    assert tally.steps_per_s == tally.steps / tally.seconds
    assert tally.shrinking == 0


@pytest.fixture(scope="module")
def kept() -> tuple[Tally, InMemoryExampleDatabase]:
    """A campaign in which two things are found, and what it keeps."""
    database = InMemoryExampleDatabase()
    plan = campaign(
        allocator=Subject(name="mine"),
        factory=made_of(RefusesForksAndLongAppends),
        database=database,
    )
    return run_campaign(plan), database


def test_the_search_goes_on_for_another_finding_until_they_are_enough(
    kept: tuple[Tally, InMemoryExampleDatabase],
) -> None:
    tally, _ = kept
    calls = [found.finding.program.steps[-1].call for found in tally.found]
    assert sorted(calls) == ["append", "fork"]
    assert {found.finding.check for found in tally.found} == {"refusal"}
    first, second = tally.found
    assert first.examples < second.examples <= tally.examples == 150
    assert tally.complete
    wrong = made_of(RefusesForksAndLongAppends)
    enough = run_campaign(
        campaign(allocator=Subject(name="mine"), factory=wrong, examples=150, max_findings=1)
    )
    assert enough.found == [first]
    assert enough.examples == first.examples
    assert enough.complete


def test_a_call_that_makes_no_sense_and_does_damage_is_not_made_again() -> None:
    class FreesTwice(PagedSubject):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.free = self.twice
            self.last: list[int] = []

        def twice(self, sequence: str) -> None:
            if sequence not in self.allocator._tables:
                self.allocator.pool._free.extend(self.last)
                self.last = []
            else:
                self.last = self.allocator._tables[sequence].held()
                self.allocator.free(sequence)

    tally = run_campaign(campaign(factory=made_of(FreesTwice), **AS_DRAWN))
    calls = [found.finding.program.steps[-1].call for found in tally.found]
    assert calls
    assert len(set(calls)) == len(calls)
    assert set(calls) <= {"free_twice", "free_unknown"}
    assert {found.finding.check for found in tally.found} == {"trace"}


def test_known_findings_are_run_and_not_looked_for() -> None:
    wrong = made_of(RefusesForks)
    steps = (Step("admit", "a", tokens=(0,)), Step("fork", "b", parent="a"))
    program = Program(Pool(num_blocks=4, block_size=2), steps)
    known = run_program(wrong, program, capabilities=PAGED)
    assert known is not None
    gone = replace(known, program=replace(program, steps=steps[:1]))
    tally = run_campaign(
        campaign(factory=wrong, examples=100, known={"still": known, "gone": gone})
    )
    assert tally.known == {"still": True, "gone": False}
    assert tally.found == []
    assert tally.examples == 100


def test_an_allocator_that_depends_on_chance_is_reported_as_such() -> None:
    forks = 0

    class Moody(PagedSubject):
        def fork(self, parent: str, child: str) -> bool:
            nonlocal forks
            forks += self.allocator.num_free > 2
            return forks != 3 and super().fork(parent, child)

    tally = run_campaign(campaign(factory=made_of(Moody), examples=200))
    (found,) = tally.found
    assert found.finding.check == "refusal"
    assert not found.repeats
    assert found.finding.program.steps[-1].call == "fork"
    assert len(found.finding.program.steps) == found.first_steps, "as they were drawn"
    assert tally.examples == 200


def test_an_error_of_ours_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.fuzz.campaign, "run_drawn", broken)
    with pytest.raises(ZeroDivisionError):
        run_campaign(campaign(examples=5))


# When it ends


def test_more_than_a_round_is_drawn_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.fuzz.campaign, "ROUND", 20)
    seen = programs_run(monkeypatch)
    assert run_campaign(campaign(examples=50)).examples == 50
    # The simplest program comes first in each; most of the others are new ones.
    assert len(seen) == 50
    assert (
        len({str(program) for program in seen[20:]} - {str(program) for program in seen[:20]}) > 9
    )


def test_a_budget_larger_than_what_there_is_to_draw_is_spent_all_the_same() -> None:
    pool = {"num_blocks": 4, "block_size": 1, "prefix_caching": False}
    least = AllocatorCapabilities(prefix_caching=False, hostile=frozenset())
    tally = run_campaign(campaign(capabilities=least, pool=pool, max_moves=1, examples=400))
    assert tally.examples == 400
    assert tally.complete


def test_the_same_seed_draws_the_same_programs_whatever_numbers_stand_in_loaded_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def drawn(seed: int) -> list[str]:
        with monkeypatch.context() as patch:
            seen = programs_run(patch)
            run_campaign(campaign(examples=60, seed=seed))
        return [str(program) for program in seen]

    monkeypatch.chdir(tmp_path)
    before = drawn(7)
    assert len(set(before) & set(drawn(8))) < 20
    (tmp_path / "numbers_of_mine.py").write_text("\n".join(f"n{n} = {n}" for n in range(201, 251)))
    monkeypatch.syspath_prepend(tmp_path)
    __import__("numbers_of_mine")
    try:
        assert drawn(7) == before
    finally:
        del sys.modules["numbers_of_mine"]
    assert not (tmp_path / ".hypothesis").exists()


def test_the_time_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, step_s=1.0)
    tally = run_campaign(campaign(examples=None, seconds=50.0))
    assert tally.complete
    assert 5 <= tally.examples <= 50
    assert clock.now >= 50.0


def test_one_program_runs_however_short_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, step_s=9.0)
    assert run_campaign(campaign(examples=None, seconds=0.1)).examples == 1


def test_a_campaign_has_to_end() -> None:
    with pytest.raises(ValueError, match="would never end"):
        campaign(examples=None)


@pytest.mark.parametrize(
    ("kind", "counted", "at"), [(PagedSubject, "examples", 7), (RefusesForks, "shrinking", 5)]
)
def test_it_stops_when_told_to_and_keeps_what_is_found(
    kind: type[PagedSubject], counted: str, at: int
) -> None:
    stop = threading.Event()

    def tell(tally: Tally) -> None:
        if getattr(tally, counted) == at:
            stop.set()

    tally = run_campaign(campaign(factory=made_of(kind)), tell=tell, stop=stop)
    assert not tally.complete
    if counted == "examples":
        assert (tally.examples, tally.found) == (at, [])
    else:
        (found,) = tally.found
        assert found.finding.program.steps[-1].call == "fork"
        assert at <= found.attempts <= at + 1


def test_an_allocator_that_hangs_is_ended_when_it_is_told_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench.search.lanes, "GRACE_S", 0.05)
    stop, killed = threading.Event(), threading.Event()

    class Hangs(PagedSubject):
        def fork(self, parent: str, child: str) -> bool:
            stop.set()
            killed.wait(30)
            raise AllocatorDied("was killed by SIGKILL", timed_out=False)

    tally = run_campaign(campaign(factory=made_of(Hangs), kill=killed.set), stop=stop)
    assert killed.is_set()
    assert tally.found == []  # it hung, but nobody waited long enough to say so
    assert not tally.complete


def test_a_fault_of_ours_leaves_what_was_found_before_it() -> None:
    def tell(tally: Tally) -> None:
        if tally.found:
            raise ZeroDivisionError

    tally = run_campaign(campaign(factory=made_of(RefusesForks), **AS_DRAWN), tell=tell)
    assert [trace.check for trace in tally.found] == ["refusal"]
    assert isinstance(tally.trouble, ZeroDivisionError)
    assert not tally.complete


@pytest.mark.parametrize("call", ["admit", "fork"])
def test_an_allocator_that_exits_in_this_process_has_died(call: str) -> None:
    def leave(*_: object, **__: object) -> None:
        sys.exit(0)

    leaving = type("Leaving", (PagedSubject,), {call: leave})
    trace = run_campaign(campaign(factory=made_of(leaving), examples=60, **AS_DRAWN)).found[0]
    assert (trace.check, trace.message) == ("died", "ended the process with code 0")


def test_the_time_for_shrinking_is_limited_and_the_best_so_far_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)

    def tell(tally: Tally) -> None:
        if tally.shrinking:
            clock.now += 1.0

    wrong = made_of(RefusesForks)
    tally = run_campaign(campaign(factory=wrong, shrink_limit_s=20.0), tell=tell)
    (found,) = tally.found
    assert 15 <= found.attempts <= 25
    assert run_program(wrong, found.finding.program, capabilities=PAGED) == found.finding
    assert len(found.finding.program.steps) <= found.first_steps
    assert tally.examples == 150  # and the search went on
    clock.now = 0.0
    patient = run_campaign(campaign(factory=wrong, shrink_limit_s=1e6), tell=tell).found[0]
    assert len(patient.finding.program.steps) == 2
    assert patient.attempts > found.attempts


class Clock:
    """Time for the campaign alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, step_s: float = 0.0) -> None:
        self.now = 0.0
        self.step_s = step_s
        clock = types.SimpleNamespace(monotonic=self.monotonic)
        monkeypatch.setattr(bench.fuzz.campaign, "time", clock)
        monkeypatch.setattr(bench.search.shrink, "time", clock)

    def monotonic(self) -> float:
        self.now += self.step_s
        return self.now


# What is kept for the next time


def test_the_next_campaign_finds_it_with_the_first_program(
    kept: tuple[Tally, InMemoryExampleDatabase], tmp_path: Path
) -> None:
    first, database = kept
    stored = open_database(str(tmp_path / "examples"))
    assert stored is not None
    for key, values in database.data.items():
        for value in values:
            stored.save(key, value)
    plan = campaign(
        allocator=Subject(name="mine"),
        factory=made_of(RefusesForksAndLongAppends),
        database=open_database(str(tmp_path / "examples")),
        seed=99,
    )
    second = run_campaign(plan)
    assert [found.examples > 1 for found in first.found] == [True, True]
    assert second.found[0].examples == 1
    kinds = [
        [(f.finding.check, f.finding.program.steps[-1].call) for f in tally.found]
        for tally in (first, second)
    ]
    assert sorted(kinds[0]) == sorted(kinds[1])
    # The second one has a drawer of its own, and is as near.
    assert second.found[1].examples < 10


def test_what_is_kept_is_run_first_and_then_the_search_goes_on() -> None:
    database = InMemoryExampleDatabase()
    wrong = campaign(factory=made_of(RefusesForks), max_findings=1, database=database, **AS_DRAWN)
    assert run_campaign(wrong).found
    mended = run_campaign(campaign(examples=40, database=database))
    assert (mended.found, mended.examples) == ([], 40)


def test_each_allocator_and_each_finding_has_a_drawer_of_its_own(
    kept: tuple[Tally, InMemoryExampleDatabase],
) -> None:
    _, database = kept
    names = {
        key.removesuffix(b".secondary").removesuffix(b".pareto")
        for key in database.data
        if key.startswith(b"pagedbench")
    }
    assert names == {b"pagedbench fuzz mine 0", b"pagedbench fuzz mine 1"}
    wrong = made_of(RefusesForksAndLongAppends)
    other = campaign(
        allocator=Subject(name="other"), factory=wrong, database=database, max_findings=1, seed=5
    )
    assert run_campaign(other).found[0].examples > 1


def test_nothing_is_left_behind_without_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_campaign(campaign(factory=made_of(RefusesForks), max_findings=1, **AS_DRAWN))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        (b"digest of a test", b"drawer"),
        (b"digest.secondary", b"drawer.secondary"),
        (b"digest.pareto", b"drawer.pareto"),
        (b"digest.with.dots", b"drawer"),
    ],
)
def test_a_drawer_keeps_its_values_whatever_the_test_is_called(key: bytes, kept: bytes) -> None:
    database = InMemoryExampleDatabase()
    drawer = Drawer(database, "drawer")
    drawer.save(key, b"value")
    assert set(database.fetch(kept)) == {b"value"}
    assert set(drawer.fetch(key)) == {b"value"}
    assert set(Drawer(database, "another").fetch(key)) == set()
    drawer.delete(key, b"value")
    assert set(drawer.fetch(key)) == set()


# Databases


def test_none_is_no_database() -> None:
    assert open_database("none") is None


def test_a_workflows_artifacts_are_read_only_and_ours_go_to_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = open_database("github:some-owner/some.repo")
    assert isinstance(database, MultiplexedDatabase)
    ours, theirs = database._wrapped
    assert isinstance(ours, DirectoryBasedExampleDatabase)
    theirs.save(b"key", b"value")  # read only: nothing happens, and nothing is fetched either
    ours.save(b"key", b"value")
    assert (tmp_path / ".pagedbench" / "examples").is_dir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, "write github:OWNER/REPOSITORY") for name in ("github:", "github:owner")),
        *((name, "write github:OWNER/REPOSITORY") for name in ("github:a/b/c", "github:a b/c")),
        ("file", "that is a file; name a folder"),
        ("redis://host:6379/0", "redis is not installed; pip install redis"),
    ],
)
def test_a_database_that_cannot_be_opened_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "redis", None)
    Path("file").touch()
    with pytest.raises(BadInput, match=f"{name}: .*{message}"):
        open_database(name)


def test_redis_is_asked_for_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Redis:
        @classmethod
        def from_url(cls, url: str) -> Redis:
            asked.append(url)
            return cls()

    stub = types.ModuleType("redis")
    stub.Redis = Redis
    kept = types.ModuleType("hypothesis.extra.redis")
    kept.RedisExampleDatabase = lambda redis: ("database of", type(redis).__name__)
    monkeypatch.setitem(sys.modules, "redis", stub)
    monkeypatch.setitem(sys.modules, "hypothesis.extra.redis", kept)
    for url in ("redis://host:6379/0", "rediss://host:6379/1"):
        assert open_database(url) == ("database of", "Redis")
    assert asked == ["redis://host:6379/0", "rediss://host:6379/1"]


# Making smaller, by itself


POOL = Pool(num_blocks=9, block_size=4, window=3, batching=True)


def steps(count: int) -> tuple[Step, ...]:
    return tuple(
        Step("admit", f"s{number}", tokens=(7, 8, 9), num_tokens=1, salt="t")
        for number in range(count)
    )


def names(program: Program) -> list[str]:
    return [step.sequence for step in program.steps]


def needs_two(program: Program) -> bool:
    return {"s3", "s17"} <= set(names(program))


def needs_the_pool(program: Program) -> bool:
    pool = program.pool
    return pool.num_blocks >= 3 and pool.batching and pool.prefix_caching


def has_two_tokens(program: Program) -> bool:
    return any(len(step.tokens) >= 2 for step in program.steps)


def is_even(program: Program) -> bool:
    return len(program.steps) % 2 == 0


def has_a_pair_or_none_of_it(program: Program) -> bool:
    said = names(program)
    return ("s0" in said) == ("s5" in said) and "s2" in said


def fills_the_pool(program: Program) -> bool:
    return len(program.steps) == program.pool.num_blocks


LEAST = Pool(num_blocks=1, block_size=4, prefix_caching=False)
SMALLEST = [
    (needs_two, 20, Program(LEAST, (Step("admit", "s3"), Step("admit", "s17")))),
    (needs_the_pool, 3, Program(Pool(num_blocks=3, block_size=4, batching=True), ())),
    (has_two_tokens, 5, Program(LEAST, (Step("admit", "s0", tokens=(0, 0)),))),
    (is_even, 6, Program(LEAST, ())),
    (has_a_pair_or_none_of_it, 6, Program(LEAST, (Step("admit", "s2"),))),
    (fills_the_pool, 9, Program(LEAST, (Step("admit", "s8"),))),
]


@pytest.mark.parametrize(("shows", "count", "smallest"), SMALLEST)
def test_what_is_not_needed_is_left_out(
    shows: Callable[[Program], bool], count: int, smallest: Program
) -> None:
    program = Program(POOL, steps(count))
    assert minimise(program, lambda tried: tried if shows(tried) else None) == smallest


def test_what_was_run_of_a_program_is_what_counts() -> None:
    def runs_two(program: Program) -> Program | None:
        return replace(program, steps=program.steps[:2]) if len(program.steps) >= 2 else None

    smallest = minimise(Program(POOL, steps(16)), runs_two)
    assert len(smallest.steps) == 2


def test_what_cannot_be_made_smaller_is_given_back() -> None:
    program = Program(POOL, steps(4))
    assert minimise(program, lambda _: None) is program


def test_attempts_are_limited() -> None:
    tried: list[Program] = []

    def still_shows(program: Program) -> Program | None:
        tried.append(program)
        return program if len(program.steps) >= 1 else None

    program = Program(POOL, steps(40))
    smaller = minimise(program, still_shows, attempts=3)
    assert len(tried) == 3
    assert 1 <= len(smaller.steps) < 40
    assert len(minimise(program, still_shows).steps) == 1
    assert minimise(program, still_shows, attempts=0) is program


# Checks


def test_checks_that_are_not_run_have_their_reason() -> None:
    everything = {*HOSTILE_CALLS, *(what for shown in SHOWN_BY.values() for what in shown)}
    least = checks_run(AllocatorCapabilities(prefix_caching=False), Tally(shown=everything))
    assert least.keys() == CHECKS.keys()
    assert least["copies"] == "not run: no fork"
    assert least["hit"] == "not run: no prefix_caching"
    assert {check for check, how in least.items() if how == "passed"} == {
        *("content", "table", "ownership", "conservation", "refusal", "trace"),
        *("drain", "capacity", "answer", "died"),
    }
    able = replace(PAGED, swap=True)
    assert set(checks_run(able, Tally(shown=everything)).values()) == {"passed"}


class Unanswering(PagedSubject):
    def counts(self) -> tuple[int, int, int]:
        raise RuntimeError("no")


class AdmitsNothing(PagedSubject):
    def admit(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("no")


@pytest.mark.parametrize("kind", [Unanswering, AdmitsNothing])
def test_what_no_program_came_to_has_not_passed(kind: type[PagedSubject]) -> None:
    tally = run_campaign(campaign(factory=made_of(kind), examples=50))
    checks = checks_run(PAGED, tally)
    assert checks["answer"] == "failed"
    for check in ("content", "table", "ownership", "copies", "hit", "drain", "capacity"):
        assert checks[check] == "not run: no program came to it", check


def test_every_check_of_ours_is_shown_by_a_few_programs() -> None:
    tally = run_campaign(campaign(examples=100))
    assert {how for how in checks_run(PAGED, tally).values() if how.endswith("came to it")} == set()
