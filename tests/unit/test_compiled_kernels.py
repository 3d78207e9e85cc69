"""The kernels compile for real targets; the interpreter accepts much that the compiler refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "helpers" / "compile_kernels.py"


def compiled(architecture):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(architecture)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    return {row["kernel"]: row for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
def test_every_kernel_compiles_and_decode_does_not_spill(architecture, record_property):
    figures = compiled(architecture)
    assert len(figures) >= 15
    for name, row in figures.items():
        record_property(name, json.dumps(row))
        if name.startswith("decode"):
            assert row["spills"] == 0, row
    # Keys and values come in by 16-byte asynchronous copies, not element by element.
    assert figures["decode bf16 block 16"]["wide_async_copies"] > 0
    assert figures["decode bf16 block 128"]["wide_async_copies"] > 0
    # One table entry and one pointer for a tile: the fast path is there.
    gathered = figures["decode bf16 block 16"]["loop_instructions"]
    assert figures["decode bf16 block 128"]["loop_instructions"] < gathered
