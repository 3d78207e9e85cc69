"""The identity, the differences of moments, and the series that never grows."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest

from paged.accounting import (
    MAX_SERIES,
    SLOT_CLASSES,
    Counters,
    IdentityBroken,
    Series,
    Serving,
)

EVERY_CLASS = {name: number for number, name in enumerate(SLOT_CLASSES, start=1)}
MOMENT = Counters(slots=9, steps=4, logical_token=3, **EVERY_CLASS)


@pytest.mark.parametrize("name", SLOT_CLASSES)
@pytest.mark.parametrize("slot_steps", [-1, 1])
def test_a_slot_step_too_many_or_too_few_in_any_class_is_found(name: str, slot_steps: int) -> None:
    with pytest.raises(IdentityBroken, match=re.escape("9 slots * 4 steps are 36")):
        replace(MOMENT, **{name: getattr(MOMENT, name) + slot_steps})


def test_a_negative_figure_is_found_even_where_the_sum_is_right() -> None:
    with pytest.raises(IdentityBroken, match="negative: reserve"):
        replace(MOMENT, reserve=-1, token=MOMENT.token + MOMENT.reserve + 1)
    with pytest.raises(IdentityBroken, match="negative: evictions"):
        replace(MOMENT, evictions=-1)


def test_shares_are_of_all_slot_steps() -> None:
    assert MOMENT.slot_steps == 36
    assert MOMENT.allocated == 1 + 2 + 3 + 4
    assert MOMENT.external == 4 + 5 + 6 + 7
    assert MOMENT.waste == 2 + 3 + 4 + 5 + 6
    assert MOMENT.waste_fraction == 20 / 36
    assert MOMENT.token_fraction == 1 / 36
    assert MOMENT.internal_fraction == 3 / 10
    assert MOMENT.sharing == 3


def test_where_nothing_happened_no_share_divides_by_zero() -> None:
    nothing = Counters(slots=9)
    assert nothing.waste_fraction == nothing.internal_fraction == nothing.hit_rate == 0
    assert nothing.mean_batch == 0
    assert nothing.sharing == 1


def test_the_difference_of_two_moments_holds_the_identity_and_every_figure() -> None:
    later = replace(
        MOMENT,
        steps=6,
        token=MOMENT.token + 10,
        free_idle=MOMENT.free_idle + 8,
        admitted=5,
        hit_tokens=7,
    )
    between = later - MOMENT
    assert between == Counters(slots=9, steps=2, token=10, free_idle=8, admitted=5, hit_tokens=7)


def test_moments_that_do_not_belong_together_are_not_subtracted() -> None:
    with pytest.raises(ValueError, match="9 and 8 slots"):
        MOMENT - Counters(slots=8)
    with pytest.raises(IdentityBroken, match="negative"):
        Counters(slots=9) - MOMENT


def at(step: int) -> Counters:
    return Counters(slots=1, steps=step, token=step)


def filled(steps: int) -> Series[Counters]:
    series: Series[Counters] = Series()
    for step in range(1, steps + 1):
        if step >= series.due:
            series.add(at(step))
    return series


@pytest.mark.parametrize("steps", [1, 2, MAX_SERIES, MAX_SERIES + 1, 10 * MAX_SERIES + 7])
def test_a_series_stays_short_and_covers_the_run_evenly(steps: int) -> None:
    series = filled(steps)
    kept = [moment.steps for moment in series.moments]
    assert MAX_SERIES // 2 - 1 <= len(kept) <= MAX_SERIES or steps < MAX_SERIES
    strides = {after - before for before, after in pairwise(kept)}
    assert len(strides) <= 1
    # What the last stride cannot reach is all that is missing.
    assert steps - kept[-1] < max(strides, default=1)


@pytest.mark.parametrize(
    ("warm", "done", "steps"),
    [(2, 5, 3), (5, 5, 0), (6, 5, 0), (None, 5, 0), (2, None, 0)],
)
def test_the_loaded_part_lies_between_warm_up_and_last_admission(
    warm: int | None, done: int | None, steps: int
) -> None:
    served = Serving.of(
        at(9),
        [],
        warm=None if warm is None else at(warm),
        done=None if done is None else at(done),
        peak_running=1,
        peak_requests=1,
        peak_allocated=1,
    )
    assert served.loaded == at(steps)
