"""`pagedbench init`: what it writes is what it says, and what is there stays as it is."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from typer.testing import CliRunner

from bench.cli import app
from bench.command import scaffold
from helpers.places import DOCS, ROOT
from reference.errors import BadInput

EXAMPLES = {
    "my_kernel.py": ("attention.py", ROOT / "README.md"),
    "my_pool.py": ("pool.py", DOCS / "allocator-contract.md"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty repository, in which one stands."""
    root = tmp_path / "repository"
    (root / ".git").mkdir(parents=True)
    monkeypatch.chdir(root)
    return root


def run(*arguments, code=0):
    ended = CliRunner().invoke(app, ["init", *arguments])
    assert ended.exit_code == code, ended.output
    return ended.output


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_an_empty_repository_gets_all_of_it(folder):
    said = run()
    assert list(contents(folder)) == [
        ".github/workflows/pagedbench.yml",
        ".gitignore",
        "asv.conf.json",
        "benchmarks/__init__.py",
        "paged_example/__init__.py",
        "paged_example/attention.py",
        "paged_example/pool.py",
        "pyproject.toml",
        "tests/test_pagedbench.py",
    ]
    assert tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["pagedbench"] == {
        "kernels": ["paged_example.attention:attention"],
        "allocators": ["paged_example.pool:make"],
    }
    suite = json.loads((folder / "asv.conf.json").read_text())
    assert (suite["project"], suite["benchmark_dir"]) == ("repository", "benchmarks")
    workflow = yaml.safe_load((folder / ".github/workflows/pagedbench.yml").read_text())
    assert workflow["jobs"]["gate"]["steps"][-1]["uses"] == scaffold.ACTION
    for each in contents(folder):
        assert f"written   {each}" in said
    assert "@" not in (folder / "asv.conf.json").read_text()


def test_all_that_is_tested_is_collected(folder):
    run("--ci", "none")
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert "::test_kernel[attention-truth]" in listed.stdout
    assert "::test_allocator[paged_example.pool:make]" in listed.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_those_of_the_first_pages(name, folder):
    run()
    written, page = EXAMPLES[name]
    shown = re.search(rf"```python\n# {name}: [^\n]*\n(.*?)```", page.read_text(), re.DOTALL)[1]
    code = (folder / "paged_example" / written).read_text().partition("\n")[2]
    assert re.sub(r"\n+", "\n", code).strip() == re.sub(r"\n+", "\n", shown).strip()


def test_a_second_time_nothing_changes(folder):
    run()
    before = contents(folder)
    said = run()
    assert contents(folder) == before
    assert "written" not in said
    assert "unchanged tests/test_pagedbench.py\n" in said


def test_subjects_that_are_named_are_taken_and_no_example_is_written(folder):
    said = run("--kernel", "mine.paged:attention", "--kernel", "triton")
    table = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["pagedbench"]
    assert table == {"kernels": ["mine.paged:attention", "triton"]}
    assert not (folder / "paged_example").exists()
    assert "allocator" not in (folder / "tests/test_pagedbench.py").read_text()
    assert "pagedbench check" in said
    assert "pagedbench fuzz" not in said


