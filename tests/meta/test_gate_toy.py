"""The gate in a stranger's repository: eight commits, each ended as it should be, and named.

Real kernels, a real compiler, real processes; `helpers.toy_repository` has what each commit does.
What the gate says by the machine's own clock is tried by hand: studies/gate_toy.py.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.command.project import read_project
from bench.gate.contestant import Contestant
from bench.gate.record import GateRecord, TruthRecord
from bench.gate.report.annotations import workflow_commands
from bench.gate.report.junit import junit
from bench.gate.report.markdown import markdown
from bench.gate.report.terminal import show
from bench.gate.run import GatePlan, run_gate
from helpers import gate_toys, toy_repository
from reference.errors import BadInput
from subjects.interpreters import ENVIRONMENTS_VARIABLE

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_repository.make(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def places(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made; none of them, no worktree and no process may stay."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv(ENVIRONMENTS_VARIABLE, str(repository.parent / "environments"))
    yield folder
    assert list(folder.glob("pagedbench-*")) == []
    assert toy_repository.git(repository, "worktree", "list").count("\n") == 1
    running = subprocess.run(["ps", "axo", "args"], capture_output=True, text=True, check=True)
    assert str(folder) not in running.stdout


def gate(repository: Path, head: str, *benchmarks: str, **options: Any) -> GateRecord:
    project = read_project(repository / "pyproject.toml")
    plan = {
        "base": Contestant(asked="main"),
        "head": Contestant(asked=head),
        "project": project,
        "benchmarks": benchmarks,
        "design": gate_toys.QUICK,
        "pairs": 4,
        "compiled": False,
        **options,
    }
    return run_gate(GatePlan(**plan))


def truth(record: GateRecord) -> TruthRecord:
    (found,) = record.truth
    return found


def failing(record: GateRecord) -> dict[str, float | None]:
    return {each.name: each.change for each in record.counters if each.fails}


def test_wrong_numbers_and_a_lost_mask_are_wrong_before_anything_is_timed(repository: Path) -> None:
    record = gate(repository, "lost-mask", "_kernel")
    assert (record.verdict, record.exit_code, record.launches) == ("wrong", 1, [])
    found = {each.subject: each for each in record.truth}
    numbers, mask = (found[f"toy.{name}_kernel:attention"] for name in ("torch", "triton"))
    assert (numbers.base.verdict, mask.base.verdict) == ("right", "right")
    assert numbers.head.check == "truth"
    assert "base is right" in record.reason
    replay = "pagedbench check --kernel toy.torch_kernel:attention"
    assert numbers.head.replay.startswith(replay)
    for report in (markdown(record), junit(record), workflow_commands(record)):
        assert "pagedbench check --kernel" in report
    assert mask.head.check == "memory", "no number shows it"
    assert "key_cache" in mask.head.finding


def test_one_per_cent_more_bytes_are_named(repository: Path) -> None:
    record = gate(repository, "more-bytes", "triton_kernel")
    assert (record.verdict, record.exit_code, record.launches) == ("fail", 1, []), record.reason
    assert failing(record)["loaded.key_cache"] == pytest.approx(0.01)
    assert truth(record).head.verdict == "right"
    assert not record.benchmarks[0].timed, "it is interpreted here"


def test_a_leak_is_wrong(repository: Path) -> None:
    record = gate(repository, "leak", "toy.pool")
    assert (record.verdict, record.exit_code) == ("wrong", 1)
    found = truth(record)
    assert (found.kind, found.base.verdict) == ("allocator", "right")
    assert found.head.check == "conservation"
    saved = [word for word in found.head.replay.split() if word.endswith(".json")]
    assert Path(saved[0]).is_file(), "what replays it is kept"
    shutil.rmtree(repository / ".pagedbench")


def test_a_base_that_does_not_import_is_said_and_head_is_judged(repository: Path) -> None:
    mended = gate(repository, "main", "toy.pool", base=Contestant(asked="no-import"))
    assert (mended.verdict, mended.exit_code) == ("pass", 0)
    assert (truth(mended).base.verdict, truth(mended).head.verdict) == ("not checked", "right")
    assert "SyntaxError" in mended.benchmarks[0].reason
    for said in (mended.benchmarks[0].reason, truth(mended).base.finding):
        assert "pagedbench-gate-" not in said, "a folder that is gone by now"
    assert "\n" not in mended.benchmarks[0].reason


def test_a_build_that_fails_is_a_finding_about_head_alone(repository: Path) -> None:
    record = gate(repository, "no-build")
    assert (record.verdict, record.exit_code) == ("fails to build", 1)
    (base, head) = record.builds
    assert (base.failed, head.failed) == (False, True)
    assert "error" in head.said
    assert Path(head.log).read_text().strip().endswith("ended with code 1")
    for report in (markdown(record), junit(record)):
        assert "blocks.c" in report
    shutil.rmtree(repository / ".pagedbench")
    turned = gate(repository, "main", base=Contestant(asked="no-build"))
    assert (turned.verdict, turned.exit_code) == ("harness failed", 4)
    assert "base does not build" in turned.reason
    neither = gate(repository, "no-build", base=Contestant(asked="no-build"))
    assert "neither side builds" in neither.reason
    console = Console(width=200)
    with console.capture() as shown:
        show(neither, console)
    for said in ("base does not build", "head does not build", "\ntoy/blocks.c"):
        assert said in shown.get()
    assert "never started" not in shown.get()
    shutil.rmtree(repository / ".pagedbench")


# A clock of lines that Python runs, in the gate's workers: what differs by time then always does.
LINES = """
import sys, time

lines = 0

def count(frame, event, argument):
    global lines
    lines += event == "line"
    return count

def clock():
    sys.settrace(count)
    return lines * 1e-6

if any("bench.gate.worker" in word for word in sys.orig_argv):
    time.process_time = clock
    time.perf_counter_ns = lambda: round(clock() * 1e9)
"""


@pytest.fixture
def clock_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(LINES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.usefixtures("clock_of_lines")
def test_work_that_no_counter_shows_is_found_by_time(repository: Path) -> None:
    record = gate(repository, "slower", "toy.pool")
    assert (record.verdict, record.exit_code) == ("fail", 1)
    assert {each.verdict for each in record.counters} == {"equal"}
    assert record.benchmarks[0].suspect
    assert truth(record).head.verdict == "right"


# Of a toy suite it is asked in every run: tests/unit/bench/gate/test_engine.py.
@pytest.mark.long
@pytest.mark.usefixtures("clock_of_lines")
def test_unchanged_passes(repository: Path) -> None:
    record = gate(repository, "unchanged", "torch_kernel", "toy.pool")
    assert (record.verdict, record.exit_code) == ("pass", 0), record.reason
    assert {each.verdict for each in record.outputs} == {"equal"}
    assert {each.verdict for each in record.counters} == {"equal"}
    assert [each.timed for each in record.benchmarks] == [True, True]


def test_a_point_that_is_none_is_the_users_to_mend(repository: Path) -> None:
    project = read_project(repository / "pyproject.toml")
    assert project is not None
    for change in ({"points": ("nonsense",)}, {"streams": ("no-such:3",)}):
        with pytest.raises(BadInput):
            gate(repository, "main", project=project.model_copy(update=change))
