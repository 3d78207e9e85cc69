"""Ctrl-C and SIGTERM at early moments of every command: 130, no traceback, and nobody stays.

Counted from the moment in which the first line of ours can take a signal: before that the
interpreter has it, and SIGTERM ends that without a word.
"""

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from helpers.places import COMMAND, ROOT

COMMANDS = {
    "check": ("--problems", "2000", "--no-timing"),
    "waste": ("--requests", "1000000", "--jobs", "2"),
    "fuzz": ("--examples", "1000000"),
    "race": ("--requests", "200000"),
    "compile": (),
    "throughput": (),
    "gate": ("HEAD",),
    "compare": ("HEAD", "HEAD~1"),
    "history": (),
    "import": ("gone.json",),
}

MOMENTS = (0.0, 0.05, 0.1, 0.5, 2.0)
"""Seconds. Each command is given one of them, and each of them comes with both signals."""

ENDS_AT_ONCE = {"history", "import"}

OF_A_PROJECT = {"gate", "compare"}
"""Refuse a folder that has no table of who is compared."""


def takes_signals(process: int) -> bool:
    """Whether a process has a handler of its own for SIGTERM."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        name, _, mask = line.partition(":")
        if name == "SigCgt":
            return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)
    return False


def alive(mark: bytes) -> set[int]:
    """Processes that were started, however indirectly, with a mark in their environment."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (place / "environ").read_bytes():
                found.add(int(place.name))
        except OSError:
            continue
    return found


def nobody_stays(mark: bytes) -> bool:
    deadline = time.monotonic() + 60
    while left := alive(mark):
        if time.monotonic() > deadline:
            for process in left:
                os.kill(process, signal.SIGKILL)
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("command", "number", "moment"),
    [
        (command, (signal.SIGINT, signal.SIGTERM)[place % 2], MOMENTS[place % len(MOMENTS)])
        for place, command in enumerate(COMMANDS)
    ],
)
def test_a_signal_ends_the_command_in_order(command, number, moment, tmp_path):
    mark = f"PAGEDBENCH_SIGNALLED={uuid.uuid4()}"
    name, value = mark.split("=")
    process = subprocess.Popen(
        [*COMMAND, command, *COMMANDS[command]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT if command in OF_A_PROJECT else tmp_path,
        start_new_session=True,
        env={**os.environ, name: value, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not takes_signals(process.pid) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(moment)
    # To all of them, as a terminal does; what is started in a session of its own is not reached.
    os.killpg(process.pid, number)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert nobody_stays(mark.encode())
    assert "Traceback" not in out + err
    assert "Warning" not in err
    if command in ENDS_AT_ONCE and "error: " in err:
        return  # it was refused before the signal came, and may have come to Python's own end
    assert process.returncode == 130, err
