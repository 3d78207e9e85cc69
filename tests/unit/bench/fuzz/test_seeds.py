"""A campaign of many seeds: found once, by the first seed that shows it, and kept when it ends."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from bench.fuzz.campaign import Tally
from bench.fuzz.seeds import Asked, run_seed, run_seeds
from reference.errors import BadInput

LOSES_A_BLOCK = """
from paged.subject import paged_allocator
from reference.allocator.contract import capabilities_of_factory

class Loses:
    def __init__(self, pool):
        self.right = paged_allocator(pool)

    def __getattr__(self, name):
        return getattr(self.right, name)

    def free(self, sequence):
        pass

def make(pool):
    return Loses(pool)

make.capabilities = capabilities_of_factory(paged_allocator)
"""


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    (tmp_path / "loses.py").write_text(LOSES_A_BLOCK)
    return Asked(
        allocator=f"{tmp_path}/loses.py:make",
        engine_python=None,
        in_process=True,
        time_limit_s=5.0,
        block_sizes=frozenset(),
        database="none",
        local=tmp_path,
        examples=20,
        seconds=None,
        seed=0,
        max_findings=1,
        max_moves=10,
    )


def test_findings_of_seeds_come_together_once_with_the_first_seed(asked: Asked, tmp_path) -> None:
    over = tmp_path / "over"
    tallies = []
    for seed in (4, 5):
        done, tally = run_seed(replace(asked, seed=seed), over)
        assert done == seed
        assert isinstance(tally, Tally)
        tallies.append(tally)
    assert all(len(tally.found) == 1 for tally in tallies)
    together = Tally(complete=True)
    for tally in tallies:
        together.add(tally)
    kinds = {trace.check for tally in tallies for trace in tally.found}
    assert together.found[0].seed == 4
    assert len(together.found) == len(kinds)
    assert together.examples == sum(tally.examples for tally in tallies)
    assert together.complete


def test_processes_stop_with_what_they_have_and_a_bad_name_is_said(asked: Asked, tmp_path) -> None:
    told: list[int] = []
    tally = run_seeds(
        asked,
        range(2),
        tell=lambda _, done: told.append(done),
        stop=threading.Event(),
        workers=2,
    )
    assert told == [1, 2]
    assert tally.found[0].check
    assert tally.examples >= 1
    (tmp_path / "over").touch()
    assert run_seed(asked, tmp_path / "over")[1] == Tally()
    absent = replace(asked, allocator="absent.py:f")
    with pytest.raises(BadInput, match=r"absent\.py"):
        run_seeds(absent, range(1), tell=lambda *_: None, stop=threading.Event(), workers=1)
