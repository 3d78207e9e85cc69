"""Whole runs of the gate on toy trees: every verdict, and every way in which a side can break."""

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.gate.record import BenchmarkRecord, Design, GateRecord
from bench.gate.run import run_gate
from bench.gate.verdict import judge
from helpers import gate_toys
from reference.errors import BadInput

WORK = ("toy/work",)


def gate(folder: Path, change: str = "", *, base: str = "", **options: Any) -> GateRecord:
    """Gate a toy tree against one with a change; no temporary tree stays."""
    places = folder / "temporary"
    places.mkdir(parents=True)
    trees = gate_toys.tree(folder, "base", base), gate_toys.tree(folder, "head", change)
    run = {name: options.pop(name) for name in ("stop", "progress", "say") if name in options}
    python = options.pop("python", "")
    plan = gate_toys.plan(*trees, **options)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tempfile.tempdir", str(places))
        record = run_gate(replace(plan, head=replace(plan.head, python=python)), **run)
    assert list(places.iterdir()) == []
    return record


def verdicts(record: GateRecord) -> dict[str, str]:
    return {each.key: each.verdict for each in record.benchmarks}


def benchmark(record: GateRecord, key: str) -> BenchmarkRecord:
    return next(each for each in record.benchmarks if each.key == key)


# What each process of a tree notes when it imports it.
NOTE = """
import os
with open({log!r}, 'a') as f:
    of = os.environ
    f.write(f"{{of['PYTHONHASHSEED']}} {{len(of.get('PAGEDBENCH_PADDING', ''))}} "
            f"{{NAME}} {{of['MALLOC_TRIM_THRESHOLD_']}}\\n")
"""


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> tuple[GateRecord, Path]:
    """A run of identical trees, and its folder.

    The head is spoiled as soon as the run has begun, and has an interpreter of its own: a script
    that notes what it is started with.
    """
    folder = tmp_path_factory.mktemp("equal")
    note = NOTE.format(log=str(folder / "log"))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {folder}/started\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)

    def spoil(_: str) -> None:
        (folder / "head" / "paged" / "toy.py").write_text("raise SystemExit")

    return gate(folder, note, base=note, say=spoil, python=str(python)), folder


def test_identical_trees_pass_though_files_change_meanwhile(
    equal: tuple[GateRecord, Path],
) -> None:
    record, folder = equal
    assert "SystemExit" in (folder / "head" / "paged" / "toy.py").read_text()
    assert (record.verdict, record.exit_code, record.complete) == ("pass", 0, True)
    assert set(verdicts(record).values()) == {"pass"}
    assert {each.verdict for each in record.outputs} == {"equal"}
    assert {each.verdict for each in record.counters} == {"equal"}
    work = benchmark(record, "toy/work")
    assert len(work.samples) == len(record.launches) == 5
    # A turn is a millisecond of calls of 100 microseconds, and the clock is made of those.
    assert work.number == pytest.approx(10, abs=1)
    assert work.samples[0].base_s == pytest.approx(100e-6, rel=0.05)
    assert benchmark(record, "toy/counted").samples == []
    assert record.base.environment is not None
    assert record.base.environment.timer == "process_time"
    assert record.base.environment.copy_gbs is not None
    assert record.base.environment.copy_gbs > 0
    assert all(each.gpu == [] and not each.dropped for each in record.launches), "there is none"
    assert record.parameters.device == "cpu"


def test_a_contestant_may_have_its_own_interpreter(equal: tuple[GateRecord, Path]) -> None:
    record, folder = equal
    assert record.head.python == str(folder / "python")
    started = (folder / "started").read_text().splitlines()
    # Asked first whether it is an interpreter at all.
    assert len([each for each in started if "sys.version_info" not in each]) == 1 + len(
        record.launches
    )


def test_everything_that_could_be_in_order_is_not(equal: tuple[GateRecord, Path]) -> None:
    """What the worker was asked, in which order, over some launches."""
    record, folder = equal
    started = [line.split() for line in (folder / "log").read_text().splitlines()]
    launches = [line for line in started if line[0] != "0"]
    by_seed: dict[str, set[str]] = {}
    for seed, padding, *_ in launches:
        by_seed.setdefault(seed, set()).add(padding)
    assert len(by_seed) == 5, "each launch has a hash seed of its own"
    assert all(len(paddings) == 1 for paddings in by_seed.values()), "the same for both sides"
    assert len({launch.padding for launch in record.launches}) > 1
    first = [next(line[2] for line in launches if line[0] == seed) for seed in by_seed]
    assert set(first) == {"base", "head"}, "either side is prepared first now and then"
    assert len({tuple(launch.order) for launch in record.launches}) == 2
    assert {launch.core for launch in record.launches} <= os.sched_getaffinity(0)
    assert {line[3] for line in started} == {str(256 << 20)}


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> GateRecord:
    """A run in which one benchmark works longer and another one waits."""
    change = (
        "\ndef work(clock, name):\n    clock.spend({} if name == 'work' else 100.0)\n"
        "    clock.wait({} if name == 'more' else 0.0)"
    )
    folder = tmp_path_factory.mktemp("slower")
    return gate(folder, change.format(105.0, 50.0), base=change.format(100.0, 0.0))


