"""Wrong masks and value sizes in Triton, each of which the checks must reject: mask_bugs.toml."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.mutants import Mutant, as_on_a_gpu, import_package, write_package
from helpers.planted import bugs_beside
from kernels.attention import paged_attention
from kernels.interpreter.memory import watch_attention
from kernels.launch import Tiles
from reference.attention.catalogue import CHECKS
from reference.attention.checks import run_check
from reference.attention.contract import PagedBatch, capabilities_of, declares
from reference.attention.problem import AttentionProblem

BUGS = bugs_beside(__file__)
CHECKED = {check.name: check for check in CHECKS}
SMALL = Tiles(block_n=16, block_m=16)
PLAIN = {
    "query_mask": "", "causal_each": False, "chunk": None, "value_dim": None,
}  # fmt: skip


def kernel(mutant: Mutant | None, folder: Path) -> Callable[[PagedBatch], None]:
    """Our kernels, with a bug in one of their files."""
    package = write_package(mutant, folder)
    import_package(package, folder / package)
    attention = importlib.import_module(f"{package}.attention").paged_attention

    @declares(capabilities_of(paged_attention))
    def changed(batch: PagedBatch) -> None:
        splits = 3 if batch.max_query_len <= 1 else None
        with as_on_a_gpu():
            attention(batch, tiles=SMALL, num_splits=splits)

    return changed


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Callable[[PagedBatch], None]:
    return kernel(None, tmp_path_factory.mktemp("right"))


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_rejected_where_it_is_asked_for_and_nowhere_else(
    name: str, right: Callable[[PagedBatch], None], tmp_path: Path
) -> None:
    mutant, fields = BUGS[name]
    problem = AttentionProblem.parse(fields["problem"])
    check = CHECKED[fields.get("check", "truth")]
    bad = kernel(mutant, tmp_path)
    for seed in (1, 2, 3):
        asked = problem.replace(seed=seed)
        verdict = run_check(check, bad, asked, watch=watch_attention)
        if verdict.wrong:
            break
    else:
        pytest.fail(f"{name} survived")
    findings = " ".join(verdict.findings)
    assert re.search(fields.get("finding", r"^(?!raised)"), findings), findings
    assert not run_check(check, right, asked, watch=watch_attention).wrong
    assert not run_check(check, bad, asked.replace(**PLAIN), watch=watch_attention).wrong
