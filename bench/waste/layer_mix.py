"""What paging wastes on a model whose layers do not all keep the same tokens.

A block table that is common to all layers gives each of them a slot for every token. A layer that
keeps only some of the tokens (a sliding window, attention to an image only) leaves the rest of its
slots empty, with every block of the pool in use. Jenga (arXiv 2503.18292) reports three such models
and what is wasted on them; the figures are arithmetic, and exact here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers of a kind."""

    layers: int
    """How many there are, 1 or more. Only the proportions between the groups matter."""
    kept_tokens: int
    """Tokens of a sequence whose keys and values they keep, 0 or more."""

    def __post_init__(self) -> None:
        if self.layers < 1 or self.kept_tokens < 0:
            raise ValueError(
                f"{self.layers} layers that keep {self.kept_tokens} tokens: give at least 1 and 0"
            )


def layer_mix_waste(groups: tuple[LayerGroup, ...], *, tokens: int) -> Fraction:
    """Share of the slots that stay empty when each layer gets one for every token.

    Parameters
    ----------
    groups
        The model's layers; at least one group.
    tokens
        Tokens of the sequence, 1 or more.

    Raises ValueError: there is no layer or no token, or a layer keeps more tokens than there are.
    """
    if not groups:
        raise ValueError("no layers: give at least one group")
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}; a sequence has at least 1")
    if (most := max(group.kept_tokens for group in groups)) > tokens:
        raise ValueError(f"a layer keeps {most} of {tokens} tokens; it cannot keep more than all")
    layers = sum(group.layers for group in groups)
    kept = sum(group.layers * group.kept_tokens for group in groups)
    return 1 - Fraction(kept, layers * tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMix:
    """A model and a length at which its waste was published."""

    model: str
    workload: str
    """Names."""
    groups: tuple[LayerGroup, ...]
    tokens: int
    """As for `layer_mix_waste`."""
    published_percent: float
    """The published waste, as printed."""

    @property
    def waste(self) -> Fraction:
        """Share of the slots that stay empty."""
        return layer_mix_waste(self.groups, tokens=self.tokens)


JENGA: Final = (
    LayerMix(
        model="Llama-3.2-11B-Vision",
        workload="MMMU-pro, 43 text and 6,193 image tokens",
        # 32 layers attend to the text, 8 to the image.
        groups=(LayerGroup(layers=32, kept_tokens=43), LayerGroup(layers=8, kept_tokens=6193)),
        tokens=43 + 6193,
        published_percent=79.6,
    ),
    LayerMix(
        model="Gemma-2",
        workload="8,192 tokens",
        # Every other layer looks back 4,096 tokens.
        groups=(LayerGroup(layers=1, kept_tokens=8192), LayerGroup(layers=1, kept_tokens=4096)),
        tokens=8192,
        published_percent=25.0,
    ),
    LayerMix(
        model="Ministral",
        workload="131,072 tokens",
        # Three layers of four look back 32,768 tokens.
        groups=(
            LayerGroup(layers=1, kept_tokens=131072),
            LayerGroup(layers=3, kept_tokens=32768),
        ),
        tokens=131072,
        published_percent=56.25,
    ),
)
"""The three models of Jenga (arXiv 2503.18292) with the lengths behind its figures."""
