"""Records as asv results: one series of times and one of GB/s for each subject on each point.

Names of series begin like the gate's, because those are kept when asv writes its list anew:

gate.throughput.POINT.SUBJECT.time
    Seconds of a call, one sample a round, cold cache.
gate_more.throughput.POINT.SUBJECT.bandwidth
    Keys and values over the median, GB/s (10^9).
"""

from __future__ import annotations

from pathlib import Path

import torch

from bench.asv.series import Exported, LeftOut, Series, series_name, write
from bench.machine.environment import GateEnvironment
from bench.machine.facts import ROOT
from bench.throughput.record import TIMED, ThroughputRecord


def export(record: ThroughputRecord, results_dir: Path, repo: Path = ROOT) -> Exported:
    """Add what was timed to a folder of asv results; what is left out is said."""
    try:
        path = write(
            _series(record),
            results_dir,
            commit=record.environment.commit,
            dirty=record.environment.dirty,
            where=_environment(record),
            started_at=record.started_at,
            repo=repo,
        )
    except LeftOut as why:
        return Exported((), (f"this checkout: {why}",))
    return Exported((path,), ())


def _environment(record: ThroughputRecord) -> GateEnvironment:
    return GateEnvironment.here(
        **record.environment.model_dump(include=set(GateEnvironment.model_fields)),
        cuda=torch.version.cuda if record.device == "cuda" else None,
        timer=record.clock,
        copy_gbs=record.roof.copy_gigabytes_per_s if record.roof else None,
    )


def _series(record: ThroughputRecord) -> list[Series]:
    found = []
    for point in record.points:
        for each in point.subjects:
            if each.status != TIMED:
                continue
            name = f"throughput.{series_name(point.name)}.{series_name(each.name)}"
            pretty = f"{point.name}, {each.name}"
            rate, said = each.gigabytes_per_s, f"{pretty} bandwidth"
            found.append(Series(f"gate.{name}.time", "seconds", pretty, samples=each.cold_s))
            found.append(Series(f"gate_more.{name}.bandwidth", "GB/s", said, value=rate))
    return found
