"""A subject in a process of its own: its crashes, hangs and environment stay there.

The child says two JSON lines unasked. The first, `{}`, comes once its own imports are done: what
fails before it says nothing about the subject. The second introduces the subject. From then on it
answers one line for each line that it is asked, with the number that the question had: a subject
that writes to the pipe itself is found out. It is started when it is first needed and again after
it died, so that a search may go on, and shrink, past a crash.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Final, Self

START_LIMIT_S: Final = 120.0
"""For each of the two lines that a child says unasked: importing torch from a cold disk, then
whatever the subject imports."""

LAST_WORDS_S: Final = 0.5
"""For a child that hangs to say where."""

ENDING_S: Final = 10.0
"""For a child that closed its answers to end: an interpreter with torch takes a while to."""

STDERR_TAIL: Final = 2000
"""Characters of the child's last words that are kept."""

MAX_ANSWER: Final = 1 << 28
"""Bytes of one answer; a subject may fill the pipe for ever."""

QUOTED: Final = 60
"""Bytes of what is no answer that are quoted."""


class SubjectDied(Exception):
    """The child ended, or had to be ended, before it answered, or what it said was no answer.

    `how` is one sentence: the signal, the exit code, the time limit or what it said instead of an
    answer, and its last words.
    """

    def __init__(self, how: str, *, timed_out: bool) -> None:
        super().__init__(how)
        self.how = how
        self.timed_out = timed_out


class NotStarted(RuntimeError):
    """The child ended before it came to the subject: nothing is known about the subject."""


