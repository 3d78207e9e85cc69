"""How often the gate errs on this machine, beside asv and pytest-benchmark: `make gate-power`.

Rounds of real runs in turn, so that every tool sees the same weather: the gate on identical code,
the gate with +5 % and +3 % of real extra work in head, `asv continuous` and pytest-benchmark with
`--benchmark-compare-fail=mean:5%` on identical code. Then the launches that the gate recorded on
identical code are drawn anew (studies/resample.py) for rates that a few runs cannot give.

A run that is done is a file in --folder and is not done again: end it at any time, start it again,
and it goes on. With --for 25m no run begins that takes longer than what is left, going by those of
its kind; what is there is summed up. The folder belongs to one commit and one set of options. All
runs are of the last commit, not of uncommitted changes.

Exit codes: 0 all is there, 1 a bar of the project is missed, 2 cannot start, 4 a run came to no
result, 130 ended, or some runs did not fit into --for.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from asv.util import load_json
from asv_runner import __version__ as asv_runner_version
from pydantic import ValidationError

from bench.gate.record import GateRecord
from studies.resample import Resampled, ResampleError, Share, resample, said, share

ROOT: Final = Path(__file__).parents[1]

ALL_THERE: Final = 0
BAR_MISSED: Final = 1
CANNOT_START: Final = 2
NO_RESULT: Final = 4
INTERRUPTED: Final = 130

TIDY_UP_S: Final = 60

MACHINE: Final = "here"
ASV_BENCHMARKS: Final = r"^(Allocator|Attention)\..*time_"
PYTEST_BENCHMARKS: Final = ("tests/benchmarks", "-k", "test_call and (allocator or cache)")
THRESHOLD: Final = 0.05
"""Of pytest-benchmark: it takes whole per cents only."""

# The project's bars: most shares of false alarms, least shares of planted slowdowns that are found,
# and most launches on the median.
MOST_FALSE_ALARMS: Final = 1 / 40
LEAST_FOUND: Final = {0.05: 0.95, 0.03: 0.85}
MOST_LAUNCHES: Final = {0.05: 15}


@dataclass(frozen=True, slots=True)
class Job:
    """One run: what it is called, and what to do; it returns what is kept."""

    name: str
    """Kind and number."""
    run: Callable[[], dict[str, Any]]

    def file(self, folder: Path) -> Path:
        """Where what it returns is kept."""
        return folder / f"{self.name}.json"


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, then sum up; returns the exit code."""
    options = parse(arguments)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    refusal = claim(folder, options)
    if refusal:
        print(refusal, file=sys.stderr)
        return CANNOT_START
    if git("status", "--porcelain"):
        print("note: the benchmarks are those of the checkout as it stands, the code the commit's")
    ends = time.monotonic() + options.within
    failed, left = [], []
    for job in jobs(options):
        if job.file(folder).is_file():
            continue
        if likely_s(job, folder) > ends - time.monotonic():
            left.append(job.name)
        elif not done(job, folder):
            failed.append(job.name)
    try:
        summary = sum_up(folder, options)
    except ResampleError as error:
        print(f"nothing can be drawn anew: {error}; runs are kept in {folder}", file=sys.stderr)
        return NO_RESULT
    file = folder / "gate-power.json"
    file.write_text(laid_out(summary) + "\n", encoding="utf-8")
    show(summary)
    print(f"written to {file}")
    if failed:
        print(f"came to no result: {', '.join(failed)}; run it again", file=sys.stderr)
        return NO_RESULT
    if left:
        print(f"{len(left)} runs did not fit into --for; the same command goes on")
        return INTERRUPTED
    return BAR_MISSED if summary["missed"] else ALL_THERE


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gate_power.py", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".pagedbench" / "gate-power")
    parser.add_argument("--identical", type=int, default=8, help="runs of the gate, same code")
    parser.add_argument("--planted", type=int, default=5, help="runs at +5 %%, and at +3 %%")
    parser.add_argument("--others", type=int, default=8, help="runs of asv, and pytest-benchmark")
    parser.add_argument("--benchmark", action="append", default=[], help="of the gate; a pattern")
    parser.add_argument("--asv-benchmark", default=ASV_BENCHMARKS, help="regular expression")
    parser.add_argument("--time-limit", type=float, default=9.0, help="minutes for a gate")
    parser.add_argument(
        "--for", dest="within", type=within, default=math.inf, help="time for all: 25m, 2h"
    )
    parser.add_argument("--trials", type=int, default=4000, help="gates drawn anew")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    options = parser.parse_args(arguments)
    # Runs have the checkout as their folder, whatever ours is.
    options.folder = options.folder.resolve()
    return options


