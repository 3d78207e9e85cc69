"""Wrong arenas and wrong serving, each of which the checks beside them must reject.

A bug is one change to the text of a module. The changed text is run as a module of its own and held
to `check_arena` or `check_serving` over drawn programs and streams; it must fail there with the
words that belong to it, not because it does not run.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from hypothesis import Phase, given, settings

from helpers.mutants import Mutant, StaleMutant, mutate
from paged.accounting import IdentityBroken
from reference.allocator.arenas import ArenaName
from tests.property.test_contiguous_serving import Case, cases, check_serving
from tests.unit.reference.allocator.test_arenas import PROGRAMS, SLOTS, check_arena

# The rarest bug takes 330 to 760 from one seed to the next; what Hypothesis draws also depends on
# which modules are loaded.
MAX_EXAMPLES = 6000

ARENA = "reference.allocator.arenas"
SERVING = "bench.waste.contiguous"


@dataclass(frozen=True)
class Bug:
    name: str
    module: str
    old: str
    new: str
    finding: str


def changed_module(module: str, mutant: Mutant | None) -> dict[str, Any]:
    """Run a module's text, with a change, and return its names."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    if mutant is not None:
        source = mutate(mutant, source)
    changed = ModuleType(f"changed_{module.replace('.', '_')}")
    # Dataclasses look their module up by name.
    sys.modules[changed.__name__] = changed
    try:
        exec(compile(source, spec.origin, "exec"), changed.__dict__)
    finally:
        del sys.modules[changed.__name__]
    return changed.__dict__


def fixed(examples: int) -> settings:
    """The same examples in every run and every profile; a finding is not shrunk."""
    return settings(
        settings.get_profile("default"),
        max_examples=examples,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
    )


def check_all_arenas(names: dict[str, Any], examples: int) -> None:
    @given(slots=SLOTS, program=PROGRAMS)
    @fixed(examples)
    def look(slots: int, program: list[int]) -> None:
        for name in get_args(ArenaName):
            check_arena(name, names["ARENAS"][name](slots), program, seed=len(program))

    look()


def check_all_cases(names: dict[str, Any], examples: int) -> None:
    @given(case=cases())
    @fixed(examples)
    def look(case: Case) -> None:
        check_serving(names["serve_contiguous"], case)

    look()


CHECKS: dict[str, Callable[[dict[str, Any], int], None]] = {
    ARENA: check_all_arenas,
    SERVING: check_all_cases,
}

BUGS: list[Bug] = []


def bug(name: str, module: str, change: tuple[str, str], finding: str) -> None:
    BUGS.append(Bug(name, module, *change, finding))


# Arenas

bug(
    "hole_below_is_not_merged",
    ARENA,
    ("if index and addresses[index - 1] + sizes[index - 1] == address:", "if False:"),
    "holes",
)
bug(
    "hole_above_is_not_merged",
    ARENA,
    ("touches_next = index < len(addresses) and", "touches_next = False and"),
    "holes",
)
bug(
    "hole_between_two_is_merged_on_one_side",
    ARENA,
    ("                sizes[index - 1] += sizes[index]\n", ""),
    "holes",
)
bug("piece_one_slot_short", ARENA, ("sizes[index] -= size", "sizes[index] -= size - 1"), "holes")
bug(
    "hole_of_exactly_that_size_is_refused",
    ARENA,
    ("            if hole >= size:\n", "            if hole > size:\n"),
    "refused although it fits",
)
bug(
    "worst_fit",
    ARENA,
    ("self._sizes.index(min(fitting))", "self._sizes.index(max(fitting))"),
    "placement",
)
bug(
    "next_fit_from_the_top",
    ARENA,
    (
        "for index, hole in enumerate(self._sizes):",
        "for index, hole in reversed([*enumerate(self._sizes)]):",
    ),
    "placement",
)
bug(
    "freed_slots_leak_from_the_count",
    ARENA,
    ("        self.num_free += size\n", ""),
    "conservation",
)
bug("buddies_never_merge", ARENA, ("in free[order]:", "in free[order] and False:"), "holes")
bug(
    "buddies_merge_upwards_only",
    ARENA,
    ("            address &= partner\n", "            address = max(address, partner)\n"),
    "holes|placement|alignment",
)
bug(
    "neighbours_that_are_no_pair_merge",
    ARENA,
    ("(partner := address ^ (1 << order))", "(partner := address + (1 << order))"),
    "holes|alignment|largest hole",
)
bug(
    "upper_half_is_lost",
    ARENA,
    ("for half in range(order, found):", "for half in range(order + 1, found):"),
    "holes",
)
bug(
    "chunk_one_order_too_small",
    ARENA,
    ("order = (size - 1).bit_length()", "order = max(0, size.bit_length() - 1)"),
    "holes|placement|refused although it fits|conservation",
)
bug(
    "chunk_freed_of_half_its_size",
    ARENA,
    ("self.num_free += 1 << order", "self.num_free += 1 << order >> 1"),
    "conservation",
)
bug(
    "empty_order_is_taken_for_full",
    ARENA,
    ("        if not chunks:\n            self._orders ^= 1 << found\n", ""),
    "largest hole",
)
bug("highest_chunk_first", ARENA, ("address = min(chunks)", "address = max(chunks)"), "placement")
bug(
    "largest_chunk_first",
    ARENA,
    ("(enough & -enough).bit_length() - 1", "enough.bit_length() - 1"),
    "placement",
)


