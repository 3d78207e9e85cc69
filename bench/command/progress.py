"""How far the work is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import threading
import time
from typing import Final, Self

import rich.progress
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from bench.command.console import SafeConsole

LINE_EVERY_S: Final = 10.0
"""In a log, where a step takes longer."""


class Progress:
    """Is told how far the work is, from any thread; nobody sees it of this one."""

    def begin(self, what: str, total: int | None = None) -> None:
        """Start a step of `total` parts, or of nobody knows how many; with it the last one ends."""

    def advance(self, count: int) -> None:
        """Count parts that are done."""

    def tell(self, what: str) -> None:
        """Say of the step what it now is; for one without a total."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End."""


class Silence(Progress):
    """Progress that nobody wants to see."""


class Bar(Progress):
    """Progress on a terminal: a bar for each step of the work."""

    def __init__(self, console: SafeConsole) -> None:
        self._bar = rich.progress.Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._step = rich.progress.TaskID(0)

    def begin(self, what: str, total: int | None = None) -> None:
        """Start a bar."""
        self._step = self._bar.add_task(what, total=total)

    def advance(self, count: int) -> None:
        """Move the last bar on."""
        self._bar.advance(self._step, count)

    def tell(self, what: str) -> None:
        """Write it before the last bar."""
        self._bar.update(self._step, description=what)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


class Lines(Progress):
    """Progress in a log: a plain line when a step ends, and now and then while it lasts."""

    def __init__(self, console: SafeConsole, *, every_s: float = LINE_EVERY_S) -> None:
        self._console = console
        self._every_s = every_s
        self._what = ""
        self._total: int | None = None
        self._done = 0
        self._began = 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._teller = threading.Thread(target=self._now_and_then, daemon=True)

    def begin(self, what: str, total: int | None = None) -> None:
        """Start a step, and with it end the last one."""
        self._say()
        with self._lock:
            self._what, self._total, self._done = what, total, 0
            self._began = time.monotonic()

    def advance(self, count: int) -> None:
        """Count."""
        with self._lock:
            self._done += count

    def tell(self, what: str) -> None:
        """Keep it for the next line."""
        self._what = what

    def __enter__(self) -> Self:
        self._teller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._teller.join()
        self._say()

    def _now_and_then(self) -> None:
        while not self._over.wait(self._every_s):
            if time.monotonic() - self._began >= self._every_s:
                self._say()

    def _say(self) -> None:
        with self._lock:
            line = self._what
            if self._total is not None:
                elapsed_s = time.monotonic() - self._began
                line += f": {self._done:,} of {self._total:,} in {elapsed_s:.0f} s"
        if line:
            self._console.say(line)
