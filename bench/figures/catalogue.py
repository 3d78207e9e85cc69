"""The figures by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench.figures.block_size import block_size
from bench.figures.figure import Figure
from bench.figures.jenga import jenga
from bench.figures.mooncake import mooncake
from bench.figures.sharing import sharing
from bench.figures.sosp23 import sosp23
from bench.figures.watermark import watermark

FIGURES: Final[dict[str, Callable[[], Figure]]] = {
    "sosp23": sosp23,
    "sharing": sharing,
    "block-size": block_size,
    "watermark": watermark,
    "mooncake": mooncake,
    "jenga": jenga,
}
"""What each name computes. `mooncake` needs the trace, and raises ValueError where it is not."""
