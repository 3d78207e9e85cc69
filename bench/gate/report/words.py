"""What the reports of a gate run say alike: figures as text, and which rows matter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Final

from bench.command.words import plural, some_of
from bench.gate.record import (
    BenchmarkRecord,
    ContestantRecord,
    CounterRecord,
    Estimate,
    GateRecord,
    OutputRecord,
    SubjectKind,
    TruthRecord,
    Verdict,
)
from bench.gate.verdict import said_truth


def bounds(estimate: Estimate | None) -> str:
    """Bounds of a ratio at 95 %, as changes; a dash where there are none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{100 * (estimate.low - 1):+.1f} to {100 * (estimate.high - 1):+.1f} %"


def count(value: int | None, unit: str) -> str:
    """A counter's value with its unit, or that it is not there."""
    return "not there" if value is None else f"{value:,} {unit}".rstrip()


def counter_change(counter: CounterRecord) -> str:
    """By how much a counter changed. Counters are exact: a small change is not rounded away."""
    if counter.change is None:
        return "from 0" if counter.base == 0 and counter.head else "-"
    shown = f"{100 * counter.change:+.2f} %"
    return f"{100 * counter.change:+.2g} %" if counter.change and float(shown[:-2]) == 0 else shown


def launches(benchmark: BenchmarkRecord) -> str:
    """How many launches a verdict rests on: `19`, or `9+13` with a confirmation."""
    screen = sum(sample.stage == "screen" for sample in benchmark.samples)
    confirm = len(benchmark.samples) - screen
    return f"{screen}+{confirm}" if confirm else str(screen)


def said_verdict(benchmark: BenchmarkRecord) -> str:
    """The verdict, and what else is to be said in a word."""
    if benchmark.verdict == "pass" and benchmark.improved:
        return "faster"
    return "noisy" if benchmark.quarantined else benchmark.verdict


def benchmarks_that_matter(record: GateRecord) -> list[BenchmarkRecord]:
    """Those that were looked at and did not plainly pass: failed, then undecided, then faster."""
    order = {"fail": 0, "inconclusive": 1, "pass": 2}
    without = {each.key for each in untimed(record)}
    some = [each for each in record.benchmarks if each.verdict != "pass" or each.improved]
    return sorted(
        (each for each in some if each.key not in without), key=lambda each: order[each.verdict]
    )


def by_reason(benchmarks: Iterable[BenchmarkRecord]) -> Iterator[tuple[Verdict, str]]:
    """A line for each reason: where a run was cut short, it is one for all benchmarks."""
    found: dict[tuple[Verdict, str], list[str]] = {}
    for each in benchmarks:
        found.setdefault((each.verdict, each.reason), []).append(each.key)
    for (verdict, reason), keys in found.items():
        yield verdict, f"{some_of(keys)}: {reason}"


UNTIMED: Final[dict[Verdict, str]] = {"not run": "not run", "inconclusive": "not decided"}


def untimed(record: GateRecord) -> list[BenchmarkRecord]:
    """Those of which there is nothing to show but why."""
    return [
        each
        for each in record.benchmarks
        if each.verdict == "not run" or (each.verdict == "inconclusive" and not each.samples)
    ]


def counters_that_matter(record: GateRecord) -> list[CounterRecord]:
    """Those that are not equal: failed first, then worse, better, not there."""
    order = {"worse": 1, "better": 2, "not there": 3}
    some = [each for each in record.counters if each.verdict != "equal"]
    return sorted(some, key=lambda each: 0 if each.fails else order[each.verdict])


def outputs_that_matter(record: GateRecord) -> list[OutputRecord]:
    """Those that are not the same bits: differing first."""
    order = {"differs": 0, "within tolerance": 1, "not there": 2}
    some = [each for each in record.outputs if each.verdict != "equal"]
    return sorted(some, key=lambda each: order[each.verdict])


def without_outputs(record: GateRecord) -> str:
    """How many benchmarks have no outputs that were compared, for the end of a sentence."""
    compared = {each.benchmark for each in record.outputs}
    left = sum(each.key not in compared for each in record.benchmarks)
    return f"; outputs of {plural(left, 'benchmark')} are not compared" if left else ""


