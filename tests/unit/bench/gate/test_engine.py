"""Whole runs of the gate on toy trees: every verdict, and every way in which a side can break."""

import json
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


def gate(folder: Path, change: str = "", *, base: str = "", **options: Any) -> GateRecord:
    """Gate a toy tree against one with a change."""
    trees = gate_toys.tree(folder, "base", base), gate_toys.tree(folder, "head", change)
    return run_gate(gate_toys.plan(*trees, **options))


def verdicts(record: GateRecord) -> dict[str, str]:
    return {each.key: each.verdict for each in record.benchmarks}


def benchmark(record: GateRecord, key: str) -> BenchmarkRecord:
    return next(each for each in record.benchmarks if each.key == key)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary trees are made, to see that none stays."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_identical_trees_pass_and_nothing_is_left_behind(tmp_path: Path, places: Path) -> None:
    record = gate(tmp_path)
    assert (record.verdict, record.exit_code, record.complete) == ("pass", 0, True)
    assert set(verdicts(record).values()) == {"pass"}
    assert {each.verdict for each in record.outputs} == {"equal"}
    assert {each.verdict for each in record.counters} == {"equal"}
    assert list(places.iterdir()) == []
    work = benchmark(record, "toy/work")
    assert len(work.samples) == len(record.launches) == 5
    # A turn is a millisecond of calls of 100 microseconds, and the clock is made of those.
    assert work.number == pytest.approx(10, abs=1)
    assert work.samples[0].base_s == pytest.approx(100e-6, rel=0.05)
    assert benchmark(record, "toy/counted").samples == []


def test_a_record_alone_gives_the_same_verdicts(tmp_path: Path) -> None:
    record = gate(tmp_path, "COST_US = 105.0")
    assert record.exit_code == 1
    read = GateRecord.model_validate_json(record.model_dump_json())
    assert read == record
    blank = [
        each.model_copy(update={"verdict": "pass", "reason": "", "looks": [], "p_value": None})
        if each.timed
        else each
        for each in read.benchmarks
    ]
    doctored = read.model_copy(update={"benchmarks": blank, "verdict": "pass", "exit_code": 0})
    assert judge(doctored) == record


def test_a_slowdown_fails_once_fresh_launches_confirm_it(tmp_path: Path) -> None:
    record = gate(tmp_path, "COST_US = 105.0")
    assert (record.verdict, record.exit_code) == ("fail", 1)
    work = benchmark(record, "toy/work")
    assert [sample.stage for sample in work.samples] == ["screen"] * 5 + ["confirm"] * 5
    assert work.estimate is not None
    assert work.estimate.ratio == pytest.approx(1.05, abs=0.015)
    assert work.suspect
    assert "confirmed by 5 fresh launches" in work.reason


def test_a_speed_up_is_said_and_passes(tmp_path: Path) -> None:
    record = gate(tmp_path, "COST_US = 90.0")
    assert record.exit_code == 0
    assert benchmark(record, "toy/work").improved
    assert benchmark(record, "toy/work").reason.startswith("faster")


def test_waiting_is_seen_though_it_takes_no_cpu_time(tmp_path: Path) -> None:
    waits = "clock.wait(50.0 if {} else 0.0)"
    both = "\ndef work(clock, name):\n    clock.spend(COST_US)\n    " + waits
    record = gate(tmp_path, both.format("True"), base=both.format("False"))
    assert (record.verdict, record.exit_code) == ("fail", 1)
    assert "wall-clock" in benchmark(record, "toy/work").reason


def test_outputs_that_differ_end_the_run_before_anything_is_timed(tmp_path: Path) -> None:
    record = gate(tmp_path, "ANSWER = [1, 2, 4]\nCOST_US = 200.0")
    assert (record.verdict, record.exit_code) == ("outputs differ", 5)
    assert record.launches == []
    assert "3 at base, 4 at head" in record.reason


@pytest.mark.parametrize(("operations", "code"), [(1010, 1), (1001, 1), (1000, 0), (990, 0)])
def test_counters_are_exact(tmp_path: Path, operations: int, code: int) -> None:
    record = gate(tmp_path, f"OPERATIONS = {operations}", benchmarks=("toy/counted",))
    assert record.exit_code == code
    counted = next(each for each in record.counters if each.name == "operations")
    assert counted.change == pytest.approx((operations - 1000) / 1000)


