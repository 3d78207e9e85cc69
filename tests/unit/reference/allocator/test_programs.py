"""Programs, as they are printed and compared."""

import pytest

from reference.allocator.contract import HOSTILE_CALLS
from reference.allocator.programs import CALLS, Pool, Program, Step


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        (Pool(num_blocks=4, block_size=2), "pool of 4 x 2 tokens"),
        (
            Pool(num_blocks=4, block_size=2, prefix_caching=False),
            "pool of 4 x 2 tokens, no prefix caching",
        ),
        (
            Pool(num_blocks=1, block_size=16, window=3, batching=True),
            "pool of 1 x 16 tokens, window of 3, batching",
        ),
    ],
)
def test_a_pool_says_what_is_special_about_it(pool: Pool, said: str) -> None:
    assert str(pool) == said


def test_a_pool_counts_slots_and_blocks() -> None:
    pool = Pool(num_blocks=3, block_size=4)
    assert pool.num_slots == 12
    assert [pool.blocks_for(tokens) for tokens in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Step("settle"), "settle"),
        (Step("reset"), "reset"),
        (Step("free", "s1"), "free s1"),
        (Step("fork", "s2", parent="s1"), "fork s2 from s1"),
        (Step("append", "s1", tokens=(7,)), "append s1: 1 token 7"),
        (Step("append", "s1"), "append s1"),
        (Step("admit", "s1"), "admit s1: 0 tokens"),
        (
            Step("admit", "s1", tokens=(0, 1, 2, 100, 101, 50)),
            "admit s1: 6 tokens 0-2 100-101 50",
        ),
        (
            Step("admit", "s1", tokens=(5, 4), num_tokens=1, salt="tenant"),
            "admit s1: the first 1 of 2 tokens 5 4, salt 'tenant'",
        ),
        (Step("free_twice"), "free_twice"),
        (Step("admit_live", "s1", tokens=(0, 0)), "admit_live s1: 2 tokens 0 0"),
        (Step("fork_onto_live", "s1", parent="s2"), "fork_onto_live s1 from s2"),
    ],
    ids=str,
)
def test_a_step_is_one_line(step: Step, said: str) -> None:
    assert str(step) == said


def test_a_program_is_its_pool_and_its_numbered_steps() -> None:
    steps = (Step("admit", "s1", tokens=(0, 1)), *[Step("append", "s1", tokens=(2,))] * 9)
    lines = str(Program(Pool(num_blocks=8, block_size=2), steps)).splitlines()
    assert lines[:3] == [
        "pool of 8 x 2 tokens",
        "  1. admit s1: 2 tokens 0-1",
        "  2. append s1: 1 token 2",
    ]
    assert lines[-1] == " 10. append s1: 1 token 2"


def test_a_program_without_steps_is_its_pool() -> None:
    assert str(Program(Pool(num_blocks=1, block_size=1), ())) == "pool of 1 x 1 tokens"


def test_an_unknown_call_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"step 'evict' is unknown; use admit, append, .*swap_in"):
        Step("evict", "s1")


def test_every_call_makes_a_step_and_those_that_make_no_sense_are_among_them() -> None:
    assert [Step(call).call for call in CALLS] == list(CALLS)
    assert len(set(CALLS)) == len(CALLS)
    assert set(HOSTILE_CALLS) < set(CALLS)


def test_equal_programs_are_equal_and_hash_alike() -> None:
    def program(token: int) -> Program:
        steps = (Step("admit", "s1", tokens=(token,)),)
        return Program(Pool(num_blocks=1, block_size=1), steps)

    assert program(1) == program(1) != program(2)
    assert len({program(1), program(1), program(2)}) == 2
