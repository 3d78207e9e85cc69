"""What only several engines together show: a queue at one of them, the same prompts at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.diagnose.observed import STORED
from bench.diagnose.statistics import Stat
from bench.diagnose.window import Window


def replica_statistics(windows: Sequence[Window]) -> dict[str, Stat]:
    """Figures of all engines together. None of one alone."""
    if len(windows) < 2:
        return {}
    start, end = min(w.start_s for w in windows), max(w.end_s for w in windows)
    found = {}
    queues = [gauge for w in windows if (gauge := w.gauge("waiting")) is not None]
    if len(queues) == len(windows) and (queued := sum(q.mean() for q in queues)) > 0.5:
        means = [float(queue.mean()) for queue in queues]
        spread = (max(means) - min(means)) / queued
        found["uneven_replicas"] = Stat(spread, spread, spread, "waiting", start, end)
    roots = [
        set(events.block[(events.kind == STORED) & (events.parent == 0)].tolist())
        for w in windows
        if (events := w.events) is not None
    ]
    if len(roots) >= 2 and (every := set.union(*roots)):
        shared = float(np.mean([sum(root in one for one in roots) >= 2 for root in every]))
        found["shared_roots"] = Stat(shared, shared, shared, "events", start, end)
    return found
