"""Figures and foreign text as words: what the reports of several commands say alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def printable(text: str) -> str:
    """Text that does nothing to a terminal, character for character: an escape is its picture."""
    return text if text.isprintable() else "".join(map(_picture, text))


def _picture(each: str) -> str:
    if each.isprintable() or each in "\n\t":
        return each
    if each < " ":
        return chr(0x2400 + ord(each))
    return " " if each.isspace() else "\ufffd"


def one_line(text: str, *, limit: int | None = None) -> str:
    """Text without line ends and control characters, cut where it is longer than `limit`."""
    text = "".join(each if each.isprintable() else " " for each in text)
    return text if limit is None or len(text) <= limit else text[: limit - 3] + "..."


def plural(number: int, one: str, many: str | None = None) -> str:
    """A number of things: `1 launch`, `12 launches`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def percent(ratio: float) -> str:
    """A ratio of times as a change: 1.049 is `+4.9 %`."""
    return f"{100 * (ratio - 1):+.1f} %"


def seconds(value: float) -> str:
    """A time with the unit in which it has one to three digits before the point."""
    if not math.isfinite(value):
        return "-"
    scale, unit = next(((s, u) for s, u in UNITS if abs(value) >= s), UNITS[-1])
    return f"{value / scale:.3g} {unit}"


def some_of(keys: Sequence[str], *, most: int = 4) -> str:
    """Keys in a line: all of a few, and how many more there are."""
    shown = ", ".join(keys[:most])
    return shown if len(keys) <= most else f"{shown} and {len(keys) - most:,} more"
