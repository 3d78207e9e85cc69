"""The record of `pagedbench waste`, as JSON: integers first, shares derived from them.

Every set of counters in it holds the accounting identity (`paged.accounting`), and is held to it
again when a record is read: a record that was edited, or cut short, does not load.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from pydantic import Field, PlainSerializer, PlainValidator, computed_field, model_validator

from bench.machine.environment import WasteEnvironment
from bench.machine.record import Record
from bench.waste.capacity import CapacityRecord
from bench.waste.policies import Policy, format_policy, parse_policy, policy_name
from bench.workloads.record import ServedStream
from paged.accounting import SLOT_CLASSES, Counters, GroupUse, Serving, TierUse
from paged.clock import StepTime
from paged.latency import Service, Slo
from paged.tiers import Tier

SCHEMA_VERSION: Final = 1
"""Raised when a field changes its meaning."""

MAX_POINTS: Final = 200
"""Most moments that a row's series keeps."""


def _policy(given: Any) -> Policy:
    return parse_policy(given) if isinstance(given, str) else given


TypedPolicy = Annotated[
    Policy, PlainValidator(_policy), PlainSerializer(format_policy, return_type=str)
]
"""A policy, which a file has as it is typed."""


Rank = Literal["steps", "requests", "goodput", "slots"]
"""What changes are ranked by: requests completed in 1,000 steps, which says nothing of time and is
what older records were; requests a second; those that met the SLO a second; tokens held."""


class ClockRecord(Record):
    """The rest of a step's duration, beside `step_ns` and `prefill_ns_per_token`."""

    source: str
    """Where the numbers are from, in words."""
    kv_ps_per_token: int = 0
    swap_ns_per_token: int = 0
    """As in `paged.clock.StepTime`."""
    error: float
    """Difference, as a share, that the clock cannot tell from none."""
    errors: dict[str, float] = {}
    """What a fitted clock misses each figure by that was measured, as shares."""


