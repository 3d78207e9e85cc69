"""The frame of every command: exit codes, errors, outputs, progress, and how it is stopped."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

import typer

from bench.command.console import SafeConsole
from bench.command.exit_codes import HARNESS_FAILED, INTERRUPTED, RIGHT, USAGE
from bench.command.progress import Bar, Lines, Progress, Silence
from bench.command.signals import abort, handled_by
from reference.errors import BadInput

if TYPE_CHECKING:
    from pydantic import BaseModel

    from bench.command.page.parts import Sheet

SETTLING_S: Final = 1.0
"""After the first signal: one more is its echo, as `timeout` sends one to a process and one to its
group. Later ones are meant."""

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


@contextmanager
def session(*, about: str) -> Iterator[Session]:
    """Run a command inside, and end it with the exit code of what came of it.

    `about` is what a failure of the harness says nothing about.
    """
    it = Session(about)
    with it.handlers:
        code = RIGHT
        try:
            yield it
        except typer.Exit as end:
            code = end.exit_code
        except KeyboardInterrupt:
            it.err.say("aborted", "yellow")
            code = INTERRUPTED
        except Exception as error:
            code = it.failed(error)
        code = it.undelivered() or code
    if code:
        raise typer.Exit(code)


class Session:
    """What a command writes to, and how it is stopped."""

    def __init__(self, about: str) -> None:
        self.out = SafeConsole()
        """Standard output: what was found."""
        self.err = SafeConsole(stderr=True)
        """Standard error: everything else."""
        self.stop = threading.Event()
        """Set by the first Ctrl-C or SIGTERM while there is work, which is to end in order."""
        self._stopped_at = -math.inf
        self.handlers = ExitStack()
        self._about = about
        self._lost: list[tuple[str, Exception]] = []

    @contextmanager
    def work(self, *, quiet: bool = False, raising: bool = False) -> Iterator[Progress]:
        """Show the progress of what is done inside, and let the first signal stop it in order.

        From here on a signal no longer ends the command at once: what was found is reported. With
        `raising` it raises KeyboardInterrupt: for work in this thread that does not look at `stop`.
        """
        working = True

        def stopped(number: int, frame: FrameType | None) -> None:
            if self.stop.is_set():
                if time.monotonic() > self._stopped_at + SETTLING_S:
                    abort()
                return
            self._stopped_at = time.monotonic()
            self.stop.set()
            # Not from here: the signal may have come in the middle of another line.
            said = "stopping; what is done is reported (Ctrl-C again to abort)"
            threading.Thread(target=self.err.say, args=(said, "yellow"), daemon=True).start()
            if raising and working:
                raise KeyboardInterrupt

        self.handlers.enter_context(handled_by(stopped))
        shown = Bar if self.err.is_terminal else Lines
        with Silence() if quiet else shown(self.err) as progress:
            yield progress
        working = False

    def report(
        self,
        record: BaseModel,
        json: Path | None,
        show: Callable[[], object],
        *,
        html: Path | None = None,
        sheet: Callable[[], Sheet] | None = None,
    ) -> None:
        """Write a record to the file of --json, its sheet to that of --html, and show it."""
        self.write("--json", json, lambda: record.model_dump_json(indent=2) + "\n")
        if sheet is not None:
            from bench.command.page.making import page

            self.write("--html", html, lambda: page([sheet()]))
        self.deliver("standard output", show)

    def write(self, option: str, file: Path | None, text: Callable[[], str]) -> None:
        """Write a text to the file that an option names, if it names one."""
        if file is not None:
            self.deliver(f"{option} {file}", lambda: file.write_text(text(), encoding="utf-8"))

    def deliver(self, what: str, step: Callable[[], object]) -> None:
        """Take a step of the delivery. Where it fails, the others are still taken."""
        try:
            step()
        except Exception as error:
            self._lost.append((what, error))

    @property
    def delivered(self) -> bool:
        """Whether all was delivered so far."""
        return not self._lost

    def end(self, code: int) -> NoReturn:
        """End the command."""
        raise typer.Exit(code)

    def failed(self, error: Exception, what: str = "") -> int:
        """Say what went wrong; the exit code that it comes to."""
        if isinstance(error, BadInput):
            self.err.say(f"error: {error}", "red")
            # What fails once a signal has come fails of it: a terminal's reaches git and pip too.
            return INTERRUPTED if self.stop.is_set() else USAGE
        if isinstance(error, OSError) and (what or error.errno in NO_ROOM):
            where = what or error.filename or "a file"
            self.err.say(f"error: {where} cannot be written: {error.strerror or error}", "red")
            return HARNESS_FAILED
        said = "".join(traceback.format_exception(error)).rstrip()
        self.err.say(f"the harness itself failed; this says nothing about {self._about}:\n{said}")
        return HARNESS_FAILED

    def undelivered(self) -> int:
        """Say what could not be delivered; the exit code that it comes to, 0 if all was."""
        if self.out.lost is not None:
            self._lost.append(("standard output", self.out.lost))
        return max((self.failed(error, what) for what, error in self._lost), default=RIGHT)


def check_readable(file: Path | None) -> None:
    """Raise BadInput where a file that is to be read cannot be."""
    if file is not None:
        try:
            file.open("rb").close()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadInput(f"{file}: {reason}; name a file that can be read") from None


def check_file(option: str, file: Path | None) -> None:
    """Raise BadInput, before the work is done, where a result could not be written."""
    if file is None:
        return
    try:
        if not file.parent.is_dir():
            raise BadInput(f"{option} {file}: the folder {file.parent} does not exist; make it")
        if file.is_dir():
            raise BadInput(f"{option} {file}: that is a folder; name a file in it")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise BadInput(f"{option} {file}: no permission to write there; choose another file")
    except OSError as error:
        raise BadInput(f"{option} {file}: {error.strerror}; choose another file") from None


def check_folder(option: str, folder: Path | None) -> None:
    """Raise BadInput, before the work is done, where a folder of results could not be made."""
    if folder is None:
        return
    try:
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not there.is_dir():
            raise BadInput(f"{option} {folder}: {there} is a file; name a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise BadInput(f"{option} {folder}: no permission to write there; choose another")
    except OSError as error:
        raise BadInput(f"{option} {folder}: {error.strerror}; choose another folder") from None
