"""The shrink loop on numbers: what is the same failure, when it ends, and what it keeps."""

import pytest
from hypothesis import strategies as st

from bench.search import shrink
from bench.search.drawing import draw_each, still_wrong
from bench.search.lanes import Enough
from bench.search.shrink import Shrinking


def found(shrinking: Shrinking[int, int], wrong) -> int | None:
    """Draw numbers; those for which `wrong` are failures, and what is seen of one is itself."""

    def example(number: int) -> None:
        if shrinking.first is None:
            if wrong(number):
                shrinking.begin(number)
                still_wrong()
        elif shrinking.still_shows(number):
            still_wrong()

    with shrinking.ended():
        draw_each(st.integers(0, 10**6), count=100, seed_of_draw=1, example=example)
    return shrinking.smallest


def above(limit: int):
    return lambda number: number if number > limit else None


def test_the_smallest_that_shows_it_is_kept():
    shrinking = Shrinking(above(41))
    assert found(shrinking, lambda number: number > 41) == 42
    assert shrinking.first > 42
    assert shrinking.repeats
    assert shrinking.attempts > 1


def test_another_failure_is_not_the_same():
    def same(first: int, seen: int) -> bool:
        return first % 2 == seen % 2

    shrinking = Shrinking(above(41), same=same)
    smallest = found(shrinking, lambda number: number > 1000)
    assert smallest == 42 + shrinking.first % 2


@pytest.mark.parametrize("limits", [{"attempts": 5}, {"seconds": 0.0}])
def test_it_ends_with_a_true_failure_when_the_limit_is_reached(limits):
    shrinking = Shrinking(above(41), **limits)
    assert found(shrinking, lambda number: number > 41) > 41
    assert shrinking.attempts <= 5


def test_limits_are_those_of_the_module_by_default(monkeypatch):
    monkeypatch.setattr(shrink, "MAX_SHRINKS", 2)
    shrinking = Shrinking(above(41))
    found(shrinking, lambda number: number > 41)
    assert shrinking.attempts == 2


def test_what_is_seen_after_the_stop_does_not_count():
    stopped = []

    def run(number: int) -> int:
        stopped.append(number)
        return number

    shrinking = Shrinking(run, stopped=lambda: bool(stopped))
    shrinking.begin(9)
    with pytest.raises(Enough):
        shrinking.still_shows(3)
    assert shrinking.smallest == 9


def test_what_does_not_show_again_does_not_repeat():
    shrinking = Shrinking(lambda number: None)
    assert found(shrinking, lambda number: number > 41) > 41
    assert not shrinking.repeats


def test_nothing_wrong_is_no_failure():
    assert found(Shrinking(above(41)), lambda number: False) is None
