"""Run asv's suite on the current commit and say from the stored results whether it was measured.

asv's exit codes do not tell a failed benchmark from an environment that could not be built, and
some of its commands exit with 1 on success. They are ignored here: what counts is that every
benchmark of the suite has a result of this run, in every environment for this Python.

Exit codes: 0 everything measured, 1 a benchmark failed, 2 cannot start, 4 nothing was measured.
"""

import itertools
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from asv.benchmarks import Benchmarks
from asv.config import Config
from asv.environment import get_environments
from asv.machine import Machine, MachineCollection
from asv.results import Results, get_filename
from asv.util import UserError

from bench.asv.series import add_definitions, gate_definitions
from scripts.asv_offline import OfflineError, make_offline

ROOT = Path(__file__).parents[1]

ALL_MEASURED = 0
BENCHMARK_FAILED = 1
CANNOT_START = 2
NOTHING_MEASURED = 4


@dataclass(frozen=True, slots=True)
class Tally:
    """How the entries of a suite ended; an entry is a benchmark with one set of parameters."""

    measured: int
    not_applicable: int
    failed: tuple[str, ...]


def tally(benchmarks: Benchmarks, results: Results) -> Tally:
    """Sort the entries of ``benchmarks`` by what ``results`` holds; one without a value failed."""
    measured = not_applicable = 0
    failed = []
    stored = results.get_all_result_keys()
    for name, benchmark in sorted(benchmarks.items()):
        entries = list(itertools.product(*benchmark["params"]))
        values = results.get_result_value(name, benchmark["params"]) if name in stored else None
        for parameters, value in zip(entries, values or [None] * len(entries), strict=True):
            if value is None:
                failed.append(f"{name}({', '.join(parameters)})")
            elif math.isnan(value):
                not_applicable += 1
            else:
                measured += 1
    return Tally(measured, not_applicable, tuple(failed))


def judge(path: Path, conf: Config, machine: str, *, started: float) -> tuple[int, str]:
    """Exit code and a line to print for the results file of one environment.

    ``started`` is when the run began, in seconds since the epoch: an older file tells of an earlier
    run of the same commit.
    """
    if not path.is_file() or path.stat().st_mtime < started:
        return (
            NOTHING_MEASURED,
            "NO RESULTS: the environment or the suite failed to load, see above",
        )
    found = tally(Benchmarks.load(conf), Results.load(str(path), machine_name=machine))
    line = f"{found.measured} measured, {found.not_applicable} not applicable here"
    if found.failed:
        return BENCHMARK_FAILED, f"{line}, {len(found.failed)} FAILED: {', '.join(found.failed)}"
    return (ALL_MEASURED if found.measured else NOTHING_MEASURED), line


def refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(CANNOT_START)


def git(*arguments: str) -> str:
    answer = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if answer.returncode:
        refuse(
            f"git {' '.join(arguments)}: {answer.stderr.strip()}\n"
            "asv measures commits: run this in a git clone that has one"
        )
    return answer.stdout.strip()


def asv(*arguments: str, stdout: int | None = None) -> None:
    print(f"$ asv {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "asv", *arguments]
    subprocess.run(command, cwd=ROOT, stdout=stdout, check=False)


def publish(conf: Config, exported: dict[str, dict[str, Any]]) -> None:
    """Publish the history and the gate's series in ``exported``, as a page that works offline."""
    if exported:
        add_definitions(Path(conf.results_dir), exported)
    asv("publish")
    html = Path(conf.html_dir)
    try:
        make_offline(html)
    except OfflineError as error:
        print(f"\nthe page needs the network, or is not there: {error}", file=sys.stderr)
    if (html / "index.html").is_file():
        print(f"\nhistory: {html}; to look at it: {sys.executable} -m asv preview")


def is_known(machine: str) -> bool:
    try:
        MachineCollection.load(machine)
    except UserError:
        return False
    return True


def main() -> int:
    """Measure, judge, publish; returns the exit code."""
    os.chdir(ROOT)
    # asv looks for an executable named python3.11 and the like: let it find this one first.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    commit = git("rev-parse", "HEAD")
    if git("status", "--porcelain"):
        print("note: asv's suite runs as it stands, against the last commit of everything else")

    conf = Config.load()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    environments = [
        environment.name
        for environment in get_environments(conf, None, verbose=False)
        if environment.python == python
    ]
    if not environments:
        refuse(f"asv.conf.json has no environment for Python {python}: add a row to its include")

    machine = Machine.get_unique_machine_name()
    if not is_known(machine):
        print(f"asv: describing this machine, {machine!r}, in ~/.asv-machine.json")
        asv("machine", "--yes", stdout=subprocess.DEVNULL)

    # `asv run` lists what its suite has; what `pagedbench gate --asv` exported stays listed, too.
    exported = gate_definitions(Path(conf.results_dir))
    started = time.time()
    chosen = [argument for name in environments for argument in ("-E", name)]
    asv("run", "--show-stderr", *chosen, "HEAD^!")

    code = ALL_MEASURED
    print(f"\ncommit {commit[:12]} on {machine}, {time.time() - started:.0f} s")
    for name in environments:
        path = Path(conf.results_dir, get_filename(machine, commit, name))
        verdict, line = judge(path, conf, machine, started=started)
        print(f"  {name}\n    {line}\n    {path}")
        code = max(code, verdict)
    if code != NOTHING_MEASURED:
        publish(conf, exported)
    return code


if __name__ == "__main__":
    sys.exit(main())
