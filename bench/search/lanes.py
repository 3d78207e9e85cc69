"""Lanes of children: each thread asks a subject's process of its own, one question after another.

When the work is to end, answers that are under way have `GRACE_S` seconds; then their processes are
killed, and what they were asked has no answer: it says nothing about the subject.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, suppress
from typing import Final, TypeVar

from subjects.process import SubjectProcess

GRACE_S: Final = 3.0
"""For the answers that are under way when the work is to end."""

T = TypeVar("T")


class HarnessError(RuntimeError):
    """What went wrong is ours: it says nothing about the subject."""


class Enough(BaseException):
    """Nothing more is to be run: ends the work of a lane or a draw from within, past Hypothesis."""


class Lane:
    """One child at a time, kept for the next question."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: SubjectProcess | None = None
        self._subject: Hashable = None
        self._abandoned = False

    def ask(
        self,
        start: Callable[[], SubjectProcess],
        question: Callable[[SubjectProcess], T],
        *,
        subject: Hashable = None,
    ) -> T:
        """What `question` has to say of the child. Raises Enough if the lane was given up."""
        try:
            answer = question(self._child_of(subject, start))
        except Exception:
            if self._abandoned:
                raise Enough from None
            raise
        if self._abandoned:
            raise Enough
        return answer

    def abandon(self) -> None:
        """End the child for good, from another thread."""
        with self._lock:
            self._abandoned = True
            if self._child is not None:
                self._child.kill()

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.close()

    def _child_of(self, subject: Hashable, start: Callable[[], SubjectProcess]) -> SubjectProcess:
        if self._child is not None and self._subject != subject:
            self.close()
        with self._lock:
            if self._abandoned:
                raise Enough
            if self._child is None:
                self._child, self._subject = start(), subject
            return self._child


def run_lanes(
    count: int,
    work: Callable[[Lane], None],
    *,
    over: Callable[[], bool],
    end: Callable[[], None] = lambda: None,
    beside: Callable[[], None] | None = None,
) -> None:
    """Let `work` ask in so many lanes at once, and return when all of them are done.

    Once it is `over`, what is under way is abandoned after `GRACE_S`. `beside` runs at the same
    time. What either raises first is raised after `end` was told.
    """
    lanes = [Lane() for _ in range(count)]

    def run(lane: Lane) -> None:
        with closing(lane), suppress(Enough):
            work(lane)

    def abandon() -> None:
        for lane in lanes:
            lane.abandon()

    with ThreadPoolExecutor(max_workers=count + 1) as pool, abandoning(abandon, over=over):
        try:
            work_of_all = [pool.submit(run, lane) for lane in lanes]
            if beside is not None:
                work_of_all.append(pool.submit(beside))
            for done in as_completed(work_of_all):
                done.result()
        except BaseException:
            end()
            abandon()
            raise


@contextmanager
def abandoning(abandon: Callable[[], None], *, over: Callable[[], bool]) -> Iterator[None]:
    """Abandon what is inside if it does not end within `GRACE_S` although it is `over`."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            if over() and not ended.wait(GRACE_S):
                abandon()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()
