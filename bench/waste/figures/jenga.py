"""Jenga's three figures: what a block table wastes that is common to layers of several kinds.

Such a table gives each layer a slot for every token. A layer that keeps only some of the tokens (a
sliding window, attention to an image only) leaves the rest of its slots empty, with every block of
the pool in use. The figures are arithmetic, and exact here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from bench.waste.figures.figure import Component, Figure

HALF_A_DIGIT: Final = 0.05
"""Points by which a printed figure may be off: it has one decimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMix:
    """A model and a length at which its waste was published."""

    model: str
    workload: str
    """Names."""
    kept_tokens: tuple[tuple[int, int], ...]
    """(layers of a kind, tokens of the sequence that each of them keeps); only the proportions of
    the layers matter."""
    tokens: int
    """Tokens of the sequence."""
    published_percent: float
    """The published waste, as printed."""

    @property
    def waste(self) -> Fraction:
        """Share of the slots that stay empty when each layer gets one for every token."""
        layers = sum(layers for layers, _ in self.kept_tokens)
        kept = sum(layers * tokens for layers, tokens in self.kept_tokens)
        return 1 - Fraction(kept, layers * self.tokens)


MIXES: Final = (
    LayerMix(
        model="Llama-3.2-11B-Vision",
        workload="MMMU-pro, 43 text and 6,193 image tokens",
        # 32 layers attend to the text, 8 to the image.
        kept_tokens=((32, 43), (8, 6193)),
        tokens=43 + 6193,
        published_percent=79.6,
    ),
    LayerMix(
        model="Gemma-2",
        workload="8,192 tokens",
        # Every other layer looks back 4,096 tokens.
        kept_tokens=((1, 8192), (1, 4096)),
        tokens=8192,
        published_percent=25.0,
    ),
    LayerMix(
        model="Ministral",
        workload="131,072 tokens",
        # Three layers of four look back 32,768 tokens.
        kept_tokens=((1, 131072), (3, 32768)),
        tokens=131072,
        published_percent=56.25,
    ),
)
"""The three models of Jenga (arXiv 2503.18292) with the lengths behind its figures."""


def jenga() -> Figure:
    """Compute the three figures."""
    components = tuple(
        Component.near(
            f"{mix.model}, {mix.workload}",
            "waste",
            "%",
            published=mix.published_percent,
            measured=float(100 * mix.waste),
            within=HALF_A_DIGIT,
        )
        for mix in MIXES
    )
    return Figure(
        name="jenga",
        title="Waste of one block table for layers that keep different tokens",
        source="Jenga (arXiv 2503.18292)",
        setup="Arithmetic on layer counts and lengths; no simulation.",
        components=components,
    )
