"""Log lines of a running server, as they are written; only those with figures."""

from __future__ import annotations

import os
import threading
import time
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.diagnose.log_lines import worth
from reference.errors import BadInput

if TYPE_CHECKING:
    from bench.diagnose.recording import Input

HEAD_BYTES: Final = 2**22
"""Of what was written before: the start, with the server's arguments and the size of its cache."""

CHUNK_BYTES: Final = 2**18
MAX_LINE_BYTES: Final = 2**16
_POLL_S: Final = 0.5


class LogFollower:
    """Follows one file, also through rotations. Raises BadInput: it cannot be read."""

    def __init__(self, path: Path, entry: Input) -> None:
        self._path = path
        self._entry = entry
        self._rest = b""
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise BadInput(
                f"--log {path}: {error.strerror or error}; name the file that the server logs to"
            ) from None
        if path.is_fifo() or not path.is_file():
            raise BadInput(f"--log {path}: it is no regular file; name the server's log")

    def take(self, over: threading.Event) -> None:
        """Take lines until it is over."""
        try:
            self._follow(over)
        finally:
            self._file.close()

    def _follow(self, over: threading.Event) -> None:
        # Logs say neither the year nor the zone.
        zone = time.strftime("%z")
        self._entry.file.add(f"# recorded {time.time():.3f} {zone}\n")
        end = os.fstat(self._file.fileno()).st_size
        while self._file.tell() < min(HEAD_BYTES, end):
            self._chunk(min(CHUNK_BYTES, end - self._file.tell()))
        if end > HEAD_BYTES:
            self._file.seek(end)
            self._rest = b""
        while not over.wait(0 if self._chunk() else _POLL_S):
            self._entry.file.tick()
            self._rotated()

    def _chunk(self, size: int = CHUNK_BYTES) -> bool:
        """Read on; whether there was something."""
        content = self._file.read(size)
        *lines, self._rest = (self._rest + content).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest = self._rest[:MAX_LINE_BYTES]
        for line in lines:
            kept = worth(line[:MAX_LINE_BYTES].decode("utf-8", "replace"))
            if kept is None:
                self._entry.failed += 1
            else:
                self._entry.taken += 1
                self._entry.file.add(kept + "\n")
        return bool(content)

    def _rotated(self) -> None:
        """Go on with the new file where the old one was moved away or cut."""
        try:
            now = os.stat(self._path)
        except OSError:
            return
        ours = os.fstat(self._file.fileno())
        if now.st_ino != ours.st_ino:
            replacement: BufferedReader = self._path.open("rb")
            self._file.close()
            self._file, self._rest = replacement, b""
        elif now.st_size < self._file.tell():
            self._file.seek(0)
            self._rest = b""
