"""A row of each planted kernel, and the page that they make."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections import Counter
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Final

import torch
from joblib import Parallel, delayed
from rich.progress import track

from helpers import profiles
from helpers.mutants import Mutant, hunt, plant
from helpers.places import ROOT
from studies.detectors.compiled import TARGET, Compiler, compiler
from studies.detectors.judges import DETECTORS, INTERPRETED, detector
from tests.meta.test_kernel_bugs import BUGS

REPORT: Final = ROOT / "tests" / "meta" / "detectors.md"

EXAMPLES: Final = 12
"""Examples that a detector is given, drawn as the bug's harness draws them."""

SLOW_BUGS: Final = {
    mutant.name: mutant
    for mutant in (
        Mutant("no_pipeline", "launch", (("num_stages: int = 3", "num_stages: int = 1"),)),
        Mutant("one_warp", "launch", (("num_warps: int = 4", "num_warps: int = 1"),)),
        Mutant(
            "tile_that_does_not_fit",
            "launch",
            (("block_n = 32 if head_dim > 128 or block_m > 64 else 64", "block_n = 512"),),
        ),
        Mutant(
            "keys_multiplied_in_float32",
            "sweep",
            (
                (
                    "tl.dot(query, keys.to(query.dtype), input",
                    "tl.dot(query.to(tl.float32), keys.to(tl.float32), input",
                ),
            ),
        ),
    )
}
"""Right in every number and every access, and slow: nothing but the code shows it."""

Row = dict[str, str]


def row_of(name: str, folder: Path) -> Row:
    """What each detector says of a bug: the number of the first example, `-`, or nothing to see."""
    torch.set_num_threads(1)
    profiles.register_profiles()
    if name in SLOW_BUGS:
        mutant, cells = SLOW_BUGS[name], dict.fromkeys(INTERPRETED, "-")
        by = BUGS["last_token_lost"].by  # plain decode: every detector has something to look at
        seen = {each: detector(each, by) for each in INTERPRETED}
    else:
        mutant, cells = BUGS[name].mutant, dict.fromkeys(INTERPRETED, "")
        seen = {each: detector(each, BUGS[name].by) for each in INTERPRETED}
    wrong = plant(mutant, folder)
    for each, harness in seen.items():
        if harness is not None:
            caught = hunt(harness, wrong, max_examples=EXAMPLES)
            cells[each] = "-" if caught is None else str(caught.tried)
    cells["compiled"] = "worse" if _compiler().worse(mutant) else "-"
    return cells


@cache
def _compiler() -> Compiler:
    """One for each process of the run: the right kernels are compiled once there."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(compiler(Path(stack.enter_context(tempfile.TemporaryDirectory()))))


def found_by(row: Row) -> list[str]:
    """The detectors that found something."""
    return [name for name, cell in row.items() if cell not in {"", "-"}]


def report(rows: dict[str, Row]) -> str:
    """The report as markdown."""
    found = {name: found_by(row) for name, row in rows.items()}
    alone = Counter(names[0] for names in found.values() if len(names) == 1)
    total = Counter(each for names in found.values() for each in names)
    lines = [
        "# Which detector finds which planted kernel",
        "",
        f"{len(rows)} wrong kernels, each given to each detector apart from the others: "
        f"`studies/detectors/judges.py` says what",
        f"each one sees. A cell is the number of the first example, of {EXAMPLES}, on which it "
        f"found something; `-` if it found nothing, empty",
        f"if it has nothing to look at. `compiled` compares the code for {TARGET} with that of the "
        f"right kernels. Written by",
        "",
        "    python -m studies.detectors",
        "",
        "| detector | finds | alone |",
        "| --- | --- | --- |",
        *(f"| {each} | {total[each]} | {alone[each]} |" for each in DETECTORS),
        "",
        f"| bug | {' | '.join(DETECTORS)} |",
        "| --- " * (len(DETECTORS) + 1) + "|",
        *(
            f"| `{name}` | {' | '.join(row[each] for each in DETECTORS)} |"
            for name, row in rows.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run every detector on every bug, and write the report."""
    names = [*BUGS, *SLOW_BUGS]
    lanes = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        run = Parallel(n_jobs=lanes, return_as="generator", batch_size=1)
        results = run(delayed(row_of)(name, Path(folder)) for name in names)
        rows = dict(zip(names, track(results, total=len(names)), strict=True))
    missed = [name for name, row in rows.items() if not found_by(row)]
    REPORT.write_text(report(rows))
    if missed:
        raise SystemExit(f"found by no detector: {', '.join(missed)}")
