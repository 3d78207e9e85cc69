"""Gate records as asv results: each side of a run that is a commit is a result of that commit.

A launch is one sample: asv's own test, which takes samples for independent, is right only about
launches.

gate.BENCHMARK.time
    Seconds of one call, CPU or event time, per launch.
gate.BENCHMARK.COUNTER
    An exact counter of which less is better.
gate_more.BENCHMARK.COUNTER
    One of which more is better.
gate_more.BENCHMARK.throughput
    Bytes of the benchmark's byte counter over its median time, in GB/s (10^9).
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Final, Literal

from bench.asv.series import Exported, LeftOut, Series, series_name, write
from bench.gate.record import ContestantRecord, GateRecord
from bench.machine.environment import GateEnvironment
from bench.machine.facts import ROOT

BYTE_COUNTERS: Final = ("bytes", "torch_bytes")
"""Names of counters that say how many bytes one call moves; the first that is there is taken."""

Side = Literal["base", "head"]


def export(record: GateRecord, results_dir: Path, repo: Path = ROOT) -> Exported:
    """Add a finished run to a folder of asv results; what is left out is said."""
    paths, left_out = [], []
    sides: list[tuple[Side, ContestantRecord]] = [("base", record.base), ("head", record.head)]
    for side, contestant in sides:
        try:
            path = write(
                _series(record, side),
                results_dir,
                commit=contestant.commit,
                dirty=contestant.dirty,
                where=_environment(record, side, contestant),
                started_at=record.started_at,
                repo=repo,
            )
        except LeftOut as why:
            left_out.append(f"{side} {contestant.name}: {why}")
        else:
            paths.append(path)
    return Exported(tuple(dict.fromkeys(paths)), tuple(left_out))


def _environment(record: GateRecord, side: Side, contestant: ContestantRecord) -> GateEnvironment:
    if record.mode == "plant" and side == "head":
        raise LeftOut("it was slowed on purpose")
    if record.mode == "aa" and side == "head":
        raise LeftOut("it is the base once more")
    if contestant.environment is None:
        raise LeftOut("its worker never said what it runs on")
    return contestant.environment


def _series(record: GateRecord, side: Side) -> list[Series]:
    found = []
    for benchmark in record.benchmarks:
        name = series_name(benchmark.key)
        times = [getattr(sample, f"{side}_s") for sample in benchmark.samples]
        if times:
            found.append(Series(f"gate.{name}.time", "seconds", benchmark.key, samples=times))
        counters = {
            each.name: (each, getattr(each, side))
            for each in record.counters
            if each.benchmark == benchmark.key and getattr(each, side) is not None
        }
        for each, value in counters.values():
            module = "gate_more" if each.more_is_better else "gate"
            where = f"{module}.{name}.{series_name(each.name)}"
            pretty = f"{benchmark.key} {each.name}"
            found.append(Series(where, each.unit, pretty, value=float(value)))
        moved = next((counters[each][1] for each in BYTE_COUNTERS if each in counters), None)
        if times and moved:
            where, pretty = f"gate_more.{name}.throughput", f"{benchmark.key} throughput"
            found.append(Series(where, "GB/s", pretty, value=moved / median(times) / 1e9))
    return found
