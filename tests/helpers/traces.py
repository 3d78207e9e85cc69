"""A saved finding of `pagedbench fuzz`, with all that a program can say."""

from bench.fuzz.record import FuzzEnvironment, Subject, Trace
from reference.allocator.programs import Pool, Program, Step

ENVIRONMENT = FuzzEnvironment(
    pagedbench="0.1", commit=None, dirty=None, hypothesis="6", python="3.11", cpu="a"
)

EVERYTHING = Program(
    Pool(num_blocks=3, block_size=2, prefix_caching=False, window=4, batching=True),
    (
        Step("admit", "a", tokens=(0, 1, 2), num_tokens=1, salt="it's"),
        Step("fork", "b", parent="a"),
        Step("append", "b", tokens=(7,)),
        Step("settle"),
        Step("free_twice"),
    ),
)


def a_trace(program: Program = EVERYTHING, **changes: object) -> Trace:
    usual: dict[str, object] = {
        "allocator": Subject(name="pools/mine.py:make", version="1.0"),
        "check": "content",
        "message": 'b, position 0: expected\nTraceback """quoted""" \\n',
        "at_the_end": False,
        "repeats": True,
        "program": program,
        "examples": 1234,
        "first_steps": 30,
        "attempts": 99,
        "seed": 5,
        "environment": ENVIRONMENT,
    }
    return Trace(**(usual | changes))
