"""Wrong allocators, each of which `pagedbench fuzz` has to find.

The allocators are those of `helpers/wrong_allocators`. To write the table of tests/meta/README.md
anew:

    PYTHONPATH=.:tests python -m tests.meta.test_allocator_bugs
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.commands.fuzz import DEFAULT_EXAMPLES
from bench.fuzz.campaign import Campaign, run_campaign
from bench.fuzz.record import Subject, Trace
from bench.search.shrink import SHRINK_LIMIT_S
from helpers import wrong_allocators
from helpers.swapping import swapping_allocator
from helpers.wrong_allocators import Bug
from paged.subject import paged_allocator
from reference.allocator.contract import capabilities_of_factory
from reference.allocator.machine import CHECKS, run_program

BUGS = {name: bug for name, bug in wrong_allocators.BUGS.items() if bug.hunted}

MAX_STEPS = 10
"""Steps that a finding is to be shrunk to."""

MADE_SMALL = {
    "missing_copy_on_write",
    "second_free_is_carried_out",
    "full_hit_drops_two_blocks",
    "preemption_forgets_the_tail",
    "reset_forgets_only_the_idle_blocks",
}
"""Bugs whose findings are shrunk, each found by another check; the others stay as drawn."""

SEED = 0
"""The same programs in every run: whether a bug is found is not left to chance."""

OTHER_SEEDS = {
    "sequences_publish_on_after_a_reset": 4,
    "negative_room_is_taken_for_all": 3,
    "only_the_first_copy_of_a_step": 2,
}
"""Bugs that show in one program of hundreds: seeds with which the first hundred have it."""

FEW = 40

SOONER = {
    "appended_blocks_are_never_found": 2,
    "copy_outlives_its_destination": 4,
    "count_ends_at_seven": 1,
    "count_of_four_bits": 1,
    "digest_of_twelve_bits": 5,
    "eviction_forgets_the_equal_block": 3,
    "hash_without_the_last_token": 1,
    "hits_end_at_fifteen_blocks": 5,
    "idle_hits_are_promised_twice": 1,
    "promise_forgets_the_salt": 1,
    "salt_counts_only_as_present": 1,
    "salt_of_its_length": 1,
    "salt_of_one_letter": 1,
    "salt_of_six_letters": 1,
    "salt_of_the_sum_of_its_letters": 5,
    "salt_only_in_the_first_lookup": 23,
    "salt_without_its_case": 5,
    "salt_without_its_space": 5,
    "source_is_given_away_before_its_copy": 2,
    "tokens_of_eight_bits": 1,
    "tokens_of_sixteen_bits": 1,
}
"""Bugs that take the command's defaults a second or more: seeds with which `FEW` programs do."""

README = Path(__file__).with_name("README.md")
BEGIN = "<!-- table of allocators -->\n"
END = "<!-- end of the table of allocators -->\n"

HEADING = "| bug | examples | as drawn | steps | check |\n| --- | --- | --- | --- | --- |"
TABLE = "| bug | found by one of | seen in |\n| --- | --- | --- |"


def hunt(bug: Bug) -> Trace | None:
    """Fuzz a wrong allocator with the command's defaults, or fewer programs that are enough."""
    campaign = Campaign(
        allocator=Subject(name=bug.name),
        factory=bug.factory,
        capabilities=bug.capabilities,
        examples=FEW if bug.name in SOONER else DEFAULT_EXAMPLES,
        seed={**OTHER_SEEDS, **SOONER}.get(bug.name, SEED),
        max_findings=1,
        shrink_limit_s=SHRINK_LIMIT_S if bug.name in MADE_SMALL else 0.0,
    )
    found = run_campaign(campaign).found
    return found[0] if found else None


def row(bug: Bug, found: Trace) -> str:
    finding = found.finding
    steps = len(finding.program.steps)
    return f"| `{bug.name}` | {found.examples} | {found.first_steps} | {steps} | {finding.check} |"


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_found(name: str) -> None:
    bug = BUGS[name]
    with bug.planted():
        found = hunt(bug)
        assert found is not None, f"not found in {DEFAULT_EXAMPLES} examples"
        program = found.finding.program
        again = run_program(bug.factory, program, capabilities=bug.capabilities)
    print(f"{HEADING}\n{row(bug, found)}")  # noqa: T201 - the figures are what it is for
    assert found.check in bug.by, f"found by another check than {sorted(bug.by)}: {found.finding}"
    assert found.examples <= DEFAULT_EXAMPLES
    if name in MADE_SMALL:
        assert len(program.steps) <= MAX_STEPS < found.first_steps, program
    assert found.repeats
    assert again is not None
    assert again.check == found.check
    # It is the bug that the program shows, and not the harness.
    right = capabilities_of_factory(bug.factory)
    assert run_program(bug.factory, program, capabilities=right) is None


def test_there_are_enough_of_them_and_most_were_really_shipped() -> None:
    assert len(BUGS) >= 60
    assert sum(bool(bug.seen) for bug in BUGS.values()) >= 30


@pytest.mark.parametrize("check", sorted(CHECKS.keys() - {"drain", "answer", "died"}))
def test_check_finds_a_bug_that_no_other_finds(check: str) -> None:
    # What is lost at the end was lost before; and whether it raises or dies is up to the allocator.
    assert [bug.name for bug in BUGS.values() if bug.by == {check}]


def test_the_right_allocators_pass_where_the_wrong_ones_are_hunted() -> None:
    for factory in (paged_allocator, swapping_allocator):
        campaign = Campaign(
            allocator=Subject(name="right"),
            factory=factory,
            capabilities=capabilities_of_factory(factory),
            examples=100,
            seed=SEED,
        )
        tally = run_campaign(campaign)
        assert tally.found == []
        assert tally.examples == 100


def listed() -> str:
    """The table of README.md."""
    rows = (f"| `{name}` | {' '.join(sorted(bug.by))} | {bug.seen} |" for name, bug in BUGS.items())
    return "\n".join([TABLE, *rows])


def test_readme_lists_the_bugs() -> None:
    table = README.read_text().partition(BEGIN)[2].partition(END)[0]
    assert table.strip() == listed(), "write the table anew: see above"


def main() -> None:
    """Write the table into the README beside this file."""
    before, mark, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert mark, "README.md has lost the mark"
    assert end, "README.md has lost the mark"
    README.write_text(f"{before}{mark}\n{listed()}\n\n{end}{after}")


if __name__ == "__main__":
    main()
