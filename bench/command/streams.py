"""A stream that breaks nothing when nobody reads it, or when there is no room for what is written.

Little is imported: it stands in the place of standard output before anything else is done.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any


class SafeStream:
    """Writes what is `cleaned` to a stream, whichever it is at the moment, while that goes."""

    def __init__(
        self, stream: Callable[[], IO[str]], *, cleaned: Callable[[str], str] = lambda text: text
    ) -> None:
        self._stream = stream
        self._cleaned = cleaned
        self._closed = False
        self._lost: OSError | None = None

    @property
    def lost(self) -> OSError | None:
        """Why not all could be written; None also where its reader left, which is his affair."""
        return self._lost or getattr(self._now, "lost", None)

    def write(self, text: str) -> int:
        """Write, unless that is over."""
        self._try(lambda: self._now.write(self._cleaned(text)))
        return len(text)

    def flush(self) -> None:
        """Flush, unless that is over."""
        self._try(self._now.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now, name)

    @property
    def _now(self) -> IO[str]:
        stream = self._stream()
        # A bar takes the stream's place, to print above itself.
        return getattr(stream, "rich_proxied_file", stream)

    def _try(self, step: Callable[[], object]) -> None:
        if self._closed:
            return
        try:
            step()
        except UnicodeEncodeError as error:
            # A terminal that knows fewer characters shows the others by their numbers.
            self._now.write(error.object.encode(error.encoding, "backslashreplace").decode())
        except OSError as error:
            self._closed = True
            if not isinstance(error, BrokenPipeError):
                self._lost = error
            # What is still in its buffer would fail again when the interpreter ends.
            with suppress(OSError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._now.fileno())


def without_commands(text: str) -> str:
    """Text of which no line is a workflow command to the runner of a GitHub Actions job."""
    return re.sub(r"(?m)^(\s*):(?=:)", r"\1: ", text).replace("##[", "## [")
