"""Commands of the gate that run beside it: whatever they start ends with the gate."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from subjects.starting import start_of

POLL_S: Final = 0.05

MARK: Final = "PAGEDBENCH_CHILD"
"""Of a command's environment: by its value is found what left the command's group."""

ENDING_S: Final = 5.0
"""For a command that was told to end."""


QUIET: Final = {"COLUMNS": "1000", "NO_COLOR": "1"}
"""Variables for a command of ours whose words are read by a program."""


def our_command(*arguments: str, python: str = sys.executable) -> list[str]:
    """`pagedbench ARGUMENTS`, of this installation, in an interpreter."""
    return [python, "-P", "-c", start_of("bench.cli") + "ours.main()", *arguments]


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that came to its end."""

    code: int
    said: str
    """All that it wrote, to whichever stream."""


def run_child(
    command: Sequence[str] | str,
    *,
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    stopped: Callable[[], bool],
) -> Ended | None:
    """Run a command in a folder, its output to a file; a string is for the shell.

    It leads a group of processes of its own. That, and what has left it, is killed when the run is
    `stopped` and when the command is over; None if it was stopped.
    """
    mark = uuid.uuid4().hex
    # A file, not a pipe: nobody reads while it runs, and a pipe that is full stops it.
    with log.open("w+", errors="replace") as output:
        child = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            cwd=folder,
            env={**os.environ, **environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while child.poll() is None and not stopped():
                time.sleep(POLL_S)
            ended = child.poll() is not None
        finally:
            _end(child)
            _end_marked(f"{MARK}={mark}".encode())
        if not ended:
            return None
        output.seek(0)
        return Ended(child.returncode, output.read())


def _end(child: subprocess.Popen[bytes]) -> None:
    """End what is left of a group: with a moment to do so in order, where its leader lives."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(ENDING_S)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _end_marked(mark: bytes) -> None:
    """End what has a mark in its environment: all of a command that is not in its group."""
    found = True
    while found:
        found = False
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone meanwhile, or somebody else's
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)
                    found = True
