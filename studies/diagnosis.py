"""Fit the likelihoods of `pagedbench diagnose` to recordings, and judge them on others.

    python -m studies.diagnosis fit FOLDER... [--cache FILE]
    python -m studies.diagnosis judge FOLDER... [--cache FILE] [--markdown FILE]

A folder holds recordings as `make incidents` makes them. `fit` looks at those that are not held
out and writes bench/diagnose/fitted.json: how often each finding holds under each cause, how far
the sum of their logarithms is to be tempered, and from what a probability comes to be the share
that is right, both from predictions of each recording by all others. `judge` says how those that
were held out, whose configurations are of ranges that no other has, come out: with events, and
from the metrics alone.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.diagnose.inference import FITTED, Fitted, hits_open, infer, proven, read_fitted, seen
from bench.diagnose.modes import HEALTHY, MODES
from bench.diagnose.observed import merge
from bench.diagnose.readers import read
from bench.diagnose.replicas import replica_statistics
from bench.diagnose.run import BESIDE, SAID, ranked
from bench.diagnose.statistics import Stat, statistics
from bench.diagnose.window import windows

HIT_FAMILY = {
    *("nothing_shared", "varying_prefix", "cache_salts", "prefix_shorter_than_block"),
    *("working_set_too_big", "prefix_evicted", "evicted_between_turns", "round_robin_replicas"),
}
"""Causes of a low hit rate, which the metrics alone may not tell apart."""

INPUTS = {"events": ("metrics", "kv_events", "server"), "metrics": ("metrics", "server")}


@dataclass(frozen=True)
class Recording:
    """What was found in one recording, and what is true of it."""

    name: str
    modes: tuple[str, ...]
    holds: dict[str, list[dict[str, float]]]
    """By what was given, and engine: how sure each finding is."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("fit", "judge"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    recordings = load(asked.folders, asked.cache, held_out=asked.what == "judge")
    print(f"{len(recordings)} recordings")
    if asked.what == "fit":
        write_fit(recordings)
    else:
        judge(recordings, read_fitted(FITTED), asked.markdown)


def load(folders: Iterable[Path], cache: Path | None, *, held_out: bool) -> list[Recording]:
    known: dict[str, tuple[float, dict[str, list[dict[str, Stat]]]]] = {}
    if cache is not None and cache.is_file():
        known = pickle.loads(cache.read_bytes())
    result = []
    for folder in sorted(each for given in folders for each in given.iterdir()):
        truth = folder / "truth.json"
        if not truth.is_file():
            continue
        said = json.loads(truth.read_text(encoding="utf-8"))
        if said["held_out"] != held_out:
            continue
        key, changed = str(folder), truth.stat().st_mtime
        if key not in known or known[key][0] != changed:
            known[key] = (changed, _statistics(folder))
            if cache is not None and len(known) % 50 == 0:
                cache.write_bytes(pickle.dumps(known))
        holds = {what: [seen(stats) for stats in of] for what, of in known[key][1].items()}
        result.append(Recording(folder.name, tuple(said["modes"]), holds))
    if cache is not None:
        cache.write_bytes(pickle.dumps(known))
    return result


def _statistics(folder: Path) -> dict[str, list[dict[str, Stat]]]:
    """By what is given, and engine."""
    parts = {
        file.name.partition(".")[0]: part
        for file in sorted(folder.iterdir())
        if file.name.startswith(INPUTS["events"]) and (part := read(file)) is not None
    }
    found = {}
    for what, names in INPUTS.items():
        every = windows(merge(parts[name] for name in names if name in parts))
        common = replica_statistics(every)
        found[what] = [{**statistics(window), **common} for window in every]
    return found


def counted(recordings: Iterable[Recording]) -> dict[str, dict[str, list[float]]]:
    """In how many recordings of each mode each finding held, of how many that show it."""
    held: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    for recording in recordings:
        if len(recording.modes) != 1:
            continue
        engines = recording.holds["events"]
        for name in {name for holds in engines for name in holds}:
            sure = [holds[name] for holds in engines if name in holds]
            row = held[recording.modes[0]][name]
            row[0] += sum(sure) / len(sure)
            row[1] += 1
    return held


def _without(
    held: dict[str, dict[str, list[float]]], recording: Recording
) -> dict[str, dict[str, list[float]]]:
    if len(recording.modes) != 1:
        return held
    own = counted([recording])[recording.modes[0]]
    mode = recording.modes[0]
    rest = {
        name: [row[0] - own.get(name, [0, 0])[0], row[1] - own.get(name, [0, 0])[1]]
        for name, row in held[mode].items()
    }
    return {**held, mode: rest}


def probabilities(recording: Recording, what: str, fit: Fitted) -> dict[str, float]:
    """As `bench.diagnose.run` puts engines together; all that is healthy under one name."""
    found: dict[str, float] = {}
    healthy, other = 1.0, 0.0
    for holds in recording.holds[what]:
        posterior = infer(holds, fit)
        healthy, other = min(healthy, posterior.healthy), max(other, posterior.other)
        for mode, probability in posterior.causes.items():
            found[mode] = max(found.get(mode, 0.0), probability)
    for mode, about in MODES.items():
        if about.healthy:
            healthy += found.pop(mode, 0.0)
    every = {HEALTHY: healthy, **found, "other": other}
    return dict(sorted(every.items(), key=lambda each: -each[1]))


