"""Wrong cascades, each of which the project's own checks must reject.

Every bug is one change to the text of `kernels/cascade.py`, or of one that it rests on. It is held
to the checks, or to the bytes of the closed form, over drawn problems whose sequences share blocks.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import strategies as st

from helpers.cascades import cascade_traffic, groupings, launches, sharing_problems
from helpers.counted_bytes import moved
from helpers.mutants import Findings, Harness, Kernels, Mutant, hunt, plant
from kernels.interpreter.memory import attention_roles, watch_attention, watch_memory
from reference.attention.checks import MEMORY, TRUTH, run_check
from reference.attention.contract import AttentionKernel, PagedBatch
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem

RIGHT_EXAMPLES: Final = 5
"""Examples of each harness that the unchanged cascade must pass."""


@st.composite
def forced(draw: st.DrawFn, /, **narrowed: Any) -> tuple[AttentionProblem, Any, Any]:
    """A problem, some groups of its sequences, and a launch of small tiles."""
    problem = draw(sharing_problems(**narrowed))
    return problem, draw(groupings(problem)), draw(launches(problem))


def cascade_of(planted: Kernels) -> Any:
    """The module `cascade` of a copy of the kernels."""
    return importlib.import_module(f"{planted.paged_attention.__module__.split('.')[0]}.cascade")


def kernel_of(planted: Kernels, example: Any) -> AttentionKernel:
    """The planted cascade as a subject, with the example's groups and launch."""
    module, (problem, shared, launch) = cascade_of(planted), example

    def subject(batch: PagedBatch) -> None:
        groups = module.PrefixGroups.of(
            shared,
            seq_lens=[request.seq_len for request in problem.requests],
            query_lens=[request.query_len for request in problem.requests],
            block_size=problem.block_size,
        )
        module.cascade_attention(batch, groups=groups, launch=launch)

    return subject


def checked(check: Any) -> Any:
    """A judge: one check of the conformance suite."""

    def judge(planted: Kernels, example: Any) -> Findings:
        kernel = kernel_of(planted, example)
        verdict = run_check(check, kernel, example[0], watch=watch_attention)
        return list(verdict.findings) if verdict.wrong else []

    return judge


def chosen(planted: Kernels, example: Any) -> Findings:
    """A judge: the truth, with the groups that the planted copy finds by itself."""
    subject = cascade_of(planted).cascade_wherever_shared
    verdict = run_check(TRUTH, subject, example[0])
    return list(verdict.findings) if verdict.wrong else []


def counted(planted: Kernels, example: Any) -> Findings:
    """A judge: the bytes of keys, values, query and output equal the closed form."""
    problem, shared, launch = example
    batch = place(make_inputs(problem)).batch
    expected = cascade_traffic(batch, shared, launch)
    with watch_memory(attention_roles(batch)) as memory:
        kernel_of(planted, example)(batch)
    got = moved(memory)
    return [] if got == expected else [f"moved {got}, the closed form is {expected}"]


DRAWN = forced(head_dim=16, dtype="fp32", kv_dtype="fp32", k_scale=1.0, v_scale=1.0)
WRONG = Harness("truth", DRAWN, checked(TRUTH))
WRONG_SINKS = Harness("truth, sinks", forced(head_dim=16, sinks=True), checked(TRUTH))
WRONG_ALIBI = Harness("truth, alibi", forced(head_dim=16, alibi=True), checked(TRUTH))
NOT_ITS_OWN = Harness("memory", DRAWN, checked(MEMORY))
WITH_A_STRANGER = Harness("memory, stranger", forced(head_dim=16, stranger=True), checked(MEMORY))
FOUND = Harness("truth, groups found", DRAWN, chosen)
BYTES = Harness("counted bytes", DRAWN, counted)

ANY_NUMBER: Final = r"^(?!raised)"
"""What a truth check may say: anything but an exception, because a mutant that does not run proves
nothing."""


@dataclass(frozen=True, slots=True)
class Bug:
    """A mutant, the harness that must reject it, and a pattern of what that says."""

    mutant: Mutant
    by: Harness
    finding: str


BUGS: dict[str, Bug] = {}


def bug(
    name: str,
    *edits: tuple[str, str],
    by: Harness,
    finding: str = ANY_NUMBER,
    file: str = "cascade",
) -> None:
    """Put a bug on the list."""
    BUGS[name] = Bug(Mutant(name, file, edits), by, finding)


# The prefix: its length, its rows, its splits

