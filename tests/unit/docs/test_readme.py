"""Every command of the README, and of the allocator's first page, as it stands there."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from helpers.places import ROOT
from reference.attention.catalogue import CHECKS
from reference.attention.contract import Capabilities

README = (ROOT / "README.md").read_text()
ALLOCATOR = (ROOT / "docs" / "allocator-contract.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README + ALLOCATOR, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if line]
MAKE = [command for command in COMMANDS if command.startswith("make ")]
PAGEDBENCH = [command for command in COMMANDS if "pagedbench" in command]
CHECK = [command for command in PAGEDBENCH if "pagedbench check" in command]
WASTE = [command for command in PAGEDBENCH if "pagedbench waste" in command]
ALLOCATORS = [c for c in PAGEDBENCH if "pagedbench fuzz" in c or "pagedbench race" in c]
GATE = [command for command in PAGEDBENCH if "pagedbench gate" in command]
COMPILE = [command for command in PAGEDBENCH if "pagedbench compile" in command]
THROUGHPUT = [command for command in PAGEDBENCH if "pagedbench throughput" in command]
INIT = [command for command in COMMANDS if "pagedbench init" in command]
DIAGNOSE = [command for command in PAGEDBENCH if "pagedbench diagnose" in command]
PYTEST = [command for command in COMMANDS if "pytest" in command]

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2220080,879,55
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader of the README stands, with what they have: a trace, and the examples."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.csv").write_text(TRACE)
    for kind, text in BLOCKS:
        name = re.match(r"# (\S+\.py)", text)  # an example says in its first line which file it is
        if kind == "python" and name:
            (tmp_path / name[1]).write_text(text)
    return tmp_path


# What a make and a pytest that run these tests leave in the environment is not the reader's.
THEIRS = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST")


def shell(command, folder, **environment):
    own = {name: value for name, value in os.environ.items() if name not in THEIRS}
    return subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**own, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_command_is_left_out():
    assert MAKE == ["make run", "make test"]
    assert (len(CHECK), len(WASTE)) == (2, 3)
    assert len(ALLOCATORS) == 3
    single = [PYTEST, COMPILE, GATE, THROUGHPUT, INIT, DIAGNOSE]
    assert [len(each) for each in single] == [1] * len(single)
    others = list(itertools.chain(*single))
    assert sorted(COMMANDS) == sorted(MAKE + CHECK + WASTE + ALLOCATORS + others)


def said(command, *more):
    """What a line of the README says and how it ends, with further options, in this process."""
    program, *arguments = shlex.split(command)
    assert program == ".venv/bin/pagedbench"
    run = CliRunner().invoke(app, [*arguments, *more])
    assert run.exception is None or isinstance(run.exception, SystemExit), run.exc_info
    return run.exit_code, run.output


@pytest.mark.parametrize("command", THROUGHPUT)
def test_a_command_times_kernels(command, folder):
    line = command.replace("azure-conv:32", "azure-conv:1")
    code, text = said(line, "--subject", "torch", "--no-compile", "--rounds", "1")
    assert code == 0, text
    assert re.search(r"^torch .* 1\.00x", text, re.MULTILINE)
    assert (folder / "roofline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", GATE)
def test_a_command_gates_the_last_commit(command, folder, monkeypatch):
    if shell("git rev-parse --verify HEAD~1", ROOT).returncode:
        pytest.skip("this is no checkout with a commit before the last one")
    # The commit as it was and this checkout as it stands may differ in what is counted: what is
    # asked is that they are compared, and that nothing is timed that was not chosen.
    monkeypatch.chdir(ROOT)
    file = str(folder / "gate.json")
    code, text = said(command, "--benchmark", "waste/max", "--json", file)
    assert code in {0, 1}, text
    record = json.loads((folder / "gate.json").read_text())
    assert record["counters"]
    assert record["launches"] == []
    assert f"exit code {code}" in text


@pytest.mark.parametrize("command", COMPILE)
def test_a_command_compiles_without_a_gpu(command, folder, monkeypatch):
    # One of the ten decode kernels: its row is one of those that the README shows.
    line = command.replace("--kernel decode", "--kernel 'decode bf16'")
    monkeypatch.setenv("PAGEDBENCH_COMPILE_CACHE", str(folder / "cache"))
    code, text = said(line)
    assert code == 0, text
    (row,) = (shown for shown in text.splitlines() if shown.startswith("decode bf16"))
    shown = next(line for line in README.splitlines() if line.startswith("decode bf16  "))
    assert row.split() == shown.split()
    assert "1 same" in text


@pytest.mark.parametrize("command", PYTEST)
def test_a_command_tests_the_kernel_of_the_example(command, folder):
    line = command.replace(".venv/bin/python", sys.executable) + " -v -rs"
    run = shell(line, folder, PYTHONPATH=str(ROOT), COLUMNS="120")
    assert run.returncode == 0, run.stdout + run.stderr
    checks = re.findall(r"test_attention\[attention-(\S+)\] (\w+)", run.stdout)
    skipped = {"memory", "last-row", "growth"}
    assert dict(checks) == {
        check.name: "SKIPPED" if check.name in skipped else "PASSED"
        for check in CHECKS
        if check.concerns(Capabilities())
    }
    assert len(checks) == 12  # as the example says
    assert "supports no problem that can show it" in run.stdout


@pytest.mark.parametrize("command", ALLOCATORS)
@pytest.mark.usefixtures("folder")
def test_a_command_tries_an_allocator(command):
    # A system is found wrong, as the page says, with more programs than there is time for here.
    examples = "1" if "torch-flex" in command else "50"
    shorter = {"fuzz": ("--examples", examples, "--seed", "0"), "race": ("--rounds", "1")}
    kind = command.split()[1]
    code, text = said(command.replace("--requests 1000", "--requests 10"), *shorter[kind])
    assert code == 0, text
    assert {"fuzz": "no finding", "race": "my_pool.py:make"}[kind] in text


def test_the_wrong_pool_of_the_readme_shows_what_the_readme_shows(folder):
    pool = folder / "my_pool.py"
    right = pool.read_text()
    checked = right[
        right.index("        if missing >") : right.index("        self.tables[sequence] = (b")
    ]
    taken_one_by_one = """        for _ in range(missing):
            if not self.unused:
                return False
            blocks = blocks + [self.unused.pop()]
