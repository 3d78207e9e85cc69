"""`pagedbench check` as it is typed: exit codes, what is printed where, and what is left behind."""

import os
import re
import shlex
import signal
import subprocess
import time
import uuid
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import bench.check.decode
from bench import cli
from bench.check import search as cross_check
from bench.check.record import CheckRecord
from helpers.check_scenarios import Kernel
from helpers.places import COMMAND, ROOT
from helpers.wrong_kernels import SHORT, named
from reference.attention.problem import AttentionProblem
from subjects import starting

KERNEL = """
from paged.attention import paged_attention

def attend(batch):
    paged_attention(batch)
    if batch.max_seq_len > 40:
        batch.out.mul_(1.01)
"""


def typed(*arguments: str, folder: Path | None = None):
    """Run the command in this process."""
    with chdir(folder or Path.cwd()):
        return CliRunner().invoke(cli.app, ["check", *arguments], prog_name="pagedbench")


@pytest.fixture(autouse=True)
def somewhere_else(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@dataclass
class Run:
    folder: Path
    result: object
    record: CheckRecord

    @property
    def stdout(self) -> str:
        return self.result.stdout


def checked(folder: Path, *arguments: str) -> Run:
    result = typed(*arguments, "--json", "record.json", "--lanes", "1", folder=folder)
    assert (folder / "record.json").exists(), result.output
    record = CheckRecord.model_validate_json((folder / "record.json").read_text())
    assert result.exit_code == record.exit_code, result.output
    return Run(folder, result, record)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "mine.py").write_text(KERNEL)
    return checked(folder, "--kernel", "mine.py:attend", "--problems", "30")


@pytest.fixture(scope="module")
def right(tmp_path_factory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        small = AttentionProblem.parse("2x(q1 k1) h1 g4 d16 b16 bf16")
        patch.setattr(bench.check.decode, "STEP", small)
        # With the machine's own cache so small a step takes thousands of inputs in turn.
        patch.setattr("bench.machine.timing.cpu_cache_bytes", lambda: 20_000)
        return checked(
            tmp_path_factory.mktemp("right"),
            *("--kernel", named("narrow"), "--problems", "9", "--seed", "3", "--max-len", "64"),
        )


# 1: wrong


def test_a_wrong_kernel_exits_1_with_a_small_problem_and_its_worst_row(wrong):
    assert wrong.record.exit_code == 1
    assert wrong.record.verdict == "wrong"
    failure = wrong.record.kernels[0].failure
    assert failure.check == "truth"
    assert failure.status == "failed"
    problem = AttentionProblem.parse(failure.problem)
    assert [(r.query_len, r.seq_len) for r in problem.requests] == [(1, SHORT + 1)]
    assert len(failure.problem) < len(failure.first_problem)
    row = r"out\[token 0, head 0\] is \S+, the truth is \S+: off by \S+, allowed \S+"
    assert re.search(row, failure.findings[0])
    printed = " ".join(wrong.stdout.replace("│", " ").split())
    for part in ("mine.py:attend is wrong", failure.problem, *failure.findings):
        assert part in printed
    assert re.search(r"mine\.py:attend +failed +truth: 1 finding in 30 problems *\n", wrong.stdout)
    assert "exit code 1" in wrong.stdout
    assert wrong.record.decode is None  # nobody times a wrong kernel


def test_the_printed_command_shows_the_same_failure(wrong):
    lines = wrong.stdout.splitlines()
    words = shlex.split(lines[lines.index("replay it:") + 1])
    failure = wrong.record.kernels[0].failure
    assert words == shlex.split(failure.replay)
    assert words[:2] == ["pagedbench", "check"]
    again = typed(*words[2:], folder=wrong.folder)
    assert again.exit_code == 1, again.stderr
    assert f"mine.py:attend on {failure.problem}" in again.stdout
    assert re.search(r"^truth +failed +out\[token 0, head 0\]", again.stdout, re.M)
    assert re.search(r"^repeated +passed", again.stdout, re.M)  # wrong in the same way each time
    assert (failure.findings[0].partition(",")[0]) in again.stdout


# 0: right


def test_a_right_kernel_exits_0_and_is_only_asked_for_what_it_declares(right):
    assert right.record.exit_code == 0
    assert right.record.verdict == "right"
    (kernel,) = right.record.kernels
    assert (kernel.problems, kernel.asked, kernel.complete, kernel.failure) == (9, 9, True, None)
    assert kernel.checks["memory"] == {"not run": 9}  # nobody can watch torch
    assert not {"shards", "without-lse"} & set(kernel.checks)  # it gives no log-sum-exp
    seen = [by_status for check, by_status in kernel.checks.items() if check != "memory"]
    assert {tuple(by_status) for by_status in seen} == {("passed",)}
    assert kernel.checks["truth"] == {"passed": 9}
    assert len(seen) > 1
    assert not (right.folder / ".pagedbench").exists()
    assert not (right.folder / ".hypothesis").exists()


def test_the_record_says_where_and_on_what_it_was_made(right):
    machine, stream = right.record.environment, right.record.stream
    assert torch.__version__.startswith(machine.torch)
    assert machine.triton[0].isdigit()
    assert machine.device == machine.cpu != ""
    assert machine.driver is None
    assert machine.threads == torch.get_num_threads()
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}", machine.commit)
        assert machine.dirty in {True, False}
    assert (right.record.seed, right.record.max_len) == (3, 64)
    assert (stream.name, stream.requests) == ("azure-conv", 2000)
    assert stream.mean_prompt_tokens > stream.mean_output_tokens > 0
    need = {memory.policy: memory for memory in right.record.memory}
    assert need["paged"].bytes_per_request < need["contiguous"].bytes_per_request
    assert need["paged"].requests_in_pool > need["contiguous"].requests_in_pool > 0
    assert need["paged"].token == need["contiguous"].token


