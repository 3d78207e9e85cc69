"""Wrong merges, each of which the checks must reject: see merge_bugs.toml."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import kernels.merge_states as ours
import paged.merge
from helpers.planted import bugs_beside, changed_module
from reference.attention.catalogue import CHECKS
from reference.attention.checks import run_check
from reference.attention.contract import MergeBatch, capabilities_of
from reference.attention.problem import AttentionProblem

BUGS = bugs_beside(__file__)
NAMED = {check.name: check for check in CHECKS}
BATCH = "(q1 k0) (q4 k9) (q1 k70) g2 d16 b16"


def problem(**fields: Any) -> AttentionProblem:
    """Few rows, of which some see nothing in any part, and some nothing in most."""
    wanted = {"parts": 3, "dtype": "fp32", "seed": 2, **fields}
    return AttentionProblem.parse(BATCH).replace(kv_dtype=wanted["dtype"], **wanted)


def merge(file: str, mutant: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    changed = changed_module(file, mutant and replace(mutant, file=file))
    if file == "paged.merge":
        return changed.merge_states  # type: ignore[no-any-return]
    monkeypatch.setattr(ours, "merge_states_kernel", changed.merge_states_kernel)
    return ours.merge_states


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant, fields = BUGS[name]
    by = dict(fields.get("by", {}))
    check = NAMED[by.pop("check", "truth")]
    asked = problem(**by)
    verdict = run_check(check, merge(mutant.file, mutant, monkeypatch), asked)
    assert verdict.wrong, f"{name} survived"
    assert re.search(fields.get("finding", r"^(?!raised)"), " ".join(verdict.findings)), verdict
    right = merge(mutant.file, None, monkeypatch)
    assert not run_check(check, right, asked).wrong


@pytest.mark.parametrize("check", [c.name for c in CHECKS if "merge" in c.kinds])
@pytest.mark.parametrize("kernel", [paged.merge.merge_states, ours.merge_states])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"unwritten": True},
        {"parts": 17, "interleave": True, "inputs": "loud"},
        {"dtype": "bf16", "parts": 2},
    ],
    ids=str,
)
def test_right_merge_passes(
    check: str, kernel: Callable[[MergeBatch], None], fields: dict[str, Any]
) -> None:
    asked = problem(**fields)
    assert not run_check(NAMED[check], kernel, asked).wrong
    assert capabilities_of(kernel).refusal(asked) is None
