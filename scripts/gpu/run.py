"""Everything that needs a GPU, step by step: `make gpu`.

    python -m scripts.gpu.run [--minutes 9.5] [--wheels DIR] [--only STEP] [--list]

It wants a CUDA torch with its Triton, and the packages of requirements/runtime.txt with pytest and
hypothesis; what a machine without a network lacks of them is installed from `--wheels DIR` into a
folder of its own. No step takes longer than ten minutes. End it at any time: what is done is kept
in the folder, in one record, and the next run goes on from there; `--minutes 9.5` begins no step
that may not fit. At the end docs/performance.md is written anew from the record.

Exit codes: 0 every step ended, and nothing is wrong; 1 one found something wrong; 3 steps are left;
4 a step did not work, and all end where it is the first; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from scripts.gpu.steps import RECORD, STEPS, Step, typed

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / ".pagedbench" / "gpu"

GRACE_S: Final = 30.0
"""From SIGTERM to SIGKILL: our commands keep what they have, and end."""

NO_MACHINE: Final = "No other step begins before this one works; PYTHON names another interpreter."

LAST_LINES: Final = 3
"""Of a step's output, in the record."""


def main(arguments: Sequence[str], steps: Sequence[Step] = STEPS) -> int:
    """Take the steps that are left, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the record")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that the machine lacks")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for all of them")
    parser.add_argument("--only", action="append", default=[], help="a step; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the steps and end")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args(arguments)
    if not options.page.is_file():
        parser.error(f"--page {options.page}: no such file; leave it for the page of the docs")
    file = options.folder / "record.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"steps": {}}
    wanted = [step for step in steps if not options.only or step.name in options.only]
    left = [step for step in wanted if not _is_done(record["steps"].get(step.name))]
    if options.list:
        for step in wanted:
            print(f"{step.name}{'' if step in left else ' (done)'}: {typed(step.command)}")
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    environment = _environment(options.folder, options.wheels)
    until = time.monotonic() + 60 * options.minutes
    for number, step in enumerate(left, 1):
        if time.monotonic() + step.limit_s > until:
            continue
        print(f"{number} of {len(left)}, {step.name}: {typed(step.command)}", flush=True)
        taken = take(step, options.folder, environment)
        record["steps"][step.name] = taken
        _keep(file, record)
        print(
            f"  {taken['ended']}, exit code {taken['code']}, {taken['seconds']:.0f} s", flush=True
        )
        if taken["ended"] == "interrupted":
            return 130
        if step is steps[0] and not _is_done(taken):
            print("".join(f"  {line}\n" for line in taken["said"]) + NO_MACHINE)
            return 4
    from scripts.gpu.page import write_page

    write_page(options.page, record)
    return verdict(record, wanted)


def verdict(record: dict[str, Any], wanted: Sequence[Step]) -> int:
    """The exit code of a record."""
    taken = [record["steps"].get(step.name) for step in wanted]
    if any(each and not _is_done(each) and each["ended"] == "by itself" for each in taken):
        return 4
    if any(each and each["code"] == 1 for each in taken):
        return 1
    return 0 if all(map(_is_done, taken)) else 3


def _is_done(taken: dict[str, Any] | None) -> bool:
    """Whether a step ended by itself with a verdict, or with what it needs absent."""
    if taken is None or taken["ended"] != "by itself":
        return False
    if taken["writes"] and taken["record"] is None:
        return bool(taken["absent"]) and taken["code"] == 2
    return taken["code"] in ({0, 1, 2, 3, 5} if taken["absent"] else {0, 1, 3, 5})


def take(step: Step, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a step in a process group of its own, until it ends, its time does, or we are ended."""
    own = folder / f"{step.name.replace(' ', '-')}.json"
    log = own.with_suffix(".log")
    own.unlink(missing_ok=True)
    began, started = time.monotonic(), datetime.now(UTC)
    words = [sys.executable, *(word.replace(RECORD, str(own)) for word in step.command)]
    ended = "by itself"
    with log.open("w", encoding="utf-8") as out, _ended_by_signals():
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )
        try:
            process.wait(step.limit_s)
        except subprocess.TimeoutExpired:
            ended = "its time was over"
        except KeyboardInterrupt:
            ended = "interrupted"
        _end(process)
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {
        "what": step.what,
        "command": typed(step.command),
        "absent": step.absent,
        "writes": any(RECORD in word for word in step.command),
        "code": process.returncode,
        "ended": ended,
        "started_at": started.isoformat(timespec="seconds"),
        "seconds": time.monotonic() - began,
        "said": lines[-LAST_LINES:],
        "record": json.loads(own.read_text(encoding="utf-8")) if own.is_file() else None,
    }


class _ended_by_signals:  # noqa: N801 - used like a function
    """SIGTERM is Ctrl-C from here on, and again what it was at the end."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a step: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def _environment(folder: Path, wheels: Path | None) -> dict[str, str]:
    """Variables of all steps; what the wheels hold is installed before."""
    places = [str(ROOT), str(ROOT / "tests")]
    if wheels is not None:
        site = folder / "site"
        found = sorted(map(str, wheels.glob("*.whl")))
        if not found:
            raise SystemExit(f"--wheels {wheels}: no wheel is in it; pip download puts them there")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--upgrade", "--target", str(site), *found], check=True)
        places.append(str(site))
        sys.path.append(str(site))
    told = {"PAGEDBENCH_TEST_GPU": "1", "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    return {**os.environ, **told, "PYTHONPATH": os.pathsep.join(places)}


def _keep(file: Path, record: dict[str, Any]) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
