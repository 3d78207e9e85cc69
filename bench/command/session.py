"""What the commands share: exit codes, progress, and how an error is said.

Exit codes: 0 right, 1 wrong, 2 usage, 4 the harness itself failed, 130 interrupted. Python, the
terminal library and a closed pipe all like to end a process with 1, which here means that a kernel
is wrong, or a published figure is missed: what is not a verdict is kept from ending so.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, Protocol, Self

import rich.progress
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from reference.errors import BadInput

if TYPE_CHECKING:
    from pydantic import BaseModel

USAGE: Final = 2
HARNESS_FAILED: Final = 4
"""As in `bench.check.run`, for when that cannot be imported."""
INTERRUPTED: Final = 130


def say_usage_error(error: Exception, errors: Console) -> None:
    """Print what is wrong with the command, as it is."""
    errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


def say_harness_failed(about: str) -> None:
    """Print the traceback of what is no verdict about `about`."""
    sys.stderr.write(f"the harness itself failed; this says nothing about {about}:\n")
    traceback.print_exc()


@contextmanager
def exit_codes(errors: Console, *, about: str) -> Iterator[None]:
    """End the command with the exit code of what goes wrong, which says nothing about `about`."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        errors.print("aborted", style="yellow")
        raise typer.Exit(INTERRUPTED) from None
    except BadInput as error:
        say_usage_error(error, errors)
        raise typer.Exit(USAGE) from None
    except Exception:
        say_harness_failed(about)
        raise typer.Exit(HARNESS_FAILED) from None


def check_file(option: str, file: Path | None) -> None:
    """Raise BadInput where a result could not be written.

    Before the work, not after it: a minute's record should not end in a missing folder.
    """
    if file is None:
        return
    if not file.parent.is_dir():
        raise BadInput(f"{option} {file}: the folder {file.parent} does not exist; make it")
    if file.is_dir():
        raise BadInput(f"{option} {file}: that is a folder; name a file in it")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise BadInput(f"{option} {file}: no permission to write there; choose another file")


def deliver(record: BaseModel, file: Path | None, show: Callable[[], None]) -> None:
    """Write a record, if it is asked for, and show it, even if it cannot be written."""
    try:
        if file is not None:
            file.write_text(record.model_dump_json(indent=2) + "\n")
    finally:
        show()


@contextmanager
def stop_on_interrupt(stop: threading.Event, errors: Console) -> Iterator[None]:
    """The first Ctrl-C ends the search and keeps what is done; the second ends the process."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        errors.print("stopping; what is done is reported (Ctrl-C again to abort)", style="yellow")

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class QuietlyClosed(Console):
    """Goes on when nobody reads any more: `pagedbench check | head` is not a verdict."""

    def on_broken_pipe(self) -> None:
        """Print nothing more; the exit code stays what it is."""
        self.quiet = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.file.fileno())
        os.close(nothing)


class Progress(Protocol):
    """Says how far the work is."""

    def begin(self, what: str, total: int) -> None:
        """Start a step of `total` parts, and with it end the last one."""

    def advance(self, count: int) -> None:
        """Count parts that are done."""

    def __enter__(self) -> Self:
        """Begin to say it."""

    def __exit__(self, *_: object) -> None:
        """End."""


class Silence:
    """Progress that nobody wants to see."""

    def begin(self, what: str, total: int) -> None:
        """Print nothing."""

    def advance(self, count: int) -> None:
        """Print nothing."""

    def __enter__(self) -> Self:
        """Print nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Print nothing."""


class Bar:
    """Progress on a terminal: a bar for each step of the job."""

    def __init__(self, console: Console) -> None:
        self._bar = rich.progress.Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._step = TaskID(0)

    def begin(self, what: str, total: int) -> None:
        """Start a bar."""
        self._step = self._bar.add_task(what, total=total)

    def advance(self, count: int) -> None:
        """Move the last bar on."""
        self._bar.advance(self._step, count)

    def __enter__(self) -> Self:
        """Show the bars."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the finished bars on the screen."""
        self._bar.stop()


class Lines:
    """Progress in a log: a plain line when a step ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._what = ""
        self._total = self._done = 0
        self._began = 0.0
        self._lock = threading.Lock()

    def begin(self, what: str, total: int) -> None:
        """Start a step, and with it end the last one."""
        self._end()
        self._what, self._total, self._done = what, total, 0
        self._began = time.monotonic()

    def advance(self, count: int) -> None:
        """Count; lanes do so at once."""
        with self._lock:
            self._done += count

    def __enter__(self) -> Self:
        """Print nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the last step."""
        self._end()

    def _end(self) -> None:
        if self._what:
            elapsed_s = time.monotonic() - self._began
            line = f"{self._what}: {self._done:,} of {self._total:,} in {elapsed_s:.0f} s"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._what = ""
