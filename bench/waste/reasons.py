"""Why a change gains or costs: the part of the time that moved most, and the counter behind it."""

from __future__ import annotations

from typing import NamedTuple

from bench.command.words import seconds
from bench.waste.record import WasteRow
from paged.accounting import Counters
from paged.clock import StepTime


class Spent(NamedTuple):
    """Milliseconds of the server's clock that a completed request comes to."""

    steps: float
    """The base of each step, which all that run share."""
    prompts: float
    """Prompt tokens, those computed again included."""
    read: float
    """Tokens that attention reads."""
    moved: float
    """Blocks moved to the host or a tier, and back."""


def counted(row: WasteRow) -> Counters:
    """The part of a run that its requests a second are of."""
    return row.total if row.arrives else row.judged


def spent(row: WasteRow, time: StepTime) -> Spent:
    """Divide the time of a run among what it was spent on."""
    what = counted(row)
    requests = max(1, what.completed) * 1e6
    block = getattr(row.policy, "block_size", 1)
    swapped = (what.swapped_out + what.swapped_in) * block * time.swap_ns_per_token
    return Spent(
        steps=what.steps * time.step_ns / requests,
        prompts=(what.computed_tokens - what.generated_tokens)
        * time.prefill_ns_per_token
        / requests,
        read=what.logical_token * time.kv_ps_per_token / 1000 / requests,
        moved=(what.tier_ns if row.tiers else swapped) / requests,
    )


def reason(row: WasteRow, base: WasteRow, time: StepTime) -> str:
    """Say in a clause why a row takes less time a request than the base."""
    before, after = spent(base, time), spent(row, time)
    saved = {name: getattr(before, name) - getattr(after, name) for name in Spent._fields}
    name = max(saved, key=lambda each: saved[each])
    was, now = counted(base), counted(row)
    if saved[name] <= 0:
        return _waits(row, base)
    if name == "steps":
        return (
            f"more requests share a step: {now.mean_batch:,.1f} run at once instead of "
            f"{was.mean_batch:,.1f}"
        )
    if name == "read":
        return (
            f"attention reads fewer tokens a step: {_each(now.logical_token, now.steps):,.0f} "
            f"instead of {_each(was.logical_token, was.steps):,.0f}"
        )
    if name == "moved" and base.tiers:
        return (
            f"steps wait less for the tiers: {_each(now.tier_ns, now.completed) / 1e6:,.3g} ms a "
            f"request instead of {_each(was.tier_ns, was.completed) / 1e6:,.3g} ms"
        )
    if name == "moved":
        return (
            f"fewer blocks are swapped: {now.swapped_out + now.swapped_in:,} instead of "
            f"{was.swapped_out + was.swapped_in:,}"
        )
    if was.recomputed_tokens - now.recomputed_tokens >= now.hit_tokens - was.hit_tokens:
        tokens = f"from {was.recomputed_tokens:,} to {now.recomputed_tokens:,}"
        if now.preemptions >= was.preemptions:
            return f"prompt tokens computed again fall {tokens}"
        return (
            f"preemptions fall from {was.preemptions:,} to {now.preemptions:,}, and prompt tokens "
            f"computed again {tokens}"
        )
    return (
        f"prompt tokens found in the prefix cache rise from {was.hit_tokens:,} to "
        f"{now.hit_tokens:,} of {now.queried_tokens:,}"
    )


def _waits(row: WasteRow, base: WasteRow) -> str:
    """What its users feel less of, where the time a request takes of the server is the same."""
    if row.service is None or base.service is None:
        return "requests wait less"
    fell = []
    for name in ("ttft", "tpot", "e2e"):
        was, now = getattr(base.service, name), getattr(row.service, name)
        if was is not None and now is not None and now.p90_ns < was.p90_ns:
            said = f"{name.upper()} p90 falls from {seconds(was.p90_ns / 1e9)} to "
            fell.append((1 - now.p90_ns / was.p90_ns, said + seconds(now.p90_ns / 1e9)))
    return max(fell)[1] if fell else "requests wait less"


def _each(total: int, steps: int) -> float:
    return total / steps if steps else 0.0
