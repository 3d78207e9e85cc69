"""A Ray cluster that is none: what is sent to it is called at once, here."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class AtOnce:
    """In place of `bench.machine.spread.on_ray`."""

    def __init__(self) -> None:
        self.rounds: list[int] = []
        """Calls of each."""

    def __call__(
        self, call: Callable[..., Any], calls: Sequence[tuple[Any, ...]], **_: Any
    ) -> Iterator[Any]:
        self.rounds.append(len(calls))
        for arguments in calls:
            sent: tuple[Any, ...] = pickle.loads(pickle.dumps(arguments))
            yield call(*sent)
