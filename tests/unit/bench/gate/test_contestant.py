"""Contestants: what is asked for, what is made of it, and that nothing of it stays."""

import os
import subprocess
from pathlib import Path

import pytest

from bench.gate import contestant as module
from bench.gate.contestant import (
    Contestant,
    Found,
    NoContestant,
    built,
    find,
    standing,
    worktree,
)
from bench.machine.facts import commit_of, git
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
        ("no-such-commit", "git fetch"),
        ("--help", "neither a commit"),
        ("torch==2.*,triton", "exact versions"),
        ("torch==2.*", "exact versions"),
        ("torch==2.12.0,triton>=3", "exact versions"),
        ("torch==", "write it as"),
        (".", "no room called bench"),
    ],
)
def test_what_cannot_be_had_says_what_to_do(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, asked: str, words: str
) -> None:
    monkeypatch.chdir(checkout.parent)
    with pytest.raises(BadInput, match=words):
        find(Contestant(asked=asked), root=checkout)


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
