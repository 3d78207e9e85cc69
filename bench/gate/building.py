"""What a project builds, once for each side, and kept by what it was made of.

The command runs in the side's root, by the shell, with the side's interpreter first on the path. It
is to leave what it makes in the tree: `python setup.py build_ext --inplace`, `make`. What is kept
are the files that it made or changed. They are put back where the same files, command, interpreter
and installed versions come again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock

from bench.gate.children import run_child
from bench.gate.contestant import Side
from bench.gate.temporary import temporary_folder
from bench.gate.trees import digest_of
from subjects.interpreters import environments

MOST_KEPT: Final = 20
"""Builds; the one that was used longest ago goes first."""

LAST_LINES: Final = 15
"""Of a failed build's output, in the report."""

VERSIONS: Final = (
    "import sys, importlib.metadata as m; print(sys.version, *sorted("
    "f'{d.name}=={d.version}' for d in m.distributions()), sep='\\n')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """How a build ended."""

    failed: bool
    kept: bool
    """Whether it was there already."""
    seconds: float
    said: str = ""
    """Its output, where it failed."""

    @property
    def last_lines(self) -> str:
        """Of the output."""
        return "\n".join(self.said.strip().splitlines()[-LAST_LINES:])


def build(side: Side, command: str, *, stopped: Callable[[], bool]) -> Built | None:
    """Build a side's tree, or put back what an earlier build made of it; None if stopped."""
    began = time.monotonic()
    folder = environments() / "builds" / _key(side, command)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        kept = folder.is_dir()
        if kept:
            shutil.copytree(folder, side.tree, symlinks=True, dirs_exist_ok=True)
            os.utime(folder)
        else:
            before = _files(side.tree)
            with temporary_folder() as scratch:
                ended = run_child(
                    command,
                    folder=side.root,
                    log=scratch / "log",
                    environment=_environment(side),
                    stopped=stopped,
                )
            if ended is None:
                return None
            if ended.code:
                said = f"{ended.said.strip()}\nended with code {ended.code}".strip()
                taken = time.monotonic() - began
                return Built(failed=True, kept=False, seconds=taken, said=said)
            _keep(side.tree, before, folder)
    _forget_the_oldest(folder.parent)
    return Built(failed=False, kept=kept, seconds=time.monotonic() - began)


def keep_log(built: Built, folder: Path, role: str) -> str:
    """Keep a failed build's output in a project's folder; the file's name, empty if it cannot."""
    file = folder / ".pagedbench" / "gate" / f"build-{role}.log"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(built.said + "\n", encoding="utf-8")
    except OSError:
        return ""
    return str(file)


def _environment(side: Side) -> dict[str, str]:
    """The side's interpreter first, by all its names."""
    folder = str(Path(shutil.which(side.python) or side.python).absolute().parent)
    return {"PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])}


def _key(side: Side, command: str) -> str:
    """What a build depends on, in a number."""
    run = subprocess.run(
        [side.python, "-c", VERSIONS], capture_output=True, text=True, check=False, cwd="/"
    )
    inside = str(side.root.relative_to(side.tree))
    facts = [digest_of(side.tree), inside, command, side.python, run.stdout]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:24]


def _files(tree: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file, but git's own."""
    found = {}
    for folder, folders, names in os.walk(tree):
        folders[:] = [name for name in folders if name not in (".git", "__pycache__")]
        for name in names:
            path = os.path.join(folder, name)
            seen = os.lstat(path)
            found[os.path.relpath(path, tree)] = (seen.st_size, seen.st_mtime_ns)
    return found


def _keep(tree: Path, before: Mapping[str, tuple[int, int]], folder: Path) -> None:
    """Copy what was made or changed; in one step, so that what is there is whole."""
    half = Path(f"{folder}.part")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    for name, seen in _files(tree).items():
        if before.get(name) != seen and name != ".git":
            target = half / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, target, follow_symlinks=False)
    half.replace(folder)


def _forget_the_oldest(parent: Path) -> None:
    kept = [each for each in parent.iterdir() if each.is_dir() and each.suffix != ".part"]
    for folder in sorted(kept, key=lambda each: each.stat().st_mtime)[:-MOST_KEPT]:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            os.unlink(f"{folder}.lock")