"""
    pool.write_text(right.replace(checked, taken_one_by_one))
    (command,) = (each for each in ALLOCATORS if " fuzz --allocator my_pool" in each)
    # What was found first is what is shown; in this process a call takes a tenth of the time.
    code, text = said(command, "--seed", "0", "--findings", "1", "--in-process")
    assert code == 1, text
    shown = ALLOCATOR.partition("trace: What was refused")[2].partition("  after 52")[0]
    # What it is made small to may be another prompt that does not fit.
    lines = [line for line in shown.splitlines()[1:5] if "admit" not in line]
    assert len(lines) == 3
    assert [line for line in lines if line not in text] == []


@pytest.mark.parametrize("command", DIAGNOSE)
def test_a_command_names_the_cause_of_a_recording(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, text = said(command)
    assert code == 1, text
    assert text in README


@pytest.mark.parametrize("command", WASTE)
@pytest.mark.usefixtures("folder")
def test_a_command_accounts_for_the_memory(command):
    code, text = said(command)
    assert code == 0, text
    shown = {"--whatif": "Keep it", "--figure": "Orca (Pow2)"}
    option = next((option for option in shown if option in command), None)
    assert shown.get(option, "paged:block=16") in text


@pytest.mark.parametrize("command", CHECK)
@pytest.mark.usefixtures("folder")
def test_a_command_does_what_the_readme_says(command):
    if "--problem " in command:
        code, text = said(command)
        assert "passed" in text
        assert "failed" not in text
    else:
        code, text = said(command, "--problems", "6", "--no-timing", "--lanes", "1")
        assert re.search(r"right in \d+ s", text)
    assert code == 0, text


# An environment that runs tests is not built anew under them, however old its stamps are.
AS_IT_IS = " ".join(f"-o '$(VENV)/.stamp-{step}'" for step in ("runtime", "project", "dev"))


def with_this_environment(command, venv):
    return command + " " + AS_IT_IS.replace("$(VENV)", str(venv))


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ("make run", {"ARGS": "--problems 1 --no-timing --lanes 1 --kernel torch"}),
        ("make test", {"TESTS": "tests/unit/paged/test_errors.py", "ARGS": "-n 0"}),
    ],
)
def test_the_two_commands(command, environment):
    venv = Path(sys.prefix)
    if not (venv / ".stamp-project").exists():
        pytest.skip("this environment was not built by make")
    run = shell(with_this_environment(command, venv), ROOT, VENV=str(venv), **environment)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "right in" in run.stdout or "passed" in run.stdout


@pytest.mark.parametrize("command", MAKE)
def test_an_environment_that_is_out_of_date_is_left_alone(command, tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    venv = tmp_path / "old"
    venv.mkdir()
    for step in ("runtime", "project", "dev"):
        (venv / f".stamp-{step}").touch()
        os.utime(venv / f".stamp-{step}", (0, 0))
    dry = {"MAKEFLAGS": "--dry-run", "VENV": str(venv)}
    assert "-m venv --clear" in shell(command, tmp_path, **dry).stdout
    run = shell(with_this_environment(command, venv), tmp_path, **dry)
    assert run.returncode == 0, run.stderr
    assert "venv --clear" not in run.stdout
    assert "pip" not in run.stdout
    assert "pagedbench check" in run.stdout or "-m pytest" in run.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/README.md", "docs/gate.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert links
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


def test_the_map_names_files_that_are_there():
    folder, missing = "", []
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs" / "README.md").read_text()):
        if "/" in name:  # a file named alone lies beside the one before it
            folder = name.rpartition("/")[0] if name.endswith(".py") else folder
        path = name if "/" in name else f"{folder}/{name}"
        missing += [] if (ROOT / path).exists() else [path]
    assert not missing
