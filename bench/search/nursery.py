"""Children that are forked from one that did their imports: torch takes each a second or two.

A nursery is a process that imports what its children need and nothing of a subject, and forks one
for each `popen`. It stands in for `subprocess.Popen` wherever a command is `python -c CODE ARGS`,
and gives way to it where it cannot be had. What it forked ends with it, and it ends when whoever
could ask is gone. A child can be handed the nursery's descriptor, to have children of its own.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Final, NoReturn

from subjects.process import START_LIMIT_S
from subjects.starting import start_of

DESCRIPTOR: Final = "PAGEDBENCH_NURSERY"
"""Environment variable: the descriptor that a child was handed."""

_ITS_OWN: Final = (
    "PAGEDBENCH_ANSWERS",
    DESCRIPTOR,
    "PYTEST_CURRENT_TEST",
    "PAGEDBENCH_COMPILE_CACHE",
    "TRITON_CACHE_DIR",
)
"""What may differ from child to child of one nursery: nothing reads it while it is imported."""

_LARGEST: Final = 1 << 18
"""Bytes of a request: a command and an environment."""

_NUMBER: Final = 8
"""Bytes of a process id and of an exit status."""


class Forked:
    """A child of a nursery, as far as `subprocess.Popen` is asked about its own."""

    def __init__(self, pid: int, stdin: IO[bytes], said: int) -> None:
        self.pid = pid
        self.stdin = stdin
        self.returncode: int | None = None
        self._said = said
        self._waiting = threading.Lock()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. Raises subprocess.TimeoutExpired."""
        with self._waiting:
            if self.returncode is None:
                if not select.select([self._said], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
                status = os.read(self._said, _NUMBER)
                os.close(self._said)
                # Nothing said: the nursery is gone, and took its children along.
                self.returncode = int(status) if status else -9
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(9)


class Nursery:
    """Who asks a nursery for children, from any thread."""

    def __init__(
        self, asking: socket.socket, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        self._asking = asking
        self._process = process
        self.descriptor = asking.fileno()
        """To hand on."""

    @classmethod
    def inherited(cls) -> Nursery | None:
        """That of which this process is a child, if it was handed its descriptor."""
        descriptor = os.environ.pop(DESCRIPTOR, None)
        return None if descriptor is None else cls(socket.socket(fileno=int(descriptor)))

    @classmethod
    def started(cls, module: str, environment: Mapping[str, str]) -> Nursery:
        """A new one, that has imported a module of ours."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = start_of(module) + start_of("bench.search.nursery")
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-c", code + f"ours.serve({theirs.fileno()})"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return cls(ours, process)

    def close(self) -> None:
        """End it, and what it forked, where it is ours."""
        self._asking.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def popen(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        start_new_session: bool,
    ) -> Forked | subprocess.Popen[bytes]:
        """As `subprocess.Popen`; whoever is forked leads a new group of processes."""
        reads, writes = os.pipe()
        hears, says = os.pipe()
        request = {
            "command": command[command.index("-c") + 1 :],
            "environment": dict(env),
            "folder": os.getcwd(),
            "descriptors": [0, 1, 2, *pass_fds],
        }
        given = [says, reads, stdout.fileno(), stderr.fileno(), *pass_fds]
        pid = b""
        with suppress(OSError):  # it ended, or this is too much for one message
            socket.send_fds(self._asking, [json.dumps(request).encode()], given)
            os.close(says)
            says = -1
            if select.select([hears], [], [], START_LIMIT_S)[0]:
                pid = os.read(hears, _NUMBER)
        for descriptor in (reads, *([says] if says >= 0 else [])):
            os.close(descriptor)
        if pid:
            return Forked(int(pid), os.fdopen(writes, "wb"), hears)
        os.close(writes)
        os.close(hears)
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            pass_fds=pass_fds,
            start_new_session=start_new_session,
        )


_kept: dict[str, Nursery] = {}
_lock = threading.Lock()


@atexit.register
def _end() -> None:
    for nursery in _kept.values():
        nursery.close()
    _kept.clear()


def nursery_of(module: str, environment: Mapping[str, str]) -> Nursery | None:
    """A nursery that has imported a module of ours in an environment, the same for more children.

    None where the system has none.
    """
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return None
    whole = {**os.environ, **environment}
    whole = {name: value for name, value in whole.items() if name not in _ITS_OWN}
    key = json.dumps([start_of(module), sorted(whole.items())])
    with _lock:
        if key not in _kept:
            _end()  # one at a time: another environment is another run
            _kept[key] = Nursery.started(module, whole)
        return _kept[key]


def serve(descriptor: int) -> NoReturn:
    """Fork whoever is asked for until nobody can ask: what a nursery does."""
    asked = socket.socket(fileno=descriptor)
    saying: dict[int, tuple[int, int]] = {}
    """By a process's descriptor: its id, and where its end is said."""
    while True:
        for ready in select.select([descriptor, *saying], [], [])[0]:
            if ready != descriptor:
                pid, says = saying.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(BrokenPipeError):
                    os.write(says, b"%d" % code)
                os.close(says)
                os.close(ready)
                continue
            message, given, _, _ = socket.recv_fds(asked, _LARGEST, 64)
            if not message:
                os._exit(0)
            request = json.loads(message)
            pid = os.fork()
            if pid == 0:
                asked.close()
                for unwanted in (given[0], *saying, *(says for _, says in saying.values())):
                    os.close(unwanted)
                _become(request, given[1:])
            with suppress(OSError):  # whoever is first
                os.setpgid(pid, 0)
            os.write(given[0], b"%d" % pid)
            saying[os.pidfd_open(pid)] = pid, given[0]
            for handed in given[1:]:
                os.close(handed)


def _become(request: dict[str, Any], given: list[int]) -> NoReturn:
    """Run a command in this process, which was just forked."""
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        wanted = request["descriptors"]
        apart = [fcntl.fcntl(one, fcntl.F_DUPFD, max(wanted) + 1) for one in given]
        for one in given:
            os.close(one)
        for one, number in zip(apart, wanted, strict=True):
            os.dup2(one, number)
            os.close(one)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        code, *arguments = request["command"]
        sys.argv = ["-c", *arguments]
        exec(code, {"__name__": "__main__"})
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)
