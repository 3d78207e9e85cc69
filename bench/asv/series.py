"""Gate records as asv results, so that `asv publish` shows releases and regressions.

Each side of a run that is a commit becomes a result of that commit. A launch is one sample: asv's
own test, which takes samples for independent, is right only about launches. What asv keeps apart,
it keeps apart by the parameters of a result, so device, driver, CUDA, torch, triton and timer are
parameters, and no graph joins two keys.

Names of series, in two modules because asv takes less for better:

gate.BENCHMARK.time
    Seconds of one call, CPU or event time, per launch.
gate.BENCHMARK.COUNTER
    An exact counter of which less is better.
gate_more.BENCHMARK.COUNTER
    One of which more is better.
gate_more.BENCHMARK.throughput
    Bytes of the benchmark's byte counter over its median time, in GB/s (10^9).

asv is imported here alone, and inside functions: it is no requirement of the gate.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal

from bench.gate.record import BenchmarkRecord, ContestantRecord, GateRecord
from bench.machine.environment import GateEnvironment
from bench.machine.facts import ROOT
from reference.errors import BadInput
from reference.reading import read_whole

if TYPE_CHECKING:
    from asv.results import Results

BYTE_COUNTERS: Final = ("bytes", "torch_bytes")
"""Names of counters that say how many bytes one call moves; the first that is there is taken."""

ARCHITECTURES: Final = ("x86_64", "aarch64", "arm64", "ppc64le", "riscv64")

VERSION: Final = "1"
"""asv starts a new series where a benchmark's version changes."""

Side = Literal["base", "head"]


class ExportError(BadInput):
    """A record cannot be exported; the message says why."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote, and what it left out and why."""

    paths: tuple[Path, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """One benchmark of asv's: its definition, and the samples or the one value of a side."""

    name: str
    kind: Literal["time", "track"]
    unit: str
    pretty: str
    samples: list[float] = field(default_factory=list)
    value: float | None = None

    @property
    def definition(self) -> dict[str, Any]:
        """Its entry in asv's list of benchmarks."""
        return {
            "name": self.name,
            "pretty_name": self.pretty,
            "code": "",
            "type": self.kind,
            "unit": self.unit,
            "params": [],
            "param_names": [],
            "timeout": 60.0,
            "version": VERSION,
        }


def export(record: GateRecord, results_dir: Path, repo: Path = ROOT) -> Exported:
    """Add a record to a folder of asv results.

    Doing it twice adds nothing; another record of the same commit and environment adds its launches
    to those that are there.

    Parameters
    ----------
    record
        Of a finished run.
    results_dir
        asv's `results_dir`; made where it does not exist.
    repo
        Git repository that knows the commits: asv wants their dates.

    Raises ExportError where asv is not installed.
    """
    try:
        from asv.results import Results
    except ImportError:
        raise ExportError(
            "asv is not installed, and its format is written by its own code: pip install asv"
        ) from None

    if results_dir.exists() and not results_dir.is_dir():
        raise ExportError(f"{results_dir}: that is a file; name a folder of asv results")
    gate_definitions(results_dir)  # refuses here what could not be added to
    paths, left_out = [], []
    definitions: dict[str, dict[str, Any]] = {}
    sides: list[tuple[Side, ContestantRecord]] = [("base", record.base), ("head", record.head)]
    for side, contestant in sides:
        why = _reason_to_leave_out(record, side, contestant)
        commit, where = contestant.commit, contestant.environment
        date = None if commit is None else commit_date(commit, repo)
        if why is None and date is None:
            why = f"commit {commit} is not in {repo}; fetch it and export again"
        if why is not None or commit is None or where is None or date is None:
            left_out.append(f"{side} {contestant.name}: {why}")
            continue
        machine = machine_of(where)
        results = Results(
            {**machine, **parameters_of(where)},
            {},
            commit,
            date,
            ".".join(where.python.split(".")[:2]),
            environment_name(where),
            {},
        )
        results.load_data(str(results_dir))
        series = _series(record, side)
        add_series(results, series, record.started_at)
        results.save(str(results_dir))
        write_machine(results_dir, machine)
        definitions |= {each.name: each.definition for each in series}
        paths.append(results_dir / results._filename)
    if definitions:
        add_definitions(results_dir, definitions)
    return Exported(tuple(dict.fromkeys(paths)), tuple(left_out))


def series_name(key: str) -> str:
    """A benchmark's key as part of a name in asv: a path of words, safe in file names and URLs."""
    words = (re.sub(r"[^A-Za-z0-9-]+", "_", word).strip("_") for word in key.split("/"))
    return ".".join(word for word in words if word)


def machine_of(where: GateEnvironment) -> dict[str, str]:
    """An environment's machine as asv describes one; its name is the same wherever it is said.

    The name holds a digest of what makes it another machine: two runners with one label may be two.
    """
    system, *_ = where.platform.split("-")
    facts = {
        # Not the kernel's release: asv would begin new series with every update.
        "os": system,
        "arch": next((each for each in ARCHITECTURES if each in where.platform), ""),
        "cpu": where.cpu,
        "num_cpu": str(where.cores),
        "ram": "",
    }
    apart = "\n".join([*facts.values(), where.device, where.driver or "none"])
    slug = re.sub(r"[^A-Za-z0-9]+", "-", where.device).strip("-").lower()[:40]
    digest = hashlib.sha256(apart.encode()).hexdigest()[:8]
    return {"machine": f"{slug}-{digest}", **facts}


def environment_name(where: GateEnvironment) -> str:
    """A name for the versions and the timer. asv's own environments never begin with `gate`."""
    parts = (
        f"gate-py{'.'.join(where.python.split('.')[:2])}",
        f"torch{where.torch}",
        f"triton{where.triton}",
        f"cuda{where.cuda}" if where.cuda else "",
        where.timer,
    )
    return re.sub(r"[^A-Za-z0-9.+_-]+", "_", "-".join(part for part in parts if part))


def add_definitions(results_dir: Path, definitions: dict[str, dict[str, Any]]) -> None:
    """Add benchmarks to asv's list, without which `asv publish` does not show them.

    `asv run` writes the list anew: `scripts/run_asv.py` puts back what was there of the gate.
    """
    path = results_dir / "benchmarks.json"
    known = _listed(path) or {"version": 2}
    path.write_text(json.dumps({**known, **definitions}, indent=4) + "\n", encoding="utf-8")


def gate_definitions(results_dir: Path) -> dict[str, dict[str, Any]]:
    """The gate's part of asv's list of benchmarks."""
    known = _listed(results_dir / "benchmarks.json")
    return {name: each for name, each in known.items() if name.startswith(("gate.", "gate_more."))}


def _listed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    text = read_whole(path, what="asv's list of benchmarks")
    try:
        known = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path}: {error}; remove it, and `make asv` writes it anew") from None
    if not isinstance(known, dict):
        raise ExportError(f"{path}: no JSON object; remove it, and `make asv` writes it anew")
    return known