class PoolRecord(Record):
    """The cache: slots of so many bytes. Of a pool in bytes, what is no whole slot is left out."""

    slots: int = Field(ge=1)
    bytes_per_token: int = Field(ge=1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def gibibytes(self) -> float:
        """Size in GiB."""
        return self.slots * self.bytes_per_token / 2**30


class SeriesRecord(Record):
    """A run through time, column by column: sums from its first step to the end of each moment."""

    slots: int
    steps: list[int]
    token: list[int]
    reserve: list[int]
    internal: list[int]
    roundup: list[int]
    free_frag: list[int]
    free_short: list[int]
    free_idle: list[int]
    cached_idle: list[int]
    running_requests: list[int]
    queued: list[int]
    completed: list[int]
    preemptions: list[int]

    @model_validator(mode="after")
    def _holds_the_identity(self) -> Self:
        columns = {name: getattr(self, name) for name in SERIES_COLUMNS}
        if any(len(column) != len(self.steps) for column in columns.values()):
            raise ValueError("the columns of a series are not equally long")
        for moment in zip(*columns.values(), strict=True):
            Counters(slots=self.slots, **dict(zip(columns, moment, strict=True)))
        return self

    @classmethod
    def of(cls, serving: Serving) -> Self:
        """Thin a run's series to at most `MAX_POINTS`, the end included."""
        moments = list(serving.series)
        if serving.total.steps > (moments[-1].steps if moments else 0):
            moments.append(serving.total)
        count = min(len(moments), MAX_POINTS)
        kept = [moments[at] for at in np.linspace(0, len(moments) - 1, count).round().astype(int)]
        return cls(
            slots=serving.total.slots,
            **{name: [getattr(moment, name) for moment in kept] for name in SERIES_COLUMNS},
        )

    def mean_batch(self) -> tuple[list[float], list[float]]:
        """Return the middle of each interval, in steps, and the requests that ran in it."""
        steps, sums = np.array([0, *self.steps]), np.array([0, *self.running_requests])
        middle = (steps[1:] + steps[:-1]) / 2
        return middle.tolist(), (np.diff(sums) / np.diff(steps)).tolist()


SERIES_COLUMNS: Final = tuple(name for name in SeriesRecord.model_fields if name != "slots")
"""Counters that a series keeps."""


class WasteRow(Record):
    """One policy on one stream."""

    stream: str
    """Label of the stream."""
    policy: TypedPolicy
    total: Counters
    """From the first step to the last."""
    loaded: Counters
    """The part to judge by; see `paged.accounting.Serving`."""
    peak_running: int
    peak_requests: int
    peak_allocated: int
    """Most sequences and requests at once, and most slots that were allocated at once."""
    series: SeriesRecord
    seconds: float
    """How long the simulation took."""
    service: Service | None = None
    """What it was like for those who waited, over the whole run; None in older records."""
    tiers: tuple[TierUse, ...] = ()
    """What each tier behind the pool did; none: there was none."""
    groups: tuple[GroupUse, ...] = ()
    """What each group of the model's layers took in what is judged, in the order of the record's
    capacity. A slot of the row is a byte then. None: all layers had the same blocks."""
    drawing: int = 0
    """Which drawing of the stream was served; 0 is that of --seed."""
    inferred: bool = False
    """Not simulated: what is changed of the base could not matter on this stream."""

    @classmethod
    def of(
        cls, stream: str, policy: Policy, serving: Serving, *, seconds: float, drawing: int = 0
    ) -> Self:
        """Make a row of a run."""
        return cls(
            stream=stream,
            policy=policy,
            total=serving.total,
            loaded=serving.loaded,
            peak_running=serving.peak_running,
            peak_requests=serving.peak_requests,
            peak_allocated=serving.peak_allocated,
            series=SeriesRecord.of(serving),
            seconds=seconds,
            service=serving.service,
            tiers=serving.tiers,
            groups=serving.groups,
            drawing=drawing,
        )

    @model_validator(mode="after")
    def _is_of_one_pool(self) -> Self:
        slots = {self.total.slots, self.loaded.slots, self.series.slots}
        if len(slots) > 1:
            raise ValueError(f"{self.name}: pools of {sorted(slots)} slots")
        # Raises if the part is no part of the whole.
        _ = self.total - self.loaded
        if self.groups and sum(use.allocated for use in self.groups) != self.judged.allocated:
            raise ValueError(f"{self.name}: groups that do not add up")
        return self

    @property
    def name(self) -> str:
        """Policy and stream, as a message has them."""
        return f"{format_policy(self.policy)} on {self.stream}"

    @property
    def typed(self) -> str:
        """The policy as it is typed, the tiers behind the pool, and whether groups have tables."""
        behind = [tier.name for tier in self.tiers]
        return " + ".join([policy_name(self.policy), *behind, *(["groups"] if self.groups else [])])

    @property
    def block_slots(self) -> int:
        """Slots of a block of a paged pool."""
        if blocks := sum(use.blocks for use in self.groups):
            return self.judged.allocated // blocks
        return getattr(self.policy, "block_size", 1)

    @property
    def judged(self) -> Counters:
        """The loaded part; all of the run, where there was none."""
        return self.loaded if self.loaded.steps else self.total

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shares(self) -> dict[str, float]:
        """Share of the pool that each class has, 0 to 1, in what is judged."""
        judged = self.judged
        return {name: judged.share(getattr(judged, name)) for name in SLOT_CLASSES}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean_batch(self) -> float:
        """Requests that run at once, averaged over the steps of what is judged."""
        return self.judged.mean_batch

    @computed_field  # type: ignore[prop-decorator]
    @property
    def sharing(self) -> float:
        """Logical tokens for each physical one in what is judged."""
        return 1.0 if self.groups else self.judged.sharing

    @computed_field  # type: ignore[prop-decorator]
    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that the prefix cache had, in what is judged."""
        return self.judged.hit_rate

    @computed_field  # type: ignore[prop-decorator]
    @property
    def completed_per_1000_steps(self) -> float:
        """Requests that end in 1,000 steps of what is judged."""
        judged = self.judged
        return 1000 * judged.completed / judged.steps if judged.steps else 0.0

    @property
    def arrives(self) -> bool:
        """Whether requests arrive at moments that are known: not in a backlog."""
        return self.service is not None and self.service.ttft is not None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def requests_per_s(self) -> float | None:
        """Requests completed a second by the server's clock: of a backlog in what is judged, where
        they arrive over the whole run. None in records that are older than the clock.
        """
        service, judged = self.service, self.judged
        if service is None:
            return None
        if self.arrives:
            return _per_s(service.completed, service.makespan_ns)
        return _per_s(judged.completed, judged.time_ns)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tokens_per_s(self) -> float | None:
        """Output tokens a second, likewise."""
        service, judged = self.service, self.judged
        if service is None:
            return None
        if self.arrives:
            return _per_s(service.output_tokens, service.makespan_ns)
        return _per_s(judged.generated_tokens, judged.time_ns)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def goodput_per_s(self) -> float | None:
        """Requests a second that met the SLO; None where none was given."""
        service = self.service
        if service is None or service.good is None or not service.completed:
            return None
        whole = self.requests_per_s
        return None if whole is None else whole * service.good / service.completed

    @computed_field  # type: ignore[prop-decorator]
    @property
    def preemptions_per_request(self) -> float:
        """Times that a request loses its memory, in what is judged."""
        judged = self.judged
        return judged.preemptions / judged.admitted if judged.admitted else 0.0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def recomputed_per_generated(self) -> float:
        """Tokens computed again, for each token generated, in what is judged."""
        judged = self.judged
        return (
            judged.recomputed_tokens / judged.generated_tokens if judged.generated_tokens else 0.0
        )


def _per_s(count: int, time_ns: int) -> float | None:
    return count / time_ns * 1e9 if time_ns else None


class WasteRecord(Record):
    """Everything that `pagedbench waste` found."""

    schema_version: int = SCHEMA_VERSION
    started_at: str
    elapsed_s: float
    command: list[str]
    """The arguments of the command."""
    complete: bool
    """Whether all that was asked for was run; False after an interrupt."""
    asked: int
    """Rows that a complete record has."""
    machine: WasteEnvironment
    pool: PoolRecord
    warmup: int | None
    """Completed requests before the part to judge by; None: a tenth of the stream."""
    clients: int | None
    """Most requests that wait or run at once; None: no limit."""
    step_ns: int
    prefill_ns_per_token: int
    """Duration of a step, the rest of which is in `clock`."""
    base: TypedPolicy | None
    """The policy that the others vary (`bench.waste.whatif`); None: they stand side by side."""
    streams: list[ServedStream]
    rows: list[WasteRow]
    clock: ClockRecord | None = None
    """Where the duration of a step is from; None in older records."""
    slo: Slo | None = None
    """What counts as good; None: nobody asked."""
    rank: Rank = "steps"
    """What changes are ranked by."""
    runs: int | None = None
    """Most simulations for a stream; None: as many as there are policies."""
    capacity: CapacityRecord | None = None
    """What the pool holds of the model; None: only the bytes of a slot are known."""
    tiers: tuple[Tier, ...] = ()
    """Behind the pool."""

    @model_validator(mode="after")
    def _refers_to_what_it_has(self) -> Self:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version is {self.schema_version}; this pagedbench reads {SCHEMA_VERSION}"
            )
        labels = {stream.label for stream in self.streams}
        for row in self.rows:
            slots = self.pool.slots * (self.pool.bytes_per_token if row.groups else 1)
            if row.stream not in labels or row.total.slots != slots:
                raise ValueError(
                    f"{row.name}: no such stream, or another pool than {self.pool.slots} slots"
                )
        return self

    @property
    def time(self) -> StepTime:
        """Duration of a step."""
        clock = self.clock
        return StepTime(
            step_ns=self.step_ns,
            prefill_ns_per_token=self.prefill_ns_per_token,
            kv_ps_per_token=clock.kv_ps_per_token if clock else 0,
            swap_ns_per_token=clock.swap_ns_per_token if clock else 0,
        )

    def rows_of(self, stream: str) -> list[WasteRow]:
        """Return the rows of one stream as --seed draws it, in the order in which they were run."""
        return [row for row in self.rows if row.stream == stream and row.drawing == 0]

    def drawings_of(self, stream: str) -> dict[int, dict[Policy, WasteRow]]:
        """Return the rows of one stream by drawing and policy; there is a first drawing."""
        found: dict[int, dict[Policy, WasteRow]] = {0: {}}
        for row in self.rows:
            if row.stream == stream:
                found.setdefault(row.drawing, {})[row.policy] = row
        return found
