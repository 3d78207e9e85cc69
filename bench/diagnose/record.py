"""What a diagnosis comes to: what is printed, and written as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Figure(_Record):
    """A figure of a window, with its 90 % interval."""

    value: float
    low: float
    high: float
    series: str
    """Canonical name of what it was made of."""
    start_s: float
    end_s: float
    """Unix time of the window."""


class Evidence(_Record):
    """A figure that decides, and which way."""

    finding: str
    """By name."""
    says: str
    """The sentence."""
    figure: Figure
    weight: float
    """By how much it makes the cause likelier than a healthy server; natural logarithm."""


class Ruled(_Record):
    """A look-alike, and why it is none."""

    mode: str
    why: str


class Cause(_Record):
    """A cause that was found."""

    mode: str
    says: str
    confidence: float
    """Share of such verdicts that were right on recordings that were not fitted."""
    tested: bool
    """Whether any recording has it; otherwise the confidence is a guess."""
    engines: list[str]
    since_s: float | None
    """Unix time of the change that it began with, where there is one."""
    evidence: list[Evidence]
    """The likeliest to decide first."""
    not_this: list[Ruled]
    remedy: str
    alert: str


class Candidate(_Record):
    """What it may be, where it cannot be told."""

    mode: str
    says: str
    probability: float


class Moment(_Record):
    """Something that happened."""

    time_s: float
    says: str
    engine: str


class Series(_Record):
    """What was read of one engine over time, thinned out where there is much of it."""

    name: str
    engine: str
    times_s: list[float]
    """Unix time."""
    values: list[float | None]
    """None where there was nothing to tell it from."""
    changes_s: list[float]
    """When its level changes."""


class Prediction(_Record):
    """What a change would do, by simulation."""

    change: str
    requests_per_s: float
    ttft_p50_s: float | None
    """None: a fixed number of clients, and nobody knows when they would have come."""
    preemptions: int
    mean_wait_s: float
    """Until a request is admitted, on average (Little's law)."""


class Fidelity(_Record):
    """How well the simulation reproduces what was seen."""

    quantity: str
    seen: float
    simulated: float
    tolerance: float
    """Largest difference with which it counts as reproduced, in its unit."""


class Prescription(_Record):
    """The simulated server beside the one that was seen, and what changes do to it."""

    reproduced: bool
    fidelity: list[Fidelity]
    predictions: list[Prediction]
    """The first is the server as it is. Empty: it was not reproduced, and nothing is promised."""
    why_not: str = ""


class Given(_Record):
    """A file that was read."""

    path: str
    format: str
    items: int
    start_s: float | None
    end_s: float | None
    interval_s: float | None


Verdict = Literal["healthy", "found", "cannot tell"]


class Diagnosis(_Record):
    """What is wrong with a server's cache, as far as it can be told from what was given."""

    verdict: Verdict
    says: str
    confidence: float
    causes: list[Cause]
    """The earliest first; empty unless found."""
    consequences: list[str]
    candidates: list[Candidate]
    """Where it cannot be told, what it may be, the likeliest first."""
    deciding: str
    """The input that would decide between them; empty: there is nothing to decide."""
    holes: list[str] = []
    """What the holes of a contiguous pool hold, and what blocks would; the worst moments."""
    unseen: list[str]
    """What could not be seen, and what follows for the verdict."""
    timeline: list[Moment]
    series: list[Series] = []
    """What is drawn; none in records of before they were kept."""
    figures: dict[str, dict[str, Figure]]
    """By engine and name."""
    probabilities: dict[str, float]
    """Of every cause, the likeliest first; `healthy` and `other` among them."""
    config: dict[str, float | str | bool]
    given: list[Given]
    prescription: Prescription | None = None
    pagedbench: str = ""
    """The release that made it; empty in a record of before."""
