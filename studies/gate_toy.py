"""How often the gate passes what is unchanged, in a stranger's repository: real runs, then draws.

The repository is the one of tests/meta/test_gate_toy.py. Each real run is `pagedbench gate main
unchanged`; the launches of all are then drawn anew (studies/resample.py). A run that is done is a
file in --folder and is not done again.

Exit codes: 0 all pass, 1 one does not, 130 ended.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gate.record import Design, GateRecord
from helpers import toy_repository
from studies.resample import resample, said, share

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, then sum up; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".pagedbench" / "gate-toy")
    parser.add_argument("--head", default="unchanged", choices=sorted(toy_repository.CHANGES))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--benchmark", action="append", default=[], help="a pattern of the gate")
    parser.add_argument("--trials", type=int, default=4000, help="gates drawn anew")
    options = parser.parse_args(arguments)
    folder: Path = options.folder.resolve()
    repository = folder / "repository"
    if not repository.is_dir():
        toy_repository.make(folder)
    chosen = [part for pattern in options.benchmark for part in ("--benchmark", pattern)]
    records: list[GateRecord] = []
    for number in range(options.runs):
        file = folder / f"{options.head}-{number}.json"
        if not file.is_file():
            run_one(file, repository, options.head, chosen)
        record = GateRecord.model_validate_json(file.read_text(encoding="utf-8"))
        print(f"{file.name}: {record.verdict} in {record.elapsed_s:.0f} s: {record.reason}")
        records.append(record)
    passed = share(sum(each.exit_code == 0 for each in records), len(records))
    print(f"passed: {passed.found} of {passed.trials} ({passed.low:.3f} to {passed.high:.3f})")
    # Of code that differs in a comment: to draw from, as good as the same.
    same = [each.model_copy(update={"mode": "aa"}) for each in records]
    for power in resample(same, Design(), trials=options.trials, seed=0).power:
        what = f"{power.of} {power.benchmark or ''} {power.slowdown}"
        print(f"{what}: failed {said(power.failed)}, passed {said(power.passed)}")
    return 0 if passed.found == passed.trials else 1


def run_one(file: Path, repository: Path, head: str, chosen: Sequence[str]) -> None:
    """One run of the gate, its record to a file: in one step, so that what is there is whole."""
    half = file.with_suffix(".part")
    command = [sys.executable, "-m", "pagedbench", "gate", "main", head, "--json", str(half)]
    environment = {**os.environ, "PAGEDBENCH_GATE_ENVIRONMENTS": str(file.parent / "built")}
    subprocess.run(
        [*command, *chosen],
        cwd=repository,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    half.replace(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
