"""Foreign code lives in environments of its own, in `.engines` beside the rooms."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from subjects.loading import SubjectError
from subjects.starting import HOME, PREFIX

BESIDE: Final = Path.cwd() if PREFIX else HOME
"""Whose `.engines` is meant: a checkout's own; of an installed package, the present folder's."""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A subject that is known by a short name."""

    where: str
    """`module:attribute` or `path/to/file.py:attribute`."""
    environment: str = ""
    """Name of the environment that it needs; empty if pagedbench's own will do."""


def engine_python(environment: str) -> Path:
    """The interpreter of an engine's environment.

    Environments lie in `.engines` of the checkout, or in the folder that the environment variable
    PAGEDBENCH_ENGINES names.

    Raises SubjectError: it has not been built.
    """
    folder = Path(os.environ.get("PAGEDBENCH_ENGINES") or BESIDE / ".engines")
    python = folder / environment / "bin" / "python"
    if not python.is_file():
        raise SubjectError(
            f"{environment} needs an environment of its own, and {python} is not there: build it "
            f"with 'make engine-{environment}', or name an interpreter with --engine-python"
        )
    return python