# Serving

bug(
    "freed_a_step_late",
    SERVING,
    ("heappush(running, (steps + output,", "heappush(running, (steps + output + 1,"),
    "total|negative: reserve",
)
bug(
    "first_token_forgotten",
    SERVING,
    ("new * (span + 1) // 2", "new * (span - 1) // 2"),
    "total|series",
)
bug(
    "rounding_is_called_internal",
    SERVING,
    (
        "=requested_steps - final_steps,\n            roundup=granted_steps - requested_steps,",
        "=granted_steps - final_steps,\n            roundup=0,",
    ),
    "total|series",
)
bug(
    "reserve_is_called_internal",
    SERVING,
    (
        "reserve=final_steps - token,\n            internal=requested_steps - final_steps,",
        "reserve=0,\n            internal=requested_steps - token,",
    ),
    "total|series",
)
bug(
    "rounded_size_decides_between_short_and_fragmented",
    SERVING,
    ("if asked > free:", "if taken > free:"),
    "total|series",
)
bug(
    "full_pool_is_no_shortage",
    SERVING,
    ("if asked > free:", "if asked > free > 0:"),
    "total|series",
)
bug(
    "limit_hides_a_missing_hole",
    SERVING,
    ("elif batch < max_running or taken > arena.largest_hole:", "elif batch < max_running:"),
    "total|series",
)
bug(
    "one_more_runs_than_may",
    SERVING,
    ("elif batch == max_running:", "elif batch > max_running:"),
    "total|series",
)
bug(
    "look_ahead_of_one_too_many",
    SERVING,
    ("policy.look_ahead + 1", "policy.look_ahead + 2"),
    "total|series",
)
bug(
    "look_ahead_gives_up_at_the_first_that_is_too_large",
    SERVING,
    (
        "                    index += 1\n                    continue\n",
        "                    break\n",
    ),
    "total|series",
)
bug(
    "what_was_too_large_stays_so",
    SERVING,
    ("        too_large = NEVER\n", "        too_large = too_large if batch else NEVER\n"),
    "total|series",
)
bug("refused_requests_are_lost", SERVING, ("refused += 1", "pass"), "total|series")
bug(
    "longer_than_the_model_is_served",
    SERVING,
    ("if prompt + output <= max_model_len:", "if True:"),
    "total|series|negative: internal",
)
bug(
    "prompts_take_no_time",
    SERVING,
    ("step_ns + prefill * prefill_ns_per_token", "step_ns"),
    "total|series",
)
bug(
    "arrival_is_seen_a_step_late",
    SERVING,
    ("steps + 1 + -(-late // step_ns)", "steps + 2 + -(-late // step_ns)"),
    "total|series",
)
bug(
    "clock_of_an_idle_server_stands_still_too_short",
    SERVING,
    ("now = max(now, upcoming[3])", "now = upcoming[3]"),
    "total|series|loaded",  # whichever the drawn stream shows first
)
bug("queue_counts_its_head_only", SERVING, ("(len(waiting) if timed else 1)", "1"), "total|series")
bug(
    "loaded_ends_with_the_event_and_not_with_the_step",
    SERVING,
    ("            until = steps + 1\n", "            pass\n"),
    "loaded",
)
bug(
    "loaded_never_ends_where_the_last_one_is_refused",
    SERVING,
    ("done=done or total", "done=done"),
    "loaded",
)
bug("warm_up_of_one_more", SERVING, ("completed >= warm_at", "completed > warm_at"), "loaded")
bug(
    "moment_before_the_completions_of_its_step",
    SERVING,
    (
        "        while running and running[0][0] == steps:\n",
        "        if steps == series_due:\n            series.add(so_far())\n"
        "            series_due = series.due\n        while running and running[0][0] == steps:\n",
    ),
    "series",
)
bug(
    "peak_forgets_the_rounding",
    SERVING,
    ("max(peak_granted, granted)", "max(peak_granted, requested)"),
    "peak",
)
bug(
    "picture_a_token_behind",
    SERVING,
    ("final - (last - steps)", "final - (last - steps) - 1"),
    "pictures",
)


@pytest.mark.parametrize("planted", BUGS, ids=lambda planted: planted.name)
def test_planted_bug_is_rejected(planted: Bug) -> None:
    mutant = Mutant(planted.name, planted.module, ((planted.old, planted.new),))
    names = changed_module(planted.module, mutant)
    with pytest.raises((AssertionError, IdentityBroken), match=planted.finding):
        CHECKS[planted.module](names, MAX_EXAMPLES)


@pytest.mark.parametrize("module", CHECKS)
def test_unchanged_text_passes(module: str) -> None:
    CHECKS[module](changed_module(module, None), 40)


def test_a_bug_whose_text_is_gone_says_so() -> None:
    with pytest.raises(StaleMutant, match="stands 0 times"):
        changed_module(ARENA, Mutant("gone", ARENA, (("no such text", "other"),)))
