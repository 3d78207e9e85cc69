"""Smaller problems than one that fails: the same bug, or another would be reported in its place.

Nothing is added, and neither dtype nor cache dtype nor inputs are changed: whatever a smaller
problem shows, the larger one had.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Final

from reference.attention.problem import AttentionProblem, InvalidProblem, Request

_PLAIN: Final = (
    "pool", "strides", "layout", "spare", "window", "softcap", "alibi", "sinks", "scale",
    "k_scale", "v_scale", "causal", "shared_prefix", "num_kv_heads",
)  # fmt: skip
_DEFAULTS: Final = {field.name: field.default for field in fields(AttentionProblem)}
_PLACE = re.compile(r"\(at (\S+:\d+)\)$")
_LINE = re.compile(r"^(.*? in \S+:\d+),")


def kind_of(findings: Sequence[str]) -> str:
    """What the first finding is about, without the numbers of its problem: which fault in which
    line, which exception, which answer.
    """
    first = findings[0] if findings else ""
    if first.startswith("raised "):
        place = _PLACE.search(first)
        return first.split(":")[0] + (f" at {place[1]}" if place else "")
    if line := _LINE.match(first):
        return line[1]
    words = re.split(r"[\[(:\d]", first, maxsplit=1)[0].strip()
    return f"{words} is nan" if "] is nan," in first else words


def minimise(
    problem: AttentionProblem, shows: Callable[[AttentionProblem], bool]
) -> AttentionProblem:
    """The smallest that still `shows` it, taking the first smaller one each time."""
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(problem):
            if smaller != problem and shows(smaller):
                problem, progress = smaller, True
                break
    return problem


def _smaller(problem: AttentionProblem) -> Iterator[AttentionProblem]:
    """Problems with less of something, what saves most first."""
    for changes in _changes(problem):
        try:
            yield problem.replace(**changes)
        except InvalidProblem:
            continue  # a window needs causal attention, a pool its blocks


def _changes(problem: AttentionProblem) -> Iterator[dict[str, Any]]:
    batch = problem.requests
    if len(batch) > 1:
        half = len(batch) // 2
        parts = [batch[half:], batch[:half]]
        parts += [batch[:at] + batch[at + 1 :] for at in range(len(batch)) if len(batch) > 2]
        yield from ({"requests": part} for part in parts)
    for at, request in enumerate(batch):
        for smaller in _shorter(request):
            yield {"requests": (*batch[:at], smaller, *batch[at + 1 :])}
    for name in _PLAIN:
        if getattr(problem, name) != _DEFAULTS[name]:
            yield {name: _DEFAULTS[name]}
    for name, least in (("group_size", (1, 2)), ("head_dim", (16, 32, 64)), ("block_size", (16,))):
        value = getattr(problem, name)
        yield from ({name: size} for size in least if size < value)
    if problem.num_kv_heads > 2:
        yield {"num_kv_heads": 2}
    for name in problem.strides:
        yield {"strides": tuple(other for other in problem.strides if other != name)}
    if problem.seed:
        yield {"seed": 0}


def _shorter(request: Request) -> Iterator[Request]:
    query, length = request.query_len, request.seq_len
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
