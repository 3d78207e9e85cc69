"""Wrong writes and block copies, each of which the checks must reject: see store_bugs.toml."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import kernels.stores
import paged.stores
from helpers.planted import bugs_beside, changed_module
from kernels.interpreter.memory import watch_attention
from reference.attention.catalogue import CHECKS
from reference.attention.checks import run_check
from reference.attention.contract import Capabilities, CopyBatch, capabilities_of, declares
from reference.attention.kinds import STORES
from reference.attention.problem import AttentionProblem

BUGS = bugs_beside(__file__)
CHECKED = {check.name: check for check in CHECKS if set(check.kinds) & set(STORES)}
SEVERAL = "(q1 k0) (q4 k18) (q1 k70) (q5 k5) d24 b16 fp32"
ONE = "(q4 k9) d24 b16 fp32"
"""Where slots follow each other, and halves of the step have one length."""

Kernel = Callable[[Any], None]


def problem(spec: str = SEVERAL, **fields: Any) -> AttentionProblem:
    fields = {"dtype": "fp32", "seed": 2, "write": "copy" not in fields, **fields}
    return AttentionProblem.parse(spec).replace(**{"kv_dtype": fields["dtype"], **fields})


def kernel(file: str, mutant: Any, kind: str, patch: pytest.MonkeyPatch) -> Kernel:
    if file == "chained":
        return chained(mutant)
    changed = changed_module(file, mutant)
    if file == "reference.attention.codecs":
        patch.setattr(paged.stores, "encode", changed.encode)
        return paged.stores.write
    if file == "paged.stores":
        return getattr(changed, kind)  # type: ignore[no-any-return]
    room = paged.stores if file == "paged.cache" else kernels.stores
    for name in ("write_slots", "copy_blocks"):
        patch.setattr(room, name, getattr(changed, name))
    return getattr(room, kind)  # type: ignore[no-any-return]


def chained(mutant: Any) -> Kernel:
    """Our copy in torch without its refusal: all is read before anything is written."""
    refused = "bool(torch.isin(source, destination).any())"
    edits = ((refused, "False"), *(mutant.edits if mutant else ()))
    asked = replace(BUGS["last_pair_forgotten"][0], file="paged.cache", edits=edits)
    copy_blocks = changed_module("paged.cache", asked).copy_blocks

    @declares(Capabilities(kind="copy", also=frozenset({"chained"})))
    def copy(batch: CopyBatch) -> None:
        for keys, values in zip(batch.key_caches, batch.value_caches, strict=True):
            copy_blocks(keys, values, batch.pairs)

    return copy


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant, fields = BUGS[name]
    by, only = fields.get("by", {}), fields.get("only")
    asked = problem(ONE if only in {"any-order", "read-back"} else SEVERAL, **by)
    if only == "memory":
        asked = problem(layout="apart")
    verdicts = {}
    for check in CHECKED.values():
        if check.applies(asked) and (only or check.name == "truth"):
            bad = kernel(mutant.file, mutant, asked.kind, monkeypatch)
            verdicts[check.name] = run_check(check, bad, asked, watch=watch_attention)
    found = [each for each, verdict in verdicts.items() if verdict.wrong]
    assert found == [only or "truth"], f"{name}: {verdicts}"
    findings = " ".join(verdicts[found[0]].findings)
    assert re.search(fields.get("finding", r"^(?!raised)"), findings), findings
    right = kernel(mutant.file, None, asked.kind, monkeypatch)
    assert not run_check(CHECKED[found[0]], right, asked, watch=watch_attention).wrong


def test_each_check_is_needed() -> None:
    assert {fields.get("only", "truth") for _, fields in BUGS.values()} == set(CHECKED)


@pytest.mark.parametrize("check", CHECKED)
@pytest.mark.parametrize("room", [paged.stores, kernels.stores], ids=["torch", "triton"])
@pytest.mark.parametrize(
    "fields",
    [
        {"strides": ("query",)},
        {"dtype": "bf16", "kv_dtype": "e4m3", "k_scale": 0.03, "v_scale": 1.7, "inputs": "loud"},
        {"dtype": "fp16", "kv_dtype": "e5m2", "inputs": "loud", "pool": 2**27},
        {"codec": "int8-token-head", "inputs": "loud"},
        {"codec": "nvfp4", "k_scale": 0.03, "pool": 2**27},
        {"codec": "fp8-ds-mla", "head_dim": 576, "rope": 64},
        {"copy": 2, "num_kv_heads": 2, "layout": "layers"},
        {"copy": 1, "codec": "nvfp4-swizzled", "head_dim": 64},
        {"copy": 1, "kv_dtype": "e4m3", "pool": 2**27},
    ],
    ids=str,
)
def test_right_kernel_passes(check: str, room: Any, fields: dict[str, Any]) -> None:
    asked = problem(**fields)
    right = getattr(room, asked.kind)
    if capabilities_of(right).refusal(asked) is not None:
        assert room is kernels.stores
        assert asked.codec
        return
    if CHECKED[check].applies(asked):
        assert run_check(CHECKED[check], right, asked, watch=watch_attention).findings in (
            (), ("the kernel launched no Triton kernel",),
        )  # fmt: skip