def test_counters_within_their_limit_are_worse_and_do_not_fail(tmp_path: Path) -> None:
    record = gate(
        tmp_path, "OPERATIONS = 1010", benchmarks=("counted",), limits={"toy/*:operations": 0.02}
    )
    assert record.exit_code == 0
    assert [each.verdict for each in record.counters if each.name == "operations"] == ["worse"]


def test_worse_counters_decide_without_timing_unless_asked_to_go_on(tmp_path: Path) -> None:
    record = gate(tmp_path, "OPERATIONS = 1001")
    assert (record.exit_code, record.launches) == (1, [])
    assert "operations 1,000 -> 1,001" in benchmark(record, "toy/work").reason
    record = gate(tmp_path / "again", "OPERATIONS = 1001", keep_going=True)
    assert record.exit_code == 1
    assert len(record.launches) == 5


BROKEN = {
    "does not import": ("", "raise ValueError('no such luck')", "ValueError: no such luck"),
    "raises": ("def work(clock, name):\n    return 1 // 0", "", "raised ZeroDivisionError"),
    "dies": (
        "def work(clock, name):\n    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)",
        "",
        "was killed by SIGKILL",
    ),
    "exits": ("def work(clock, name):\n    import os\n    os._exit(0)", "", "ended with code 0"),
    "hangs": (
        "def work(clock, name):\n    import time\n    time.sleep(60)",
        "",
        "gave no answer within 5 s",
    ),
}


@pytest.mark.parametrize("side", ["base", "head"])
@pytest.mark.parametrize("how", BROKEN)
def test_a_side_that_breaks_is_no_verdict(
    tmp_path: Path, places: Path, how: str, side: str
) -> None:
    toy, bench, said = BROKEN[how]
    trees = {
        name: gate_toys.tree(tmp_path, name, toy if name == side else "", **files)
        for name, files in {
            "base": {"bench": bench} if side == "base" else {},
            "head": {"bench": bench} if side == "head" else {},
        }.items()
    }
    record = run_gate(gate_toys.plan(*trees.values(), answer_limit_s=5.0))
    assert (record.verdict, record.exit_code) == ("harness failed", 4)
    assert said in record.reason
    assert side in record.reason
    assert list(places.iterdir()) == []


def test_a_benchmark_that_raises_only_now_and_then_is_no_verdict(tmp_path: Path) -> None:
    flaky = (
        "import os\ndef work(clock, name):\n    clock.spend(COST_US)\n"
        "    if int(os.environ['PYTHONHASHSEED']) and clock.cpu_ns > 3_000_000:\n"
        "        raise RuntimeError('now')"
    )
    record = gate(tmp_path, flaky, base=flaky.replace("'now'", "'now' * 0"))
    assert (record.verdict, record.exit_code) == ("harness failed", 4)
    assert "RuntimeError" in record.reason


def test_what_is_not_there_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing-like-it"):
        gate(tmp_path, benchmarks=("nothing-like-it",))
    with pytest.raises(BadInput, match="neither a commit"):
        run_gate(gate_toys.plan(tmp_path / "nowhere", tmp_path / "head"))


def test_what_the_base_lacks_is_not_compared(tmp_path: Path) -> None:
    record = gate(tmp_path, base="del MORE")
    assert record.exit_code == 0
    assert verdicts(record) == {"toy/work": "pass", "toy/more": "not run", "toy/counted": "pass"}
    assert {each.verdict for each in record.counters if each.benchmark == "toy/more"} == {
        "not there"
    }


def test_what_the_head_lacks_is_an_error_of_the_suite(tmp_path: Path) -> None:
    record = gate(tmp_path, "del MORE")
    assert record.exit_code == 4
    assert "has no paged.toy:MORE" in record.reason


def test_a_base_with_none_of_the_benchmarks_is_no_pass(tmp_path: Path) -> None:
    base = gate_toys.tree(tmp_path, "base")
    (base / "paged" / "toy.py").unlink()
    record = run_gate(gate_toys.plan(base, gate_toys.tree(tmp_path, "head")))
    assert (record.verdict, record.exit_code) == ("harness failed", 4)
    assert "nothing was compared" in record.reason