def test_a_slowdown_fails_once_fresh_launches_confirm_it(slower: GateRecord) -> None:
    assert (slower.verdict, slower.exit_code) == ("fail", 1)
    work = benchmark(slower, "toy/work")
    assert [sample.stage for sample in work.samples] == ["screen"] * 5 + ["confirm"] * 5
    assert work.estimate is not None
    assert work.estimate.ratio == pytest.approx(1.05, abs=0.015)
    assert (work.verdict, work.suspect) == ("fail", True)
    assert "confirmed by 5 fresh launches" in work.reason


def test_waiting_is_seen_though_it_takes_no_cpu_time(slower: GateRecord) -> None:
    waits = benchmark(slower, "toy/more")
    assert waits.verdict == "fail"
    assert "wall-clock" in waits.reason


def test_a_record_alone_gives_the_same_verdicts(slower: GateRecord) -> None:
    read = GateRecord.model_validate_json(slower.model_dump_json())
    assert read == slower
    blank = [
        each.model_copy(update={"verdict": "pass", "reason": "", "looks": [], "p_value": None})
        if each.timed
        else each
        for each in read.benchmarks
    ]
    doctored = read.model_copy(update={"benchmarks": blank, "verdict": "pass", "exit_code": 0})
    assert judge(doctored) == slower


def test_what_is_better_is_said_and_what_the_base_lacks_is_not_compared(tmp_path: Path) -> None:
    record = gate(tmp_path, "COST_US = 90.0\nOPERATIONS = 990", base="del MORE")
    assert record.exit_code == 0
    assert verdicts(record) == {"toy/work": "pass", "toy/more": "not run", "toy/counted": "pass"}
    assert benchmark(record, "toy/work").improved
    assert benchmark(record, "toy/work").reason.startswith("faster")
    operations = {each.benchmark: each for each in record.counters if each.name == "operations"}
    assert operations["toy/counted"].change == pytest.approx(-0.01)
    assert operations["toy/more"].verdict == "not there"


def test_outputs_that_differ_end_the_run_before_anything_is_timed(tmp_path: Path) -> None:
    record = gate(tmp_path, "ANSWER = [1, 2, 4]\nCOST_US = 200.0")
    assert (record.verdict, record.exit_code) == ("outputs differ", 5)
    assert record.launches == []
    assert "3 at base, 4 at head" in record.reason


def test_counters_within_their_limit_are_worse_and_do_not_fail(tmp_path: Path) -> None:
    limits = {"toy/*:operations": 0.02}
    record = gate(tmp_path, "OPERATIONS = 1010", benchmarks=("counted",), limits=limits)
    assert record.exit_code == 0
    (operations,) = (each for each in record.counters if each.name == "operations")
    assert (operations.verdict, operations.change) == ("worse", pytest.approx(0.01))


@pytest.mark.parametrize("keep_going", [False, True])
def test_worse_counters_decide_without_timing_unless_asked_to_go_on(
    tmp_path: Path, *, keep_going: bool
) -> None:
    record = gate(tmp_path, "OPERATIONS = 1001", keep_going=keep_going, benchmarks=WORK)
    assert (record.exit_code, len(record.launches)) == (1, 5 if keep_going else 0)
    assert "operations 1,000 -> 1,001" in benchmark(record, "toy/work").reason


def works(line: str) -> str:
    return f"\nimport os, signal, time\ndef work(clock, name):\n    {line}"


