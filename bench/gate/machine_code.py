"""Ahead-of-time figures of a side's kernels as counters, by `pagedbench compile` of its tree.

They are facts about the code and its compiler, the same in every run: where sources, interpreter
and so the compiler are the same on both sides, there is nothing to compile. The tree's own command
line is called, by the path of its files: what compiles a kernel is the contestant's code as much as
the kernel is, in its interpreter, and its options are what stays the same from release to release.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.gate.benchmark import Count
from bench.gate.contestant import Side
from bench.gate.temporary import temporary_folder
from bench.gate.turns import FIXED, OF_DEVICE, GateFailure

FIGURES: Final[Mapping[str, str]] = {
    "registers": "registers",
    "spill_bytes": "bytes",
    "spill_instructions": "instructions",
    "stack_bytes": "bytes",
    "shared_bytes": "bytes",
    "instructions": "instructions",
}
"""Fields of `kernels.compiled.figures.LaunchFigures`, with their units."""

TARGETS: Final = ("sm_90",)
"""Compiled for unless a configuration names others: half a minute a side."""

SOURCES: Final = ("kernels/**/*.py", "reference/**/*.py", "bench/compile/*.py", "bench/compile*.py")
"""That the figures of a tree depend on."""

RIGHT_OR_WORSE: Final = (0, 1)
"""Exit codes of `pagedbench compile` with which there are figures."""

START: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); sys.argv[1:] = sys.argv[2:]; "
    "from bench.cli import main; main()"
)


def could_differ(sides: Mapping[str, Side]) -> bool:
    """Whether the sides' kernels, or what compiles them, are not the same."""
    return len({(side.python, _digest(side.tree)) for side in sides.values()}) > 1


def _digest(tree: Path) -> str:
    found = hashlib.sha256()
    for file in sorted({file for pattern in SOURCES for file in tree.glob(pattern)}):
        found.update(f"{file.relative_to(tree)}\n".encode())
        found.update(file.read_bytes())
    return found.hexdigest()


def compiled_counters(
    side: Side, *, stopped: Callable[[], bool], targets: Sequence[str] = TARGETS
) -> dict[str, dict[str, Count]]:
    """Figures of every kernel on some targets, by `compiled/TARGET/VARIANT`.

    What does not compile has no figures, and one failure: from none to one is worse than any limit.
    """
    bench = side.tree / "bench"
    if stopped() or not ((bench / "compile").is_dir() or (bench / "compile.py").is_file()):
        return {}
    with temporary_folder() as folder:
        file = folder / "compiled.json"
        command = [side.python, "-P", "-c", START, str(side.tree), "compile", "--json", str(file)]
        command += [part for target in targets for part in ("--target", target)]
        # A file, not a pipe: nobody reads while it compiles, and a pipe that is full stops it.
        with (folder / "stderr").open("w+") as log:
            child = subprocess.Popen(
                command,
                env={**os.environ, **FIXED, **OF_DEVICE["cpu"], "TRITON_INTERPRET": "0"},
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            try:
                while child.poll() is None and not stopped():
                    time.sleep(0.1)
            finally:
                if child.poll() is None:
                    child.terminate()
                child.wait()
            if stopped():
                return {}
            log.seek(0)
            said = log.read()
        if child.returncode not in RIGHT_OR_WORSE or not file.is_file():
            raise GateFailure(
                f"{side.record.name}: pagedbench compile ended with {child.returncode}: "
                f"{said.strip()[-1000:]}"
            )
        record = json.loads(file.read_text())
    return {
        f"compiled/{result['target']}/{result['variant']}": dict(_counted(result["figures"]))
        for result in record["results"]
    }


def _counted(figures: Mapping[str, Any]) -> Iterator[tuple[str, Count]]:
    """Counters of one variant; of several launches each has its own, by kernel and number."""
    yield "failures", Count(int(bool(figures["failure"])), "failures to compile")
    for number, launched in enumerate(figures["launches"]):
        where = f"{launched['kernel']}#{number}" if number else launched["kernel"]
        for name, unit in FIGURES.items():
            if name in launched:
                yield f"{name}.{where}", Count(launched[name], unit)
        if launched.get("loop"):
            loop = launched["loop"]["instructions"]
            yield f"instructions.loop.{where}", Count(loop, "instructions")
