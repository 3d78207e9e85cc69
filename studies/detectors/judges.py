"""Ways of finding a wrong kernel, apart from each other.

What does each one see that others do not? A conformance check looks at numbers, poison and guards
at once. Here each detector sees one thing only, so that a table can say which of them a bug needs:

`numbers`   the answer against float64, on flat inputs, over memory that holds zeros where it is
            nobody's
`needle`    the same on the three other kinds of inputs: needle, loud and sunken
`poison`    NaN where there should be a number, and guards that were written; no tolerance
`laws`      the kernel against itself
`overflow`  int32 arithmetic that wraps, with the pool far up in memory
`memory`    the memory checker
`bytes`     counted bytes against the closed form
`compiled`  ahead-of-time figures for sm_90 against those of the right kernels
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final
from unittest import mock

import torch

from helpers import counted_bytes
from helpers.mutants import CacheCall, Findings, Harness, Kernels, in_a_large_pool
from helpers.watched import WatchedOperations
from kernels.interpreter.memory import watch_attention
from paged import cache as right_cache
from reference.attention.catalogue import applicable
from reference.attention.checks import run_check
from reference.attention.contract import AttentionKernel, Capabilities, declares
from reference.attention.inputs import make_inputs
from reference.attention.placement import GUARD_BLOCKS, Placement, place
from reference.attention.problem import AttentionProblem
from reference.attention.tolerance import worst_excess
from reference.attention.truth import Truth, attend

Judge = Callable[[Kernels, Harness, Any], Findings]

INTERPRETED: Final = ("numbers", "needle", "poison", "laws", "overflow", "memory", "bytes")
"""Detectors that run kernels; `compiled` looks at their code (see `studies.detectors.compiled`)."""

DETECTORS: Final = (*INTERPRETED, "compiled")


def detector(name: str, by: Harness) -> Harness | None:
    """A harness with the examples of another, and one detector as its judge.

    None where the detector has nothing to look at: needles and laws in a cache operation, overflow
    where the pool is near.
    """
    judges = _ATTENTION if by.operation == "attention" else _CACHES
    if name not in judges or (name == "overflow" and not by.far):
        return None
    judge = judges[name]
    return replace(
        by,
        says=f"{name} of {by.says}",
        judge=lambda planted, example: judge(planted, by, example),
        far=name == "overflow",
        backwards=False,
    )


# Attention


def _numbers(planted: Kernels, by: Harness, problem: AttentionProblem) -> Findings:
    return _excess(planted, by, problem.replace(inputs="flat"))


def _needle(planted: Kernels, by: Harness, problem: AttentionProblem) -> Findings:
    return [
        finding
        for kind in ("needle", "loud", "sunken")
        for finding in _excess(planted, by, problem.replace(inputs=kind))
    ]


def _excess(planted: Kernels, by: Harness, problem: AttentionProblem) -> Findings:
    placement, truth = _placed(problem)
    _without_poison(placement, problem)
    with _empty_is_zero():
        _kernel(planted, by)(placement.batch)
    excess = worst_excess(problem, truth, placement.batch.out, placement.batch.lse)
    return [] if excess is None else [str(excess)]


def _poison(planted: Kernels, by: Harness, problem: AttentionProblem) -> Findings:
    placement, truth = _placed(problem.replace(inputs="flat"))
    _kernel(planted, by)(placement.batch)
    findings = placement.overwritten()
    for name, answer in (("out", placement.batch.out), ("lse", placement.batch.lse)):
        if answer is not None and answer.isnan().any():
            findings.append(f"{name} is nan in {int(answer.isnan().sum())} places")
    assert not truth.out.isnan().any()
    return findings


def _laws(planted: Kernels, by: Harness, problem: AttentionProblem) -> Findings:
    flat = problem.replace(inputs="flat")
    kernel = declares(Capabilities(needs_finite_cache=True))(_kernel(planted, by))
    with _empty_is_zero():
        verdicts = [run_check(law, kernel, flat) for law in applicable(flat)]
    return [finding for verdict in verdicts if verdict.wrong for finding in verdict.findings]


def _overflow(planted: Kernels, by: Harness, problem: AttentionProblem) -> Findings:
    placement, _ = _placed(problem)
    return _raised(lambda: in_a_large_pool(_kernel(planted, by))(placement.batch))


def _memory(planted: Kernels, by: Harness, problem: AttentionProblem) -> Findings:
    placement, _ = _placed(problem)
    return watch_attention(_kernel(planted, by, margins=False), placement.batch) or []


def _kernel(planted: Kernels, by: Harness, *, margins: bool = True) -> AttentionKernel:
    kernel: AttentionKernel = planted.attention(
        num_splits=by.splits, tiles=by.tiles, margins=margins
    )
    return kernel


def _placed(problem: AttentionProblem) -> tuple[Placement, Truth]:
    inputs = make_inputs(problem)
    return place(inputs), attend(inputs)


def _without_poison(placement: Placement, problem: AttentionProblem) -> None:
    """Zeros in all that holds NaN: what nobody owns, and the answers."""
    nan = torch.tensor([torch.nan]).to(problem.torch_kv_dtype)
    for bits in placement.storages:
        bits[bits == nan.view(bits.dtype)] = 0
    for answer in (placement.batch.out, placement.batch.lse):
        if answer is not None:
            answer.zero_()


def _empty_is_zero() -> AbstractContextManager[object]:
    """Let memory that nobody wrote hold zeros, the same in every run."""
    return mock.patch.object(torch, "empty", torch.zeros)


def _raised(call: Callable[[], object]) -> Findings:
    try:
        call()
    except Exception as error:  # int32 overflow, in the kernel's own surroundings
        return [f"raised {type(error).__name__}: {error}"]
    return []


# Cache operations


def _written(planted: Kernels, by: Harness, call: CacheCall) -> Findings:
    expected, got = _after(planted, by, call)
    right, wrong = call.pool(expected), call.pool(got)
    changed = [
        int((one.view(torch.uint8) != other.view(torch.uint8)).sum())
        for one, other in zip(right, wrong, strict=True)
    ]
    return [f"{sum(changed)} bytes of the pool differ"] if any(changed) else []


def _around(planted: Kernels, by: Harness, call: CacheCall) -> Findings:
    _, got = _after(planted, by, call)
    before = call.storage()
    findings = []
    for now, then in zip(got, before, strict=True):
        guards = (slice(None, GUARD_BLOCKS), slice(-GUARD_BLOCKS, None))
        if any(not torch.equal(now[guard], then[guard]) for guard in guards):
            findings.append("the guards around the pool were written")
    return findings


def _after(planted: Kernels, by: Harness, call: CacheCall) -> tuple[list[Any], list[Any]]:
    expected, got = call.storage(), call.storage()
    call.run(by.operation, right_cache, call.pool(expected))
    call.run(by.operation, planted, call.pool(got))
    return expected, got


def _far_operation(planted: Kernels, by: Harness, call: CacheCall) -> Findings:
    return [finding for finding in by.judge(planted, call) if finding.startswith("raised")]


def _watched_operation(planted: Kernels, by: Harness, call: CacheCall) -> Findings:
    watched = WatchedOperations(planted)
    call.run(by.operation, watched, call.pool(call.storage()))
    return watched.findings


_ATTENTION: Final[dict[str, Judge]] = {
    "numbers": _numbers,
    "needle": _needle,
    "poison": _poison,
    "laws": _laws,
    "overflow": _overflow,
    "memory": _memory,
    "bytes": counted_bytes.of_attention,
}

_CACHES: Final[dict[str, Judge]] = {
    "numbers": _written,
    "poison": _around,
    "overflow": _far_operation,
    "memory": _watched_operation,
    "bytes": counted_bytes.of_operation,
}
