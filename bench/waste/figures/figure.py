"""A published figure beside what was measured, component by component."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One number of a figure."""

    bar: str
    """Which bar, line or row of the figure it belongs to."""
    name: str
    """What is measured."""
    unit: str
    """`%`, `requests`, ... The difference of two percentages is in points."""
    published: float | None
    """As published; None where the source says nothing."""
    measured: float
    """As simulated."""
    lowest: float | None = None
    highest: float | None = None
    """Between which the measured value has to lie; None: it is shown, not judged."""

    @classmethod
    def near(
        cls,
        bar: str,
        name: str,
        unit: str,
        *,
        published: float | None,
        measured: float,
        within: float | None,
    ) -> Component:
        """Make one that has to lie `within` so much of what was published; None: it is shown."""
        lowest = highest = None
        if published is not None and within is not None:
            lowest, highest = published - within, published + within
        return cls(
            bar=bar,
            name=name,
            unit=unit,
            published=published,
            measured=measured,
            lowest=lowest,
            highest=highest,
        )

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
    """A figure."""

    name: str
    """As on the command line."""
    title: str
    """What it shows."""
    source: str
    """Where it was published."""
    setup: str
    """How it was simulated, in a sentence or two."""
    components: tuple[Component, ...]
    """Its numbers, bar by bar."""
    notes: tuple[str, ...] = field(default=())
    """What a reader should know before believing it."""
    pagedbench: str = ""
    """The release that made it; empty in a record of before."""

    @property
    def met(self) -> bool:
        """Whether every component that is judged lies where it has to."""
        return all(component.met for component in self.components if component.judged)
