"""From launches to verdicts; the same from a record alone as while it was made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bench.command.exit_codes import HARNESS_FAILED, INCONCLUSIVE, OUTPUTS_DIFFER, RIGHT, WRONG
from bench.command.words import one_line, percent, plural, some_of
from bench.gate.record import (
    BenchmarkRecord,
    BuildRecord,
    CounterRecord,
    Design,
    Estimate,
    GateRecord,
    LookRecord,
    OutputRecord,
    RunVerdict,
    Sample,
    TruthRecord,
)
from bench.gate.statistics import (
    FEWEST_FOR_BOUNDS,
    hodges_lehmann,
    holm,
    p_faster,
    p_not_slower,
    p_slower,
    robust_sd,
    two_stage_p,
)

Clock = Literal["timer", "wall"]
CLOCKS: Final[tuple[Clock, ...]] = ("timer", "wall")

FEWEST_FOR_SD: Final = 4

SHOWN: Final = 300
"""Characters of a finding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What the launches of one benchmark say, before the rest of the suite is known."""

    looks: tuple[LookRecord, ...]
    """At the tests."""
    suspect: Clock | None
    """The clock by which the screening found it slower."""
    confirmed: bool
    """Whether fresh launches did so, too."""
    passed: bool
    improved: bool
    """Whether a slowdown is ruled out; whether it is faster by more than the margin."""
    launch_sd: float | None
    """As in the record."""
    quarantined: bool
    """Whether that is too much for a verdict, with none found."""
    p: Mapping[Clock, float] | None
    """Two-stage p-value of either clock; None before the first look."""
    over: bool
    """Whether more launches could change nothing."""


def examine(samples: Sequence[Sample], design: Design) -> Examined:
    """Look at the launches of one benchmark as far as they go.

    A look takes the launches of its stage up to its number: a record gives the same verdict.
    """
    screen = [sample for sample in samples if sample.stage == "screen"]
    confirm = [sample for sample in samples if sample.stage == "confirm"]
    level = design.alpha / len(design.looks)
    d = [sample.d_timer for sample in screen]
    looks: list[LookRecord] = []
    suspect: Clock | None = None
    passed = improved = quarantined = False
    for number in design.looks:
        if len(screen) < number:
            break
        look = _look("screen", screen[:number], design)
        looks.append(look)
        improved = look.p_fast <= level
        if look.p_slow <= level:
            suspect = "timer"
        elif look.p_wall <= level:
            suspect = "wall"
        else:
            passed = look.p_same <= level
        if suspect or passed:
            break
        # From the second look on: the spread of the first is itself known to a quarter only.
        spread = robust_sd(d[:number])
        if number != design.looks[0] and spread > design.quarantine_sd:
            quarantined = True
            break
    screened = len(looks)
    confirmed = False
    if suspect is not None:
        for number in design.confirm_looks:
            if len(confirm) < number or confirmed:
                break
            look = _look("confirm", confirm[:number], design)
            looks.append(look)
            confirmed = _p(look, suspect) <= design.confirm_alpha / len(design.confirm_looks)
    over = (
        passed
        or quarantined
        or confirmed
        or (suspect is None and screened == len(design.looks))
        or (suspect is not None and len(looks) - screened == len(design.confirm_looks))
    )
    return Examined(
        looks=tuple(looks),
        suspect=suspect,
        confirmed=confirmed,
        passed=passed,
        improved=improved and not suspect,
        launch_sd=robust_sd(d) if len(d) >= FEWEST_FOR_SD else None,
        quarantined=quarantined,
        p=_two_stages(looks[:screened], looks[screened:], suspect, design) if looks else None,
        over=over,
    )


def _look(
    stage: Literal["screen", "confirm"], samples: Sequence[Sample], design: Design
) -> LookRecord:
    d = [sample.d_timer for sample in samples]
    return LookRecord(
        stage=stage,
        launches=len(samples),
        p_slow=float(p_slower(d, design.margin)),
        p_same=float(p_not_slower(d, design.equivalence)),
        p_fast=float(p_faster(d, design.margin)),
        p_wall=float(p_slower([sample.d_wall for sample in samples], design.wall_margin)),
    )


def _p(look: LookRecord, clock: Clock) -> float:
    return look.p_slow if clock == "timer" else look.p_wall


def _two_stages(
    screen: Sequence[LookRecord],
    confirm: Sequence[LookRecord],
    suspect: Clock | None,
    design: Design,
) -> dict[Clock, float]:
    values: dict[Clock, float] = {}
    for clock in CLOCKS:
        first = len(design.looks) * min(_p(look, clock) for look in screen)
        second = None
        if clock == suspect and confirm:
            second = len(design.confirm_looks) * min(_p(look, clock) for look in confirm)
        # A clock that is not the suspect's was not confirmed by anything.
        values[clock] = two_stage_p(first, second, alpha=design.alpha)
    return values


def judge(record: GateRecord) -> GateRecord:
    """Come to the verdicts of a record again, from its launches, counters and outputs alone.

    A run that the harness failed in, or that was interrupted, stays what it is: no sample says so.
    """
    benchmarks = judge_benchmarks(
        record.benchmarks, record.parameters, counters=record.counters, complete=record.complete
    )
    changes: dict[str, object] = {"benchmarks": benchmarks}
    if record.verdict not in {"harness failed", "interrupted"}:
        verdict, code, reason = judge_run(
            benchmarks,
            record.counters,
            record.outputs,
            truth=record.truth,
            builds=record.builds,
        )
        changes |= {"verdict": verdict, "exit_code": code, "reason": reason}
    return record.model_copy(update=changes)


def judge_benchmarks(
    benchmarks: Sequence[BenchmarkRecord],
    design: Design,
    *,
    counters: Sequence[CounterRecord],
    complete: bool,
) -> list[BenchmarkRecord]:
    """Judge each benchmark among the others: by its counters, then by its time."""
    examined = {each.key: examine(each.samples, design) for each in benchmarks if each.timed}
    # Holm over the suite: two hypotheses a benchmark, one for each clock; one that was not looked
    # at is not rejected, and counts.
    family = {
        (key, clock): 1.0 if found.p is None else found.p[clock]
        for key, found in examined.items()
        for clock in CLOCKS
    }
    adjusted = dict(zip(family, holm(list(family.values())).tolist(), strict=True))
    failing: dict[str, list[CounterRecord]] = {}
    for counter in counters:
        if counter.fails:
            failing.setdefault(counter.benchmark, []).append(counter)
    return [
        _judged(
            each,
            examined.get(each.key),
            {clock: adjusted[each.key, clock] for clock in CLOCKS if each.timed},
            design,
            failing=failing.get(each.key, []),
            complete=complete,
        )
        for each in benchmarks
    ]


def _judged(
    benchmark: BenchmarkRecord,
    found: Examined | None,
    adjusted: Mapping[Clock, float],
    design: Design,
    *,
    failing: Sequence[CounterRecord],
    complete: bool,
) -> BenchmarkRecord:
    changes: dict[str, object] = {}
    if found is not None and benchmark.samples:
        clock = found.suspect or "timer"
        cycles = None
        if all(sample.d_cycles is not None for sample in benchmark.samples):
            cycles = _estimate(benchmark.samples, found, "cycles")
        changes |= {
            "looks": list(found.looks),
            "estimate": _estimate(benchmark.samples, found, "timer"),
            "wall_estimate": _estimate(benchmark.samples, found, "wall"),
            "cycles_estimate": cycles,
            "launch_sd": found.launch_sd,
            "p_value": None if found.p is None else found.p[clock],
            "p_holm": adjusted.get(clock),
            "suspect": found.suspect is not None,
            "improved": found.improved,
            "quarantined": found.quarantined,
        }
        estimate = changes["wall_estimate" if clock == "wall" else "estimate"]
        assert isinstance(estimate, Estimate)
        verdict, reason = _timed_verdict(
            found, adjusted.get(clock), estimate, benchmark.samples, design, complete=complete
        )
        if cycles is not None:
            reason += f"; {percent(cycles.ratio)} in cycles of the GPU's clock"
        changes |= {"verdict": verdict, "reason": reason}
    if failing:
        said = "; ".join(_said(counter) for counter in failing)
        changes |= {"verdict": "fail", "reason": said}
    return benchmark.model_copy(update=changes)


def _estimate(
    samples: Sequence[Sample], found: Examined, clock: Clock | Literal["cycles"]
) -> Estimate:
    """Of a suspect from fresh launches, once there are enough: the others made it one."""
    confirm = [sample for sample in samples if sample.stage == "confirm"]
    used = [sample for sample in samples if sample.stage == "screen"]
    if found.suspect is not None and len(confirm) >= FEWEST_FOR_BOUNDS:
        used = confirm
    centre, low, high = hodges_lehmann([getattr(sample, f"d_{clock}") for sample in used])
    return Estimate(ratio=math.exp(centre), low=_bound(low), high=_bound(high))


def _bound(logarithm: float | None) -> float | None:
    return None if logarithm is None else math.exp(logarithm)


def _timed_verdict(
    found: Examined,
    p_holm: float | None,
    estimate: Estimate,
    samples: Sequence[Sample],
    design: Design,
    *,
    complete: bool,
) -> tuple[str, str]:
    screened = sum(sample.stage == "screen" for sample in samples)
    fresh = len(samples) - screened
    change = percent(estimate.ratio)
    after = f"after {plural(screened, 'launch', 'launches')}"
    some_fresh = plural(fresh, "fresh launch", "fresh launches")
    why_not_more = "the run ended" if complete else "the run was cut short"
    if found.passed:
        how = "faster" if found.improved else "not slower"
        return "pass", f"{how}: {100 * design.equivalence:g} % slower is ruled out {after}"
    if found.suspect is not None:
        what = "slower" if found.suspect == "timer" else "waits longer: wall-clock time"
        if found.confirmed and p_holm is not None and p_holm <= design.family_alpha:
            return "fail", f"{what}, {change}, confirmed by {some_fresh}"
        if found.confirmed:
            return "inconclusive", (
                f"{what}, {change}, confirmed, but not among so many benchmarks (Holm: "
                f"p = {p_holm:.2g})"
            )
        if found.over:
            return "inconclusive", f"suspected {after}; not confirmed by {some_fresh}"
        return "inconclusive", f"suspected {after}; {why_not_more} after {some_fresh}"
    if found.quarantined:
        assert found.launch_sd is not None
        return "inconclusive", (
            f"quarantined: launches spread by {100 * found.launch_sd:.1f} %, more than "
            f"{100 * design.quarantine_sd:g} %"
        )
    if found.over:
        return "inconclusive", (
            f"neither slower than {100 * design.margin:g} % nor within "
            f"{100 * design.equivalence:g} % {after}"
        )
    return "inconclusive", f"{why_not_more} {after}"


def _said(counter: CounterRecord) -> str:
    by = "from 0" if counter.change is None else f"{100 * counter.change:+.3g} %"
    return f"{counter.name} {counter.base:,} -> {counter.head:,} {counter.unit} ({by})"


def judge_run(
    benchmarks: Sequence[BenchmarkRecord],
    counters: Sequence[CounterRecord],
    outputs: Sequence[OutputRecord],
    *,
    truth: Sequence[TruthRecord] = (),
    builds: Sequence[BuildRecord] = (),
) -> tuple[RunVerdict, int, str]:
    """Verdict, exit code and reason of a run that the harness did not fail in."""
    if any(each.failed and each.side == "head" for each in builds):
        last = next(each.said for each in builds if each.side == "head").splitlines()[-1:]
        return "fails to build", WRONG, f"head fails to build: {''.join(last)}"
    wrong = [each for each in truth if each.head.verdict == "wrong"]
    if wrong:
        more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return "wrong", WRONG, f"{wrong[0].subject} is wrong: {said_truth(wrong[0])}{more}"
    differing = [each for each in outputs if each.verdict == "differs"]
    if differing:
        first = differing[0]
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        return (
            "outputs differ",
            OUTPUTS_DIFFER,
            f"{first.name} of {first.benchmark} differs: {first.note}{more}",
        )
    failed = [each.key for each in benchmarks if each.verdict == "fail"]
    # Compiled kernels have counters and are no benchmarks.
    keys = {each.key for each in benchmarks}
    failed += dict.fromkeys(
        each.benchmark for each in counters if each.fails and each.benchmark not in keys
    )
    if failed:
        return "fail", WRONG, f"worse: {some_of(failed)}"
    undecided = [each.key for each in benchmarks if each.verdict == "inconclusive"]
    if undecided:
        return "inconclusive", INCONCLUSIVE, f"not decided: {some_of(undecided)}"
    mended = [each.subject for each in truth if each.mended]
    said = [f"mended: {some_of(mended)}"] if mended else []
    passed = sum(each.verdict == "pass" for each in benchmarks)
    if passed:
        said.append(f"none of {plural(passed, 'benchmark')} is worse")
    elif right := [each.subject for each in truth if each.head.verdict == "right"]:
        if not mended:
            said.append(f"{some_of(right)}: right, and base has nothing to compare with")
    else:
        return (
            "harness failed",
            HARNESS_FAILED,
            "nothing was compared: the base's tree has none of the benchmarks",
        )
    return "pass", RIGHT, "; ".join(said)


def said_truth(truth: TruthRecord) -> str:
    """What is wrong with head's subject, and since when."""
    head = truth.head
    what = "it does not import" if head.check == "import" else f"check {head.check}"
    since = {
        "right": "base is right",
        "wrong": "base is wrong, too",
        "not there": "base does not have it",
        "not checked": "base was not checked",
    }[truth.base.verdict]
    where = f" at {head.problem}" if head.problem else ""
    return f"{what}{where}: {one_line(head.finding, limit=SHOWN)} ({since})"
