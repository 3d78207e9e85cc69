"""Commands without arguments, in a repository that says who is under test."""

import json
import sys

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.command.scaffold import TEMPLATES
from bench.throughput.candidates import DEFAULT
from reference.errors import BadInput

TABLE = """
[tool.pagedbench]
kernels = ["mine.attention:attention"]
allocators = ["mine.pool:make", "pools/wrong.py:make"]
"""

# Its last block is never given back.
WRONG_POOL = """
from mine.pool import Pool


class Leaking(Pool):
    def free(self, sequence):
        blocks, _ = self.tables.pop(sequence)
        self.unused += blocks[1:]


def make(num_blocks, block_size, *, prefix_caching, window):
    return Leaking(num_blocks, block_size)


make.capabilities = {"prefix_caching": False}
"""


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """A package in `src`, named in the table; one stands below the root."""
    package = tmp_path / "src" / "mine"
    package.mkdir(parents=True)
    for name in ("attention.py", "pool.py"):
        (package / name).write_text((TEMPLATES / f"{name}.txt").read_text())
    (tmp_path / "pyproject.toml").write_text(TABLE)
    (tmp_path / "pools").mkdir()
    (tmp_path / "pools" / "wrong.py").write_text(WRONG_POOL)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def run(*arguments):
    ended = CliRunner().invoke(app, arguments)
    return ended.exit_code, ended.output


def test_check_takes_the_kernels(tmp_path):
    record = tmp_path / "check.json"
    options = ("--problems", "2", "--no-timing", "--lanes", "1", "--json", str(record))
    code, said = run("check", *options)
    assert code == 0, said
    kernels = json.loads(record.read_text())["kernels"]
    assert [each["name"] for each in kernels] == ["mine.attention:attention"]


def test_fuzz_takes_the_allocators_in_turn_and_ends_with_the_worst():
    code, said = run("fuzz", "--examples", "60", "--seed", "0", "--findings", "1")
    assert code == 1, said
    assert "mine.pool:make: 60 programs" in said
    assert "no finding, seed 0, exit code 0" in said
    assert "../pools/wrong.py:make" in said
    assert "1 finding, seed 0, exit code 1" in said


def test_a_record_is_of_one_allocator():
    code, said = run("fuzz", "--json", "fuzz.json")
    assert code == 2
    assert "name one with --allocator: mine.pool:make, ../pools/wrong.py:make" in said


def test_compile_passes_over_what_launches_nothing():
    code, said = run("compile", "--target", "sm_90")
    assert code == 2
    assert "mine.attention:attention launches no Triton kernel" in said


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), ("mine.attention:attention", *DEFAULT["cpu"])),
        (("--subject", "torch"), ("torch",)),
        (("--preset", "bars"), DEFAULT["cpu"]),
    ],
)
def test_throughput_times_the_kernels_beside_the_usual_ones(options, names, monkeypatch):
    plans = []

    def planned(plan, *_, **__):
        plans.append(plan)
        raise BadInput("planned")

    monkeypatch.setattr("bench.throughput.run.run_throughput", planned)
    code, said = run("throughput", "--device", "cpu", *options)
    assert code == 2, said
    assert [plan.names for plan in plans] == [names]
