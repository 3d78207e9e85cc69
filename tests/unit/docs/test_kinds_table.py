"""The table of kinds in docs/peers.md, made from what the code declares.

`PAGEDBENCH_FREEZE=1 python -m pytest tests/unit/docs/test_kinds_table.py` writes it anew.
"""

import os
import re
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from helpers.places import ROOT
from paged.attention import paged_attention
from paged.latent import paged_latent_attention
from paged.merge import merge_states
from paged.stores import copy, write
from reference.attention.catalogue import CHECKS, TRUTH
from reference.attention.checks import run_check
from reference.attention.contract import capabilities_of, declares, everything
from reference.attention.coverage import can_show
from reference.attention.features import feature, witnesses
from reference.attention.problem import AttentionProblem
from reference.attention.records import CODECS
from subjects.attention.resolve import BUILT_IN
from subjects.loading import load

PAGE = ROOT / "docs" / "peers.md"
SECTION = "## What is held to what"
HEAD = "| | spec | laws | bugs planted | ours, torch | ours, Triton | peers |\n|" + " --- |" * 7
RIGHT = {
    "attention": paged_attention,
    "latent": paged_latent_attention,
    "merge": merge_states,
    "write": write,
    "copy": copy,
}
BUGS = re.compile(r"(?<=\d \| )(\d+)(?= \| [`n])")
CODEC_ROWS = [f"codec={name}" for name, of in CODECS.items() if not of.latent]
ROWS = {
    "decode": ("attention", ["decode"], "(q1 k9) d16 b16 fp32"),
    "prefill": ("attention", ["prefill"], "(q5 k9) d16 b16 fp32"),
    "masks": (
        "attention", ["query_mask", "chunk", "cross", "causal_each"],
        "(q5 k9) d16 b16 fp32 mask=tree",
    ),
    "value size": ("attention", ["value_size"], "(q1 k9) d16 b16 fp32 dv=32"),
    "codecs": ("attention", CODEC_ROWS, "(q1 k9) d32 b16 fp32 codec=int8-token-head"),
    "latent": ("latent", ["latent"], "(q1 k9) d48 b16 fp32 rope=16"),
    "sparse": ("latent", ["sparse"], "(q1 k9) d48 b16 fp32 rope=16 topk=16"),
    "merge": ("merge", ["merge"], "(q1 k9) d16 b16 fp32 parts=2"),
    "write": ("write", ["write"], "(q1 k9) d16 b16 fp32 write"),
    "copy": ("copy", ["copy"], "(q1 k9) d16 b16 fp32 copy=1"),
}  # fmt: skip
"""Kind, the rows of the coverage, and a small problem."""


def planted(row: str) -> int:
    """Bugs of the lists in tests/meta that are about a row."""
    of = {
        **dict.fromkeys(("decode", "prefill"), "kernel"), "value size": "mask",
        "masks": "mask", "codecs": "codec", "sparse": "latent", "write": "store", "copy": "store",
    }  # fmt: skip
    listed = ROOT / "tests" / "meta" / f"{of.get(row, row)}_bugs.toml"
    return sum(about(row, bug) for bug in tomllib.loads(listed.read_text("utf-8")).values())


def about(row: str, bug: dict[str, Any]) -> bool:
    by = bug.get("by", {})
    odd, is_copy = " dv=" in bug.get("problem", ""), "copy" in by or bug["file"] == "chained"
    told: dict[str, bool] = {
        "decode": not by.get("prefill"), "prefill": by.get("prefill") is not False,
        "latent": not by.get("sparse"), "sparse": by.get("sparse") is not False,
        "value size": odd, "masks": not odd, "copy": is_copy, "write": not is_copy,
    }  # fmt: skip
    return bool(told.get(row, True))


def laws(kind: str, names: list[str]) -> list[str]:
    """Those besides `truth` and `memory` that a problem of a row can show."""
    able, shown = everything(kind), [feature(name) for name in names]
    others = [each for each in CHECKS[2:] if kind in each.kinds]
    return [each.name for each in others if any(can_show(each, able, one) for one in shown)]


def doing(kind: str, names: list[str]) -> dict[str, list[str]]:
    """Kernels that declare a row: ours in torch, in Triton, and peers."""
    found: dict[str, list[str]] = {"torch": [], "triton": [], "peers": []}
    for name, known in BUILT_IN.items():
        able = capabilities_of(load(known.where, what="kernel"))
        if able.kind == kind and any(
            each == kind or next(iter(witnesses(able, (feature(each),))), None) for each in names
        ):
            ours = name.partition("-")[0]
            found[ours if ours in found else "peers"].append(f"`{name}`")
    return found


def table() -> str:
    lines = [HEAD]
    for row, (kind, names, spec) in ROWS.items():
        who = doing(kind, names)
        cells = [row, f"`{spec}`", str(len(laws(kind, names))), str(planted(row))]
        cells += [", ".join(each) or "none" for each in who.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_page_has_the_table_of_the_code() -> None:
    page = PAGE.read_text("utf-8")
    now = table()
    found = re.search(rf"{SECTION}\n.*?(\| \|.*?)\n\n", page, re.S)
    assert found is not None
    if os.environ.get("PAGEDBENCH_FREEZE"):
        PAGE.write_text(page.replace(found[1], now), "utf-8")
    # A bug more is no reason to write the page anew.
    assert BUGS.sub("", found[1]) == BUGS.sub("", now)
    assert all(
        int(had) <= int(has) for had, has in zip(*map(BUGS.findall, (found[1], now)), strict=True)
    )


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_truth_poison_and_tolerance(row: str) -> None:
    """A kernel of ours passes, though it rounds; one that writes nothing leaves what is seen."""
    kind, names, spec = ROWS[row]
    problem = AttentionProblem.parse(spec)
    right: Callable[..., Any] = RIGHT[kind]
    assert not run_check(TRUTH, right, problem).wrong
    lazy = run_check(TRUTH, declares(everything(kind))(lambda _: None), problem)
    assert "is not written" in " ".join(lazy.findings)
    assert laws(kind, names)
