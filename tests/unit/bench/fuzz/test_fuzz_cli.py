"""`pagedbench fuzz` as it is typed: exit codes, what is printed, and the files that are left."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from bench import cli
from bench.fuzz.pytest_file import pytest_file
from bench.fuzz.record import (
    FindingRecord,
    FuzzRecord,
    Subject,
    read_trace,
    slug,
)
from helpers.places import COMMAND, ROOT
from helpers.traces import EVERYTHING, a_trace
from reference.allocator.contract import HOSTILE_CALLS
from reference.allocator.programs import Program, Step
from reference.errors import BadInput

# {} stands for what is wrong with it: a class body, and what is done when one is made.
ALLOCATOR = """
import pathlib

from paged.allocator import PagedAllocator
from paged.subject import PagedSubject, paged_allocator

made = 0

class Mine(PagedSubject):
    {}

def make(num_blocks, block_size, *, prefix_caching, window):
    global made
    made += 1
    {}
    allocator = PagedAllocator(num_blocks, block_size, prefix_caching=prefix_caching)
    return Mine(allocator, window=window)

make.capabilities = paged_allocator.capabilities
make.version = "mine 1.0"
"""

RIGHT = "right = True"
NO_FORKS = "fork = lambda self, parent, child: False"


def written(folder: Path, mistake: str = RIGHT, does: str = "pass") -> None:
    (folder / "mine.py").write_text(ALLOCATOR.format(mistake, does))


def typed(*arguments: str, folder: Path | None = None) -> Result:
    """Run the command in this process."""
    with chdir(folder or Path.cwd()):
        return CliRunner().invoke(cli.app, ["fuzz", *arguments], prog_name="pagedbench")


@pytest.fixture(autouse=True)
def somewhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@dataclass
class Run:
    folder: Path
    result: Result
    record: FuzzRecord

    @property
    def stdout(self) -> str:
        return self.result.stdout

    @property
    def finding(self) -> FindingRecord:
        (finding,) = self.record.findings
        return finding


def fuzzed(folder: Path, *arguments: str) -> Run:
    result = typed(*arguments, "--json", "record.json", folder=folder)
    assert (folder / "record.json").exists(), result.output
    record = FuzzRecord.model_validate_json((folder / "record.json").read_text())
    assert result.exit_code == record.exit_code, result.output
    return Run(folder, result, record)


MINE = ("--allocator", "mine.py:make", "--seed", "1", "--steps", "12")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("wrong")
    written(folder, NO_FORKS)
    return fuzzed(folder, *MINE, "--examples", "150")


@pytest.fixture
def copied(wrong: Run, tmp_path: Path) -> Path:
    """What the wrong run left behind, to be changed."""
    return shutil.copytree(wrong.folder, tmp_path / "copy")


# 0: no finding


def test_ours_exits_0_and_says_what_was_done(tmp_path: Path) -> None:
    run = fuzzed(tmp_path, "--examples", "60", "--seed", "7")
    assert (run.record.exit_code, run.record.verdict) == (0, "no finding")
    assert (run.record.examples, run.record.asked_examples) == (60, 60)
    assert (run.record.seed, run.record.asked_seconds) == (7, None)
    assert run.record.allocator == Subject(name="paged")
    assert run.record.steps == sum(run.record.calls.values()) - run.record.calls.get("copy", 0)
    assert run.record.findings == run.record.known == run.record.not_asked == []
    assert run.record.checks["content"] == "passed"
    assert run.record.checks["swap"].startswith("not run: ")
    assert re.search(r"^paged: 60 programs, [\d,]+ steps in \d+\.\d s, ", run.stdout, re.M)
    assert "no finding, seed 7, exit code 0" in run.stdout
    assert "content" in run.stdout
    assert re.search(r"^not run +swap", run.stdout, re.M)
    assert not (tmp_path / ".pagedbench" / "findings").exists()


def test_what_is_fixed_is_not_drawn(tmp_path: Path) -> None:
    pool = 'f"{num_blocks} {block_size} {prefix_caching}\\n"'
    written(tmp_path, does=f'with open("pools", "a") as file: file.write({pool})')
    options = ("--block-size", "4", "--block-size", "8", "--num-blocks", "9", "--no-prefix-caching")
    assert fuzzed(tmp_path, *MINE, *options, "--examples", "40").record.exit_code == 0
    pools = set((tmp_path / "pools").read_text().splitlines())
    assert pools == {"9 4 False", "9 8 False"}


def test_time_alone_is_a_budget_and_a_seed_that_is_not_given_is_printed(tmp_path: Path) -> None:
    run = fuzzed(tmp_path, "--time", "0.1", "--in-process")
    assert (run.record.asked_examples, run.record.asked_seconds) == (None, 0.1)
    assert run.record.verdict == "no finding"
    assert run.record.examples >= 1
    assert f"seed {run.record.seed}, exit code 0" in run.stdout


# 1: wrong


def test_a_wrong_one_exits_1_with_a_small_program(wrong: Run) -> None:
    assert (wrong.record.exit_code, wrong.record.verdict) == (1, "wrong")
    assert wrong.record.examples == 150  # the search went on
    assert wrong.record.allocator == Subject(name="mine.py:make", version="mine 1.0")
    assert wrong.record.checks["refusal"] == "failed"
    trace = wrong.finding.trace
    assert [step.call for step in trace.program.steps] == ["admit", "fork"]
    assert (trace.check, trace.at_the_end, trace.repeats) == ("refusal", False, True)
    assert re.match(r"a fork refused: they take at most \d blocks", trace.message)
    for line in (
        "refusal: Nothing is refused while the blocks that are free or idle would do.",
        *(f"  {line}" for line in str(trace.program).splitlines()),
        f"    {trace.message}",
        f"  replay: {wrong.finding.replay}",
        f"  pytest: {wrong.finding.pytest_file}",
    ):
        assert line in wrong.stdout.splitlines(), line
    assert "1 finding, seed 1, exit code 1" in wrong.stdout


def test_the_finding_is_saved_with_a_test(wrong: Run) -> None:
    finding = wrong.finding
    assert read_trace(wrong.folder / finding.saved_to) == finding.trace
    folder = wrong.folder / ".pagedbench" / "findings"
    name = slug(finding.trace)
    assert re.fullmatch(r"mine-make-refusal-[0-9a-f]{8}", name)
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{name}.json",
        f"test_{name.replace('-', '_')}.py",
    ]
    assert any((wrong.folder / ".pagedbench" / "examples").rglob("*"))


@pytest.mark.parametrize(
    ("mistake", "options", "code", "words"),
    [
        (NO_FORKS, (), 1, ("mine.py:make: refusal, as it was found", "still shows it")),
        (RIGHT, (), 0, ("shows nothing any more",)),
        (
            "counts = lambda self: (0, 0, 0)",
            (),
            1,
            ("shows something else", "an empty pool shows 0 free"),
        ),
        (NO_FORKS, ("--allocator", "paged", "--in-process"), 0, ()),
    ],
)
def test_a_replay_says_whether_the_finding_shows(
    wrong: Run,
    copied: Path,
    mistake: str,
    options: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
) -> None:
    _, _, *arguments = shlex.split(wrong.finding.replay)
    written(copied, mistake)
    again = typed(*arguments, *options, folder=copied)
    assert again.exit_code == code, again.output
    assert all(each in again.stdout for each in words)


def test_the_generated_test_fails_with_the_finding_until_it_is_mended(
    wrong: Run, copied: Path
) -> None:
    (copied / "none.ini").write_text("[pytest]\n")
    failed = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-W", "error", "--rootdir", ".", "-c", "none.ini", wrong.finding.pytest_file),
        ],
        cwd=copied,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert wrong.finding.trace.message in failed.stdout
    assert "fork" in failed.stdout
    written(copied)
    with chdir(copied):
        module = run_as_a_module(Path(wrong.finding.pytest_file).read_text())
        next(value for name, value in module.items() if name.startswith("test_"))()


def test_findings_that_are_known_are_not_looked_for(copied: Path) -> None:
    options = (*MINE, "--examples", "60", "--database", "none")
    run = fuzzed(copied, *options, "--known", ".pagedbench/findings")
    assert (run.record.verdict, run.record.findings) == ("no finding", [])
    (known,) = run.record.known
    assert (known.check, known.still_shows) == ("refusal", True)
    assert f"known    refusal: {known.file}" in run.stdout
    written(copied)
    mended = fuzzed(copied, *options, "--known", known.file)
    assert not mended.record.known[0].still_shows
    assert f"{known.file} does not fail refusal any more: remove it" in mended.stdout
    other = typed("--known", known.file, "--examples", "1", folder=copied)
    assert other.exit_code == 2
    assert f"{known.file}: a finding of mine.py:make, not of paged" in other.stderr


def test_a_crash_is_a_finding_like_any_other(tmp_path: Path) -> None:
    written(tmp_path, "fork = lambda self, parent, child: __import__('os').abort()")
    run = fuzzed(tmp_path, *MINE, "--examples", "60", "--findings", "1")
    trace = run.finding.trace
    assert (trace.check, trace.program.steps[-1].call) == ("died", "fork")
    assert trace.message.startswith("was killed by SIGABRT: ")
    assert len(trace.program.steps) == 2


def test_a_finding_is_shown_although_it_cannot_be_saved(tmp_path: Path) -> None:
    written(tmp_path, NO_FORKS)
    (tmp_path / "file").touch()
    run = fuzzed(
        tmp_path, *MINE, "--examples", "60", "--save", "file", "--database", "none", "--in-process"
    )
    assert run.record.exit_code == 1
    assert (run.finding.saved_to, run.finding.replay) == (None, None)
    assert "fork" in run.stdout
    assert "replay" not in run.stdout


# 4: the harness itself


def test_a_fault_of_ours_exits_4_and_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("bench.fuzz.campaign.run_campaign", broken)
    result = typed("--examples", "1", "--in-process")
    assert result.exit_code == 4
    assert "this says nothing about the allocator" in result.stderr


# 130: interrupted


@pytest.mark.parametrize(
    ("mistake", "number", "code", "words"),
    [
        (RIGHT, signal.SIGINT, 130, "incomplete, seed 1, exit code 130"),
        (NO_FORKS, signal.SIGTERM, 1, "1 finding, seed 1, exit code 1"),
    ],
)
def test_a_signal_reports_what_was_found(
    tmp_path: Path, mistake: str, number: signal.Signals, code: int, words: str
) -> None:
    # It takes far fewer programs than this to find it and to make it small.
    enough = 1 if mistake == RIGHT else 400
    written(tmp_path, mistake, does=f'made == {enough} and pathlib.Path("mark").touch()')
    options = ("--database", "none", "--time", "3600", "--json", "record.json")
    command = subprocess.Popen(
        [*COMMAND, "fuzz", *MINE, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with command:
        give_up = time.monotonic() + 120
        while not Path("mark").exists() and time.monotonic() < give_up:
            assert command.poll() is None, command.communicate()
            time.sleep(0.02)
        command.send_signal(number)
        stdout, stderr = command.communicate(timeout=120)
    assert command.returncode == code, stderr
    assert "stopping; what is done is reported" in stderr
    assert words in stdout
    record = FuzzRecord.model_validate_json(Path("record.json").read_text())
    assert (record.exit_code, record.examples >= 1) == (code, True)
    assert [Path(finding.saved_to).is_file() for finding in record.findings] == [True] * (code == 1)


# Traces


def run_as_a_module(text: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "generated"}
    exec(compile(text, "generated", "exec"), namespace)
    return namespace


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    trace = a_trace()
    (tmp_path / "trace.json").write_text(trace.to_json())
    assert read_trace(tmp_path / "trace.json") == trace
    text = trace.to_json()
    assert json.loads(text)["format"] == "pagedbench fuzz trace 1"
    assert "[0, 1, 2]" in text, "tokens lie in a row"
    assert '"parent": ""' not in text, "and what is not said is left out"


def test_another_format_is_no_trace(tmp_path: Path) -> None:
    text = a_trace().to_json().replace("trace 1", "trace 2")
    (tmp_path / "later.json").write_text(text)
    with pytest.raises(BadInput, match=r"later.json is no trace of a finding: format"):
        read_trace(tmp_path / "later.json")


def test_a_file_is_named_after_what_is_in_it() -> None:
    assert slug(a_trace()) == slug(a_trace(examples=1))
    other = Program(EVERYTHING.pool, (*EVERYTHING.steps[:-1], Step("free_unknown")))
    assert slug(a_trace()) != slug(a_trace(other))
    assert re.fullmatch(r"mine-make-content-[0-9a-f]{8}", slug(a_trace()))


def test_a_generated_test_says_the_program_and_nothing_that_is_as_by_default() -> None:
    text = pytest_file(a_trace())
    tree = ast.parse(text)
    assert "free_twice" in text
    assert "expected" in ast.get_docstring(tree)
    for line in (
        "Pool(num_blocks=3, block_size=2, prefix_caching=False, window=4, batching=True),",
        "Step('fork', 'b', parent='a'),",
        "Step('settle'),",
    ):
        assert line in text, line
    assert run_as_a_module(text)["PROGRAM"] == EVERYTHING
    assert "python='/opt/python'" in pytest_file(
        a_trace(allocator=Subject(name="m:f", engine_python="/opt/python"))
    )


def test_what_an_allocator_cannot_be_asked_is_in_the_record(tmp_path: Path) -> None:
    written(tmp_path)
    with (tmp_path / "mine.py").open("a") as file:
        file.write("make.capabilities = {'prefix_caching': True, 'hostile': ['free_twice']}\n")
    run = fuzzed(tmp_path, *MINE, "--examples", "5", "--in-process")
    assert run.record.not_asked == [call for call in HOSTILE_CALLS if call != "free_twice"]
    assert "not asked  free_unknown" in run.stdout
    assert run.record.checks["swap"] == "not run: no swap"
