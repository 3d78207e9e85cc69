"""An allocator in a process, and an interpreter, of its own; to its user it is an `Allocator`."""

from __future__ import annotations

import functools
import sys
from typing import Any, Final, Self

from reference.allocator.contract import (
    Allocator,
    AllocatorCapabilities,
    AllocatorDied,
    AllocatorRaised,
)
from reference.system import System
from subjects.loading import SubjectError
from subjects.process import SubjectDied, SubjectProcess
from subjects.starting import HOME, PREFIX, start_of

TIME_LIMIT_S: Final = 10.0
"""For one call. It takes microseconds as a rule; one that takes longer than this hangs."""

GRACE_S: Final = 20.0
"""On top of the time limit, for the worker to say that it was exceeded."""

_AWAY: Final = (
    "sys.path.pop(0); "
    "[sys.modules.pop(n) for n in list(sys.modules) if n.partition('.')[0] == 'reference']; "
    "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'MovedModules']; "
)
"""What a foreign interpreter forgets of us before the subject is imported."""


class RemoteFactory:
    """A factory of allocators in another process, one at a time: making one ends the one before."""

    def __init__(
        self, name: str, *, python: str | None = None, time_limit_s: float = TIME_LIMIT_S
    ) -> None:
        # Our rooms stay importable in our own interpreter only: an engine may look for packages of
        # the same names, and has to find its own or none.
        away = "" if PREFIX else _AWAY
        if python in (None, sys.executable) and not PREFIX:
            away = f"sys.path.pop(0); sys.path.append({str(HOME)!r}); "
        start = (
            f"{start_of('subjects.allocators.worker')}{away}ours.main({name!r}, {time_limit_s!r})"
        )
        # The folder that it is started in may hold anything, and -c puts it first on the path.
        start = f"import sys; sys.path[:] = [p for p in sys.path if p]; {start}"
        self._process = SubjectProcess(
            [python or sys.executable, "-u", "-c", start],
            environment={"OMP_NUM_THREADS": "1"},
            time_limit_s=time_limit_s + GRACE_S,
        )
        self._name = name
        self.capabilities = AllocatorCapabilities()
        self.version = ""

    def introduce(self) -> None:
        """Start the process, and take over what the subject declares. Raises SubjectError,
        NotStarted.
        """
        try:
            said = self._process.introduce()
        except SubjectDied as death:
            raise SubjectError(f"importing {self._name}: the process {death.how}") from None
        if "error" in said:
            raise SubjectError(said["error"])
        try:
            self.capabilities = AllocatorCapabilities.from_mapping(said["capabilities"])
        except ValueError as error:
            raise SubjectError(f"{self._name}: {error}") from None
        self.version = said["version"]

    def __call__(
        self, num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
    ) -> RemoteAllocator:
        """Make an empty allocator."""
        pool = {
            "num_blocks": num_blocks,
            "block_size": block_size,
            "prefix_caching": prefix_caching,
            "window": window,
            "watch_idle": prefix_caching and self.capabilities.eviction is not None,
        }
        allocator = RemoteAllocator(self)
        allocator.take(self.ask({"new": pool}))
        return allocator

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Ask the worker. Raises AllocatorDied: the subject's process ended, or had to be ended."""
        try:
            answer = self._process.ask(question)
        except SubjectDied as death:
            raise AllocatorDied(death.how, timed_out=death.timed_out) from None
        if "died" in answer:
            words = self._process.last_words()
            how = f"{answer['died']}: {words}" if words else answer["died"]
            raise AllocatorDied(how, timed_out=answer["timed_out"])
        return answer

    def kill(self) -> None:
        """End the process for good, from any thread: who waits for an answer gets AllocatorDied."""
        self._process.kill()

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class RemoteAllocator:
    """An `Allocator` there. Each call brings back what can be seen afterwards: looking costs
    nothing.
    """

    def __init__(self, factory: RemoteFactory) -> None:
        self._factory = factory
        # As they were answered: whether they have the right shape, who asked will judge.
        self._counts: Any = (0, 0, 0)
        self._slots: dict[str, list[int]] = {}
        self._idle: list[int] = []
        self._unseen: dict[str, str] = {}

    def take(self, answer: dict[str, Any]) -> Any:
        """Take over what an answer shows, and return what was answered. Raises AllocatorRaised."""
        self._unseen = answer.get("unseen", {})
        if "counts" in answer:
            self._counts = _tuple(answer["counts"])
            self._slots |= answer["slots"]
            self._idle = answer.get("idle", [])
        if "raised" in answer:
            raise AllocatorRaised(answer["raised"])
        return answer["answer"]

    def __getattr__(self, call: str) -> Any:
        """Every other call of the contract is made there."""
        if not (hasattr(Allocator, call) or hasattr(System, call)):
            raise AttributeError(call)
        return functools.partial(self._call, call)

    def _call(self, call: str, *given: Any, **named: Any) -> Any:
        plain = [each if isinstance(each, str) else list(each) for each in given]
        return _tuples(self.take(self._factory.ask({"call": call, "with": plain, "named": named})))

    def counts(self) -> Any:
        """As of the last call."""
        self._seen("counts")
        return self._counts

    def slots(self, sequence: str) -> list[int]:
        """As of the last call."""
        self._seen("slots")
        return self._slots[sequence]

    def idle_blocks(self) -> list[int]:
        """As of the last call."""
        self._seen("idle_blocks")
        return self._idle

    def _seen(self, call: str) -> None:
        """Looking raised after the last call: so does who looks now."""
        if call in self._unseen:
            raise AllocatorRaised(self._unseen[call])


def _tuples(answer: Any) -> Any:
    """Pairs of blocks, which JSON made lists; anything else as it is."""
    return [_tuple(each) for each in answer] if isinstance(answer, list) else answer


def _tuple(answer: Any) -> Any:
    """What JSON made a list; anything else as it is."""
    return tuple(answer) if isinstance(answer, list) else answer
