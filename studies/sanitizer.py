r"""Planted memory bugs: what our memory checker says of each, and what compute-sanitizer says.

    TRITON_DEFAULT_FP_FUSION=1 PYTHONPATH=.:tests python -m studies.sanitizer --json sanitizer.json

Each bug of tests/meta/kernel_bugs.toml that the memory checker has to find is hunted with the
kernels interpreted, on the CPU. The problem that shows it is then launched on the GPU, once under
each tool, with tensors of exactly their size, each an allocation of its own. Last come the kernels
as they are, over problems of every kind of launch: no tool may say anything.

compute-sanitizer is NVIDIA's, from its toolkit or the package nvidia-cuda-sanitizer-api. With
`--tool none` the launches run without it, interpreted where there is no GPU: a rehearsal.

Exit codes: 0 our checker finds whatever a tool finds, and the right kernels are clean; 1 not so;
4 no compute-sanitizer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

TOOLS: Final = ("memcheck", "racecheck", "initcheck")

SAID: Final = 86
"""Exit code of compute-sanitizer where it has something to say; of nothing that we run."""

RIGHT: Final = (
    "(q1 k1500) (q1 k257) (q1 k1) h2 g4 d128 b16 bf16",
    "(q1 k900) (q1 k40) h2 g4 d80 b1 fp16",
    "(q1 k700) (q1 k64) h1 g8 d64 b64 bf16 kv=e5m2",
    "(q60 k700) (q1 k130) (q7 k7) h2 g4 d128 b16 bf16",
)
"""Decode with splits, sizes that fill no tile, float8, and prefill beside decode."""

LIMIT_S: Final = 240


def main(arguments: Sequence[str]) -> int:
    """Hunt, launch under each tool, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--tool", action="append", choices=(*TOOLS, "none"), default=[])
    parser.add_argument("--bug", action="append", default=[], help="one of kernel_bugs.toml")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--hunt", help=argparse.SUPPRESS)
    parser.add_argument("--launch", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.hunt:
        print(json.dumps(hunted(options.hunt)))
        return 0
    if options.launch:
        launch(*options.launch)
        return 0
    tools = options.tool or list(TOOLS)
    program = None if tools == ["none"] else compute_sanitizer()
    if program is None and tools != ["none"]:
        print("no compute-sanitizer: install nvidia-cuda-sanitizer-api, or CUDA's toolkit")
        return 4
    rows = list(compared(options.bug or memory_bugs(), tools, program))
    rows += [
        {"bug": "", "problem": spec, "ours": "", **said("", spec, tools, program)} for spec in RIGHT
    ]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row['bug'] or 'right'}: {row['problem']}")
        for name in ("ours", *tools):
            print(f"  {name}: {row[name] or 'nothing'}")
    wrong = [row for row in rows if any(row[tool] for tool in tools) and not row["ours"]]
    return 1 if wrong else 0


def compared(bugs: Sequence[str], tools: Sequence[str], program: str | None) -> Iterator[Any]:
    """What everybody says of each bug."""
    for name in bugs:
        found = json.loads(child(["--hunt", name], interpreted=True).stdout.splitlines()[-1])
        yield {"bug": name, **found, **said(name, found["problem"], tools, program)}


def said(bug: str, problem: str, tools: Sequence[str], program: str | None) -> dict[str, str]:
    """The first line of each tool's findings on a launch; empty where there are none."""
    answers = {}
    for tool in tools:
        front = []
        if program is not None and tool != "none":
            front = [program, f"--tool={tool}", f"--error-exitcode={SAID}", "--print-limit=4"]
        run = child(["--launch", bug, problem], front=front, interpreted=tool == "none")
        lines = [line.strip("= ") for line in run.stdout.splitlines() if line.startswith("=====")]
        first = next((line for line in lines if line and "COMPUTE-SANITIZER" not in line), "")
        died = "" if run.returncode in {0, SAID} else f"ended with {run.returncode}: {run.stderr}"
        answers[tool] = first if run.returncode == SAID else died.strip()
    return answers


def child(
    arguments: Sequence[str], *, front: Sequence[str] = (), interpreted: bool
) -> subprocess.CompletedProcess[str]:
    """Run the same program in a process that reads the variables of torch and Triton."""
    told = {"TRITON_INTERPRET": str(int(interpreted)), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [*front, sys.executable, "-m", "studies.sanitizer", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **told},
        timeout=LIMIT_S,
    )


def memory_bugs() -> list[str]:
    """Those that the memory checker has to find."""
    from tests.meta.test_kernel_bugs import BUGS

    return [name for name, bug in BUGS.items() if bug.by.says.startswith("memory")]


def hunted(name: str) -> dict[str, str]:
    """The problem on which our checker finds a bug, and what it says."""
    from helpers.mutants import hunt, plant
    from tests.meta.test_kernel_bugs import BUGS

    bug = BUGS[name]
    with tempfile.TemporaryDirectory() as folder:
        caught = hunt(bug.by, plant(bug.mutant, Path(folder)))
    if caught is None:
        raise SystemExit(f"{name}: not found by {bug.by.says}")
    return {"problem": str(caught.example), "ours": caught.finding}


def launch(name: str, spec: str) -> None:
    """One call of planted kernels, or of the right ones, on tensors of exactly their size."""
    import torch

    from helpers.mutants import plant
    from reference.attention.layout import usual
    from reference.attention.problem import AttentionProblem
    from tests.meta.test_kernel_bugs import BUGS

    bug = BUGS.get(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        planted = plant(bug.mutant if bug else None, Path(folder))
        kernel = planted.attention(
            num_splits=bug.by.splits if bug else None,
            tiles=bug.by.tiles if bug else None,
            margins=False,
        )
        kernel(usual(AttentionProblem.parse(spec), device=device, seed=0))
        if device == "cuda":
            torch.cuda.synchronize()


def compute_sanitizer() -> str | None:
    """The program: of the toolkit, or of NVIDIA's package."""
    places = [Path(folder) for folder in (*site.getsitepackages(), *sys.path)]
    packaged = (
        found for place in places for found in place.glob("nvidia/cu*/bin/compute-sanitizer")
    )
    return shutil.which("compute-sanitizer") or next((str(each) for each in packaged), None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
