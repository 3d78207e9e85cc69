r"""Which planted kernel bugs `pagedbench check` finds as it is, seed by seed.

Every bug of tests/meta/kernel_bugs.toml that attention shows is planted, and gets the problems that
a seed draws, with the checks that they take in turns, until one fails. Nothing is narrowed and no
tile is forced: a bug has a number, that of the problem that showed it. A problem that ends the
process shows it, too. What `paged_attention` does not show, since its launch never comes there, is
looked for in `batch_invariant_attention`, a line of its own.

    TRITON_INTERPRET=1 TRITON_DEFAULT_FP_FUSION=1 PYTHONPATH=.:tests \
        python -m studies.planted_by_seeds [--seeds 5] [--problems 600] [BUG ...]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from bench.check.children import CHECK_BY_NAME
from bench.check.run import stream_lengths
from bench.check.search import SearchPlan, Turns, drawn
from bench.check.watching import watcher
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
    turns = Turns(able)
    return [(problem, turns.checks_for(problem)) for problem in drawn(plan, seed)]


def first_shown(
    kernel: AttentionKernel, seed: int, count: int, *, at: Synchronized[int] | None = None
) -> int | None:
    """The number of the first problem that shows what is wrong; None if none does.

    The number of each problem that is tried is put down `at`.
    """
    watch = watcher()
    for number, (problem, checks) in enumerate(asked_of(capabilities_of(kernel), seed, count), 1):
        if at is not None:
            at.value = number
        for check in checks:
            if run_check(CHECK_BY_NAME[check], kernel, problem, watch=watch).wrong:
                return number
    return None


def first_shown_apart(kernel: AttentionKernel, seed: int, count: int) -> int | None:
    """As `first_shown`, of a kernel that may end its process: then it is the problem it was at."""
    asked_of(capabilities_of(kernel), seed, count)  # for all children
    at = multiprocessing.Value("i", 0)
    shown = multiprocessing.Value("i", 0)

    def look() -> None:
        shown.value = first_shown(kernel, seed, count, at=at) or 0

    child = multiprocessing.get_context("fork").Process(target=look)
    child.start()
    child.join()
    return (shown.value if child.exitcode == 0 else at.value) or None


def rows(names: list[str], seeds: int, count: int) -> Iterator[tuple[str, list[int | None]]]:
    """Each bug, and where each seed shows it."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            planted = plant(BUGS[name].mutant, Path(folder))
            for invariant in (False, True):
                kernel = planted.attention(margins=False, invariant=invariant)
                shown = [first_shown_apart(kernel, seed, count) for seed in range(seeds)]
                yield name + invariant * " (batch-invariant)", shown
                if found(shown):
                    break


def found(shown: list[int | None]) -> bool:
    """Whether four of five seeds show a bug."""
    return sum(number is not None for number in shown) >= 0.8 * len(shown)


def main() -> None:
    """Print a line for each bug as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bugs", nargs="*", metavar="BUG", help="all, if none is named")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--problems", type=int, default=600)
    asked = parser.parse_args()
    names = asked.bugs or [name for name, bug in BUGS.items() if bug.by.operation == "attention"]
    enough = 0
    for name, shown in rows(names, asked.seeds, asked.problems):
        by = sum(number is not None for number in shown)
        enough += found(shown)
        print(f"{name:60} {by} of {asked.seeds}", *(n or "-" for n in shown), flush=True)
    spent = sum(os.times()[:4])  # children's, too
    sys.stdout.write(
        f"{enough} of {len(names)} by 4 of 5 seeds, {spent:,.0f} s of processor time\n"
    )


if __name__ == "__main__":
    main()