def truths(recording: Recording) -> set[str]:
    return {HEALTHY if m == HEALTHY or MODES[m].healthy else m for m in recording.modes}


def write_fit(recordings: Sequence[Recording]) -> None:
    held = counted(recordings)
    best = (-math.inf, 1.0)
    for temper in (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0):
        total = 0.0
        for recording in recordings:
            fit = Fitted(_without(held, recording), temper)
            for what in INPUTS:
                found = probabilities(recording, what, fit)
                true = truths(recording)
                for mode, probability in found.items():
                    p = min(max(probability, 1e-3), 1 - 1e-3)
                    total += math.log(p if mode in true else 1 - p)
        print(f"temper {temper}: log likelihood {total:.1f}")
        best = max(best, (total, temper))
    temper = best[1]
    said = []
    for recording in recordings:
        fit = Fitted(_without(held, recording), temper)
        for what in INPUTS:
            found = probabilities(recording, what, fit)
            first = ranked(found)[0]
            said.append((found[first], first in truths(recording)))
    steps = _isotonic(said)
    rows = {
        mode: {name: [round(row[0], 3), row[1]] for name, row in sorted(of.items())}
        for mode, of in sorted(held.items())
    }
    record = {
        "recordings": len(recordings),
        "temper": temper,
        "calibration": steps,
        "held": rows,
    }
    FITTED.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"wrote {FITTED}: temper {temper}, calibration {steps}")


def _isotonic(said: list[tuple[float, bool]]) -> list[list[float]]:
    """Share that was right, never falling with what was said; blocks of twenty and more."""
    said = sorted(said)
    blocks: list[list[float]] = []
    for chunk in np.array_split(np.array(said, dtype=np.float64), max(len(said) // 20, 1)):
        blocks.append([float(chunk[:, 0].mean()), float(chunk[:, 1].mean()), len(chunk)])
        while len(blocks) > 1 and blocks[-2][1] >= blocks[-1][1]:
            two, one = blocks.pop(), blocks.pop()
            n = one[2] + two[2]
            blocks.append([(one[k] * one[2] + two[k] * two[2]) / n for k in (0, 1)] + [n])
    # Nobody is ever surer than a recording more would leave them.
    return [[round(p, 3), round((r * n + 0.5) / (n + 1), 3)] for p, r, n in blocks]


def judge(recordings: Sequence[Recording], fit: Fitted, markdown: Path | None) -> None:
    lines: list[str] = []
    for what in INPUTS:
        lines += _judged(recordings, fit, what)
    print("\n".join(lines))
    if markdown is not None:
        markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _judged(recordings: Sequence[Recording], fit: Fitted, what: str) -> list[str]:
    tally: Counter[str] = Counter()
    matrix: dict[str, Counter[str]] = defaultdict(Counter)
    bands: dict[int, list[bool]] = defaultdict(list)
    wrong = []
    for recording in recordings:
        true, found = truths(recording), probabilities(recording, what, fit)
        order = ranked(found)
        first, sure = order[0], fit.confidence(found[order[0]])
        family = bool(true & HIT_FAMILY or set(recording.modes) & HIT_FAMILY)
        told = found[first] >= SAID
        if first == HEALTHY and any(map(hits_open, recording.holds[what])):
            told = False
        if first in MODES and not any(proven(first, holds) for holds in recording.holds[what]):
            told = False
        tally["all"] += 1
        tally["first"] += first in true
        tally["three"] += true <= set(order[:3])
        tally["told"] += told
        tally["told right"] += told and first in true
        tally["abstained, hit rate"] += not told and family
        if len(true) == 1:
            matrix["+".join(recording.modes)][first if told else "cannot tell"] += 1
        else:
            tally["two"] += 1
            tally["both named"] += all(found[m] >= BESIDE for m in true)
            tally["both in three"] += true <= set(order[:3])
        if true == {HEALTHY}:
            tally["healthy"] += 1
            tally["healthy called ill"] += told and first != HEALTHY
        if told:
            bands[min(int(sure * 10), 9)].append(first in true)
        if first not in true:
            top = ", ".join(f"{m} {found[m]:.2f}" for m in order[:3])
            wrong.append(f"{recording.name}: {top}")
    lines = [f"## {what}", ""]
    lines += [f"* {name}: {number}" for name, number in tally.items()]
    lines += ["", "| said | right | of |", "| --- | --- | --- |"]
    lines += [
        f"| {band * 10} to {band * 10 + 10} % | {sum(right) / len(right):.0%} | {len(right)} |"
        for band, right in sorted(bands.items())
    ]
    lines += ["", "| true | found |", "| --- | --- |"]
    for mode, row in sorted(matrix.items()):
        cells = ", ".join(f"{name} {number}" for name, number in row.most_common())
        lines.append(f"| {mode} | {cells} |")
    return [*lines, "", "Wrong:", "", *(f"* {each}" for each in wrong), ""]


if __name__ == "__main__":
    main()
