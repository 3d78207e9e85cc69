"""The figures by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench.waste.figures.block_size import block_size
from bench.waste.figures.figure import Figure
from bench.waste.figures.jenga import jenga
from bench.waste.figures.mooncake import mooncake
from bench.waste.figures.sharing import sharing
from bench.waste.figures.sosp23 import sosp23
from bench.waste.figures.watermark import watermark

FIGURES: Final[dict[str, Callable[[], Figure]]] = {
    "sosp23": sosp23,
    "sharing": sharing,
    "block-size": block_size,
    "watermark": watermark,
    "mooncake": mooncake,
    "jenga": jenga,
}
"""What each name computes. `mooncake` needs the trace, and raises ValueError where it is not."""
