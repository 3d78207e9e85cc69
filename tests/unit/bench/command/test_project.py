"""The table of a repository: found from any folder below it, and judged before it is used."""

import os

import pytest

from bench.command.project import find_project
from reference.errors import BadInput


def test_the_nearest_table_above_is_found(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.pagedbench]\nkernels = ["a.b:c"]\n')
    below = tmp_path / "package" / "deep"
    below.mkdir(parents=True)
    (tmp_path / "package" / "pyproject.toml").write_text("[project]\nname = 'no table'\n")
    project = find_project(below)
    assert project is not None
    assert (project.root, project.kernels) == (tmp_path, ("a.b:c",))


def test_without_a_table_there_is_no_project(tmp_path):
    assert find_project(tmp_path) is None


def test_modules_are_found_in_the_root_and_in_src(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("[tool.pagedbench]\n")
    (tmp_path / "src").mkdir()
    monkeypatch.setenv("PYTHONPATH", "before")
    project = find_project(tmp_path)
    project.importable()
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [
        str(tmp_path),
        str(tmp_path / "src"),
        "before",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool.pagedbench]\nkernel = ['a:b']\n", "kernel: Extra inputs"),
        ("[tool.pagedbench]\nkernels = 'a:b'\n", "kernels: "),
        ("[tool.pagedbench]\nproblems = 0\n", "problems: "),
        ("[tool]\npagedbench = 3\n", "pagedbench is 3; make it a table"),
        ("[tool.pagedbench\n", "is no TOML"),
    ],
)
def test_a_table_that_says_something_else_is_refused(text, said, tmp_path):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(BadInput, match=r"pyproject\.toml") as refused:
        find_project(tmp_path)
    assert said in str(refused.value)
