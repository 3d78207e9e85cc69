"""Contestants: code and an interpreter, made when the run begins and gone when it is over.

A contestant is asked for as

    v1.2, HEAD~1, a1b2c3d              a commit: a worktree in a temporary folder
    ../other, .                        a folder with the rooms in it, as it stands
    torch==2.12.0,triton==3.8.0        this checkout in an environment that is built once

and any of them may run under another interpreter.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.gate.bootstrap import ROOMS
from bench.gate.record import ContestantRecord
from bench.gate.temporary import temporary_folder
from bench.machine.facts import ROOT, commit_of, git, has_changes
from reference.errors import BadInput
from subjects.interpreters import exact_requirements, kept, pip_arguments, run_tool


class NoContestant(BadInput):
    """A contestant cannot be had; the message says what was asked for and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """What was asked for; nothing is known of it yet."""

    asked: str
    """A commit, a folder or requirements, in words."""
    python: str = ""
    """An interpreter for it; empty: the one that runs the gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the words mean; exactly one of `commit` and `folder` is there."""

    commit: str | None = None
    """Full hash, if it is a commit."""
    folder: Path | None = None
    """Where the rooms lie, if it is not."""
    requirements: tuple[str, ...] = ()
    """Exact versions on top of this checkout's own."""


@dataclass(frozen=True, slots=True)
class Side:
    """A contestant that stands: what a worker is started with."""

    record: ContestantRecord
    tree: Path
    python: str


def find(contestant: Contestant, *, root: Path = ROOT) -> Found:
    """Find out what is asked for: requirements, a commit of the checkout at `root`, or a folder.

    Raises NoContestant: it is none of them.
    """
    asked, python = contestant.asked, contestant.python
    if python and shutil.which(python) is None:
        raise NoContestant(f"{python}: no interpreter there; give the path of a python")
    if "\0" in asked or not asked:
        raise NoContestant(f"{asked!r} names nothing; give a commit, a folder or requirements")
    if "==" in asked:
        if python:
            raise NoContestant(f"{asked}: an environment has its own interpreter; leave {python}")
        return Found(folder=root, requirements=exact_requirements(asked))
    # What begins with a dash would be an option of git's.
    if not asked.startswith("-"):
        commit = git("rev-parse", "--verify", "--quiet", f"{asked}^{{commit}}", folder=root)
        if commit is not None:
            return Found(commit=commit)
    folder = Path(asked)
    if folder.is_dir():
        if not (folder / "bench").is_dir():
            raise NoContestant(
                f"{asked}: that folder holds no checkout of pagedbench: it has no room called bench"
            )
        return Found(folder=folder.resolve())
    where = f"of the checkout at {root}" if (root / ".git").exists() else f"({root} is no checkout)"
    raise NoContestant(
        f"{asked}: neither a commit {where} nor a folder; in a shallow clone fetch it first, as in "
        f"'git fetch --depth=1 origin {asked}'"
    )


@contextmanager
def standing(contestant: Contestant, *, root: Path = ROOT) -> Iterator[Side]:
    """Make a contestant's tree and environment; the tree is temporary and gone at the end.

    Raises NoContestant: there is no such thing, or its worktree or environment cannot be made.
    """
    found = find(contestant, root=root)
    python = contestant.python or sys.executable
    if found.requirements:
        python = str(built(found.requirements, root=root))
    if found.folder is not None:
        commit, dirty = commit_of(found.folder), has_changes(found.folder)
        name = contestant.asked if found.requirements or not commit else commit[:12]
        tree_of = snapshot(found.folder)
    else:
        assert found.commit is not None
        commit, dirty = found.commit, False
        name = commit[:12] if commit.startswith(contestant.asked) else contestant.asked
        tree_of = worktree(commit, root=root)
    home = found.folder or root
    with tree_of as tree:
        yield Side(
            ContestantRecord(
                name=name,
                asked=contestant.asked,
                path=str(found.folder or tree),
                commit=commit,
                dirty=dirty,
                committed_at=commit and git("show", "-s", "--format=%cI", commit, folder=home),
                python=python,
                requirements=list(found.requirements),
            ),
            tree,
            python,
        )


@contextmanager
def snapshot(folder: Path, *, rooms: Sequence[str] = ROOMS) -> Iterator[Path]:
    """Copy the rooms of a folder into a temporary one for as long as the context lasts.

    Files that change while the gate runs then change nothing, and the paths of both sides are of
    one length.
    """
    with temporary_folder() as parent:
        tree = parent / "tree"
        for room in rooms:
            if (folder / room).is_dir():
                shutil.copytree(
                    folder / room, tree / room, ignore=shutil.ignore_patterns("__pycache__")
                )
        yield tree


@contextmanager
def worktree(commit: str, *, root: Path = ROOT) -> Iterator[Path]:
    """Check a commit out into a temporary folder for as long as the context lasts.

    Raises NoContestant: git cannot; the message is git's own.
    """
    try:
        with temporary_folder() as parent:
            tree = parent / "tree"
            # No hooks: what a checkout does to others is not wanted here.
            command = ["git", "-C", str(root), "-c", f"core.hooksPath={os.devnull}"]
            run = subprocess.run(
                [*command, "worktree", "add", "--quiet", "--detach", str(tree), commit],
                capture_output=True,
                text=True,
                check=False,
                start_new_session=True,
            )
            if run.returncode:
                raise NoContestant(f"{commit[:12]}: no worktree: {run.stderr.strip()}")
            yield tree
    finally:
        with suppress(OSError):
            subprocess.run(
                ["git", "-C", str(root), "worktree", "prune"],
                capture_output=True,
                check=False,
                start_new_session=True,
            )


def built(requirements: tuple[str, ...], *, root: Path = ROOT) -> Path:
    """Interpreter of an environment with these versions, built if it is not there yet.

    It has the exact versions of `requirements/`, but for those that are asked for. PIP_ARGS is
    passed to pip, as by make.

    Raises NotBuilt: pip cannot; the message has its last words.
    """
    pinned = root / "requirements"
    lines = [*_lines(pinned / "runtime.txt"), *_lines(pinned / "triton.txt")]
    wanted: dict[str, str] = {
        canonicalize_name(Requirement(each).name): each for each in (*lines, *requirements)
    }
    triton = wanted.pop("triton")
    said = "\n".join([sys.version, *sorted(wanted.values()), triton])

    def build(folder: Path) -> None:
        python = folder / "bin" / "python"
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        pip += pip_arguments()
        run_tool([sys.executable, "-m", "venv", str(folder)])
        run_tool([*pip, *wanted.values()])
        # CUDA builds of torch pin a triton of their own: no resolver accepts another.
        run_tool([*pip, "--no-deps", triton])

    folder = kept(hashlib.sha256(said.encode()).hexdigest()[:16], said, build)
    return folder / "bin" / "python"


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise NoContestant(
            f"environments are built from a checkout's requirements: {error}"
        ) from None
    return [line for line in lines if line and not line.startswith("#")]