BROKEN = {
    "raises": ("base", works("return 1 // 0"), "raised ZeroDivisionError"),
    "raises now and then": (
        "head",
        "import os\nCOST_US = 100.0 if os.environ['PYTHONHASHSEED'] == '0' else None",
        "TypeError",
    ),
    "dies": ("head", works("os.kill(os.getpid(), signal.SIGKILL)"), "was killed by SIGKILL"),
    "exits": ("base", works("os._exit(0)"), "ended with code 0"),
    "hangs": ("head", works("time.sleep(60)"), "gave no answer within 3 s"),
    "lacks": ("head", "del MORE", "has no paged.toy:MORE"),
    "is broken": ("head", "raise ValueError('no such luck')", "ValueError: no such luck"),
    "is empty": ("base", "del MORE, work", "nothing was compared"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_side_that_breaks_is_no_verdict(tmp_path: Path, how: str) -> None:
    side, change, said = BROKEN[how]
    base, head = (change if each == side else "" for each in ("base", "head"))
    limit_s = 3.0 if how == "hangs" else 20.0
    record = gate(tmp_path, head, base=base, answer_limit_s=limit_s)
    assert (record.verdict, record.exit_code) == ("harness failed", 4)
    assert said in record.reason
    assert side in record.reason


def test_a_tree_that_does_not_import_is_no_verdict(tmp_path: Path) -> None:
    head = gate_toys.tree(tmp_path, "head", bench="raise ValueError('bad')")
    record = run_gate(gate_toys.plan(gate_toys.tree(tmp_path, "base"), head))
    assert (record.verdict, record.exit_code) == ("harness failed", 4)
    assert "head" in record.reason
    assert "ValueError: bad" in record.reason


def test_what_is_not_there_is_the_users_to_mend(tmp_path: Path) -> None:
    base, head = gate_toys.tree(tmp_path, "base"), gate_toys.tree(tmp_path, "head")
    plan = gate_toys.plan(base, head)
    no_python = replace(plan.head, python=str(tmp_path / "no-python"))
    for wrong, words in (
        (replace(plan, benchmarks=("nothing-like-it",)), "nothing-like-it"),
        (gate_toys.plan(tmp_path / "nowhere", head), "neither a commit"),
        (replace(plan, head=no_python), "no interpreter there"),
    ):
        with pytest.raises(BadInput, match=words):
            run_gate(wrong)


def test_a_room_that_the_tree_lacks_is_not_taken_from_elsewhere(tmp_path: Path) -> None:
    # This checkout has it, and may be installed: the tree must not seem to have it as well.
    suite, room = tmp_path / "suite.py", '"reference.attention.problem:AttentionProblem"'
    suite.write_text(Path(gate_toys.SUITE).read_text().replace('"paged.toy:MORE"', room))
    record = gate(tmp_path, suite=str(suite))
    assert record.exit_code == 4
    assert "has no reference.attention.problem" in record.reason


def test_planted_work_is_found_and_is_as_much_as_was_asked_for(tmp_path: Path) -> None:
    record = gate(tmp_path, plant=0.05, mode="plant", benchmarks=WORK)
    assert record.exit_code == 1
    work = benchmark(record, "toy/work")
    assert work.number == 20
    assert work.estimate is not None
    assert work.estimate.ratio == pytest.approx(1.05, abs=0.015)
    assert record.parameters.plant == 0.05


def test_a_tree_against_itself_says_what_can_be_seen_here(tmp_path: Path) -> None:
    tree = gate_toys.tree(tmp_path, "base", "import os\nNAME = str(os.getpid())")
    design = Design(alpha=0.05, looks=(6, 8), confirm_looks=(5,))
    record = run_gate(gate_toys.plan(tree, tree, mode="aa", design=design))
    assert len(record.launches) >= 8, "noise takes all launches, decided or not"
    noise = {each.benchmark: each for each in record.noise}
    assert set(noise) == {"toy/work", "toy/more"}
    for each in noise.values():
        assert 0.001 < each.launch_sd < 0.03
        assert each.found["0.1"] == 1.0
        assert each.found["0"] < 0.05
        assert each.detectable is not None
        assert 0.01 <= each.detectable <= 0.1


def test_a_runner_that_is_too_noisy_is_said_to_be(tmp_path: Path) -> None:
    design = Design(alpha=0.05, looks=(6, 7), confirm_looks=(5,))
    record = gate(tmp_path, "SPREAD = 0.2", design=design, seed=3, benchmarks=WORK)
    work = benchmark(record, "toy/work")
    assert (work.verdict, work.quarantined) == ("inconclusive", True)
    assert work.launch_sd is not None
    assert work.launch_sd > 0.05
    assert (record.verdict, record.exit_code) == ("inconclusive", 3)


def test_a_run_out_of_time_is_inconclusive(tmp_path: Path) -> None:
    record = gate(tmp_path, time_limit_s=0.0, benchmarks=WORK)
    assert (record.launches, record.complete) == ([], False)
    assert record.exit_code == 3, "what was not timed has not passed"


class StopAfter:
    """Progress that interrupts after so many benchmarks of launches."""

    def __init__(self, stop: threading.Event, count: int) -> None:
        self._stop, self._left, self._timing = stop, count, False

    def begin(self, what: str, total: int) -> None:
        self._timing = what.startswith("launches")

    def advance(self, count: int) -> None:
        if self._timing:
            self._left -= count
            if not self._left:
                self._stop.set()

    def __enter__(self) -> "StopAfter":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_an_interrupted_run_keeps_what_was_measured(tmp_path: Path) -> None:
    stop = threading.Event()
    record = gate(tmp_path, stop=stop, progress=StopAfter(stop, 3))
    assert (record.verdict, record.exit_code) == ("interrupted", 130)
    assert [len(launch.order) for launch in record.launches] == [2, 1]
    assert sum(len(each.samples) for each in record.benchmarks) == 3