def test_a_room_that_the_tree_lacks_is_not_taken_from_elsewhere(tmp_path: Path) -> None:
    # This checkout has it, and may be installed: the tree must not seem to have it as well.
    suite = tmp_path / "suite.py"
    suite.write_text(
        Path(gate_toys.SUITE)
        .read_text()
        .replace('"paged.toy:MORE"', '"reference.attention.problem:AttentionProblem"')
    )
    record = gate(tmp_path, suite=str(suite))
    assert record.exit_code == 4
    assert "has no reference.attention.problem" in record.reason


def test_planted_work_is_found_and_is_as_much_as_was_asked_for(tmp_path: Path) -> None:
    record = gate(tmp_path, plant=0.05, mode="plant")
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
    record = gate(tmp_path, "SPREAD = 0.2", design=design, seed=3)
    work = benchmark(record, "toy/work")
    assert (work.verdict, work.quarantined) == ("inconclusive", True)
    assert work.launch_sd is not None
    assert work.launch_sd > 0.05
    assert (record.verdict, record.exit_code) == ("inconclusive", 3)


def test_a_run_out_of_time_is_inconclusive(tmp_path: Path) -> None:
    record = gate(tmp_path, time_limit_s=0.0)
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


def test_an_interrupted_run_keeps_what_was_measured(tmp_path: Path, places: Path) -> None:
    stop = threading.Event()
    trees = gate_toys.tree(tmp_path, "base"), gate_toys.tree(tmp_path, "head")
    record = run_gate(gate_toys.plan(*trees), stop=stop, progress=StopAfter(stop, 5))
    assert (record.verdict, record.exit_code) == ("interrupted", 130)
    assert [len(launch.order) for launch in record.launches] == [2, 2, 1]
    assert sum(len(each.samples) for each in record.benchmarks) == 5
    assert list(places.iterdir()) == []


def test_files_that_change_during_the_run_change_nothing(tmp_path: Path) -> None:
    head = gate_toys.tree(tmp_path, "head")

    def spoil(_: str) -> None:
        (head / "paged" / "toy.py").write_text("raise SystemExit")

    record = run_gate(gate_toys.plan(gate_toys.tree(tmp_path, "base"), head), say=spoil)
    assert record.exit_code == 0


def test_everything_that_could_be_in_order_is_not(tmp_path: Path) -> None:
    """What the worker was asked, in which order, over some launches."""
    log = tmp_path / "log"
    note = (
        f"\nimport os\nwith open({str(log)!r}, 'a') as f:\n"
        "    f.write(f\"{os.environ['PYTHONHASHSEED']} {len(os.environ['PAGEDBENCH_PADDING'])} \""
        "\n            f\"{NAME} {os.environ['MALLOC_TRIM_THRESHOLD_']}\\n\")\n"
    ).replace("os.environ['PAGEDBENCH_PADDING']", "os.environ.get('PAGEDBENCH_PADDING', '')")
    record = gate(tmp_path, note, base=note)
    started = [line.split() for line in log.read_text().splitlines()]
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


def test_the_record_is_json_that_has_every_launch(tmp_path: Path) -> None:
    record = gate(tmp_path)
    said = json.loads(record.model_dump_json())
    assert said["schema_version"] == 1
    assert len(said["benchmarks"][0]["samples"]) == len(said["launches"]) == 5
    assert said["base"]["environment"]["timer"] == "process_time"
    assert said["base"]["environment"]["copy_gbs"] > 0


def test_a_contestant_may_have_its_own_interpreter(tmp_path: Path) -> None:
    """An interpreter that is a script: what it is started with is what it says."""
    base, head = gate_toys.tree(tmp_path, "base"), gate_toys.tree(tmp_path, "head")
    seen = tmp_path / "seen"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {seen}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    plan = gate_toys.plan(base, head)
    plan = replace(plan, head=replace(plan.head, python=str(python)))
    record = run_gate(plan)
    assert record.exit_code == 0
    assert record.head.python == str(python)
    assert len(seen.read_text().splitlines()) == 1 + len(record.launches)
    plan = replace(plan, head=replace(plan.head, python=str(tmp_path / "no-python")))
    with pytest.raises(BadInput, match="no interpreter there"):
        run_gate(plan)
