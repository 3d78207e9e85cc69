"""Contestants: what is asked for, what is made of it, and that nothing of it stays."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.command.project import Project
from bench.gate import contestant as module
from bench.gate.contestant import (
    Contestant,
    Found,
    NoContestant,
    Side,
    built,
    check_holds,
    find,
    is_there,
    same_code,
    standing,
)
from bench.gate.trees import snapshot, worktree
from bench.machine.facts import commit_of, git
from helpers import gate_records
from reference.errors import BadInput
from subjects.interpreters import ENVIRONMENTS_VARIABLE, NotBuilt

IDENTITY = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]


def run(folder: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-C", str(folder), *IDENTITY, *arguments], check=True, capture_output=True
    )


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits, and a change that is not committed. Temporary folders are made beside it."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    root = tmp_path / "checkout"
    (root / "bench").mkdir(parents=True)
    (root / "paged").mkdir()
    run(root, "init", "--quiet", "--initial-branch=main")
    for content in ("old", "new"):
        (root / "bench" / "__init__.py").write_text(content)
        run(root, "add", ".")
        run(root, "commit", "--quiet", "--message", content)
    (root / "bench" / "__init__.py").write_text("changed")
    return root


def temporary(checkout: Path) -> list[Path]:
    return list((checkout.parent / "temporary").iterdir())


def worktrees(checkout: Path) -> int:
    said = git("worktree", "list", "--porcelain", folder=checkout) or ""
    return said.count("worktree ")


def test_a_commit_gets_a_worktree_that_goes(checkout: Path) -> None:
    with standing(Contestant(asked="HEAD~1"), root=checkout) as side:
        assert (side.tree / "bench" / "__init__.py").read_text() == "old"
        assert worktrees(checkout) == 2
        assert side.record.commit == git("rev-parse", "HEAD~1", folder=checkout)
        assert (side.record.name, side.record.dirty) == ("HEAD~1", False)
        assert side.record.committed_at is not None
    assert not side.tree.exists()
    assert worktrees(checkout) == 1
    assert temporary(checkout) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_worktree_goes_however_it_ends(checkout: Path, error: type[BaseException]) -> None:
    commit = commit_of(checkout)
    assert commit is not None
    with pytest.raises(error), worktree(commit, root=checkout):
        raise error
    assert worktrees(checkout) == 1
    assert temporary(checkout) == []


def test_no_hook_of_the_repository_runs(checkout: Path) -> None:
    hook = checkout / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {checkout}/ran\n")
    hook.chmod(0o755)
    with standing(Contestant(asked="HEAD"), root=checkout):
        assert not (checkout / "ran").exists()


def test_a_folder_is_taken_as_it_stands_under_a_path_as_long_as_a_commits(checkout: Path) -> None:
    (checkout / "bench" / "__pycache__").mkdir()
    with (
        standing(Contestant(asked="HEAD"), root=checkout) as one,
        standing(Contestant(asked=str(checkout)), root=checkout) as side,
    ):
        assert len(str(one.tree)) == len(str(side.tree))
        assert (side.tree / "bench" / "__init__.py").read_text() == "changed"
        assert not (side.tree / "bench" / "__pycache__").exists()
        assert side.record.dirty
        assert side.record.path == str(checkout)
        assert side.record.commit == commit_of(checkout)
    assert temporary(checkout) == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("no-such-commit", "'git fetch' brings what is at a remote"),
        ("--help", "it begins as options do"),
        ("HEAD~99", "HEAD has 1 commit behind it$"),
        ("torch==2.*,triton", "exact versions"),
        ("torch==2.*", "exact versions"),
        ("torch==2.12.0,triton>=3", "exact versions"),
        ("torch==", "write it as"),
    ],
)
def test_what_cannot_be_had_says_what_to_do(checkout: Path, asked: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        find(Contestant(asked=asked), root=checkout)


def test_where_nothing_is_committed_nothing_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is no checkout.*nothing is committed here; commit"):
        find(Contestant(asked="HEAD"), root=tmp_path)
    run(tmp_path, "init", "--quiet")
    with pytest.raises(BadInput, match="nothing is committed here; commit"):
        find(Contestant(asked="HEAD~1"), root=tmp_path)


def test_in_a_shallow_clone_more_is_fetched(checkout: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run(checkout, "clone", "--quiet", "--depth", "1", f"file://{checkout}", str(clone))
    for asked, words in (("HEAD~1", "--unshallow"), ("v9", "--depth=1 origin v9")):
        with pytest.raises(BadInput, match=f"is shallow: 'git fetch {words}'"):
            find(Contestant(asked=asked), root=clone)


def test_a_subject_is_there_where_it_has_a_file(checkout: Path) -> None:
    project = Project(root=checkout)
    there = {name: is_there(project, name) for name in ("bench:x", "bench.gone:x", "no.py:x")}
    assert there == {"bench:x": True, "bench.gone:x": False, "no.py:x": False}
    assert is_there(project, "torch"), "built in"


def test_pages_are_no_code(tmp_path: Path) -> None:
    sides = []
    for name in ("one", "other"):
        (tmp_path / name / "docs").mkdir(parents=True)
        (tmp_path / name / "code.py").write_text("same")
        (tmp_path / name / "README.md").write_text(name)
        (tmp_path / name / "docs" / "figure.json").write_text(name)
        sides.append(Side(gate_records.contestant(), tmp_path / name, "python", tmp_path / name))
    assert same_code(sides)
    (tmp_path / "one" / "code.py").write_text("changed")
    assert not same_code(sides)


def test_a_folder_without_anything_that_is_compared_is_no_contestant(
    checkout: Path, tmp_path: Path
) -> None:
    project = Project(root=checkout, kernels=("bench.attention:attention", "torch"))
    check_holds(project, checkout)
    check_holds(project.model_copy(update={"kernels": ("torch",)}), tmp_path / "temporary")
    with pytest.raises(NoContestant, match="has none of bench"):
        check_holds(project, tmp_path / "temporary")


def test_a_project_may_lie_deeper_in_its_repository(checkout: Path) -> None:
    inner = checkout / "packages" / "mine"
    inner.mkdir(parents=True)
    (inner / "kernel.py").write_text("new")
    run(checkout, "add", ".")
    run(checkout, "commit", "--quiet", "--message", "inner")
    for asked in ("HEAD", str(inner)):
        with standing(Contestant(asked=asked), root=inner) as side:
            assert (side.root / "kernel.py").read_text() == "new"
            assert side.root.relative_to(side.tree) == Path("packages/mine")


def test_what_git_ignores_stays_behind_but_for_compiled_extensions(checkout: Path) -> None:
    (checkout / ".gitignore").write_text("*.so\nscratch\n.venv\n")
    for name in ("fast.so", "scratch", "new.py", ".venv/lib/other.so", ".venv/pyvenv.cfg"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name)
    for extensions in (True, False):
        with standing(Contestant(asked=str(checkout)), root=checkout, extensions=extensions) as at:
            found = {str(file.relative_to(at.tree)) for file in at.tree.rglob("*")}
        expected = {".gitignore", "bench", "bench/__init__.py", "new.py"}
        assert found == expected | ({"fast.so"} if extensions else set())


def test_a_folder_that_is_no_checkout_is_copied_without_caches(tmp_path: Path) -> None:
    for name in ("a.py", "built.so", ".venv/pyvenv.cfg", "b/__pycache__/x.pyc", ".git/HEAD"):
        (tmp_path / "loose" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "loose" / name).write_text("")
    shutil.rmtree(tmp_path / "loose" / ".git")
    with snapshot(tmp_path / "loose") as tree:
        assert {each.name for each in tree.rglob("*")} == {"a.py", "built.so", "b"}


def test_an_environment_is_asked_for_by_exact_versions(checkout: Path) -> None:
    found = find(Contestant(asked="torch==2.12.0, triton==3.8.0"), root=checkout)
    assert found == Found(folder=checkout, requirements=("torch==2.12.0", "triton==3.8.0"))
    with pytest.raises(NoContestant, match="its own interpreter"):
        find(Contestant(asked="torch==2.12.0", python="/bin/sh"), root=checkout)


@pytest.fixture
def installs(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would build an environment, not carried out."""
    monkeypatch.setenv(ENVIRONMENTS_VARIABLE, str(tmp_path / "environments"))
    monkeypatch.setenv("PIP_ARGS", "--no-input")
    requirements = checkout / "requirements"
    requirements.mkdir()
    (requirements / "runtime.txt").write_text("# exact\nnumpy==2.4.6\ntorch==2.13.0\n")
    (requirements / "triton.txt").write_text("triton==3.9.0\n")
    commands: list[list[str]] = []

    def carry_out(command: list[str]) -> None:
        commands.append(command)
        if "venv" in command:
            os.makedirs(command[-1])

    monkeypatch.setattr(module, "run_tool", carry_out)
    return commands


def test_an_environment_is_built_once(checkout: Path, installs: list[list[str]]) -> None:
    asked = ("torch==2.12.0", "triton==3.8.0")
    python = built(asked, root=checkout)
    _, packages, triton = installs
    assert {"numpy==2.4.6", "torch==2.12.0", "--no-input"} <= set(packages)
    assert "torch==2.13.0" not in packages
    assert triton[-2:] == ["--no-deps", "triton==3.8.0"]
    assert built(asked, root=checkout) == python
    assert len(installs) == 3
    assert built(("torch==2.11.0",), root=checkout) != python
    assert len(installs) == 6


def test_half_an_environment_is_none(
    checkout: Path, installs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str]) -> None:
        if "pip" in command:
            raise NotBuilt("no such version")
        os.makedirs(command[-1])

    asked = ("torch==0.0.1",)
    with monkeypatch.context() as patched:
        patched.setattr(module, "run_tool", fail)
        with pytest.raises(NotBuilt, match="no such version"):
            built(asked, root=checkout)
    built(asked, root=checkout)
    assert len(installs) == 3, "built from the start, not taken for done"
