"""Contestants: code and an interpreter, made when the run begins and gone when it is over.

A contestant is asked for as

    v1.2, HEAD~1, a1b2c3d              a commit: a worktree in a temporary folder
    ../other, .                        a folder, as it stands
    torch==2.12.0,triton==3.8.0        this checkout in an environment that is built once

and any of them may run under another interpreter.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.command.project import Project
from bench.command.words import plural
from bench.gate.record import ContestantRecord
from bench.gate.trees import NoContestant, digest_of, is_code, snapshot, top_of, worktree
from bench.machine.facts import ROOT, commit_of, git, has_changes
from subjects.environments import no_interpreter
from subjects.interpreters import (
    exact_requirements,
    interpreter_with,
    kept,
    pip_arguments,
    run_tool,
)


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
    """As it was given, if it is not."""
    requirements: tuple[str, ...] = ()
    """Exact versions on top of this checkout's own."""


@dataclass(frozen=True, slots=True)
class Side:
    """A contestant that stands: what a worker is started with."""

    record: ContestantRecord
    tree: Path
    """The whole of it: a repository's, where it is one."""
    python: str
    root: Path
    """Folder of the project in the tree."""

    @property
    def ours(self) -> bool:
        """Whether it is a tree of pagedbench itself, which is measured with its own rooms."""
        return (self.tree / "bench" / "gate").is_dir()

    def named_in(self, said: str) -> str:
        """Words of a command, with the name of the side for the folder that its tree lies in."""
        return said.replace(str(self.tree.resolve()), self.record.name).replace(
            str(self.tree), self.record.name
        )


def same_code(sides: Iterable[Side]) -> bool:
    """Whether all sides run the same code in the same interpreter."""
    return len({(side.python, digest_of(side.tree, only=is_code)) for side in sides}) == 1


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
    if python and (complaint := no_interpreter(python)):
        raise NoContestant(f"{python} {complaint}; give the path of a python")
    top = top_of(root)
    if (commit := _commit(asked, top)) is not None:
        return Found(commit=commit)
    folder = Path(asked)
    if folder.is_dir():
        return Found(folder=folder.resolve())
    where = f"of the checkout at {top}" if (top / ".git").exists() else f"({root} is no checkout)"
    raise NoContestant(f"{asked}: neither a commit {where} nor a folder; {_remedy(asked, top)}")


def _commit(asked: str, top: Path) -> str | None:
    if asked.startswith("-"):
        return None  # it would be an option of git's
    return git("rev-parse", "--verify", "--quiet", f"{asked}^{{commit}}", folder=top)


def _remedy(asked: str, top: Path) -> str:
    if asked.startswith("-"):
        return "it begins as options do: './' before it makes it a folder's name"
    if _commit("HEAD", top) is None:
        return "nothing is committed here; commit, or name a folder with the code to compare with"
    if git("rev-parse", "--is-shallow-repository", folder=top) == "true":
        name = re.split(r"[~^@]", asked)[0]
        what = "--unshallow" if _commit(name, top) else f"--depth=1 origin {asked}"
        return f"the clone is shallow: 'git fetch {what}' brings more of it"
    name, tilde, _ = asked.partition("~")
    if tilde and _commit(name, top):
        behind = int(git("rev-list", "--count", "--first-parent", name, folder=top) or 1) - 1
        return f"{name} has {plural(behind, 'commit')} behind it"
    return "'git fetch' brings what is at a remote, 'git log' has what is here"


def find_in(project: Project, contestant: Contestant) -> Found:
    """Find out what is asked for of a project; a folder must hold something that is compared.

    Raises NoContestant: it is nothing, or has nothing.
    """
    found = find(contestant, root=project.root)
    if found.folder is not None:
        check_holds(project, found.folder)
    return found


def check_holds(project: Project, folder: Path) -> None:
    """Raise NoContestant where a folder has nothing of what a project compares."""
    named = [name.rpartition(":")[0] for name in (*project.kernels, *project.allocators)]
    names = [name for name in (*named, project.suite) if name]
    inside = project.root.relative_to(top_of(project.root))
    places = [place for each in (folder, folder / inside) for place in project.at(each).folders]
    tops = {name if name.endswith(".py") else name.partition(".")[0] for name in names}
    files = {file for top in tops for file in (top, f"{top}.py")}
    if names and not any((place / file).exists() for place in places for file in files):
        raise NoContestant(
            f"{folder}: that folder has none of {', '.join(sorted(tops))}, which are compared; "
            f"name one that is laid out as {project.root}"
        )


def is_there(project: Project, name: str) -> bool:
    """Whether the project has a file of a subject's name; of a built-in one, always."""
    where = name.rpartition(":")[0]
    if where.endswith(".py"):
        return (project.root / where).is_file()
    places = [folder / where.replace(".", "/") for folder in project.folders]
    return not where or any(
        place.is_dir() or any(place.parent.glob(f"{place.name}.*")) for place in places
    )


def interpreter_of(
    contestant: Contestant, found: Found, root: Path, requirements: Sequence[str] = ()
) -> str:
    """The interpreter of a contestant: the one that is named, built, or the gate's.

    Raises BadInput: its environment cannot be built.
    """
    if not found.requirements:
        return contestant.python or sys.executable
    if (root / "requirements" / "runtime.txt").is_file():
        return str(built(found.requirements, root=root))
    return str(interpreter_with((*requirements, *found.requirements)))


@contextmanager
def standing(
    contestant: Contestant,
    *,
    root: Path = ROOT,
    extensions: bool = True,
    requirements: Sequence[str] = (),
) -> Iterator[Side]:
    """Make a contestant's tree and environment; the tree is temporary and gone at the end.

    `root` is the folder of the project that is under test. With `extensions`, a folder's compiled
    ones come along, which git ignores. `requirements` are what an environment has besides, where
    one is built.

    Raises NoContestant: there is no such thing, or its worktree or environment cannot be made.
    """
    found = find(contestant, root=root)
    python = interpreter_of(contestant, found, root, requirements)
    top = top_of(root)
    inside = root.resolve().relative_to(top)
    if found.folder is not None:
        home = top_of(found.folder)
        commit, dirty = commit_of(home), has_changes(home)
        name = contestant.asked if found.requirements or not commit else commit[:12]
        tree_of = snapshot(home, extensions=extensions)
        if found.folder != home:
            inside = found.folder.relative_to(home)
    else:
        assert found.commit is not None
        home = top
        commit, dirty = found.commit, False
        name = commit[:12] if commit.startswith(contestant.asked) else contestant.asked
        tree_of = worktree(commit, root=top)
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
            tree / inside if (tree / inside).is_dir() else tree,
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