def _reason_to_leave_out(
    record: GateRecord, side: Side, contestant: ContestantRecord
) -> str | None:
    if record.mode == "plant" and side == "head":
        return "it was slowed on purpose"
    if record.mode == "aa" and side == "head":
        return "it is the base once more"
    if contestant.commit is None:
        return "it is no commit, and asv's results belong to commits"
    if contestant.dirty:
        return "it has changes that are not committed, and asv's results belong to commits"
    if contestant.environment is None:
        return "its worker never said what it runs on"
    return None


def parameters_of(where: GateEnvironment) -> dict[str, str]:
    """What tells results apart besides the machine: no graph joins two of them."""
    return {
        "python": ".".join(where.python.split(".")[:2]),
        "device": where.device,
        "driver": where.driver or "none",
        "cuda": where.cuda or "none",
        "torch": where.torch,
        "triton": where.triton,
        "timer": where.timer,
    }


def commit_date(commit: str, repo: Path) -> int | None:
    """Milliseconds since the epoch, as asv counts; None where the repository lacks the commit."""
    asked = subprocess.run(
        ["git", "show", "--no-patch", "--format=%ct", f"{commit}^{{commit}}"],
        cwd=repo,
        capture_output=True,
        text=True,
        check=False,
    )
    return int(asked.stdout) * 1000 if asked.returncode == 0 else None


def _series(record: GateRecord, side: Side) -> list[Series]:
    found = []
    for benchmark in record.benchmarks:
        name = series_name(benchmark.key)
        times = _times(benchmark, side)
        if times:
            found.append(
                Series(f"gate.{name}.time", "time", "seconds", benchmark.key, samples=times)
            )
        counters = {
            each.name: (each, getattr(each, side))
            for each in record.counters
            if each.benchmark == benchmark.key and getattr(each, side) is not None
        }
        for each, value in counters.values():
            module = "gate_more" if each.more_is_better else "gate"
            found.append(
                Series(
                    f"{module}.{name}.{series_name(each.name)}",
                    "track",
                    each.unit,
                    f"{benchmark.key} {each.name}",
                    value=float(value),
                )
            )
        moved = next((counters[each][1] for each in BYTE_COUNTERS if each in counters), None)
        if times and moved:
            found.append(
                Series(
                    f"gate_more.{name}.throughput",
                    "track",
                    "GB/s",
                    f"{benchmark.key} throughput",
                    value=moved / median(times) / 1e9,
                )
            )
    refuse_twins(found)
    return found


def _times(benchmark: BenchmarkRecord, side: Side) -> list[float]:
    return [getattr(sample, f"{side}_s") for sample in benchmark.samples]


def refuse_twins(found: Iterable[Series]) -> None:
    """Raise ExportError where two series have one name in asv."""
    seen: dict[str, str] = {}
    for each in found:
        if each.name in seen:
            raise ExportError(
                f"{each.pretty!r} and {seen[each.name]!r} are both {each.name} in asv: rename one"
            )
        seen[each.name] = each.pretty


@dataclass(frozen=True, slots=True)
class _Measured:
    """The answer of a benchmark in the shape that asv's `Results.add_result` reads."""

    result: list[float | None]
    samples: list[list[float] | None]
    number: list[int | None]
    stderr: str = ""
    errcode: int = 0
    profile: None = None


def add_series(results: Results, series: Iterable[Series], started_at: str) -> None:
    """Add series to the results of one commit and environment; twice adds nothing."""
    began = datetime.fromisoformat(started_at)
    for each in series:
        stored = _stored_samples(results, each.name)
        if each.samples:
            if stored.issuperset(each.samples):
                continue  # this very record was exported before
            measured = _Measured([median(each.samples)], [each.samples], [1])
        else:
            measured = _Measured([each.value], [None], [None])
        results.add_result(
            {"name": each.name, "version": VERSION, "params": []},
            measured,
            started_at=began,
            record_samples=True,
            append_samples=bool(each.samples),
        )


def _stored_samples(results: Results, name: str) -> set[float]:
    if name not in results.get_all_result_keys():
        return set()
    stored = results.get_result_samples(name, [])
    return {sample for samples in stored if samples is not None for sample in samples}


def write_machine(results_dir: Path, machine: dict[str, str]) -> None:
    """Describe a machine as asv wants it beside its results."""
    folder = results_dir / machine["machine"]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**machine, "version": 1}, indent=4)
    (folder / "machine.json").write_text(text + "\n", encoding="utf-8")