def test_what_is_there_stays(folder):
    there = {
        "pyproject.toml": b"[project]\r\nname = 'theirs'\r\n\r\n[tool.ruff.lint]\r\nselect = ['E']",
        "asv.conf.json": b'{\n  // "benchmark_dir": "no",\n  "benchmark_dir": "perf",\n}\n',
        "perf/__init__.py": b"",
        "tests/test_pagedbench.py": b"# theirs\n",
        ".gitignore": b"*.so\n",
        "src/theirs/__init__.py": b"",
        "kernels/__init__.py": b"raise ImportError('not ours')\n",
        ".gitlab-ci.yml": b"stages: [test]\n",
    }
    for name, text in there.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    said = run("--ci", "gitlab")
    now = contents(folder)
    added = now.pop("pyproject.toml")
    assert added.startswith(there["pyproject.toml"] + b"\r\n\r\n[tool.pagedbench]\r\n")
    assert tomllib.loads(added.decode())["tool"]["ruff"] == {"lint": {"select": ["E"]}}
    assert {name: now[name] for name in there if name in now} | {"pyproject.toml": b""} == {
        **there,
        "pyproject.toml": b"",
    }
    assert sorted(now.keys() - there.keys()) == [
        ".gitlab/pagedbench.yml",
        "perf/paged_subjects.py",
        "src/paged_example/__init__.py",
        "src/paged_example/attention.py",
        "src/paged_example/pool.py",
    ]
    assert "added to  pyproject.toml" in said
    assert "unchanged tests/test_pagedbench.py: --force writes it anew" in said
    assert "unchanged asv.conf.json: its environments need pagedbench" in said
    assert "unchanged .gitlab-ci.yml: add include: - local: .gitlab/pagedbench.yml" in said
    job = yaml.safe_load(now[".gitlab/pagedbench.yml"])["pagedbench"]
    assert job["variables"]["REQUIREMENTS"] == "."

    run("--ci", "gitlab", "--force")
    forced = contents(folder)
    assert forced["pyproject.toml"] == added
    assert forced[".gitlab-ci.yml"] == there[".gitlab-ci.yml"]
    assert forced["tests/test_pagedbench.py"] != there["tests/test_pagedbench.py"]


def test_a_table_that_is_there_says_who_is_tested(folder):
    table = b"[tool.pagedbench]\nallocators = ['pool.py:make']\n"
    (folder / "pyproject.toml").write_bytes(table)
    said = run()
    assert (folder / "pyproject.toml").read_bytes() == table
    assert "unchanged pyproject.toml: it has a table [tool.pagedbench]" in said
    assert "parametrize_with_checks" not in (folder / "tests/test_pagedbench.py").read_text()
    assert not (folder / "paged_example").exists()


REFUSED = {
    "broken": ({"pyproject.toml": "[tool\n"}, (), "pyproject.toml is no TOML"),
    "inline": ({"pyproject.toml": "tool = {}\n"}, (), "no table can be added at its end"),
    "empty table": ({"pyproject.toml": "[tool.pagedbench]\n"}, (), "names no subject"),
    "unknown key": ({"pyproject.toml": "[tool.pagedbench]\nkernel = 1\n"}, (), "no such key"),
    "another subject": (
        {"pyproject.toml": "[tool.pagedbench]\nkernels = ['a:b']\n"},
        ("--kernel", "c:d"),
        "c:d: ",
    ),
    "a file for a folder": ({"tests": ""}, (), "tests is no folder"),
    "a folder for a file": ({"asv.conf.json/x": ""}, ("--force",), "that is a folder"),
    "no kernel": ({}, ("--kernel", "attention"), "'attention' names no kernel"),
    "no allocator": ({}, ("--allocator", "absent.py:make"), "absent.py is not a file"),
    "no service": ({}, ("--ci", "jenkins"), "choose github, gitlab, none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(name, folder):
    files, arguments, said = REFUSED[name]
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    before = contents(folder)
    assert said in run(*arguments, code=2)
    assert contents(folder) == before


def test_a_workflow_below_the_top_is_refused(folder, monkeypatch):
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    assert f"a workflow belongs into {folder}" in " ".join(run(code=2).split("\n"))
    run("--ci", "none")


def test_a_folder_that_cannot_be_written_to_is_refused(folder, monkeypatch):
    # Who runs this may be allowed everything, so what is asked is answered otherwise.
    monkeypatch.setattr(os, "access", lambda path, how: False)
    assert "no permission to write there; nothing was written" in run(code=2)
    assert contents(folder) == {}


def test_a_file_that_refuses_at_last_is_named(folder):
    (folder / "tests").touch()
    step = scaffold.Step(file=folder / "tests" / "test_pagedbench.py", text="")
    with pytest.raises(BadInput, match=r"test_pagedbench\.py: .*; mend that"):
        scaffold.write(step)