class SubjectProcess:
    """A child process that answers questions.

    One thread uses it, and closes it; only `kill` may be called from others.

    `command`: what to start. It reads questions from standard input and answers on the file
    descriptor that the environment variable PAGEDBENCH_ANSWERS names, so that a subject may print.
    On SIGUSR1 it may write to standard error where it is; it is killed right after. `environment`:
    added to this process's own. `time_limit_s`: seconds for one answer.
    `pass_fds`: descriptors that the child gets under the same numbers. `popen`: what starts it in
    the place of `subprocess.Popen`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        time_limit_s: float = 120.0,
        pass_fds: Sequence[int] = (),
        popen: Callable[..., Any] | None = None,
    ) -> None:
        self._popen = popen
        self._command = list(command)
        self._pass_fds = tuple(pass_fds)
        self._environment = dict(environment or {})
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._killed = False
        self._child: subprocess.Popen[bytes] | None = None
        self._introduction: dict[str, Any] = {}
        self._number = 0
        self._answers = -1
        self._pending = bytearray()
        self._log: IO[bytes] | None = None

    def introduce(self) -> dict[str, Any]:
        """What the child says of its subject; starts the child if there is none.

        Raises NotStarted: it ends, or says nothing, before it comes to its subject; SubjectDied:
        after.
        """
        if self._child is None:
            self._start()
            try:
                # Whoever dies right after this line has come to its subject all the same.
                self._read_line(START_LIMIT_S, even_of_the_dead=True)
            except SubjectDied as death:
                raise NotStarted(f"{' '.join(self._command)}: the process {death.how}") from None
            self._introduction = self._parsed(self._read_line(START_LIMIT_S))
        return self._introduction

    def ask(self, question: Mapping[str, Any], *, limit_s: float | None = None) -> dict[str, Any]:
        """Send a question and wait for its answer, `limit_s` seconds if that is given.

        Raises SubjectDied if the child dies or the time runs out; the next question starts a new
        child. Raises NotStarted: as for `introduce`.
        """
        self.introduce()
        child, log = self._running()
        assert child.stdin is not None
        # Its last words are to be those about this question. The offset is shared with the child.
        log.seek(0)
        log.truncate()
        try:
            self._number = secrets.randbits(48)  # an answer that is written ahead cannot have it
            numbered = {**question, "question_number": self._number}
            child.stdin.write(json.dumps(numbered).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise self._obituary() from None
        return self.next_answer(limit_s=limit_s)

    def next_answer(self, *, limit_s: float | None = None) -> dict[str, Any]:
        """Wait for another answer to the last question. Raises SubjectDied: as for `ask`."""
        while not (line := self._read_line(limit_s or self._time_limit_s)):
            pass  # a worker that died in the middle of a line ends it before it goes on
        answer = self._parsed(line)
        if answer.pop("question_number", None) != self._number:
            raise self._broke_the_protocol(line, "the answer to no question")
        return answer

    def last_words(self) -> str:
        """What the child has printed since the last question."""
        _, log = self._running()
        return _last_words(log)

    def kill(self) -> None:
        """End the child for good, from any thread: whoever waits for an answer gets SubjectDied."""
        with self._lock:
            self._killed = True
            if self._child is not None:
                self._kill(self._child)

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            child, self._child = self._child, None
        if child is None:
            return
        self._kill(child)
        child.wait()
        if child.stdin is not None:
            with suppress(BrokenPipeError):
                child.stdin.close()
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self) -> None:
        with self._lock:
            if self._killed:
                raise SubjectDied("was ended", timed_out=False)
            self._answers, write_end = os.pipe()
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
            environment = {**os.environ, **self._environment, "PAGEDBENCH_ANSWERS": str(write_end)}
            try:
                self._child = (self._popen or subprocess.Popen)(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=self._log,
                    stderr=self._log,
                    env=environment,
                    pass_fds=[write_end, *self._pass_fds],
                    start_new_session=True,  # Ctrl-C is the parent's to handle
                )
            except OSError as error:
                self._let_go()
                raise NotStarted(f"{' '.join(self._command)}: {error}") from error
            finally:
                os.close(write_end)

    def _kill(self, child: subprocess.Popen[bytes]) -> None:
        # The child leads a group of its own: what it started, a compiler for one, ends with it.
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    def _let_go(self) -> None:
        os.close(self._answers)
        if self._log is not None:
            self._log.close()
        self._pending = bytearray()

    def _running(self) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        assert self._child is not None
        assert self._log is not None
        return self._child, self._log

    def _read_line(self, limit_s: float, *, even_of_the_dead: bool = False) -> bytes:
        child, _ = self._running()
        deadline = time.monotonic() + limit_s
        chunk = self._pending
        while b"\n" not in chunk:
            left_s = deadline - time.monotonic()
            ready, _, _ = select.select([self._answers], [], [], min(max(left_s, 0.0), 1.0))
            if ready:
                chunk = bytearray(os.read(self._answers, 1 << 16))
                if not chunk:
                    raise self._obituary()
                self._pending += chunk
                if len(self._pending) > MAX_ANSWER:
                    raise self._broke_the_protocol(self._pending, "longer than any answer")
            elif child.poll() is not None:
                raise self._obituary()  # dead, and a child of its own holds the pipe open
            elif left_s <= 0:
                raise self._given_up(limit_s)
        if not even_of_the_dead and child.poll() is not None:
            raise self._obituary()  # a child of its own answers in its place
        line, _, rest = self._pending.partition(b"\n")
        self._pending = bytearray(rest)
        return bytes(line)

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            raise self._broke_the_protocol(line, "no JSON") from None
        if not isinstance(said, dict):
            raise self._broke_the_protocol(line, "no JSON object")
        return said

    def _broke_the_protocol(self, said: bytes | bytearray, why: str) -> SubjectDied:
        """What is on the pipe is not the worker's: nothing that comes after it can be trusted."""
        quoted = repr(bytes(said[:QUOTED]))[1:]
        how = f"broke the protocol: it wrote {quoted} where answers go, which is {why}"
        return self._died(how, timed_out=False)

    def _given_up(self, limit_s: float) -> SubjectDied:
        child, _ = self._running()
        child.send_signal(signal.SIGUSR1)
        with suppress(subprocess.TimeoutExpired):
            child.wait(LAST_WORDS_S)
        return self._died(f"gave no answer within {limit_s:g} s", timed_out=True)

    def _obituary(self) -> SubjectDied:
        child, _ = self._running()
        try:
            code = child.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            return self._died("closed its answers and lived on", timed_out=False)
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
        return self._died(how, timed_out=False)

    def _died(self, how: str, *, timed_out: bool) -> SubjectDied:
        _, log = self._running()
        words = _last_words(log)
        self.close()
        return SubjectDied(f"{how}: {words}" if words else how, timed_out=timed_out)


def _last_words(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 4 * STDERR_TAIL))
    lines = log.read().decode(errors="replace").splitlines()
    # The interpreter ends its report of a crash with the name of every extension module.
    told = "\n".join(line for line in lines if not line.startswith("Extension modules: "))
    return told.strip()[-STDERR_TAIL:]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
