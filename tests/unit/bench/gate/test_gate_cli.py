"""`pagedbench gate` as it is typed: exit codes, and what Ctrl-C leaves behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from bench import cli
from bench.commands.gate import percentage
from bench.gate.configuration import read_configuration
from bench.gate.record import GateRecord
from bench.gate.worker import SUITE_VARIABLE
from helpers import gate_toys
from helpers.places import COMMAND
from reference.errors import BadInput


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["gate", *arguments])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "BASE is missing"),
        (("--aa", "--plant", "3%"), "choose one"),
        (("HEAD", "--plant", "3"), "as in 3%"),
        (("--plant", "0%"), "above 0"),
        (("--aa", "HEAD", "HEAD~1"), "give no HEAD"),
        (("HEAD", "--json", "/no/such/folder/x.json"), "does not exist"),
        (("HEAD", "--config", "/no/such/folder/x.toml"), "does not exist"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: tuple[str, ...], words: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.output


def test_the_suite_is_listed() -> None:
    result = invoke("--list", "--benchmark", "allocator")
    assert result.exit_code == 0
    starts = [line.partition("/")[0] for line in result.stdout.splitlines()]
    assert starts == ["allocator"] * 8


def test_a_subject_that_is_gone_is_marked_in_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SUITE_VARIABLE, raising=False)
    (tmp_path / "here.py").write_text("")
    table = '[tool.pagedbench]\nallocators = ["here:make", "gone:make"]\n'
    (tmp_path / "pyproject.toml").write_text(table)
    result = invoke("--list")
    assert [line.split()[:2][1] for line in result.stdout.splitlines()] == ["timed", "missing"]


def test_a_percentage_is_read_as_one() -> None:
    assert (percentage("3%"), percentage(" 12.5 % ")) == (0.03, 0.125)
    for text in ("3", "-3%", "101%", "three"):
        with pytest.raises(BadInput, match="as in 3%"):
            percentage(text)


def test_limits_and_margins_are_read_from_toml(tmp_path: Path) -> None:
    file, project = tmp_path / "gate.toml", tmp_path / "pyproject.toml"
    file.write_text('margin = 0.02\nequivalence = 0.05\n[limits]\n"waste/*:peak_slots" = 0.1\n')
    project.write_text("[tool.pagedbench.gate.limits]\ncalls = 0.5\n")
    for settings, margin, limits in (
        (read_configuration(file), 0.02, {"waste/*:peak_slots": 0.1}),
        (read_configuration(project), 0.01, {"calls": 0.5}),
    ):
        assert (settings.design().margin, settings.limits) == (margin, limits)
    for wrong in ("margin = 0.05", "marign = 0.1", "margin = ", "margin = -1"):
        file.write_text(wrong)
        with pytest.raises(BadInput, match=r"margin 0\.05 and equivalence 0\.03|gate\.toml"):
            read_configuration(file).design()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary trees are made; the project has no subjects, its suite is the toy suite."""
    folder = tmp_path / "places"
    folder.mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.pagedbench]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv(SUITE_VARIABLE, gate_toys.SUITE)
    return folder


def test_the_exit_code_of_the_command_is_that_of_the_run(tmp_path: Path, places: Path) -> None:
    base = gate_toys.tree(tmp_path, "base")
    head = gate_toys.tree(tmp_path, "head", "ANSWER = [3, 2, 1]")
    file = tmp_path / "gate.json"
    result = invoke(str(base), str(head), "--json", str(file))
    assert result.exit_code == 5, result.output
    record = GateRecord.model_validate_json(file.read_text())
    assert record.exit_code == 5
    assert "outputs and counters: 3 of 3" in result.stderr, "progress is shown in a log, too"
    assert list(places.iterdir()) == []


def two_children(parent: int, *, other_than: set[int]) -> set[int]:
    """Wait for two processes that it started, not of the last launch."""
    table = ["ps", "-o", "pid=", "--ppid", str(parent)]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        said = subprocess.run(table, capture_output=True, text=True, check=False).stdout
        found = set(map(int, said.split())) - other_than
        if len(found) == 2:
            return found
        time.sleep(0.02)
    raise AssertionError(f"no two processes but {other_than} within a minute")


def test_an_interrupted_run_leaves_no_worker_and_no_tree(tmp_path: Path, places: Path) -> None:
    slow = "import time\ndef work(clock, name):\n    clock.spend(COST_US)\n    time.sleep(0.002)"
    trees = [str(gate_toys.tree(tmp_path, name, slow)) for name in ("base", "head")]
    file = tmp_path / "gate.json"
    command = [*COMMAND, "gate", *trees, "--json", str(file), "--benchmark", "toy/work"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stderr is not None
        try:
            for line in run.stderr:
                if line.startswith("after 0 launches"):
                    break
            of_the_first = two_children(run.pid, other_than=set())
            workers = two_children(run.pid, other_than=of_the_first)
            assert list(places.glob("pagedbench-gate-*"))
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=60)
        except BaseException:
            run.kill()  # or it is waited for until its own time is up, nine minutes
            raise
    assert run.returncode == 130
    assert list(places.iterdir()) == []
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    record = GateRecord.model_validate_json(file.read_text())
    assert record.verdict == "interrupted"
    assert len(record.benchmarks[0].samples) >= 1, "what was measured is kept"
