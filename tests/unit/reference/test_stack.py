"""No depth is a bad one to call from, where there is room on the stack."""

import resource
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from reference.stack import with_stack_room

CALLS = 300
DEPTHS = 2 * 16 * 1024 // 80
"""Two pieces of 16 KiB, at the least bytes that a frame takes."""


def nothing() -> None:
    pass


def faults_of_a_loop() -> int:
    """Page faults of a loop that calls."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(CALLS):
        nothing()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def at_depth(depth: int) -> int:
    return faults_of_a_loop() if depth == 0 else at_depth(depth - 1)


def worst_depth() -> int:
    """Most faults of a loop, from any depth."""
    at_depth(DEPTHS)  # what is new here is touched
    return max(at_depth(depth) for depth in range(DEPTHS))


def in_a_thread(call: Callable[[], int]) -> int:
    """What a call returns on a stack of its own: these tests have room on theirs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="other stacks")
def test_a_loop_at_the_end_of_a_piece_faults_at_every_call_and_not_where_there_is_room():
    assert in_a_thread(worst_depth) >= CALLS
    assert in_a_thread(with_stack_room(worst_depth)) < CALLS // 10


def test_the_function_is_the_same_to_whoever_looks():
    def attend(batch: int, *, scale: float = 1.0) -> float:
        """Attend."""
        return batch * scale

    roomy = with_stack_room(attend)
    assert roomy(2, scale=3.0) == 6.0
    assert (roomy.__name__, roomy.__doc__) == ("attend", "Attend.")
