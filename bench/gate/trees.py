"""Trees to measure: a commit's worktree, or a copy of a folder as it stands; gone at the end."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from bench.gate.temporary import temporary_folder
from reference.errors import BadInput

NEVER_COPIED: Final = (
    *(".git", "__pycache__", ".pagedbench", ".asv", ".engines", ".triton", "node_modules"),
    *(".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".nox", ".tox"),
)
"""Where no git says what belongs to a folder: caches, and what is not the folder's own."""

EXTENSIONS: Final = ("*.so", "*.pyd")
"""Compiled by somebody before; git ignores them, and without them nothing would import."""


class NoContestant(BadInput):
    """A contestant cannot be had; the message says what was asked for and what to do."""


def top_of(folder: Path) -> Path:
    """The checkout that a folder lies in; the folder itself where it lies in none."""
    folder = folder.resolve()
    return next((each for each in (folder, *folder.parents) if (each / ".git").exists()), folder)


@contextmanager
def snapshot(folder: Path, *, extensions: bool = True) -> Iterator[Path]:
    """Copy a folder into a temporary one for as long as the context lasts.

    Of a checkout what git knows and what it does not ignore, with `extensions` compiled ones
    besides; else everything but caches and virtual environments. Files that change while the gate
    runs then change nothing, and the paths of both sides are of one length.
    """
    with temporary_folder() as parent:
        tree = parent / "tree"
        if (folder / ".git").exists():
            for name in _names(folder, extensions=extensions):
                source, target = folder / name, tree / name
                # What was deleted is listed, too; a folder is another repository in this one.
                if source.is_dir() and not source.is_symlink():
                    shutil.copytree(source, target, symlinks=True, ignore=_not_ours)
                elif os.path.lexists(source):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, target, follow_symlinks=False)
        else:
            shutil.copytree(folder, tree, symlinks=True, ignore=_not_ours)
        tree.mkdir(exist_ok=True)
        yield tree


@contextmanager
def worktree(commit: str, *, root: Path) -> Iterator[Path]:
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


NO_CODE: Final = frozenset({"docs", ".github", "CHANGELOG.md", "changelog.d"})
"""At the top of a tree: what no program runs, nor do files that end in .md or .rst."""


def is_code(file: Path) -> bool:
    """Whether a file, relative to its tree, may change what a program does."""
    return file.parts[0] not in NO_CODE and file.suffix not in {".md", ".rst"}


def digest_of(
    tree: Path, patterns: Sequence[str] = ("**/*",), *, only: Callable[[Path], bool] = bool
) -> str:
    """Names and contents of a tree's files, without those of git, in a number."""
    found = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in tree.glob(pattern)}):
        name = file.relative_to(tree)
        if name.parts[0] == ".git" or "__pycache__" in name.parts or not only(name):
            continue
        if file.is_symlink():
            found.update(f"{name} -> {os.readlink(file)}\n".encode())
        elif file.is_file():
            found.update(f"{name} {file.stat().st_size}\n".encode())
            found.update(file.read_bytes())
    return found.hexdigest()


def _names(folder: Path, *, extensions: bool) -> list[str]:
    def listed(*options: str) -> list[str]:
        run = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "-z", "--exclude-standard", *options],
            capture_output=True,
            check=False,
            start_new_session=True,
        )
        if run.returncode:
            raise NoContestant(f"{folder}: {os.fsdecode(run.stderr).strip()}")
        return [os.fsdecode(name) for name in run.stdout.split(b"\0") if name]

    names = listed("--cached", "--others")
    if extensions:
        # Those of a virtual environment in the folder are its packages' own.
        inside = _in_an_environment(folder)
        compiled = listed("--others", "--ignored", "--", *EXTENSIONS)
        names += [name for name in compiled if not inside(name)]
    return names


def _in_an_environment(folder: Path) -> Callable[[str], bool]:
    known: dict[Path, bool] = {}

    def inside(name: str) -> bool:
        parents = Path(name).parents
        for parent in parents:
            if parent not in known:
                known[parent] = _no_code(folder / parent)
        return any(known[parent] for parent in parents)

    return inside


def _no_code(folder: Path) -> bool:
    """Whether a folder is a cache, or a virtual environment, and no part of what it lies in."""
    return folder.name in NEVER_COPIED or (folder / "pyvenv.cfg").is_file()


def _not_ours(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if _no_code(Path(folder, name))]