def truth_that_matters(record: GateRecord) -> list[tuple[TruthRecord, str]]:
    """Subjects that are not simply right on both sides, wrong ones first, each with its words."""
    order = {"wrong": 0, "not checked": 1, "not there": 2, "right": 3}
    some = [each for each in record.truth if {each.base.verdict, each.head.verdict} != {"right"}]
    return [
        (each, words_of_truth(each)) for each in sorted(some, key=lambda e: order[e.head.verdict])
    ]


def words_of_truth(truth: TruthRecord) -> str:
    """What was found of a subject, in a line."""
    if truth.head.verdict == "wrong":
        return f"wrong: {said_truth(truth)}"
    if truth.mended:
        return f"mended: base is wrong: {truth.base.finding}"
    if truth.head.verdict == "right":
        words = f"right: {plural(truth.head.tried, TRIED[truth.kind])}"
        return (
            f"{words}; base was not checked: {truth.base.finding}" if truth.base.finding else words
        )
    return f"{truth.head.verdict}: {truth.head.finding}"


def builds_in_words(record: GateRecord) -> list[str]:
    """A line for each side that was built."""
    how = {True: "there already", False: "built"}
    return [
        f"{each.side} does not build; all of it in {each.log or 'no file'}:\n{each.said}"
        if each.failed
        else f"{each.side} {how[each.kept]} in {each.seconds:.1f} s"
        for each in record.builds
    ]


TRIED: Final[dict[SubjectKind, str]] = {"kernel": "problem", "allocator": "program"}


def contestant(side: ContestantRecord) -> str:
    """What a side is: its name, the commit where the name does not say it, uncommitted changes."""
    said = side.name
    if side.commit and not side.commit.startswith(side.name) and side.commit[:8] not in side.name:
        said += f" at {side.commit[:12]}"
    return f"{said}, with uncommitted changes" if side.dirty else said


def on_purpose(record: GateRecord) -> str:
    """What a self-test did to its sides; nothing for a gate."""
    if record.mode == "aa":
        return "a self-test: base and head are the same"
    if record.mode == "plant":
        plant = 100 * record.parameters.plant
        return f"a self-test: head is the base with {plant:.3g} % of extra work"
    return ""


def environments(record: GateRecord) -> list[str]:
    """Where it was measured: one line, or one for each side where they differ."""
    sides = {"base": record.base.environment, "head": record.head.environment}
    lines = {}
    if sides["base"] is sides["head"] is None:
        return []
    for name, where in sides.items():
        if where is None:
            lines[name] = "its worker never started"
            continue
        parts = [where.device, f"driver {where.driver}" if where.driver else ""]
        parts += [f"CUDA {where.cuda}" if where.cuda else "", f"torch {where.torch}"]
        parts += [f"triton {where.triton}", f"Python {where.python}", f"timer {where.timer}"]
        lines[name] = ", ".join(part for part in parts if part)
    if lines["base"] == lines["head"]:
        return [lines["base"]]
    return [f"{name}: {line}" for name, line in lines.items()]


def runner_noise(record: GateRecord) -> str:
    """How noisy the runner was: spread over launches, and the load of the machine."""
    spreads = [each.launch_sd for each in record.benchmarks if each.launch_sd is not None]
    if not spreads:
        return "the runner's noise was not measured: too few launches"
    said = f"launches spread by {_range([100 * sd for sd in spreads], digits=1)} % (SD)"
    quiet = [each for each in record.benchmarks if each.quarantined]
    if quiet:
        said += f", {len(quiet)} too noisy to be judged"
    loads = [launch.load for launch in record.launches]
    return f"{said}; load {_range(loads, digits=1)}" if loads else said


def _range(values: Sequence[float], *, digits: int) -> str:
    middle, low, high = median(values), min(values), max(values)
    if f"{low:.{digits}f}" == f"{high:.{digits}f}":
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def error_rates(record: GateRecord) -> str:
    """By which rule it was judged, in a sentence."""
    by = record.parameters
    return (
        f"fails if slower by more than {100 * by.margin:.3g} % (exact signed-rank test over "
        f"launches, {100 * by.alpha:.3g} % for each benchmark, Holm {100 * by.family_alpha:.3g} % "
        f"over the suite, confirmed on fresh launches); passes once "
        f"{100 * by.equivalence:.3g} % is ruled out"
    )
