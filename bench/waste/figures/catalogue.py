"""The figures by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench.waste.figures.block_size import block_size
from bench.waste.figures.figure import Figure
from bench.waste.figures.jenga import jenga
from bench.waste.figures.mooncake import mooncake
from bench.waste.figures.sharing import sharing
from bench.waste.figures.sosp23 import sosp23
from bench.waste.figures.watermark import watermark
from reference.errors import BadInput

FIGURES: Final[dict[str, Callable[[], Figure]]] = {
    "sosp23": sosp23,
    "sharing": sharing,
    "block-size": block_size,
    "watermark": watermark,
    "mooncake": mooncake,
    "jenga": jenga,
}
"""What each name computes. `mooncake` needs the trace, and raises BadInput where it is not."""


def compute(name: str, traces: Sequence[Path] = ()) -> Figure:
    """Compute a figure; mooncake's of the one trace that is named, if one is."""
    if name not in FIGURES:
        raise BadInput(f"--figure {name}: choose one of {', '.join(FIGURES)}")
    if not traces:
        return FIGURES[name]()
    if name != "mooncake" or len(traces) > 1:
        raise BadInput(
            f"--figure {name} with --trace {traces[-1]}: only mooncake reads a trace, and one; "
            f"leave it out"
        )
    try:
        return mooncake(traces[0])
    except OSError as error:
        raise BadInput(
            f"--trace {traces[0]}: {error.strerror or error}; name a file that can be read"
        ) from None
