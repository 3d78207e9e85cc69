"""Wrong arenas and wrong serving, each of which the checks beside them must reject.

A bug is one change to the text of a module, listed in arena_bugs.toml. The changed text is run as a
module of its own and held to `check_arena` or `check_serving` over drawn programs and streams; it
must fail there with the words that belong to it, not because it does not run.
"""

from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given

from helpers.mutants import Mutant, StaleMutant
from helpers.planted import bugs_beside, changed_module, until_found
from paged.accounting import IdentityBroken
from reference.allocator.arenas import ArenaName
from tests.property.test_contiguous_serving import Case, cases, check_serving
from tests.unit.reference.allocator.test_arenas import PROGRAMS, SLOTS, check_arena

# The rarest bug takes 330 to 760 from one seed to the next; what Hypothesis draws also depends on
# which modules are loaded.
MAX_EXAMPLES = 6000

ARENA = "reference.allocator.arenas"
SERVING = "bench.waste.contiguous"


def check_all_arenas(names: dict[str, Any], examples: int) -> None:
    @given(slots=SLOTS, program=PROGRAMS)
    @until_found(examples)
    def look(slots: int, program: list[int]) -> None:
        for name in get_args(ArenaName):
            check_arena(name, names["ARENAS"][name](slots), program, seed=len(program))

    look()


def check_all_cases(names: dict[str, Any], examples: int) -> None:
    @given(case=cases())
    @until_found(examples)
    def look(case: Case) -> None:
        check_serving(names["serve_contiguous"], case)

    look()


CHECKS: dict[str, Callable[[dict[str, Any], int], None]] = {
    ARENA: check_all_arenas,
    SERVING: check_all_cases,
}

BUGS = bugs_beside(__file__)


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_rejected(name: str) -> None:
    mutant, fields = BUGS[name]
    changed = changed_module(mutant.file, mutant)
    with pytest.raises((AssertionError, IdentityBroken), match=fields["finding"]):
        CHECKS[mutant.file](vars(changed), MAX_EXAMPLES)


@pytest.mark.parametrize("module", CHECKS)
def test_unchanged_text_passes(module: str) -> None:
    CHECKS[module](vars(changed_module(module, None)), 40)


def test_a_bug_whose_text_is_gone_says_so() -> None:
    with pytest.raises(StaleMutant, match="stands 0 times"):
        changed_module(ARENA, Mutant("gone", ARENA, (("no such text", "other"),)))
