"""Ahead-of-time figures of a side's kernels as counters, by `pagedbench compile` of its tree."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bench.gate.contestant import Side
from bench.gate.counters import Counted
from bench.gate.turns import FIXED, GateFailure

FIGURES: Final[Mapping[str, str]] = {
    "registers": "registers",
    "spill_bytes": "bytes",
    "spill_instructions": "instructions",
    "stack_bytes": "bytes",
    "shared_bytes": "bytes",
    "instructions": "instructions",
}
"""Fields of `kernels.compiled.figures.LaunchFigures`, with their units."""

RIGHT_OR_WORSE: Final = (0, 1)
"""Exit codes of `pagedbench compile` with which there are figures."""

START: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); sys.argv[1:] = sys.argv[2:]; "
    "from bench.cli import main; main()"
)


def compiled_counters(side: Side, *, stop: threading.Event) -> dict[str, dict[str, Counted]]:
    """Figures of every kernel on every target, by `compiled/TARGET/VARIANT`.

    A tree that has no `pagedbench compile` has none of these counters.

    Raises
    ------
    GateFailure
        Compiling failed, which is no finding about a kernel.
    """
    if not (side.tree / "bench" / "compile.py").is_file():
        return {}
    with tempfile.TemporaryDirectory(prefix="pagedbench-gate-") as folder:
        file = Path(folder) / "compiled.json"
        command = [side.python, "-P", "-c", START, str(side.tree), "compile", "--json", str(file)]
        child = subprocess.Popen(
            command,
            env={**os.environ, **FIXED, "TRITON_INTERPRET": "0"},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while child.poll() is None and not stop.is_set():
                time.sleep(0.1)
        finally:
            if child.poll() is None:
                child.terminate()
            _, said = child.communicate()
        if stop.is_set():
            return {}
        if child.returncode not in RIGHT_OR_WORSE or not file.is_file():
            raise GateFailure(
                f"{side.record.name}: pagedbench compile ended with {child.returncode}: "
                f"{said.strip()[-1000:]}"
            )
        record = json.loads(file.read_text())
    return {
        f"compiled/{result['target']}/{result['variant']}": dict(_counted(result["figures"]))
        for result in record["results"]
        if not result["figures"]["failure"]
    }


def _counted(figures: Mapping[str, Any]) -> Iterator[tuple[str, Counted]]:
    """Counters of one variant; of several launches each has its own, by kernel and number."""
    for number, launched in enumerate(figures["launches"]):
        where = f"{launched['kernel']}#{number}" if number else launched["kernel"]
        for name, unit in FIGURES.items():
            if name in launched:
                yield f"{name}.{where}", Counted(launched[name], unit)
        if launched.get("loop"):
            loop = launched["loop"]["instructions"]
            yield f"instructions.loop.{where}", Counted(loop, "instructions")
