"""What `pagedbench waste` simulates, round by round: of --whatif, each what the last one says.

Single changes, without those that cannot matter; pairs of the best; and more drawings of the
stream, of the base and of what could be recommended. All within a stated number of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from bench.waste.changes import MATTERS, PAIR, cannot_matter, pairs
from bench.waste.parallel import Job
from bench.waste.plan import WastePlan
from bench.waste.record import WasteRecord, WasteRow
from bench.waste.simulate import takes_tiers
from bench.waste.whatif import NOTHING, WhatIf, best_of_each, compare

PAIRED: Final = 4
"""Best single changes of which two are made together, one of each option."""

FINALISTS: Final = 2
"""Best single changes, and best pairs, that are held against the base on every drawing."""


def rounds(
    plan: WastePlan, found: Callable[[], WasteRecord], infer: Callable[[WasteRow], None]
) -> Iterator[tuple[str, list[Job]]]:
    """Yield what to simulate next, and what it is called; `found` has all that was simulated.

    What need not be simulated is handed to `infer`.
    """
    if plan.base is None:
        yield "simulations", plan.jobs()
        return
    left = dict.fromkeys((stream.label for _, stream in plan.streams), plan.runs)

    def within(jobs: Iterator[Job]) -> list[Job]:
        kept = []
        for job in jobs:
            if left[job.stream] > 0:
                left[job.stream] -= 1
                kept.append(job)
        return kept

    yield "changes that always matter", within(_first(plan))
    yield "other changes", within(_rest(plan, found(), infer))
    yield "two changes together", within(_pairs(plan, found()))
    yield "other drawings of the stream", within(_drawings(plan, found()))


def _first(plan: WastePlan) -> Iterator[Job]:
    assert plan.base is not None
    for at, (_, stream) in enumerate(plan.streams):
        yield plan.job(at, plan.base)
        for each in plan.variations(stream):
            if each.group in MATTERS:
                yield plan.job(at, each.policy)


def _rest(plan: WastePlan, record: WasteRecord, infer: Callable[[WasteRow], None]) -> Iterator[Job]:
    for at, (_, stream) in enumerate(plan.streams):
        base = next((r for r in record.rows_of(stream.label) if r.policy == plan.base), None)
        for each in plan.variations(stream):
            if each.group in MATTERS:
                continue
            if base is not None and cannot_matter(each.policy, base, timed=stream.timed):
                same = {"policy": each.policy, "inferred": True, "seconds": 0.0}
                infer(base.model_copy(update=same))
            else:
                yield plan.job(at, each.policy)


def _pairs(plan: WastePlan, record: WasteRecord) -> Iterator[Job]:
    for at, what in _compared(plan, record):
        best = [effect for effect in best_of_each(what.effects) if effect.gain > NOTHING]
        singles = [effect.variation for effect in best[:PAIRED]]
        assert plan.base is not None
        for pair in pairs(plan.base, singles):
            if not plan.tiers or takes_tiers(pair.policy):
                yield plan.job(at, pair.policy)


def _drawings(plan: WastePlan, record: WasteRecord) -> Iterator[Job]:
    for at, what in _compared(plan, record):
        both = [effect for effect in what.effects if effect.alike and effect.group == PAIR]
        both.sort(key=lambda effect: -effect.gain)
        best = [*best_of_each(what.effects)[:FINALISTS], *both[:FINALISTS]]
        best = [effect for effect in best if effect.gain > what.error / 2]
        for number, source in enumerate(plan.drawn[at] if plan.drawn else (), start=1):
            for policy in [what.base.policy, *(e.row.policy for e in best)] if best else []:
                yield replace(plan.job(at, policy), source=source, drawing=number)


def _compared(plan: WastePlan, record: WasteRecord) -> Iterator[tuple[int, WhatIf]]:
    for at, (_, stream) in enumerate(plan.streams):
        if (what := compare(record, stream.label)) is not None:
            yield at, what
