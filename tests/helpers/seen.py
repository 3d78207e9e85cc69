"""Made-up observations of servers, for the tests of `bench.diagnose`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.diagnose.observed import Events, Observed, Series

START = 1_700_000_000.0
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 100.0, 1e3, 1e4, np.inf)


def gauge(name: str, values: Sequence[float], *, every: float = 1.0, **more: Any) -> Series:
    return _series(name, "gauge", values, every, more)


def counter(name: str, gains: Sequence[float], *, every: float = 1.0, **more: Any) -> Series:
    return _series(name, "counter", np.cumsum(gains), every, more)


def histogram(
    name: str, gains: Sequence[float], value: float, *, every: float = 1.0, **more: Any
) -> Series:
    """Samples of one value, `gains` of them at each scrape."""
    made = _series(name, "histogram", np.cumsum(gains), every, more)
    inside = (np.array(BOUNDS) >= value).astype(float)
    counts = made.values
    return Series(
        name=name,
        kind="histogram",
        engine=made.engine,
        times_s=made.times_s,
        values=counts,
        bounds=np.array(BOUNDS),
        buckets=counts[:, None] * inside[None, :],
        sums=counts * value,
    )


def _series(
    name: str, kind: Any, values: Sequence[float], every: float, more: Mapping[str, Any]
) -> Series:
    values = np.asarray(values, dtype=np.float64)
    times = START + every * np.arange(len(values))
    engine = more.pop("engine", "0")
    return Series(name=name, kind=kind, engine=engine, times_s=times, values=values, **more)


def server(n: int = 40, *, busy: int | None = None, engine: str = "0", **given: Any) -> Observed:
    """A healthy server that serves one request a second; `given` replaces or adds series."""
    busy = n if busy is None else busy
    work = np.r_[np.ones(busy), np.zeros(n - busy)]
    series: dict[str, Series] = {
        "running": gauge("running", (3 + np.arange(n) % 3) * work, engine=engine),
        "waiting": gauge("waiting", 0 * work, engine=engine),
        "usage": gauge("usage", 0.3 * work, engine=engine),
        "finished": counter("finished", work, engine=engine),
        "preemptions": counter("preemptions", 0 * work, engine=engine),
        "prompt_tokens": counter("prompt_tokens", 500 * work, engine=engine),
        "prefix_queries": counter("prefix_queries", 500 * work, engine=engine),
        "prefix_hits": counter("prefix_hits", 400 * work, engine=engine),
        "ttft_s": histogram("ttft_s", work, 0.05, engine=engine),
        "itl_s": histogram("itl_s", 50 * work, 0.02, engine=engine),
        "prefill_s": histogram("prefill_s", work, 0.04, engine=engine),
        "queue_s": histogram("queue_s", work, 0.001, engine=engine),
        "prompt_length": histogram("prompt_length", work, 500.0, engine=engine),
        "output_length": histogram("output_length", work, 100.0, engine=engine),
    }
    series |= given
    kept = tuple(each for each in series.values() if each is not None)
    return Observed(series=kept, config={"pool_tokens": 16000.0, "block_size": 16.0})


def events(rows: Sequence[tuple[float, int, int, int, int, int]]) -> Events:
    """Rows of (time, kind, block, parent, content, extra)."""
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Events(
        time_s=columns[0].astype(np.float64) + START,
        kind=columns[1].astype(np.int8),
        block=columns[2].astype(np.uint64),
        parent=columns[3].astype(np.uint64),
        content=columns[4].astype(np.uint64),
        extra=columns[5].astype(np.uint64),
        engine=np.full(len(rows), ""),
    )
