"""Smaller problems than one that fails: the same bug, or another would be reported in its place.

Nothing is added, and neither dtype nor cache dtype nor inputs are changed: whatever a smaller
problem shows, the larger one had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any, Final

from bench.check.findings import same_kind
from bench.check.record import Failure
from bench.search.lanes import Enough
from bench.search.shrink import Shrinking
from reference.attention.additions import RECORDS
from reference.attention.problem import AttentionProblem, InvalidProblem, Request
from reference.attention.strategies import BLOCK_SIZES, HEAD_DIMS

BY_CHANCE: Final = "the same problem did not fail again: it depends on earlier calls, or on chance"
"""A finding more, where it does."""

_PLAIN: Final = (
    "interleave", "unwritten", "chained", "topk", "query_mask", "causal_each", "chunk",
    "value_dim", "cross",
    "pool", "strides", "layout", "spare", "window", "softcap", "alibi", "sinks", "scale",
    "k_scale", "v_scale", "causal", "shared_prefix", "num_kv_heads",
)  # fmt: skip
_DEFAULTS: Final = {field.name: field.default for field in fields(AttentionProblem)}


def shrunk(
    first: Failure,
    look: Callable[[AttentionProblem], Iterable[Failure]],
    *,
    asked: Callable[[AttentionProblem], bool],
    stopped: Callable[[], bool] = lambda: False,
) -> Failure:
    """The smallest failure of the same kind that there was time for.

    `look` gives what a problem shows; only those that are to be `asked` are run.
    """

    def run(problem: AttentionProblem) -> Failure | None:
        return next((seen for seen in look(problem) if same_kind(first, seen)), None)

    def shows(problem: AttentionProblem) -> bool:
        if stopped():
            raise Enough
        return asked(problem) and shrinking.still_shows(problem)

    cut_short = True
    shrinking = Shrinking(run, stopped=stopped)
    shrinking.begin(first)
    with shrinking.ended():
        drawn = AttentionProblem.parse(first.problem)
        # Once more at the end: what comes and goes is said to.
        shrinking.repeats = shows(drawn) and shows(minimise(drawn, shows))
        cut_short = False
    smallest = shrinking.smallest or first
    findings = (*smallest.findings, *([] if shrinking.repeats else [BY_CHANCE]))
    return smallest.model_copy(
        update={
            "first_problem": first.first_problem,
            "findings": findings,
            "seen": first.seen,
            "seed": first.seed,
            "cut_short": cut_short,
        }
    )


def minimise(
    problem: AttentionProblem, shows: Callable[[AttentionProblem], bool]
) -> AttentionProblem:
    """The smallest that still `shows` it: one kind of change after the other, until none helps."""
    before = None
    while problem != before:
        before = problem
        for changes in (_batches, _lengths, _fields):
            while smaller := next(filter(shows, _with(problem, changes)), None):
                problem = smaller
    return problem


def _with(
    problem: AttentionProblem, changes: Callable[[AttentionProblem], Iterator[dict[str, Any]]]
) -> Iterator[AttentionProblem]:
    """Problems with less of something, what saves most first."""
    for change in changes(problem):
        try:
            smaller = problem.replace(**change)
        except InvalidProblem:
            continue  # a window needs causal attention, a pool its blocks
        if smaller != problem:
            yield smaller


def _batches(problem: AttentionProblem) -> Iterator[dict[str, Any]]:
    batch = problem.requests
    if len(batch) > 1:
        half = len(batch) // 2
        parts = [batch[half:], batch[:half]]
        parts += [batch[:at] + batch[at + 1 :] for at in range(len(batch)) if len(batch) > 2]
        yield from ({"requests": part} for part in parts)


def _lengths(problem: AttentionProblem) -> Iterator[dict[str, Any]]:
    batch = problem.requests
    for at, request in enumerate(batch):
        for smaller in _shorter(request):
            yield {"requests": (*batch[:at], smaller, *batch[at + 1 :])}


def _fields(problem: AttentionProblem) -> Iterator[dict[str, Any]]:
    for name in _PLAIN:
        if getattr(problem, name) != _DEFAULTS[name]:
            yield {name: _DEFAULTS[name]}
    yield from ({"group_size": size} for size in (1, 2) if size < problem.group_size)
    if problem.rope is None:
        yield from ({"head_dim": size} for size in HEAD_DIMS if size < problem.head_dim)
    else:
        smaller = (each for each in sorted(RECORDS) if each[0] < problem.head_dim)
        yield from ({"head_dim": size, "rope": rope} for size, rope in smaller)
    if problem.parts is not None and problem.parts > 1:
        yield {"parts": problem.parts // 2}
        yield {"parts": problem.parts - 1}
    if problem.copy is not None and problem.copy > 1:
        yield {"copy": 1}
    if problem.topk is not None and problem.topk > 1:
        yield {"topk": problem.topk // 2}
    if problem.cross:
        yield {"cross": False, "causal": True}
    yield {"block_size": 16}  # the usual one, also where it is smaller
    larger = (size for size in sorted(BLOCK_SIZES) if 16 < size < problem.block_size)
    yield from ({"block_size": size} for size in larger)
    if problem.num_kv_heads > 2:
        yield {"num_kv_heads": 2}
    for name in problem.strides:
        yield {"strides": tuple(other for other in problem.strides if other != name)}
    if problem.seed:
        yield {"seed": 0}


def _shorter(request: Request) -> Iterator[Request]:
    query, length = request.query_len, request.seq_len
    if not query or not length:  # neither waiting nor padding, unless that is what it is
        yield Request(1, max(length, 1))
        yield Request(1, length)
    if query > 1:
        yield Request(1, length)
        yield Request(query // 2, length)
    step = length // 2
    while step:
        if length - step >= query or query == 1:
            yield Request(min(query, max(length - step, 1)), length - step)
        step //= 2
    if query > 1:
        yield Request(query - 1, length - 1)
