"""A subject in a process of its own: its crashes, hangs and environment stay there.

The child answers one JSON line for each JSON line that it is asked. It is started at the first
question and again after it died, so that a search may go on, and shrink, past a crash.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Final, Self

STDERR_TAIL: Final = 2000
"""Characters of the child's last words that are kept."""


class SubjectDied(Exception):
    """The child ended, or had to be ended, before it answered.

    Attributes
    ----------
    how
        One sentence: the signal, the exit code or the time limit, and its last words.
    timed_out
        Whether it was ended for taking too long.
    """

    def __init__(self, how: str, *, timed_out: bool) -> None:
        super().__init__(how)
        self.how = how
        self.timed_out = timed_out


class SubjectProcess:
    """A child process that answers questions.

    Parameters
    ----------
    command
        What to start. It reads questions from standard input and answers on the file descriptor
        that the environment variable PAGEDBENCH_ANSWERS names, so that a subject may print.
    environment
        Added to this process's own.
    time_limit_s
        Seconds for one answer, the start of the child included.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        time_limit_s: float = 120.0,
    ) -> None:
        self._command = list(command)
        self._environment = dict(environment or {})
        self._time_limit_s = time_limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._answers = -1
        self._pending = b""
        self._stderr: IO[bytes] | None = None

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Send a question and wait for its answer.

        Raises
        ------
        SubjectDied
            If the child dies or the time runs out. The next question starts a new child.
        """
        if self._child is None:
            self._start()
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._obituary() from None
        answer: dict[str, Any] = json.loads(self._read_line())
        return answer

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        if self._child.stdin is not None:
            self._child.stdin.close()
        os.close(self._answers)
        if self._stderr is not None:
            self._stderr.close()
        self._child = None
        self._pending = b""

    def __enter__(self) -> Self:
        """Nothing is started before the first question."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the child."""
        self.close()

    def _start(self) -> None:
        self._answers, write_end = os.pipe()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        environment = {**os.environ, **self._environment, "PAGEDBENCH_ANSWERS": str(write_end)}
        try:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=self._stderr,
                stderr=self._stderr,
                env=environment,
                pass_fds=[write_end],
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        finally:
            os.close(write_end)

    def _read_line(self) -> bytes:
        deadline = time.monotonic() + self._time_limit_s
        while b"\n" not in self._pending:
            ready, _, _ = select.select(
                [self._answers], [], [], max(0.0, deadline - time.monotonic())
            )
            if not ready:
                self.close()
                raise SubjectDied(f"gave no answer within {self._time_limit_s:g} s", timed_out=True)
            chunk = os.read(self._answers, 1 << 16)
            if not chunk:
                raise self._obituary()
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _obituary(self) -> SubjectDied:
        assert self._child is not None
        assert self._stderr is not None
        code = self._child.wait()
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace")[-STDERR_TAIL:].strip()
        how = (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        )
        self.close()
        return SubjectDied(f"{how}: {words}" if words else how, timed_out=False)
