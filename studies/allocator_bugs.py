"""How many programs `pagedbench fuzz` takes by default to find each wrong allocator, seed by seed.

    PYTHONPATH=.:tests python -m studies.allocator_bugs [--seeds 5] [--programs 2000] [BUG ...]

The allocators are those of tests/helpers/wrong_allocators, the settings the command's own but for
the seed and the number of programs; what is found is not shrunk. A line for each bug: the program
that found it under each seed, `-` where none did. tests/meta/test_allocator_bugs.py is the sample
of it that every run of the tests has.

Exit codes: 0 every bug is found by every seed, 1 one is not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.commands.fuzz import DEFAULT_EXAMPLES
from bench.fuzz.campaign import Campaign, run_campaign
from bench.fuzz.record import Subject
from helpers.wrong_allocators import BUGS, Bug


def found_by(bug: Bug, *, seed: int, programs: int) -> int | None:
    """The number of the program that finds a bug; None if none does."""
    campaign = Campaign(
        allocator=Subject(name=bug.name),
        factory=bug.factory,
        capabilities=bug.capabilities,
        examples=programs,
        seed=seed,
        max_findings=1,
        shrink_limit_s=0.0,
    )
    with bug.planted():
        found = run_campaign(campaign).found
    return found[0].examples if found else None


def main(arguments: Sequence[str]) -> int:
    """Print a line for each bug, and how many were found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("bugs", nargs="*", metavar="BUG", help="of the zoo; default: all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--programs", type=int, default=DEFAULT_EXAMPLES)
    options = parser.parse_args(arguments)
    hunted = [name for name, bug in BUGS.items() if bug.hunted]
    missed = 0
    for name in options.bugs or hunted:
        numbers = [
            found_by(BUGS[name], seed=seed, programs=options.programs)
            for seed in range(options.seeds)
        ]
        missed += None in numbers
        print(name, *("-" if number is None else number for number in numbers), flush=True)
    print(f"{len(options.bugs or hunted) - missed} found by all {options.seeds} seeds")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
