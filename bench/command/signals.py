"""Ctrl-C and SIGTERM, from the first moment of a process to the last.

The first signal stops the work in order where there is any; until there is, and with the second
signal, the process ends at once. None of its children outlives it.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress

from bench.command.exit_codes import INTERRUPTED

# What is imported here is imported before a signal is taken care of: little.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_at_once(code: int = INTERRUPTED) -> None:
    """From now on a signal ends this process with `code`, its children first.

    By `os._exit`: an exception in the middle of an import may be hidden by it.
    """
    for number in SIGNALS:
        signal.signal(number, lambda *_: abort(code))


def abort(code: int = INTERRUPTED) -> None:
    """End this process and all that it started."""
    if code == INTERRUPTED:
        # A bar hides the cursor.
        shown = b"\x1b[?25h" if os.isatty(2) else b""
        with suppress(OSError):
            os.write(2, shown + b"aborted\n")
    started = descendants()
    for process in started:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
    for process in started:
        with suppress(ChildProcessError):  # a child's child is not ours to wait for
            os.waitpid(process, 0)  # much memory takes a moment to be given back
    os._exit(code)


def descendants() -> list[int]:
    """Processes that this one started, and that those started, the youngest generation last."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            # pid (name) state parent ...; the name may hold anything, brackets too.
            with open(f"/proc/{name}/stat", "rb") as stat:
                parent = int(stat.read().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found = list(children.get(os.getpid(), ()))
    for process in found:
        found += children.get(process, ())
    # joblib's and Python's own removes what the others leave behind, and ends when they are gone.
    return [each for each in found if b"resource_tracker" not in _command(each)]


def _command(process: int) -> bytes:
    with suppress(OSError), open(f"/proc/{process}/cmdline", "rb") as words:
        return words.read()
    return b""


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let `handler` take both signals for a while."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
