"""Wrong cascades, each of which the project's own checks must reject.

Every bug is one change to the text of `kernels/cascade.py`, or of one that it rests on, listed in
cascade_bugs.toml. It is held to the checks, or to the bytes of the closed form, over drawn problems
whose sequences share blocks.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import strategies as st

from helpers.cascades import cascade_traffic, groupings, launches, sharing_problems
from helpers.counted_bytes import moved
from helpers.mutants import Findings, Harness, Kernels, hunt, plant
from helpers.planted import bugs_beside
from kernels.interpreter.memory import attention_roles, watch_attention, watch_memory
from reference.attention.catalogue import MEMORY, TRUTH
from reference.attention.checks import run_check
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
HARNESSES: Final = {
    harness.says: harness
    for harness in (
        Harness("truth", DRAWN, checked(TRUTH)),
        Harness("truth, sinks", forced(head_dim=16, sinks=True), checked(TRUTH)),
        Harness("truth, alibi", forced(head_dim=16, alibi=True), checked(TRUTH)),
        Harness("memory", DRAWN, checked(MEMORY)),
        Harness("memory, stranger", forced(head_dim=16, stranger=True), checked(MEMORY)),
        Harness("truth, groups found", DRAWN, chosen),
        Harness("counted bytes", DRAWN, counted),
    )
}

ANY_NUMBER: Final = r"^(?!raised)"
"""What a truth check may say: anything but an exception, because a mutant that does not run proves
nothing."""


BUGS: Final = bugs_beside(__file__)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return plant(None, tmp_path_factory.mktemp("right"))


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_rejected_and_the_right_cascade_is_not(
    name: str, right: Kernels, tmp_path: Path
) -> None:
    mutant, fields = BUGS[name]
    harness = HARNESSES[fields["by"]]
    caught = hunt(harness, plant(mutant, tmp_path))
    assert caught is not None, f"{name}: not rejected by {harness.says}"
    assert re.search(fields.get("finding", ANY_NUMBER), caught.finding), caught.finding
    assert harness.findings(right, caught.example) == []


@pytest.mark.parametrize("says", HARNESSES)
def test_right_cascade_passes_every_harness(says: str, right: Kernels) -> None:
    assert hunt(HARNESSES[says], right, max_examples=RIGHT_EXAMPLES) is None
