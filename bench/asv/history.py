"""Steps in stored asv results, found by asv's own detection.

`asv publish` finds them too, and shows them on a page; here they come without one. The detection is
asv's: a piecewise constant fit whose penalty it chooses by itself (asv.step_detect), weighted by
what asv knows of each point's spread, with the thresholds of `asv.conf.json`. It looks at a trend
after the fact and has no stated error rate; a gate has.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from bench.machine.record import Record
from reference.errors import BadInput
from reference.reading import read_whole

if TYPE_CHECKING:
    from asv.results import Results

MORE_IS_BETTER: Final = "gate_more."
"""Benchmarks whose name begins so are of what should grow; asv takes less for better of all."""

DEFAULT_THRESHOLD: Final = 0.05
"""asv's own where its configuration names none."""


MAX_ENTRIES: Final = 10**6
"""Combinations of one benchmark's parameters. asv makes a list of them before it looks at any."""


class Step(Record):
    """One change of level in one series."""

    benchmark: str
    unit: str
    """asv's name, parameters included; unit of the values."""
    machine: str
    environment: str
    """Where it was measured."""
    last_before: str
    first_after: str
    """Full hashes of the neighbouring commits that have results: the change is after the first, up
    to and with the second."""
    before: float
    after: float
    """Level on either side."""
    change: float | None
    """(after - before) / before; None where before is 0."""
    kind: Literal["worse", "better"]
    """`worse` or `better`."""
    points: int
    """Commits of the series that have a result."""


class History(Record):
    """What was looked at, and the steps, oldest first within a series."""

    results: str
    series: int
    commits: int
    unknown_commits: list[str]
    steps: list[Step]


_Key = tuple[str, str, str]
_Series = dict[str, tuple[float, float | None]]
"""Value and weight by commit."""


def find_steps(
    results_dir: Path,
    repo: Path,
    *,
    pattern: str | None = None,
    thresholds: dict[str, float] | None = None,
) -> History:
    """Find the steps in asv's results; the Git repository gives the commits their order."""
    try:
        from asv.results import Results, iter_results_paths
        from asv.util import UserError
    except ImportError:
        raise BadInput(
            "asv is not installed, and the detection is its own: pip install asv"
        ) from None
    listed = results_dir / "benchmarks.json"
    if not listed.is_file():
        raise BadInput(
            f"{results_dir}: no asv results there; `asv run` or `pagedbench gate --asv "
            f"{results_dir}` writes some"
        )
    benchmarks = _definitions(listed)
    series: dict[_Key, _Series] = defaultdict(dict)
    for folder, name, machine in iter_results_paths(str(results_dir)):
        path = os.path.join(folder, name)
        try:
            _collect(Results.load(path, machine_name=machine), benchmarks, series)
        except (UserError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise BadInput(f"{path}: no result of asv: {error}; remove it") from None
    chosen = _choose(series, pattern)
    commits = {commit for one in series.values() for commit in one}
    order = _order(commits, repo)
    steps = [
        step
        for key in sorted(chosen)
        for step in _steps(key, series[key], order, benchmarks, thresholds or {})
    ]
    return History(
        results=str(results_dir),
        series=len(chosen),
        commits=len(commits),
        unknown_commits=sorted(commits - set(order)),
        steps=steps,
    )


def _definitions(listed: Path) -> dict[str, Any]:
    text = read_whole(listed, what="asv's list of benchmarks")
    try:
        found = json.loads(text)
        for name, each in found.items():
            if name != "version" and not (
                isinstance(each["params"], list) and isinstance(each.get("unit", ""), str)
            ):
                raise ValueError(f"{name} is no benchmark")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise BadInput(
            f"{listed}: no list of asv's benchmarks: {error}; remove it, and `asv run` writes it "
            f"anew"
        ) from None
    return dict(found)


def _collect(results: Results, benchmarks: dict[str, Any], series: dict[_Key, _Series]) -> None:
    from asv._stats import get_weight

    for name in results.get_result_keys(benchmarks):
        params = benchmarks[name]["params"]
        for axes in (params, results.get_result_params(name) or []):
            if math.prod(len(axis) for axis in axes) > MAX_ENTRIES:
                raise ValueError(f"{name} has over {MAX_ENTRIES:,} combinations of parameters")
        entries = list(itertools.product(*params))
        values = results.get_result_value(name, params)
        stats = results.get_result_stats(name, params)
        for entry, value, stat in zip(entries, values, stats, strict=True):
            if value is None or math.isnan(value):
                continue
            if math.isinf(value):
                raise ValueError(f"{name} took {value}")
            title = f"{name}({', '.join(entry)})" if entry else name
            one = series[title, results.params["machine"], _environment(results)]
            one[results.commit_hash] = value, get_weight(stat)


def _environment(results: Results) -> str:
    """What keeps a series apart besides the machine: every parameter that asv stored."""
    machine = {"machine", "os", "arch", "cpu", "num_cpu", "ram", "version"}
    said = {k: v for k, v in results.params.items() if k not in machine and v not in {"", None}}
    said |= results.env_vars
    return ", ".join(f"{name} {value}" for name, value in sorted(said.items()))


def _choose(series: Iterable[_Key], pattern: str | None) -> list[_Key]:
    try:
        wanted = re.compile(pattern or "")
    except re.error as error:
        raise BadInput(f"--benchmark {pattern}: {error}; give a regular expression") from None
    chosen = [key for key in series if wanted.search(key[0])]
    if pattern and not chosen:
        names = sorted({key[0] for key in series})
        raise BadInput(
            f"--benchmark {pattern}: none of {len(names)} series has it in its name, such as "
            f"{names[0] if names else 'none at all'}"
        )
    return chosen


def _order(commits: Iterable[str], repo: Path) -> dict[str, int]:
    """Rank of each commit that the repository knows, ancestors first."""
    remedy = "run this in the repository that was measured, or name it with --repo"
    command = ["git", "-C", str(repo), "rev-list", "--topo-order", "--reverse", "--all", "HEAD"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BadInput(f"{repo}: no git: {error}; install it") from None
    if asked.returncode:
        raise BadInput(f"{repo}: {asked.stderr.strip()}; {remedy}")
    known = set(commits)
    ranked = (commit for commit in asked.stdout.split() if commit in known)
    return {commit: rank for rank, commit in enumerate(ranked)}


def _steps(
    key: _Key,
    one: _Series,
    order: dict[str, int],
    benchmarks: dict[str, Any],
    thresholds: dict[str, float],
) -> Iterator[Step]:
    from asv.step_detect import detect_steps

    title, machine, environment = key
    commits = sorted((commit for commit in one if commit in order), key=order.__getitem__)
    if len(commits) < 2:
        return
    found = detect_steps(*zip(*(one[commit] for commit in commits), strict=True))
    # The largest that matches, as in asv.
    matching = (limit for regex, limit in thresholds.items() if re.match(regex, title))
    threshold = max(matching, default=DEFAULT_THRESHOLD)
    more_is_better = title.startswith(MORE_IS_BETTER)
    for (_, end, before, _, spread), (start, _, after, _, next_spread) in itertools.pairwise(found):
        if abs(after - before) <= max(threshold * abs(before), spread, next_spread):
            continue
        yield Step(
            benchmark=title,
            unit=benchmarks.get(title.partition("(")[0], {}).get("unit", ""),
            machine=machine,
            environment=environment,
            last_before=commits[end - 1],
            first_after=commits[start],
            before=before,
            after=after,
            change=(after - before) / before if before else None,
            kind="worse" if (after > before) != more_is_better else "better",
            points=len(commits),
        )
