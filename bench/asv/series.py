"""What was measured as asv results, so that `asv publish` shows releases and regressions.

What asv keeps apart, it keeps apart by the parameters of a result, so device, driver, CUDA, torch,
triton and timer are parameters, and no graph joins two keys. Names of series begin with `gate.`, or
with `gate_more.` where more is better, because asv takes less for better: those are kept when asv
writes its list of benchmarks anew.

asv is imported here alone, and inside functions: it is no requirement of what exports.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from bench.command.session import check_folder
from bench.machine.environment import GateEnvironment
from bench.machine.facts import ROOT, git
from reference.errors import BadInput
from reference.reading import read_whole

if TYPE_CHECKING:
    from asv.results import Results

ARCHITECTURES: Final = ("x86_64", "aarch64", "arm64", "ppc64le", "riscv64")

VERSION: Final = "1"
"""asv starts a new series where a benchmark's version changes."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote, and what it left out and why."""

    paths: tuple[Path, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """One benchmark of asv's: its definition, and the samples or the one value of a commit."""

    name: str
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
            "type": "time" if self.samples else "track",
            "unit": self.unit,
            "params": [],
            "param_names": [],
            "timeout": 60.0,
            "version": VERSION,
        }


class LeftOut(Exception):
    """asv's results cannot hold this one; the message says why."""


def check_asv(folder: Path | None) -> None:
    """Raise BadInput, before the work is done, where results could not be added to a folder."""
    if folder is None:
        return
    if find_spec("asv") is None:
        raise BadInput(
            f"--asv {folder}: asv is not installed, and its format is written by its own code; "
            f"pip install asv"
        )
    check_folder("--asv", folder)
    gate_definitions(folder)


def write(
    series: Sequence[Series],
    results_dir: Path,
    *,
    commit: str | None,
    dirty: bool | None,
    where: GateEnvironment,
    started_at: str,
    repo: Path = ROOT,
) -> Path:
    """Add what was measured of one commit to a folder of asv results, once; returns the file.

    Raises LeftOut: it is not of a commit that the repository knows.
    """
    try:
        from asv.results import Results
    except ImportError:
        raise BadInput(
            "asv is not installed, and its format is written by its own code: pip install asv"
        ) from None
    if results_dir.exists() and not results_dir.is_dir():
        raise BadInput(f"{results_dir}: that is a file; name a folder of asv results")
    gate_definitions(results_dir)  # refuses here what could not be added to
    refuse_twins(series)
    machine = machine_of(where)
    results = Results(
        {**machine, **parameters_of(where)},
        {},
        commit,
        date_of(commit, repo, dirty=bool(dirty)),
        _minor(where),
        environment_name(where),
        {},
    )
    results.load_data(str(results_dir))
    add_series(results, series, started_at)
    results.save(str(results_dir))
    folder = results_dir / machine["machine"]
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "machine.json", {**machine, "version": 1})
    add_definitions(results_dir, {each.name: each.definition for each in series})
    path: Path = results_dir / results._filename
    return path


def series_name(key: str) -> str:
    """A benchmark's key as part of a name in asv: a path of words, safe in file names and URLs."""
    words = (re.sub(r"[^A-Za-z0-9-]+", "_", word).strip("_") for word in key.split("/"))
    return ".".join(word for word in words if word)


def machine_of(where: GateEnvironment) -> dict[str, str]:
    """An environment's machine as asv describes one, by a name with a digest of what it is."""
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
        f"gate-py{_minor(where)}",
        f"torch{where.torch}",
        f"triton{where.triton}",
        f"cuda{where.cuda}" if where.cuda else "",
        where.timer,
    )
    return re.sub(r"[^A-Za-z0-9.+_-]+", "_", "-".join(part for part in parts if part))


def add_definitions(results_dir: Path, definitions: dict[str, dict[str, Any]]) -> None:
    """Add benchmarks to asv's list, without which `asv publish` does not show them."""
    path = results_dir / "benchmarks.json"
    known = _listed(path) or {"version": 2}
    _write_json(path, {**known, **definitions})


def _write_json(path: Path, what: dict[str, Any]) -> None:
    path.write_text(json.dumps(what, indent=4) + "\n", encoding="utf-8")


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
        raise BadInput(f"{path}: {error}; remove it, and `asv run` writes it anew") from None
    if not isinstance(known, dict):
        raise BadInput(f"{path}: no JSON object; remove it, and `asv run` writes it anew")
    return known


def _minor(where: GateEnvironment) -> str:
    return ".".join(where.python.split(".")[:2])


def parameters_of(where: GateEnvironment) -> dict[str, str]:
    """What tells results apart besides the machine: no graph joins two of them."""
    return {
        "python": _minor(where),
        "device": where.device,
        "driver": where.driver or "none",
        "cuda": where.cuda or "none",
        "torch": where.torch,
        "triton": where.triton,
        "timer": where.timer,
    }


def date_of(commit: str | None, repo: Path, *, dirty: bool) -> int:
    """When a commit was made, ms since the epoch. Raises LeftOut: it is none, or not all of it."""
    if commit is None:
        raise LeftOut("it is no commit, and asv's results belong to commits")
    if dirty:
        raise LeftOut("it has changes that are not committed, and asv's results belong to commits")
    said = git("show", "--no-patch", "--format=%ct", f"{commit}^{{commit}}", folder=repo)
    if said is None:
        raise LeftOut(f"commit {commit} is not in {repo}; fetch it and export again")
    return int(said) * 1000


def refuse_twins(found: Iterable[Series]) -> None:
    """Raise BadInput where two series have one name in asv."""
    seen: dict[str, str] = {}
    for each in found:
        if each.name in seen:
            raise BadInput(
                f"{each.pretty!r} and {seen[each.name]!r} are both {each.name} in asv: rename one"
            )
        seen[each.name] = each.pretty


def add_series(results: Results, series: Iterable[Series], started_at: str) -> None:
    """Add series to the results of one commit and environment; twice adds nothing."""
    began = datetime.fromisoformat(started_at)
    for each in series:
        if each.samples and _stored_samples(results, each.name).issuperset(each.samples):
            continue  # this very record was exported before
        # The answer of a benchmark in the shape that asv reads.
        measured = SimpleNamespace(
            result=[median(each.samples) if each.samples else each.value],
            samples=[each.samples or None],
            number=[1 if each.samples else None],
            stderr="",
            errcode=0,
            profile=None,
        )
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