bug(
    "prefix_one_token_short",
    (
        "prefix = tl.load(prefix_lens + leader)",
        "prefix = tl.load(prefix_lens + leader) - 1",
    ),
    by=WRONG,
)
bug(
    "last_member_missed",
    ("valid = (stacked < group_end) &", "valid = (stacked < group_end - 1) &"),
    by=WRONG,
)
bug(
    "only_the_first_tile_of_rows",
    ("groups.tokens.shape[0] // block_q + num_groups", "num_groups"),
    by=WRONG,
)
bug(
    "rows_past_the_tile_race_with_the_next",
    ("(stacked < group_end) & (row < BLOCK_Q * GROUP)", "(stacked < group_end)"),
    by=NOT_ITS_OWN,
    finding="race between programs",
)
bug(
    "prefix_read_by_every_split",
    (
        "    tiles_a_split = tl.cdiv(end_tile, tl.num_programs(2))\n    begin = split * tiles",
        "    tiles_a_split = end_tile\n    begin = 0 * split * tiles",
    ),
    by=BYTES,
    finding="moved",
)
bug(
    "distance_from_the_query_of_the_first_member",
    (
        "tl.load(seq_lens + sequence, mask=valid, other=0) - behind",
        "tl.load(seq_lens + leader) - behind",
    ),
    by=WRONG_ALIBI,
)

# What follows it

bug(
    "suffix_starts_at_the_next_tile",
    ("first_tile = prefix // BLOCK_N", "first_tile = tl.cdiv(prefix, BLOCK_N)"),
    by=WRONG,
)
bug(
    "suffix_starts_within_the_prefix",
    ("        prefix,\n        end_key,\n", "        0,\n        end_key,\n"),
    by=WRONG,
)
bug(
    "suffix_starts_a_block_late",
    (
        "prefix = tl.load(prefix_lens + sequence)",
        "prefix = tl.load(prefix_lens + sequence)\n"
        "    prefix = tl.where(prefix > 0, prefix + BLOCK_SIZE, 0)",
    ),
    by=WRONG,
)
bug(
    "position_without_the_prefix",
    (
        "query_at = seq_len - query_len + in_sequence",
        "query_at = seq_len - query_len + in_sequence - prefix",
    ),
    by=WRONG,
)

# Joining

bug(
    "joined_without_rescaling",
    ("weight = tl.exp2(part_lse - reference) / divisor", "weight = 1.0 / divisor"),
    by=WRONG,
)
bug(
    "log_sum_exp_of_the_largest_part",
    ("reference + tl.log2(divisor))", "reference)"),
    by=WRONG,
    finding=r"^lse",
)
bug(
    "sink_not_joined",
    (" + tl.exp2(sink - reference)", ""),
    by=WRONG_SINKS,
)
bug(
    "last_part_not_joined",
    ("for index in range(num_parts):", "for index in range(num_parts - 1):"),
    by=WRONG,
)
bug(
    "parts_of_no_prefix_left_unwritten",
    ("if (prefix == 0) & (split == 0):", "if (prefix < 0) & (split == 0):"),
    by=WITH_A_STRANGER,
    finding="never written: load of partial_lse",
)
bug(
    "parts_that_saw_nothing_read",
    ("tl.load(part_at, mask=saw, other=0.0)", "tl.load(part_at, mask=real, other=0.0)"),
    by=WITH_A_STRANGER,
    finding="never written: load of partial_out",
)

# Finding groups

bug(
    "groups_that_share_their_first_block_only",
    ("differs.argmax(1)", "rows.shape[1]"),
    ("differs = rows[:-1] != rows[1:]", "differs = rows[:-1, :1] != rows[1:, :1]"),
    by=FOUND,
    file="shared_prefix",
)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return plant(None, tmp_path_factory.mktemp("right"))


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_rejected_and_the_right_cascade_is_not(
    name: str, right: Kernels, tmp_path: Path
) -> None:
    bug = BUGS[name]
    caught = hunt(bug.by, plant(bug.mutant, tmp_path))
    assert caught is not None, f"{name}: not rejected by {bug.by.says}"
    assert re.search(bug.finding, caught.finding), caught.finding
    assert bug.by.findings(right, caught.example) == []


HARNESSES: Final = {bug.by.says: bug.by for bug in BUGS.values()}


@pytest.mark.parametrize("says", HARNESSES)
def test_right_cascade_passes_every_harness(says: str, right: Kernels) -> None:
    assert hunt(HARNESSES[says], right, max_examples=RIGHT_EXAMPLES) is None