def within(text: str) -> float:
    """Seconds of `90s`, `25m` or `2h`."""
    found = re.fullmatch(r"(\d+)([smh])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text}: write a time as in 25m")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def likely_s(job: Job, folder: Path) -> float:
    """The longest that a run of its kind took; 0 if none is there."""
    kind = job.name.rpartition("-")[0]
    return max((each["elapsed_s"] for each in kept(folder, f"{kind}-*")), default=0.0)


def claim(folder: Path, options: argparse.Namespace) -> str | None:
    """Say whose the folder is; returns why it cannot be used, if so."""
    asked = {"asv_benchmark": options.asv_benchmark, "benchmark": options.benchmark}
    ours = {"commit": git("rev-parse", "HEAD"), "time_limit": options.time_limit, **asked}
    file = folder / "series.json"
    if file.is_file():
        theirs = json.loads(file.read_text(encoding="utf-8"))
        if theirs != ours:
            return f"{folder} holds runs of {theirs}, and this is {ours}; name another --folder"
    file.write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
    return None


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """All runs, in rounds."""
    for number in range(max(options.identical, options.planted, options.others)):
        if number < options.identical:
            yield Job(f"identical-{number}", lambda: gate(options, "HEAD", "HEAD"))
        if number < options.planted:
            for slowdown in LEAST_FOUND:
                plant = f"{100 * slowdown:g}%"
                yield Job(
                    f"planted-{100 * slowdown:g}-{number}",
                    lambda plant=plant: gate(options, "HEAD", "--plant", plant),  # type: ignore[misc]
                )
        if number < options.others:
            yield Job(f"asv-{number}", lambda: asv_continuous(options))
            yield Job(f"pytest-{number}", lambda: pytest_benchmark(options))


def done(job: Job, folder: Path) -> bool:
    """Whether a run came to a result, which is kept."""
    file = job.file(folder)
    load, began = os.getloadavg()[0], time.monotonic()
    print(f"{job.name} ...", flush=True)
    try:
        kept = job.run()
    except RunFailed as failure:
        print(f"{job.name}: {failure}", file=sys.stderr)
        return False
    kept |= {"load": load, "elapsed_s": time.monotonic() - began}
    # In one step: a file that is there is whole.
    half = file.with_suffix(".part")
    half.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    half.replace(file)
    print(f"{job.name}: exit code {kept['exit_code']}, {kept['elapsed_s']:.0f} s", flush=True)
    return True


class RunFailed(RuntimeError):
    """A run came to no result."""


