"""Function calls are counted exactly."""

import sys

from bench.machine.calls import function_calls


def test_function_calls_are_counted_exactly() -> None:
    def inner() -> int:
        return len("abc")

    def outer() -> None:
        for _ in "12345":
            inner()

    def both() -> None:
        inner()
        outer()

    assert function_calls(lambda: None) == 0
    assert function_calls(outer) == 5 + 5
    assert function_calls(both) == 2 + 1 + 10
    assert sys.getprofile() is None
