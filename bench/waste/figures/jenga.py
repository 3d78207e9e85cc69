"""Jenga's three figures: what a common block table wastes on mixed layers."""

from __future__ import annotations

from typing import Final

from bench.waste.figures.figure import Component, Figure
from bench.waste.layer_mix import JENGA

HALF_A_DIGIT: Final = 0.05
"""Points by which a printed figure may be off: it has one decimal."""


def jenga() -> Figure:
    """Compute the three figures."""
    components = tuple(
        Component(
            bar=f"{mix.model}, {mix.workload}",
            name="waste",
            unit="%",
            published=mix.published_percent,
            measured=float(100 * mix.waste),
            lowest=mix.published_percent - HALF_A_DIGIT,
            highest=mix.published_percent + HALF_A_DIGIT,
        )
        for mix in JENGA
    )
    return Figure(
        name="jenga",
        title="Waste of one block table for layers that keep different tokens",
        source="Jenga (arXiv 2503.18292)",
        setup="Arithmetic on layer counts and lengths; no simulation.",
        components=components,
    )