def gate(options: argparse.Namespace, *arguments: str) -> dict[str, Any]:
    """One run of the gate; keeps its record."""
    file = options.folder / "record.part"
    file.unlink(missing_ok=True)
    chosen = [part for pattern in options.benchmark for part in ("--benchmark", pattern)]
    command = [sys.executable, "-m", "bench.cli", "gate", *arguments, *chosen]
    command += ["--time-limit", str(options.time_limit), "--json", str(file)]
    run = shell(command)
    if run.returncode not in {0, 1, 3} or not file.is_file():
        raise RunFailed(f"exit code {run.returncode}\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    record = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    return {"exit_code": run.returncode, "record": record}


def asv_continuous(options: argparse.Namespace) -> dict[str, Any]:
    """One `asv continuous` with its defaults, between a commit and an empty one on top of it."""
    clone = asv_clone(options.folder)
    command = [sys.executable, "-m", "asv", "continuous", "--config", "same.json"]
    command += ["--machine", MACHINE, "--bench", options.asv_benchmark, "HEAD~1", "HEAD"]
    run = shell(command, folder=clone, environment=asv_environment(options.folder))
    text = run.stdout + run.stderr
    measured = asv_measured(clone)
    if run.returncode not in {0, 1} or not measured:
        raise RunFailed(f"exit code {run.returncode}\n{text[-2000:]}")
    return {"exit_code": run.returncode, "decisions": measured, "changed": asv_changed(text)}


def asv_changed(text: str) -> list[str]:
    """Benchmarks that `asv continuous` calls changed, with `+` for slower and `-` for faster."""
    rows = re.findall(r"^\| ([+-]) +\|.*\| ([^|]+?) +\|$", text, re.MULTILINE)
    changed = "SOME BENCHMARKS HAVE CHANGED" in text
    if changed != bool(rows) or "BENCHMARKS" not in text:
        raise RunFailed(f"asv's report cannot be read\n{text[-2000:]}")
    return [f"{sign} {name}" for sign, name in rows]


def asv_clone(folder: Path) -> Path:
    """A clone with an empty commit on top, configured to use the packages of this environment."""
    clone = folder / "asv"
    if (clone / "same.json").is_file():
        shutil.rmtree(clone / ".asv" / "results", ignore_errors=True)
        return clone
    shutil.rmtree(clone, ignore_errors=True)
    git("clone", "--quiet", str(ROOT), str(clone))
    author = ("-c", "user.name=gate-power", "-c", "user.email=gate-power@example.org")
    git(*author, "commit", "--quiet", "--allow-empty", "--message", "the same", folder=clone)
    configuration = load_json(str(clone / "asv.conf.json"), js_comments=True)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = sysconfig.get_paths()["purelib"]
    configuration |= {
        "pythons": [python],
        "matrix": {
            "req": {"pip+asv_runner": [asv_runner_version]},
            "env_nobuild": {"OMP_NUM_THREADS": ["1"]},
        },
        "include": [],
        "exclude": [],
        # The commit's rooms first, then the packages of the environment that runs this: torch is
        # not installed anew.
        "install_command": [
            'python -c "import pathlib, site; '
            "pathlib.Path(site.getsitepackages()[0], 'pagedbench.pth')"
            f".write_text(r'{{build_dir}}' + chr(10) + r'{packages}')\""
        ],
    }
    environment = asv_environment(folder)
    Path(environment["HOME"]).mkdir(parents=True, exist_ok=True)
    half = clone / "same.part"
    half.write_text(json.dumps(configuration, indent=2), encoding="utf-8")
    command = [sys.executable, "-m", "asv", "machine", "--config", half.name]
    described = shell(
        [*command, "--machine", MACHINE, "--yes"], folder=clone, environment=environment
    )
    if described.returncode:
        raise RunFailed(described.stdout + described.stderr)
    half.replace(clone / "same.json")
    return clone


def asv_environment(folder: Path) -> dict[str, str]:
    """With asv's list of machines in a home of its own, and this python found first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"HOME": str((folder / "asv-home").resolve()), "PATH": path}


def asv_measured(clone: Path) -> int:
    """Benchmarks, each with its parameters, that have a value for both commits: the decisions."""
    counts = []
    for file in (clone / ".asv" / "results" / MACHINE).glob("*-*.json"):
        results = json.loads(file.read_text(encoding="utf-8"))["results"]
        values = [value for row in results.values() for value in row[0] or ()]
        counts.append(sum(value is not None and value == value for value in values))  # noqa: PLR0124
    return min(counts, default=0) if len(counts) == 2 else 0


def pytest_benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Two sessions on the same code, the second compared with the first at `mean:5%`."""
    storage = options.folder / "pytest-benchmark"
    shutil.rmtree(storage, ignore_errors=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--benchmark-enable", "--benchmark-only", *PYTEST_BENCHMARKS]
    command += [f"--benchmark-storage=file://{storage.resolve()}"]
    base = shell([*command, "--benchmark-save=base"])
    fail = f"--benchmark-compare-fail=mean:{100 * THRESHOLD:g}%"
    head = shell([*command, "--benchmark-save=head", "--benchmark-compare=0001", fail])
    means = [means_of(storage, name) for name in ("base", "head")]
    alarmed = "Performance has regressed" in head.stdout + head.stderr
    if base.returncode or not means[0] or not (alarmed or head.returncode == 0):
        text = base.stdout[-1000:] + head.stdout[-1000:] + head.stderr[-1000:]
        raise RunFailed(f"exit codes {base.returncode}, {head.returncode}\n{text}")
    before, after = means
    slower = [name for name in before if after[name] > before[name] * (1 + THRESHOLD)]
    if bool(slower) != alarmed:
        raise RunFailed(f"it {'alarms' if alarmed else 'does not alarm'}, and {slower} are slower")
    return {"exit_code": int(alarmed), "decisions": len(before), "changed": slower}


def means_of(storage: Path, name: str) -> dict[str, float]:
    """Seconds by test, as a session saved them."""
    files = list(storage.glob(f"*/*_{name}.json"))
    if len(files) != 1:
        return {}
    saved = json.loads(files[0].read_text(encoding="utf-8"))["benchmarks"]
    return {each["fullname"]: each["stats"]["mean"] for each in saved}


def sum_up(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One JSON of all that is there."""
    identical = kept(folder, "identical-*")
    records = [GateRecord.model_validate(each["record"]) for each in identical]
    summary: dict[str, Any] = {
        "series": json.loads((folder / "series.json").read_text(encoding="utf-8")),
        "identical": runs(identical) | verdicts(records, "fail"),
        "planted": {},
        "asv": runs(kept(folder, "asv-*")) | decisions(kept(folder, "asv-*")),
        "pytest_benchmark": runs(kept(folder, "pytest-*")) | decisions(kept(folder, "pytest-*")),
    }
    for slowdown in LEAST_FOUND:
        planted = kept(folder, f"planted-{100 * slowdown:g}-*")
        found = [GateRecord.model_validate(each["record"]) for each in planted]
        summary["planted"][f"{slowdown:g}"] = runs(planted) | verdicts(found, "fail")
    if records:
        design = records[0].parameters
        drawn = {
            signs: resample(records, design, trials=options.trials, seed=options.seed, signs=signs)
            for signs in ("random", "recorded")
        }
        summary["resampled"] = {signs: each.model_dump() for signs, each in drawn.items()}
        summary["missed"] = missed(summary, drawn["random"])
    else:
        summary["missed"] = ["no run on identical code is there"]
    return summary


def kept(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob(pattern + ".json"))
    ]


def runs(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Runs that ended with 1, and how long they took."""
    if not results:
        return {"runs": 0}
    alarms = sum(each["exit_code"] == 1 for each in results)
    return {
        "runs": len(results),
        "failed_runs": share(alarms, len(results)).model_dump(),
        "exit_codes": [each["exit_code"] for each in results],
        "median_s": median(each["elapsed_s"] for each in results),
        "load": [each["load"] for each in results],
    }


def decisions(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Single benchmarks that another tool called changed."""
    total = sum(each["decisions"] for each in results)
    changed = sum(len(each["changed"]) for each in results)
    return {"changed": share(changed, total).model_dump()} if total else {}


def verdicts(records: Sequence[GateRecord], wanted: str) -> dict[str, Any]:
    """Single benchmarks by verdict, and the launches of those that have it."""
    timed = [each for record in records for each in record.benchmarks if each.timed]
    if not timed:
        return {}
    counts: dict[str, int] = {}
    for each in timed:
        counts[each.verdict] = counts.get(each.verdict, 0) + 1
    hits = [len(each.samples) for each in timed if each.verdict == wanted]
    return {
        "verdicts": counts,
        "failed": share(counts.get(wanted, 0), len(timed)).model_dump(),
        "median_launches_to_fail": median(hits) if hits else None,
    }


def missed(summary: dict[str, Any], drawn: Resampled) -> list[str]:
    """Bars that are missed, each in a sentence."""
    found = []
    if any(code == 1 for code in summary["identical"]["exit_codes"]):
        found.append("a real run on identical code failed")
    for power in drawn.power:
        plant = f"+{100 * power.slowdown:g} %"
        if power.of == "suite" and power.slowdown == 0:
            if power.failed.share > MOST_FALSE_ALARMS:
                found.append(f"of runs on identical code {said(power.failed)} fail")
        elif power.of == "all" and power.slowdown in LEAST_FOUND:
            if power.failed.share < LEAST_FOUND[power.slowdown]:
                found.append(f"{plant} is found in {said(power.failed)}")
            if power.median_launches > MOST_LAUNCHES.get(power.slowdown, float("inf")):
                found.append(f"{plant} takes {power.median_launches:g} launches on the median")
    found += [
        f"{slowdown} planted: {result['failed_runs']['found']} of {result['runs']} runs fail"
        for slowdown, result in summary["planted"].items()
        if result["runs"] and result["failed_runs"]["found"] < result["runs"]
    ]
    return found


def laid_out(value: Any, indent: str = "") -> str:
    """JSON with a line for each pool, power and figure: what a diff can be read of."""
    inner = indent + " "
    if isinstance(value, dict) and any(isinstance(each, dict | list) for each in value.values()):
        lines = [f"{json.dumps(key)}: {laid_out(each, inner)}" for key, each in value.items()]
        return "{\n" + ",\n".join(inner + line for line in lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        lines = [json.dumps(each) for each in value]
        return "[\n" + ",\n".join(inner + line for line in lines) + f"\n{indent}]"
    return json.dumps(value)


def show(summary: dict[str, Any]) -> None:
    """Print the summary."""
    lines = {"gate, identical": summary["identical"]}
    lines |= {f"gate, +{100 * float(s):g} %": r for s, r in summary["planted"].items()}
    lines |= {"asv continuous": summary["asv"], "pytest-benchmark": summary["pytest_benchmark"]}
    for name, result in lines.items():
        if not result["runs"]:
            print(f"{name:<18} no run")
            continue
        text = f"{name:<18} {result['failed_runs']['found']} of {result['runs']} runs fail"
        rate = result.get("failed") or result.get("changed")
        if rate:
            text += f"; of benchmarks {said(Share(**rate))} of {rate['trials']}"
        print(f"{text}; {result['median_s']:.0f} s a run")
    for signs, drawn in summary.get("resampled", {}).items():
        for power in drawn["power"]:
            plant = f"drawn anew, {signs} signs, +{100 * power['slowdown']:g} %"
            rate = said(Share(**power["failed"]))
            if power["of"] == "suite":
                print(f"{plant}: a run fails in {rate}")
            elif power["of"] == "all":
                took = f"{power['median_launches']:g} launches on the median"
                print(f"{plant}: a benchmark fails in {rate}, {took}")
            elif power["failed"]["share"] < LEAST_FOUND.get(power["slowdown"], 0):
                print(f"  {power['benchmark']}: {rate}")
        noisy = [pool["benchmark"] for pool in drawn["pools"] if pool["quarantined"]]
        if noisy:
            print(f"  in quarantine, and counted as finding nothing: {', '.join(noisy)}")
    for each in summary["missed"]:
        print(f"missed: {each}")


def shell(
    command: Sequence[str], *, folder: Path = ROOT, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; on Ctrl-C it is told once, and gets the time to tidy up."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # the terminal's own Ctrl-C would be a second one
    ) as child:
        try:
            stdout, stderr = child.communicate()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            try:
                child.communicate(timeout=TIDY_UP_S)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, child.returncode, stdout, stderr)


def git(*arguments: str, folder: Path = ROOT) -> str:
    run = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RunFailed(f"git {' '.join(arguments)}: {run.stderr.strip()}")
    return run.stdout.strip()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (RunFailed, ValidationError) as error:
        print(error, file=sys.stderr)
        sys.exit(CANNOT_START)
    except KeyboardInterrupt:
        print("ended; what is done is kept, and the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
