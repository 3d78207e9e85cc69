"""Temporary folders of a run, and what a run that was killed left of its own."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

PREFIX: Final = "pagedbench-gate-"

LOCK: Final = "in-use"
"""File in each folder that its run holds locked. The system lets go of it when the run dies, of
whatever: that is how an abandoned folder is known."""

SETTLED_S: Final = 60.0
"""A younger folder may be one that is about to be locked."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder that is gone when the context ends."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield folder
    finally:
        # Ctrl-C comes here as well; a second one must not leave half of it.
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(*, settled_s: float = SETTLED_S) -> list[Path]:
    """Remove the folders of runs that were killed; returns them."""
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        lock = folder / LOCK
        try:
            if not lock.is_file() or time.time() - lock.stat().st_mtime < settled_s:
                continue
            with FileLock(lock, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):
            continue  # in use, somebody else's, or gone meanwhile
        removed.append(folder)
    return removed
