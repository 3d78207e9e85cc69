"""What was seen of servers, whatever file it came from. What is absent was not given: never 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Keys: TypeAlias = NDArray[np.uint64]
"""Hashes and digests; 0 where there is none."""

Kind: TypeAlias = Literal["gauge", "counter", "histogram"]
Value: TypeAlias = float | str | bool

STORED, REMOVED, CLEARED = 0, 1, 2
"""Kinds of events."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series of one engine, by its canonical name (`bench.diagnose.aliases`)."""

    name: str
    kind: Kind
    engine: str
    """Which engine of which server; "" where the source has no label for it."""
    times_s: Floats
    """Unix time of each sample, ascending [n]."""
    values: Floats
    """[n]; of a histogram the count of samples, since start. Counters are as read, with resets."""
    labels: tuple[tuple[str, str], ...] = ()
    """What else tells it apart (`reason`, `status`, `source`), sorted."""
    origin: Literal["metrics", "log"] = "metrics"
    """A log's figures are averages of its own window: metrics go before them."""
    bounds: Floats | None = None
    """Upper bounds of a histogram's buckets, the last infinite [b]."""
    buckets: Floats | None = None
    """Samples up to each bound, since start [n, b]."""
    sums: Floats | None = None
    """Sum of a histogram's samples, since start [n]."""


@dataclass(frozen=True)
class _Columns:
    """Columns of equal length, one row each for what happened."""

    def rows(self, chosen: Any) -> Self:
        """The same columns of the chosen rows."""
        parts = {each.name: getattr(self, each.name)[chosen] for each in fields(self)}
        return type(self)(**parts)

    @classmethod
    def joined(cls, parts: Iterable[Self], order: str) -> Self:
        """All rows, sorted by the column `order`; rows of one moment stay as they came."""
        parts = list(parts)
        names = [each.name for each in fields(cls)]
        whole = cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})
        return whole.rows(np.argsort(getattr(whole, order), kind="stable"))


@dataclass(frozen=True, kw_only=True)
class Events(_Columns):
    """Blocks that were stored and removed, a row each."""

    time_s: Floats
    kind: NDArray[np.int8]
    block: Keys
    """Hash of the block and all before it; 0 when all are cleared."""
    parent: Keys
    """Hash of the block before it; 0: it is a root, or was removed."""
    content: Keys
    """Digest of the block's own tokens."""
    extra: Keys
    """Digest of what else its hash has: salt, LoRA, images."""
    engine: NDArray[np.str_]

    def __len__(self) -> int:
        """Rows."""
        return len(self.time_s)


@dataclass(frozen=True, kw_only=True)
class Requests(_Columns):
    """Requests of an access log or of spans, a row each. What is not known is nan or ""."""

    arrival_s: Floats
    prompt: Floats
    """Tokens."""
    output: Floats
    """Tokens."""
    first_token_s: Floats
    """Unix time."""
    end_s: Floats
    """Unix time."""
    queue_s: Floats
    """Seconds until it was scheduled first."""
    status: NDArray[np.str_]
    """As logged: an HTTP status or a finish reason."""
    tenant: NDArray[np.str_]
    engine: NDArray[np.str_]

    def __len__(self) -> int:
        """Rows."""
        return len(self.arrival_s)


class Fact(NamedTuple):
    """Something that a log says: `preempted`, `started`, `pool_too_small`, `out_of_memory`, ..."""

    name: str
    time_s: float
    """Unix time; nan: the line has none."""
    value: float
    """What the line counts, else 1."""
    where: str
    """File and line."""
    engine: str = ""


@dataclass(frozen=True, kw_only=True)
class FreeMap:
    """The free list of a server with contiguous caches, at one moment."""

    time_s: float
    slots: int
    """Of the whole pool."""
    holes: NDArray[np.int64]
    """Slots of each free run."""
    wanted: int | None = None
    """Slots of the request that was refused."""
    engine: str = ""


class Source(NamedTuple):
    """A file that was given."""

    path: str
    format: str
    start_s: float
    """Unix time of what it shows first; nan: it has no times."""
    end_s: float
    items: int
    """Scrapes, lines, events, requests."""
    interval_s: float | None = None
    """Median time between scrapes."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Everything that was given, together."""

    series: tuple[Series, ...] = ()
    config: Mapping[str, Value] = field(default_factory=dict)
    """`engine` (vllm, sglang, ...), `version`, `num_blocks`, `block_size`, `pool_tokens`,
    `prefix_caching`, `max_num_seqs`, `token_budget`, `max_model_len`, `watermark`,
    `queue_limit`, `chunked_prefill`, `page_size`; only what was said."""
    failed_s: Floats = field(default_factory=lambda: np.empty(0))
    """Times of scrapes that failed."""
    events: Events | None = None
    facts: tuple[Fact, ...] = ()
    requests: Requests | None = None
    free_maps: tuple[FreeMap, ...] = ()
    sources: tuple[Source, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader had to leave out, as sentences."""

    @property
    def engines(self) -> list[str]:
        """Labels of the engines that the series tell apart."""
        return sorted({each.engine for each in self.series})

    def named(self, name: str, engine: str | None = None) -> list[Series]:
        """Series of a canonical name, of all its labels; only those of `engine` where it is given.

        Where metrics and logs both have it, those of the metrics.
        """
        found = [
            each
            for each in self.series
            if each.name == name and (engine is None or each.engine == engine)
        ]
        first = [each for each in found if each.origin == "metrics"]
        return first or found


def merge(parts: Iterable[Observed]) -> Observed:
    """Everything together. Of what two sources say of the configuration, the first is kept."""
    parts = list(parts)
    config: dict[str, Value] = {}
    for part in parts:
        config = {**part.config, **config}
    events = [part.events for part in parts if part.events is not None]
    requests = [part.requests for part in parts if part.requests is not None]
    return Observed(
        series=_joined(each for part in parts for each in part.series),
        config=config,
        failed_s=np.unique(np.concatenate([np.empty(0), *(part.failed_s for part in parts)])),
        events=Events.joined(events, "time_s") if events else None,
        facts=tuple(fact for part in parts for fact in part.facts),
        requests=Requests.joined(requests, "arrival_s") if requests else None,
        free_maps=tuple(each for part in parts for each in part.free_maps),
        sources=tuple(each for part in parts for each in part.sources),
        notes=tuple(each for part in parts for each in part.notes),
    )


def _identity(series: Series) -> tuple[Any, ...]:
    bounds = () if series.bounds is None else tuple(series.bounds.tolist())
    return series.name, series.engine, series.labels, series.origin, series.kind, bounds


def _joined(all_series: Iterable[Series]) -> tuple[Series, ...]:
    """Join the parts of a series that came in several files; of equal moments the first is kept."""
    result = []
    for _, group in groupby(sorted(all_series, key=_identity), key=_identity):
        parts = list(group)
        times, first = np.unique(np.concatenate([p.times_s for p in parts]), return_index=True)
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(p, name) for p in parts])[first]
            for name in ("values", "buckets", "sums")
            if all(getattr(p, name) is not None for p in parts)
        }
        result.append(replace(parts[0], times_s=times, **columns))
    return tuple(result)
