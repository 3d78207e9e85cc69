"""Making a failure smaller: one loop for whatever is drawn, whoever runs it.

Hypothesis proposes smaller examples; `Shrinking` runs them, says which still show the same, keeps
the smallest, and ends the search when the attempts or the time are used up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

from hypothesis.errors import Flaky

from bench.search.drawing import StillWrong
from bench.search.lanes import Enough

MAX_SHRINKS: Final = 400
"""Attempts at making a problem smaller; each costs one run of the kernel."""

SHRINK_LIMIT_S: Final = 30.0
"""For all attempts at one failure: each crash costs the start of a child, each hang more."""

Example = TypeVar("Example")
Seen = TypeVar("Seen")


class Shrinking(Generic[Example, Seen]):
    """The attempts at making one failure smaller.

    `run` gives what is seen of an example, None where nothing is wrong with it. What is seen of a
    smaller one has to be the `same` as what was seen first; of several the one of the least `size`
    is kept, or the last.
    """

    def __init__(
        self,
        run: Callable[[Example], Seen | None],
        *,
        same: Callable[[Seen, Seen], bool] = lambda first, seen: True,
        size: Callable[[Seen], Any] | None = None,
        attempts: float | None = None,
        seconds: float | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.first: Seen | None = None
        self.smallest: Seen | None = None
        self.attempts = 0
        """Examples that were run."""
        self.repeats = True
        """False where the same example did not show it again."""
        self._run = run
        self._same = same
        self._size = size
        self._most = MAX_SHRINKS if attempts is None else attempts
        self._limit_s = SHRINK_LIMIT_S if seconds is None else seconds
        self._stopped = stopped
        self._began = 0.0

    def begin(self, first: Seen) -> None:
        """From now on examples are smaller ones."""
        self.first = self.smallest = first
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def still_shows(self, example: Example) -> bool:
        """Run an example; one that still shows the failure is the smallest now, if time is left."""
        if self._stopped() or self.attempts >= self._most or self.seconds > self._limit_s:
            raise Enough
        self.attempts += 1
        seen = self._run(example)
        if self._stopped():
            raise Enough  # what was seen may be that the subject was ended
        assert self.first is not None
        assert self.smallest is not None
        if seen is None or not self._same(self.first, seen):
            return False
        # What Hypothesis calls simpler may be larger: it knows choices, and not what they come to.
        if self._size is None or self._size(seen) <= self._size(self.smallest):
            self.smallest = seen
        return True

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Take the ways in which Hypothesis ends a draw for what they say."""
        try:
            yield
        except (StillWrong, Enough):
            pass
        except Flaky:
            self.repeats = False
