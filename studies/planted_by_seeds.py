r"""Which planted kernel bugs `pagedbench check` finds as it is, seed by seed.

Every bug of tests/meta/kernel_bugs.toml that attention shows is planted, and gets the problems that
a seed draws, with the checks that they take in turns, until one fails. Nothing is narrowed, no tile
is forced and no process is started: a bug has a number, that of the problem that showed it.

    TRITON_INTERPRET=1 TRITON_DEFAULT_FP_FUSION=1 PYTHONPATH=.:tests \
        python -m studies.planted_by_seeds [--seeds 5] [--problems 600] [BUG ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from bench.check.run import stream_lengths
from bench.check.search import SearchPlan, Turns, drawn
from bench.check.watching import watcher
from bench.check.worker import CHECK_BY_NAME
from bench.workloads.builtin import builtin_stream
from helpers.mutants import plant
from reference.attention.checks import run_check
from reference.attention.contract import AttentionKernel, Capabilities, capabilities_of
from reference.attention.problem import AttentionProblem
from tests.meta.test_kernel_bugs import BUGS


@cache
def asked_of(able: Capabilities, seed: int, count: int) -> list[tuple[AttentionProblem, list[str]]]:
    """The problems of a seed, and the checks of each."""
    plan = SearchPlan(
        kernel="planted",
        capabilities=able,
        lengths=stream_lengths(builtin_stream("azure-conv")),
        device="cpu",
        problems=count,
        max_len=1024,
        lanes=1,
        seed=seed,
    )
    turns = Turns()
    return [(problem, turns.checks_for(problem)) for problem in drawn(plan, seed)]


def first_shown(kernel: AttentionKernel, seed: int, count: int) -> int | None:
    """The number of the first problem that shows what is wrong; None if none does."""
    watch = watcher()
    for number, (problem, checks) in enumerate(asked_of(capabilities_of(kernel), seed, count), 1):
        for check in checks:
            if run_check(CHECK_BY_NAME[check], kernel, problem, watch=watch).wrong:
                return number
    return None


def rows(names: list[str], seeds: int, count: int) -> Iterator[tuple[str, list[int | None]]]:
    """Each bug, and where each seed shows it."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            kernel = plant(BUGS[name].mutant, Path(folder)).attention(margins=False)
            yield name, [first_shown(kernel, seed, count) for seed in range(seeds)]


def main() -> None:
    """Print a line for each bug as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bugs", nargs="*", metavar="BUG", help="all, if none is named")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--problems", type=int, default=600)
    asked = parser.parse_args()
    names = asked.bugs or [name for name, bug in BUGS.items() if bug.by.operation == "attention"]
    began, found = time.process_time(), 0
    for name, shown in rows(names, asked.seeds, asked.problems):
        by = sum(number is not None for number in shown)
        found += by >= 0.8 * asked.seeds
        print(f"{name:60} {by} of {asked.seeds}", *(n or "-" for n in shown), flush=True)
    spent = time.process_time() - began
    sys.stdout.write(f"{found} of {len(names)} by 4 of 5 seeds, {spent:,.0f} s of processor time\n")


if __name__ == "__main__":
    main()
