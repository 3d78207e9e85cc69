"""A race in the terminal, and one that is stopped."""

import os
import signal
from io import StringIO

from rich.console import Console

from bench.command.progress import Silence
from bench.command.session import Session
from bench.fuzz.race import RaceEntry, RaceRecord, race
from bench.fuzz.race_report import show
from bench.machine.facts import version_of
from subjects.allocators.resolve import AllocatorSubject


def entry(name: str, *rates: float, caching: bool = False, failed: str = "") -> RaceEntry:
    return RaceEntry(
        allocator=name,
        version="",
        prefix_caching=caching,
        batched=False,
        rates=list(rates),
        failed=failed,
    )


def shown(*entries: RaceEntry) -> list[list[str]]:
    about = {"requests": 10, "max_running": 2, "num_blocks": 9, "block_size": 16, "rounds": 2}
    where = {"seed": 0, "cpu": "a cpu", "python": "3.11", "complete": True}
    console = Console(file=StringIO(), width=100)
    show(RaceRecord(**about, **where, entries=list(entries)), console)
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_ratios_are_those_of_the_rates_that_stand_beside_them():
    rows = shown(
        entry("paged", 1_182_266.0, 1_100_000.0),
        entry("mine", 1_363_660.0),
        entry("broken", failed="it raised"),
        entry("paged", 500_000.0, caching=True),
        entry("mine", 250_000.0, caching=True),
    )
    assert ["off", "paged", "1,182,266", "1.00x", "1,100,000", "-"] in rows
    assert ["off", "mine", "1,363,660", "1.15x", "1,363,660", "-"] in rows
    assert ["off", "broken", "it", "raised"] in rows
    assert ["on", "mine", "250,000", "0.50x", "250,000", "0"] in rows


def test_a_race_that_is_stopped_has_what_is_done(monkeypatch):
    serve, served = AllocatorSubject.serve, []

    def stopped(subject: AllocatorSubject, **question: object) -> object:
        served.append(question)
        if len(served) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return serve(subject, **question)

    monkeypatch.setattr(AllocatorSubject, "serve", stopped)
    it = Session("the allocators")
    with it.handlers, it.work(quiet=True, raising=True):
        record = race(
            ["paged"],
            requests=20,
            max_running=4,
            num_blocks=512,
            block_size=16,
            rounds=3,
            seed=0,
            cpu="a cpu",
            python="3.11",
            progress=Silence(),
        )
    assert not record.complete
    assert record.pagedbench == version_of("pagedbench")
    assert sum(len(each.rates) for each in record.entries) == 1
