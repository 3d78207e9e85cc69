"""Files that somebody hands us, read whole but with a bound. The standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from reference.errors import BadInput

MAX_FILE_MIB: Final = 64
"""Largest file that is read whole. The longest record of a gate that we know has 3 MiB; a device
or a wrong file would otherwise be read until memory ends."""


def read_whole(path: Path, *, what: str) -> bytes:
    """The content of a file. Raises BadInput: unreadable, or too long for `what` it is to be."""
    try:
        with path.open("rb") as file:
            content = file.read((MAX_FILE_MIB << 20) + 1)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}; name {what} that can be read") from None
    if len(content) > MAX_FILE_MIB << 20:
        raise BadInput(f"{path}: over {MAX_FILE_MIB} MiB, and {what} never is; name another file")
    return content


def read_text(path: Path, *, what: str) -> str:
    """The same as text. Raises BadInput also where it is not UTF-8."""
    try:
        return read_whole(path, what=what).decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: byte {error.start} is not UTF-8 text; name {what}") from None