def test_the_table_goes_to_standard_output_and_progress_to_standard_error(right):
    passed = right.record.kernels[0].count("passed")
    assert passed > 9
    assert re.search(rf"right +9 problems, {passed} checks *$", right.stdout, re.M)
    for words in ("decode time", "cache memory", "exit code 0"):
        assert words in right.stdout
    assert "problems by what they show" not in right.stdout  # it was not asked for
    assert re.search(
        r"coverage \d+/\d+, pairs \d+/\d+, memory not run", " ".join(right.stdout.split())
    )
    assert right.record.kernels[0].coverage
    # A slow step says more than one line; the last is that of its end.
    ends = r"(?s)(cross-checking \S+:narrow: .*)?cross-checking \S+:narrow: 9 of 9 in \d+ s\n"
    ends += r"(timing decode: .*)?timing decode: 11 of 11 in \d+ s\n"
    assert re.fullmatch(ends, right.result.stderr)
    assert "\x1b" not in right.result.output


# What is expected to fail, and what was shown


E5M2 = """
import torch
import triton
from numpy_of_theirs import factor
from paged.attention import paged_attention
from reference.attention.contract import Capabilities, declares

@declares(Capabilities(
    dtypes=frozenset({"bf16"}), kv_dtypes=frozenset({"e5m2"}), head_dims=frozenset({32}),
    block_sizes=frozenset({16}), variants=frozenset({"window"}),
))
def attend(batch):
    paged_attention(batch)
    if batch.key_cache.dtype == torch.float8_e5m2:
        batch.out.mul_(factor)
"""

EXPECTED = """
[[expected]]
kernel = "attend"
check = "truth"
when = ["kv_dtype=e5m2"]
reason = "https://example.org/issues/12"

[[expected]]
kernel = "mine.py:attend"
check = "repeated"
reason = "It adds up in another order each time."
"""


@pytest.fixture(scope="module")
def waived(tmp_path_factory) -> Run:
    """In a folder that has others named like ours, which do not matter."""
    folder = tmp_path_factory.mktemp("waived")
    for room in ("bench", "kernels", "paged", "reference", "subjects", "numpy_of_theirs"):
        (folder / room).mkdir()
        (folder / room / "__init__.py").write_text("raise ImportError('junk')")
    (folder / "numpy_of_theirs" / "__init__.py").write_text("factor = 1.5")
    (folder / "mine.py").write_text(E5M2)
    (folder / "expected.toml").write_text(EXPECTED)
    options = ("--problems", "30", "--no-timing", "--coverage", "--coverage-md", "coverage.md")
    return checked(folder, "--kernel", "mine.py:attend", "--expected", "expected.toml", *options)


def test_an_expected_failure_exits_0_and_is_shown_with_its_reason(waived):
    assert (waived.record.verdict, waived.record.exit_code) == ("as expected", 0)
    (kernel,) = waived.record.kernels
    assert (kernel.problems, kernel.failure) == (30, None)
    failing, stale = kernel.expected
    assert 1 < failing.failed <= failing.problems < 30  # a batch may have no row to get wrong
    assert failing.state == "failed as expected"
    assert stale.state == "no longer fails"
    assert waived.record.warnings == [stale.said]
    said = f"attend truth [kv_dtype=e5m2] fails {failing.failed} of {failing.problems} problems, "
    assert f"expected  {said}as expected: https://example.org/issues/12\n" in waived.stdout
    assert "warning   mine.py:attend repeated no longer fails: passed on " in waived.stdout
    assert re.search(r"^as expected in \d+ s, seed 0, exit code 0$", waived.stdout, re.M)
    assert not (waived.folder / ".pagedbench").exists()
    assert not (waived.folder / ".hypothesis").exists()


