"""Records as asv results: one series of times and one of GB/s for each subject on each point.

Names of series begin like the gate's, because those are kept when asv writes its list anew:

gate.throughput.POINT.SUBJECT.time
    Seconds of a call, one sample a round, cold cache.
gate_more.throughput.POINT.SUBJECT.bandwidth
    Keys and values over the median, GB/s (10^9).
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import torch

from bench.asv import series as asv_export
from bench.asv.series import Exported, ExportError, series_name
from bench.machine.environment import GateEnvironment
from bench.machine.facts import ROOT
from bench.throughput.record import TIMED, ThroughputRecord


def export(record: ThroughputRecord, results_dir: Path, repo: Path = ROOT) -> Exported:
    """Add a record to a folder of asv results; doing it twice adds nothing.

    Parameters
    ----------
    record
        Of a run; what was timed of it is exported.
    results_dir
        asv's `results_dir`; made where it does not exist.
    repo
        Git repository that knows the commit: asv wants its date.

    Raises ExportError: asv is not installed.
    """
    try:
        from asv.results import Results
    except ImportError:
        raise ExportError(
            "asv is not installed, and its format is written by its own code: pip install asv"
        ) from None
    commit, dirty = record.environment.commit, record.environment.dirty
    date = None if commit is None else asv_export.commit_date(commit, repo)
    if commit is None or dirty or date is None:
        why = (
            "it has changes that are not committed, and asv's results belong to commits"
            if dirty
            else "it is no commit of this repository, and asv's results belong to commits"
        )
        return Exported((), (f"this checkout: {why}",))
    where = _environment(record)
    machine = asv_export.machine_of(where)
    results = Results(
        {**machine, **asv_export.parameters_of(where)},
        {},
        commit,
        date,
        ".".join(where.python.split(".")[:2]),
        asv_export.environment_name(where),
        {},
    )
    results.load_data(str(results_dir))
    series = _series(record)
    asv_export.add_series(results, series, record.started_at)
    results.save(str(results_dir))
    asv_export.write_machine(results_dir, machine)
    asv_export.add_definitions(results_dir, {each.name: each.definition for each in series})
    return Exported((results_dir / results._filename,), ())


def _environment(record: ThroughputRecord) -> GateEnvironment:
    where = record.environment
    return GateEnvironment(
        device=where.device,
        driver=where.driver,
        cuda=torch.version.cuda if record.device == "cuda" else None,
        torch=where.torch,
        triton=where.triton,
        numpy=np.__version__,
        python=where.python,
        timer=record.clock,
        cpu=where.cpu,
        cores=len(os.sched_getaffinity(0)),
        threads=where.threads,
        platform=platform.platform(),
        copy_gbs=record.roof.copy_gigabytes_per_s if record.roof else None,
    )


def _series(record: ThroughputRecord) -> list[asv_export.Series]:
    found = []
    for point in record.points:
        for each in point.subjects:
            if each.status != TIMED:
                continue
            name = f"throughput.{series_name(point.name)}.{series_name(each.name)}"
            pretty = f"{point.name}, {each.name}"
            found.append(
                asv_export.Series(
                    f"gate.{name}.time", "time", "seconds", pretty, samples=list(each.cold_s)
                )
            )
            found.append(
                asv_export.Series(
                    f"gate_more.{name}.bandwidth",
                    "track",
                    "GB/s",
                    f"{pretty} bandwidth",
                    value=each.gigabytes_per_s,
                )
            )
    asv_export.refuse_twins(found)
    return found
