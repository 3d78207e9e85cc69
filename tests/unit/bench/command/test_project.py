"""The table of a repository: found from any folder below it, and judged before it is used."""

import os
import sys

import pytest

from bench.command.project import Project, find_project, present_project, subjects_under_test
from helpers.places import ROOT
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
        (
            "[tool.pagedbench]\nkernel = ['a:b']\n",
            "kernel: there is no such key; did you mean kernels?",
        ),
        (
            "[tool.pagedbench]\nkernels = 'a:b'\n",
            'kernels is "a:b"; write a list: kernels = ["a:b"]',
        ),
        ("[tool.pagedbench]\nkernels = [3]\n", 'kernels, number 1, is 3; write text: "3"'),
        ("[tool.pagedbench]\nbuild = 3\n", 'build is 3; write text: "3"'),
        ("[tool.pagedbench]\ngate = 3\n", "gate is 3; make it a table"),
        ("[tool.pagedbench]\nproblems = 0\n", "problems is 0; it has to be greater than or equal"),
        ("[tool.pagedbench]\nproblems = 'x'\n", 'problems is "x"; it has to be a valid integer;'),
        ("[tool]\npagedbench = 3\n", "pagedbench is 3; make it a table"),
        ("[tool.pagedbench\n", "is no TOML"),
    ],
)
def test_a_table_that_says_something_else_is_refused(text, said, tmp_path):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(BadInput, match=r"pyproject\.toml") as refused:
        find_project(tmp_path)
    assert said in str(refused.value)


def test_a_pyproject_that_is_a_folder_is_not_overlooked(tmp_path):
    (tmp_path / "pyproject.toml").mkdir()
    with pytest.raises(BadInput, match="Is a directory"):
        find_project(tmp_path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A project of two of each kind, below which one stands; what is changed is put back."""
    (tmp_path / "pyproject.toml").write_text(
        "[tool.pagedbench]\nkernels = ['mine.paged:attention', 'triton']\n"
        "allocators = ['pools/first.py:make', 'mine.pool:make']\n"
    )
    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_commands_take_the_projects_subjects_unless_some_are_named(here):
    assert subjects_under_test("kernels") == ("mine.paged:attention", "triton")
    assert subjects_under_test("allocators") == ("../pools/first.py:make", "mine.pool:make")
    assert str(here) in sys.path
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(here), "before"]
    assert subjects_under_test("kernels", ["sdpa", "a:b", "sdpa"]) == ("sdpa", "a:b")


def test_built_in_subjects_need_no_module_of_the_project(here):
    assert subjects_under_test("kernels", ["torch"]) == ("torch",)
    assert os.environ["PYTHONPATH"] == "before"


def test_a_broken_table_does_not_matter_where_subjects_are_named(here):
    (here / "pyproject.toml").write_text("[tool.pagedbench\n")
    assert subjects_under_test("kernels", ["a:b"]) == ("a:b",)
    with pytest.raises(BadInput, match="is no TOML"):
        subjects_under_test("kernels")


def test_a_folder_of_modules_that_is_not_there_is_said_unless_a_build_makes_it(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    table = '[tool.pagedbench]\npath = ["gone"]\n'
    (tmp_path / "pyproject.toml").write_text(table)
    with pytest.raises(BadInput, match="path: gone is no folder"):
        present_project()
    (tmp_path / "pyproject.toml").write_text(table + 'build = "make"\n')
    assert present_project().path == ("gone",)


def test_our_own_rooms_are_not_given_to_what_is_started(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    Project(root=ROOT).importable()
    assert os.environ["PYTHONPATH"] == ""