def test_a_replay_knows_what_is_expected(waived):
    problem = "(q1 k9) d32 b16 bf16 kv=e5m2"
    options = ("--kernel", "mine.py:attend", "--expected", "expected.toml")
    expected = typed(*options, "--problem", problem, folder=waived.folder)
    assert expected.exit_code == 0
    assert re.search(r"truth +failed as expected +out\[token 0", expected.stdout)


def test_coverage_is_printed_written_and_recorded_from_the_same_verdicts(waived):
    (kernel,) = waived.record.kernels
    rows = {row.feature: row.cells for row in kernel.coverage}
    assert rows["kv_dtype=e5m2"]["truth"].state == "failed as expected"
    assert rows["kv_dtype=same"]["truth"].state == "passed"
    assert rows["kv_dtype=e4m3"]["truth"].state == "not supported"
    assert rows["dtype=bf16"]["memory"].state == "not run"
    by_truth = rows["dtype=bf16"]["truth"].counts
    assert by_truth == kernel.checks["truth"]
    assert sum(by_truth.values()) == 30

    matrix = waived.stdout.partition("problems by what they show")[2]
    assert max(map(len, waived.stdout.partition("azure-conv")[0].splitlines())) <= 80
    failed = by_truth["failed as expected"]
    assert re.search(rf"^  bf16 +\? +~{failed} ", matrix, re.M)
    assert re.search(r"^  e4m3( +-)+$", matrix, re.M)
    markdown = (waived.folder / "coverage.md").read_text()
    assert f"| `dtype=bf16` | not run | **{failed}** of 30 failed as expected |" in markdown
    shown = kernel.cells("passed") + kernel.cells("failed as expected")
    pairs = f"pairs {kernel.pairs.met}/{kernel.pairs.asked}"
    summary = f"coverage {shown}/{shown + kernel.cells('not run')}, {pairs}, memory not run"
    assert summary in " ".join(waived.stdout.split())


# 2: nothing was checked; usage is in `commands/refused.txt`


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--problem", "(q1 k20) d32 b16 fp16"), "nothing was checked of torch"),
        (("--problems", "2", "--lanes", "1", "--no-timing"), "supports none of the 2 problems"),
    ],
)
def test_a_kernel_that_supports_nothing_it_is_asked_is_not_right(arguments, said, monkeypatch):
    kernel = Kernel(lambda *_: {"status": "not supported", "findings": ["dtype fp16"]})
    monkeypatch.setattr(cross_check, "start", kernel.start)
    result = typed("--kernel", "torch", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert "right" not in result.stdout
    assert ("truth" in result.stdout) == ("--problem" in arguments)


# 4: the harness


@pytest.mark.parametrize("arguments", [["--problems", "2"], ["--problem", "(q1 k1) d32 b16 bf16"]])
def test_a_worker_that_cannot_start_exits_4(arguments, monkeypatch, tmp_path):
    # A package without a worker: an empty folder would leave the one that is installed.
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").touch()
    monkeypatch.setattr(starting, "HOME", tmp_path)
    result = typed("--kernel", "torch", *arguments)
    assert result.exit_code == 4
    assert "the harness itself failed; this says nothing about the kernel" in result.stderr
    assert "No module named 'bench.check'" in result.stderr
    assert result.stdout == ""


# 130: interrupted


def left_behind(mark: str) -> list[Path]:
    """Processes with a mark in their environment; those that are being reaped have none."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environment.read_bytes():
                found.append(environment.parent)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_signal_reports_what_is_done_and_leaves_no_process(tmp_path):
    mark = f"PAGEDBENCH_TEST={uuid.uuid4()}"
    name, value = mark.split("=")
    hangs = tmp_path / "hangs"
    options = ("--kernel", named("hangs_after_a_while"), "--kernel", "torch", "--no-timing")
    command = subprocess.Popen(
        [*COMMAND, "check", *options, "--json", "record.json", "--lanes", "1"],
        env={**os.environ, name: value, "HANGS": str(hangs), "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    give_up = time.monotonic() + 120
    while not hangs.exists() and command.poll() is None and time.monotonic() < give_up:
        time.sleep(0.05)
    assert hangs.exists(), command.communicate()
    assert left_behind(mark)
    command.send_signal(signal.SIGTERM)
    stdout, stderr = command.communicate(timeout=120)
    assert command.returncode == 130, stderr
    assert "stopping; what is done is reported" in stderr
    assert left_behind(mark) == []
    record = CheckRecord.model_validate_json((tmp_path / "record.json").read_text())
    assert (record.verdict, record.exit_code) == ("incomplete", 130)
    hung, not_begun = record.kernels
    assert 0 < hung.problems < hung.asked
    assert (not_begun.name, not_begun.problems, not_begun.checks) == ("torch", 0, {})
    assert re.search(rf"incomplete +{hung.problems} of 300 problems", stdout)
    assert re.search(r"torch +not run +0 of 300 problems", stdout)
    assert "exit code 130" in stdout
