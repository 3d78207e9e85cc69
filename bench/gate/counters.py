"""Outputs and exact counters of both sides: equal, better, or worse by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.gate.benchmark import Count
from bench.gate.record import CounterRecord, OutputRecord, OutputVerdict

DEFAULT_LIMITS: Final[Mapping[str, float]] = {
    "*": 0.0,
    # A call more on a path of hundreds is not worth a red build; a loop that crept in is.
    "calls": 0.005,
    # Machine code: a compiler's choices move it a little. Below 1 %, as every limit here: one per
    # cent more of anything that is counted is found.
    "instructions*": 0.005,
}
"""By how much a counter may be worse, as a fraction. A pattern is of the counter's name, or of the
benchmark and the name as in `waste/*:peak_slots`; the last one that fits holds."""

ROUNDINGS: Final = 4
"""Of either side, in unit round-offs of the largest magnitude: its result is rounded, and what that
is computed from; two right answers differ by twice as much at most.
"""


def limit_of(benchmark: str, name: str, limits: Mapping[str, float]) -> float:
    """The limit that holds for a counter: the last pattern that fits, defaults first."""
    found = 0.0
    for pattern, limit in {**DEFAULT_LIMITS, **limits}.items():
        literal = pattern.replace("[", "[[]")
        if fnmatchcase(f"{benchmark}:{name}" if ":" in pattern else name, literal):
            found = limit
    return found


def compare_counters(
    benchmark: str,
    base: Mapping[str, Count] | None,
    head: Mapping[str, Count] | None,
    limits: Mapping[str, float],
) -> list[CounterRecord]:
    """Compare all counters of one benchmark; None: the side does not have the benchmark."""
    base, head = base or {}, head or {}
    return [
        _compare(benchmark, name, base.get(name), head.get(name), limit_of(benchmark, name, limits))
        for name in dict.fromkeys((*head, *base))
    ]


def _compare(
    benchmark: str, name: str, base: Count | None, head: Count | None, limit: float
) -> CounterRecord:
    known = head or base
    assert known is not None
    change = None
    fails = False
    if base is None or head is None:
        verdict = "not there"
    elif base.value == head.value:
        verdict, change = "equal", 0.0
    else:
        worse = (head.value < base.value) == known.more_is_better
        verdict = "worse" if worse else "better"
        if base.value:
            change = (head.value - base.value) / base.value
        # From nothing to something is more than any fraction.
        fails = worse and (change is None or abs(change) > limit)
    return CounterRecord.model_validate(
        {
            "benchmark": benchmark,
            "name": name,
            "unit": known.unit,
            "base": None if base is None else base.value,
            "head": None if head is None else head.value,
            "more_is_better": known.more_is_better,
            "change": change,
            "limit": limit,
            "verdict": verdict,
            "fails": fails,
        }
    )


def compare_outputs(
    benchmark: str, base: Sequence[Mapping[str, Any]], head: Sequence[Mapping[str, Any]]
) -> list[OutputRecord]:
    """Compare the outputs of one benchmark, as the workers describe them."""
    ours, theirs = ({each["name"]: each for each in side} for side in (head, base))
    return [
        _compare_output(benchmark, name, theirs.get(name), ours.get(name))
        for name in dict.fromkeys((*ours, *theirs))
    ]


def _compare_output(
    benchmark: str,
    name: str,
    base_described: Mapping[str, Any] | None,
    head_described: Mapping[str, Any] | None,
) -> OutputRecord:
    def found(verdict: OutputVerdict, note: str = "", **figures: float | None) -> OutputRecord:
        return OutputRecord(benchmark=benchmark, name=name, verdict=verdict, note=note, **figures)

    if base_described is None or head_described is None:
        return found("differs", f"only {'head' if base_described is None else 'base'} has it")
    both = (base_described, head_described)
    base, head = (np.load(Path(each["file"]), allow_pickle=False) for each in both)
    if base.shape != head.shape:
        return found("differs", f"shape {base.shape} at base, {head.shape} at head")
    same = np.equal(base, head) | (_nan(base) & _nan(head))
    if bool(same.all()):
        return found("equal")
    where = tuple(int(index) for index in np.argwhere(~same)[0])
    note = (
        f"{int(np.count_nonzero(~same))} of {base.size} elements, the first at {where}: "
        f"{base[where]} at base, {head[where]} at head"
    )
    limits = _limits(both, base)
    if limits is None:
        return found("differs", note)
    gaps = np.abs(base.astype(np.float64) - head.astype(np.float64))[~same]
    limits = np.broadcast_to(limits, base.shape)[~same]
    finite = bool(np.isfinite(gaps).all())
    worst = int((gaps - limits).argmax()) if finite else 0
    verdict: OutputVerdict = (
        "within tolerance" if finite and bool((gaps <= limits).all()) else "differs"
    )
    return found(
        verdict,
        note,
        difference=float(gaps[worst]) if finite else None,
        limit=float(limits[worst]),
    )


def _limits(both: Sequence[Mapping[str, Any]], base: NDArray[Any]) -> NDArray[np.float64] | None:
    """How far each value may differ between the sides; None where it may not."""
    if all("allowed" in each for each in both):
        # Either may be so far from the truth.
        one, other = (np.load(Path(each["allowed"]), allow_pickle=False) for each in both)
        allowed: NDArray[np.float64] = one + other
        return allowed
    round_off = max(each["round_off"] for each in both)
    if not round_off:
        return None
    finite = base[np.isfinite(base)]
    largest = float(np.abs(finite).max(initial=0.0))
    return np.asarray(2 * ROUNDINGS * round_off * largest)


def _nan(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind != "f":
        return np.zeros(values.shape, np.bool_)
    nan: NDArray[np.bool_] = np.isnan(values)
    return nan
