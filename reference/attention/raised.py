"""What a kernel raised, in words: type, text, and the line of the kernel that it comes from."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from reference.attention.contract import CopyBatch, MergeBatch, PagedBatch, WriteBatch
from reference.errors import described

_OURS: Final = Path(__file__).parents[2]
_BETWEEN: Final = tuple(
    f"{folder}{os.sep}"
    for folder in (
        *(_OURS / room for room in ("reference", "bench", "subjects")),
        _OURS / "kernels" / "interpreter",
    )
)
_STANDARD: Final = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib"))
_PACKAGES: Final = tuple(f"{os.sep}{name}{os.sep}" for name in ("triton", "torch", "numpy"))
"""What lies between a kernel's line and what was raised. Other packages may be the kernel."""

_CALLS: Final[dict[str, type[Any]]] = {
    "attention": PagedBatch,
    "merge": MergeBatch,
    "write": WriteBatch,
    "copy": CopyBatch,
}


class RaisedElsewhere(Exception):
    """What a kernel raised in a process of its own, in the words of `said_of`."""


def said_of(error: BaseException) -> str:
    """`raised ValueError: no tile at my_kernel.py:12`."""
    if isinstance(error, RaisedElsewhere):
        return str(error)
    place = next(_kernel_lines(error), None)
    # Triton's interpreter wraps what a line raised once for each nested call.
    while type(error).__name__ == "InterpreterError" and error.__cause__ is not None:
        error = error.__cause__
    text = described(error)
    return f"raised {text}" + (f" (at {place})" if place else "") + _of_a_kind(error)


def _of_a_kind(error: BaseException) -> str:
    """What to declare, where a field was asked for that a call of another kind has."""
    if not isinstance(error, AttributeError) or not isinstance(error.obj, tuple(_CALLS.values())):
        return ""
    kinds = [
        kind for kind, call in _CALLS.items() if error.name in {each.name for each in fields(call)}
    ]
    said = " or ".join(f'Capabilities(kind="{kind}")' for kind in kinds)
    return f": a kernel that needs it declares {said}" if kinds else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """What was raised and what led to it, the first cause first."""
    seen = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )
    yield from reversed(seen)


def _kernel_lines(error: BaseException) -> Iterator[str]:
    for each in _chain(error):
        frames = traceback.extract_tb(each.__traceback__)
        for frame in reversed(frames):
            if not _is_between(frame.filename):
                yield f"{Path(frame.filename).name}:{frame.lineno}"


def _is_between(file: str) -> bool:
    if "site-packages" in file and str(_OURS) not in file:
        return any(package in file for package in _PACKAGES)
    return file.startswith(("<", *_BETWEEN, *_STANDARD))
