"""A published figure beside what was measured, component by component."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One number of a figure.

    Attributes
    ----------
    bar
        Which bar, line or row of the figure it belongs to.
    name
        What is measured.
    unit
        `%`, `requests`, ... The difference of two percentages is in points.
    published
        As published; None where the source says nothing.
    measured
        As simulated.
    lowest, highest
        Between which the measured value has to lie; None: it is shown, not judged.
    """

    bar: str
    name: str
    unit: str
    published: float | None
    measured: float
    lowest: float | None = None
    highest: float | None = None

    @property
    def judged(self) -> bool:
        """Whether there is a bar to meet."""
        return self.lowest is not None or self.highest is not None

    @property
    def met(self) -> bool:
        """Whether the measured value lies where it has to."""
        return (self.lowest is None or self.measured >= self.lowest) and (
            self.highest is None or self.measured <= self.highest
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure.

    Attributes
    ----------
    name
        As on the command line.
    title
        What it shows.
    source
        Where it was published.
    setup
        How it was simulated, in a sentence or two.
    components
        Its numbers, bar by bar.
    notes
        What a reader should know before believing it.
    """

    name: str
    title: str
    source: str
    setup: str
    components: tuple[Component, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def met(self) -> bool:
        """Whether every component that is judged lies where it has to."""
        return all(component.met for component in self.components if component.judged)
