"""Wrong latent kernels, each of which the checks must reject: see latent_bugs.toml."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.mutants import Harness, Mutant, as_on_a_gpu, hunt, import_package, write_package
from helpers.planted import bugs_beside
from kernels.interpreter.memory import watch_attention
from kernels.latent_attention import paged_latent_attention
from kernels.launch import Tiles
from reference.attention.catalogue import CHECKS, MEMORY
from reference.attention.checks import run_check
from reference.attention.contract import PagedBatch, capabilities_of, declares
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems

BUGS = bugs_beside(__file__)
ABLE = capabilities_of(paged_latent_attention)
DRAWN = {
    "decode": replace(
        ABLE, variants=ABLE.variants - {"prefill", "noncausal"}, also=frozenset({"sparse"})
    ),
    "prefill": ABLE,
    "causal": replace(
        ABLE, variants=ABLE.variants - {"noncausal", "window", "alibi"}, also=frozenset()
    ),
}
"""What is drawn: the last are to get a mask."""
SMALL = Tiles(block_n=16, block_m=16)
NOT_AN_EXCEPTION = r"^(?!raised)"
RIGHT_EXAMPLES = 2

Attention = Callable[..., None]


def planted(mutant: Mutant | None, folder: Path) -> Attention:
    """The host function of a copy of the kernels."""
    package = write_package(mutant, folder)
    import_package(package, folder / package)
    attention: Attention = importlib.import_module(
        f"{package}.latent_attention"
    ).paged_latent_attention
    return attention


def harness(
    *,
    check: str = "truth",
    sparse: bool | None = None,
    splits: int = 1,
    record: tuple[int, int] = (48, 16),
    float8: bool = False,
    codec: str = "",
    drawn: str = "decode",
    pool: bool = False,
    **fields: Any,
) -> Harness:
    """Drawn problems of one record; `sparse`, `float8` and others say what all of them are."""
    named = next(each for each in CHECKS if each.name == check)
    fixed: dict[str, Any] = {"head_dim": record[0], "rope": record[1], "codec": codec, **fields}
    if not pool:
        fixed["pool"] = None

    def shown(problem: AttentionProblem) -> bool:
        return (
            named.applies(problem)
            and sparse in (None, problem.topk is not None)
            and float8 <= problem.quantised
            and (drawn == "decode" or problem.max_query_len > 1)
            and pool <= (problem.pool is not None)
        )

    def judge(attention: Attention, problem: AttentionProblem) -> list[str]:
        @declares(ABLE)
        def kernel(batch: PagedBatch) -> None:
            attention(batch, num_splits=splits, tiles=SMALL)

        # Memory first, as in the product: what reads anywhere is watched, and the process lives.
        for look in (MEMORY, named):
            verdict = run_check(look, kernel, problem, watch=watch_attention)
            if verdict.wrong:
                return list(verdict.findings)
        return []

    from_able = problems(capabilities=DRAWN[drawn], max_seqs=3, max_len=100)
    examples = from_able.map(lambda problem: _with(problem, fixed)).filter(shown)
    return Harness(f"{check}: {sparse} {splits} {record} {fixed}", examples, judge)


def _with(problem: AttentionProblem, fixed: dict[str, Any]) -> AttentionProblem:
    if fixed.get("block_size", 0) > problem.block_size:
        fixed = {**fixed, "pool": None}
    # Two tiles of heads are enough, and 128 heads take eight.
    fixed = {"group_size": min(problem.group_size, 24), **fixed}
    if fixed["codec"]:
        fixed = {**fixed, "kv_dtype": "", "k_scale": 1.0, "v_scale": 1.0}
    return problem.replace(**fixed)


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_rejected(name: str, tmp_path: Path) -> None:
    mutant, fields = BUGS[name]
    narrowed = dict(fields.get("by", {}))
    if "record" in narrowed:
        narrowed["record"] = tuple(narrowed["record"])
    look = harness(**narrowed)
    with as_on_a_gpu():
        caught = hunt(look, planted(mutant, tmp_path), max_examples=60)
        assert caught is not None, f"{name} survived"
        finding = fields.get("finding", NOT_AN_EXCEPTION)
        assert re.search(finding, caught.finding), f"{caught.example}: {caught.finding}"
        assert look.findings(paged_latent_attention, caught.example) == []
