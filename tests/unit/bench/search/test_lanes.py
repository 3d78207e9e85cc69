"""Lanes of children: who is asked, who is abandoned, and what an error ends."""

import threading
from collections.abc import Callable

import pytest

from bench.search import lanes
from bench.search.lanes import Enough, Lane, abandoning, run_lanes
from subjects.process import SubjectDied


class Child:
    """Hangs until it is killed, if asked to."""

    made: list["Child"]

    def __init__(self) -> None:
        self.killed = threading.Event()
        self.closed = False
        Child.made.append(self)

    def hang(self) -> None:
        self.killed.wait(30)
        raise SubjectDied("was killed", timed_out=False)

    def kill(self) -> None:
        self.killed.set()

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def made(monkeypatch) -> list[Child]:
    Child.made = []
    monkeypatch.setattr(lanes, "GRACE_S", 0.05)
    return Child.made


def asking(*subjects: str) -> Callable[[Lane], None]:
    def work(lane: Lane) -> None:
        for subject in subjects:
            assert lane.ask(Child, id, subject=subject) == id(Child.made[-1])

    return work


def test_a_lane_keeps_its_child_while_the_subject_is_the_same(made):
    run_lanes(1, asking("a", "a", "b", "b", "a"), over=lambda: False)
    assert len(made) == 3
    assert all(child.closed for child in made)


def test_what_hangs_is_abandoned_once_it_is_over_and_says_nothing(made):
    over, answers = threading.Event(), []

    def work(lane: Lane) -> None:
        over.set()
        answers.append(lane.ask(Child, Child.hang))

    run_lanes(2, work, over=over.is_set)
    assert answers == []
    assert all(child.killed.is_set() and child.closed for child in made)


def test_a_lane_that_was_given_up_starts_no_other_child(made):
    lane = Lane()
    lane.abandon()
    with pytest.raises(Enough):
        lane.ask(Child, id)
    assert made == []


def test_an_error_ends_the_others_and_who_works_beside_them(made):
    ended = threading.Event()

    def work(lane: Lane) -> None:
        if len(made) == 0:
            lane.ask(Child, lambda _: 1 // 0)
        lane.ask(Child, Child.hang)

    with pytest.raises((ZeroDivisionError, SubjectDied)):
        run_lanes(1, work, over=ended.is_set, end=ended.set, beside=lambda: ended.wait(30) and None)
    assert ended.is_set()
    assert all(child.closed for child in made)


def test_no_lanes_are_done_at_once():
    run_lanes(0, asking("a"), over=lambda: False)


def test_what_ends_in_time_is_not_abandoned():
    abandoned = []
    with abandoning(lambda: abandoned.append(1), over=lambda: True):
        pass
    assert abandoned == []
