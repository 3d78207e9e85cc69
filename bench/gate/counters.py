"""Outputs and exact counters of both sides: equal, better, or worse by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.gate.benchmark import Count
from bench.gate.record import CounterRecord, OutputRecord

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
    """Compare the outputs of one benchmark, as the workers describe them.

    An output that only one side has is a difference of its own.
    """
    ours = {each["name"]: each for each in head}
    theirs = {each["name"]: each for each in base}
    compared = []
    for name in dict.fromkeys((*ours, *theirs)):
        if name not in ours or name not in theirs:
            where = "base" if name in theirs else "head"
            compared.append(
                OutputRecord(
                    benchmark=benchmark, name=name, verdict="differs", note=f"only {where} has it"
                )
            )
            continue
        one, other = (_array(each[name]) for each in (theirs, ours))
        round_off = max(theirs[name]["round_off"], ours[name]["round_off"])
        compared.append(_compare_arrays(benchmark, name, one, other, round_off))
    return compared


def _array(described: Mapping[str, Any]) -> NDArray[Any]:
    array: NDArray[Any] = np.load(Path(described["file"]), allow_pickle=False)
    return array


def _compare_arrays(
    benchmark: str, name: str, base: NDArray[Any], head: NDArray[Any], round_off: float
) -> OutputRecord:
    if base.shape != head.shape:
        return OutputRecord(
            benchmark=benchmark,
            name=name,
            verdict="differs",
            note=f"shape {base.shape} at base, {head.shape} at head",
        )
    same = np.equal(base, head) | (_nan(base) & _nan(head))
    if bool(same.all()):
        return OutputRecord(benchmark=benchmark, name=name, verdict="equal")
    where = tuple(int(index) for index in np.argwhere(~same)[0])
    note = (
        f"{int(np.count_nonzero(~same))} of {base.size} elements, the first at {where}: "
        f"{base[where]} at base, {head[where]} at head"
    )
    if not round_off:
        return OutputRecord(benchmark=benchmark, name=name, verdict="differs", note=note)
    gaps = np.abs(base[~same].astype(np.float64) - head[~same].astype(np.float64))
    largest = float(gaps.max()) if np.isfinite(gaps).all() else None
    finite = base[np.isfinite(base)]
    limit = 2 * ROUNDINGS * round_off * float(np.abs(finite).max(initial=0.0))
    within = largest is not None and largest <= limit
    return OutputRecord(
        benchmark=benchmark,
        name=name,
        verdict="within tolerance" if within else "differs",
        difference=largest,
        limit=limit,
        note=note,
    )


def _nan(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind != "f":
        return np.zeros(values.shape, np.bool_)
    nan: NDArray[np.bool_] = np.isnan(values)
    return nan
