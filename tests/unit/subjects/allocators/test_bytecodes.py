"""Bytecodes of an allocator's calls: always the same, and by function."""

import gc
from typing import Any

from subjects.allocators import bytecodes
from subjects.allocators.bytecodes import ADAPTER, CountedAllocator
from subjects.allocators.mixed_stream import mixed_stream, serve


class Pool:
    """Refuses nothing and knows no block."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def admit(self, sequence: str, tokens: Any, *, num_tokens: int, salt: str) -> int:
        return 0

    def append(self, sequence: str, tokens: Any) -> bool:
        return self.search() >= 0

    def search(self) -> int:
        found = 0
        for turn in range(self.turns):
            found += turn
        return found

    def free(self, sequence: str) -> None:
        """Nothing."""

    def counts(self) -> tuple[int, int, int]:
        return 0, 0, len([each for each in range(1000) if each])


def counted(turns: int) -> dict[str, int]:
    allocator = CountedAllocator(Pool(turns))
    serve(allocator, mixed_stream(5), max_running=2, commits=False, looks=True)
    return allocator.bytecodes()


def short(found: dict[str, int]) -> dict[str, int]:
    return {name.rpartition(":")[2]: count for name, count in found.items()}


def test_the_same_calls_come_to_the_same_number() -> None:
    assert counted(3) == counted(3)


def test_what_runs_when_the_collector_does_is_not_counted(monkeypatch: Any) -> None:
    def planted(*_: object) -> None:
        """Called by the collector, whenever that runs."""

    monkeypatch.setattr(Pool, "search", lambda self: len([[] for _ in range(100)]))
    before = gc.get_threshold()
    gc.callbacks.append(planted)
    gc.set_threshold(1)
    try:
        assert not [name for name in counted(3) if "planted" in name]
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(planted)


def test_a_function_that_does_more_is_found_by_its_name() -> None:
    less, more = short(counted(3)), short(counted(4))
    assert set(less) == {"Pool.admit", "Pool.append", "Pool.search", "Pool.free"}
    appends = sum(request.num_generated for request in mixed_stream(5))
    added = {name: more[name] - less[name] for name in less if more[name] != less[name]}
    assert set(added) == {"Pool.search"}
    assert added["Pool.search"] % appends == 0


def test_an_adapters_own_are_one_entry(monkeypatch: Any) -> None:
    monkeypatch.setattr(bytecodes, "ADAPTERS", __file__)
    assert set(counted(3)) == {ADAPTER}
