"""What is drawn for allocators: prompts, tables of moves, pools, and that steps say everything."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bench.search.drawing import only_our_constants
from helpers.profiles import examples
from helpers.swapping import swapping_allocator
from paged.subject import paged_allocator
from reference.allocator.contract import (
    HOSTILE_CALLS,
    AllocatorCapabilities,
    AllocatorFactory,
    capabilities_of_factory,
)
from reference.allocator.machine import (
    NOBODY,
    AllocatorMachine,
    run_program,
)
from reference.allocator.moves import (
    AMPLE_BLOCKS,
    BLOCK_SIZES,
    FEW,
    MAX_BLOCKS,
    MAX_MOVES,
    PROMPTS,
    SALTS,
    SMALL,
    STOP,
    TOO_LONG,
    VOCABULARIES,
    Drawn,
    Move,
    Prompt,
    changed,
    drawn_programs,
    move_table,
    run_drawn,
    steps_of,
)
from reference.allocator.programs import CALLS, Pool, Program, Step

PAGED = capabilities_of_factory(paged_allocator)
SWAPPING = capabilities_of_factory(swapping_allocator)
LEAST = AllocatorCapabilities(prefix_caching=False)
EVERYTHING = replace(PAGED, swap=True, preempt=True)

# Capabilities in any combination that decides what is drawn.
DECLARED = st.builds(
    AllocatorCapabilities,
    **dict.fromkeys(
        [
            *("prefix_caching", "sliding_window", "window_with_caching", "salt", "fork", "swap"),
            *("chunked_prefill", "reset", "batching"),
        ],
        st.booleans(),
    ),
    hostile=st.frozensets(st.sampled_from(HOSTILE_CALLS)),
    block_sizes=st.none() | st.frozensets(st.integers(1, 64), min_size=1),
    min_blocks=st.integers(1, 300),
)


# Prompts


@pytest.mark.parametrize(
    ("prompt", "block_size", "tokens"),
    [
        (Prompt(()), 4, []),
        (Prompt((0,)), 4, [0, 1, 2, 3]),
        (Prompt((0, 1)), 2, [0, 1, 100, 101]),
        (Prompt((1,), 1), 3, [100, 101, 102, 0]),
        (Prompt((0,), -1), 4, [0, 1, 2, 3, 0, 1, 2]),
        (Prompt((), 2), 4, [0, 1]),
        (Prompt((), 2), 2, []),
        (Prompt((0,), 1), 1, [0]),
        (Prompt((0,), 0, "last"), 4, [0, 1, 2, 53]),
        (Prompt((0,), 0, "first"), 4, [50, 1, 2, 3]),
        (Prompt((0,), 0, "middle"), 4, [0, 1, 52, 3]),
        (Prompt((0,), 0, "swapped"), 4, [0, 1, 3, 2]),
        (Prompt((0, 0), 0, "swapped"), 1, [0, 0]),
        (Prompt((), 0, "last"), 4, []),
    ],
)
def test_prompt_is_pages_a_part_and_perhaps_a_change(
    prompt: Prompt, block_size: int, tokens: list[int]
) -> None:
    assert prompt.tokens(block_size) == tokens


@given(prompt=st.sampled_from(PROMPTS), block_size=st.sampled_from(BLOCK_SIZES))
@examples(100)
def test_prompt_ends_on_or_next_to_the_end_of_a_block(prompt: Prompt, block_size: int) -> None:
    tokens = prompt.tokens(block_size)
    assert len(tokens) == len(prompt.pages) * block_size + prompt.tail % block_size
    assert len(tokens) % block_size in {0, 1 % block_size, 2 % block_size, block_size - 1}
    plain = replace(prompt, change="").tokens(block_size)
    different = sum(a != b for a, b in zip(tokens, plain, strict=True))
    assert different <= {"": 0, "swapped": 2}.get(prompt.change, 1)
    if tokens and prompt.change in ("last", "first", "middle"):
        assert different == 1


def test_a_change_leaves_the_list_that_it_was_given_alone() -> None:
    tokens = [1, 2, 3]
    assert changed(tokens, "last") == [1, 2, 53]
    assert changed(tokens, "swapped") == [1, 3, 2]
    assert tokens == [1, 2, 3]


def test_prompts_are_all_different_and_the_simplest_comes_first() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS)
    assert PROMPTS[0] == Prompt((0,))
    assert {prompt.change for prompt in PROMPTS} == {"", "last", "first", "middle", "swapped"}


def test_what_is_appended_fills_the_blocks_that_a_prompt_is_made_of() -> None:
    prompt = Prompt((0, 0)).tokens(4)
    assert prompt[:3] + SMALL.page_tokens(0, 3, 5, 4) == prompt


# Tables


def moves_of(can: AllocatorCapabilities, *, batching: bool = False) -> tuple[Move, ...]:
    return move_table(can, batching=batching)


@given(can=DECLARED, batching=st.booleans())
@examples(30)
def test_table_has_nothing_that_is_not_declared(
    *, can: AllocatorCapabilities, batching: bool
) -> None:
    moves = moves_of(can, batching=batching)
    kinds = {move.kind for move in moves}
    assert {"fork", "beam"} & kinds == ({"fork", "beam"} if can.fork else set())
    assert {"swap_out", "swap_in"} & kinds == ({"swap_out", "swap_in"} if can.swap else set())
    assert {"prefill", "abort"} & kinds == ({"prefill", "abort"} if can.chunked_prefill else set())
    assert any(move.chunk for move in moves) == can.chunked_prefill
    assert any(move.salt for move in moves) == can.salt
    assert ("reset" in kinds) == can.reset
    assert ("settle" in kinds) == batching
    assert kinds & set(HOSTILE_CALLS) == can.hostile


def test_table_of_an_allocator_that_can_do_nothing_has_what_everybody_can() -> None:
    can = replace(LEAST, hostile=frozenset())
    assert {move.kind for move in moves_of(can)} == {
        *("stop", "free", "append", "append_to_the_end", "decode", "admit", "admit_like"),
        *("replace", "preempt", "resume"),
    }


def test_table_begins_with_the_end_and_has_it_once() -> None:
    for can in (LEAST, PAGED, EVERYTHING):
        moves = moves_of(can)
        assert moves[0] is STOP
        assert moves.count(STOP) == 1


def test_every_part_of_a_table_holds_the_same_mixture() -> None:
    moves = moves_of(EVERYTHING, batching=True)[1:]
    half = len(moves) // 2
    first, second = (Counter(move.kind for move in part) for part in (moves[:half], moves[half:]))
    for kind in first | second:
        assert abs(first[kind] - second[kind]) <= 0.1 * (first[kind] + second[kind]) + 8, kind


def test_table_is_made_once() -> None:
    assert moves_of(PAGED) is moves_of(capabilities_of_factory(paged_allocator))


# Moves become steps


def machine_with(*steps: Step, factory: AllocatorFactory = paged_allocator) -> AllocatorMachine:
    machine = AllocatorMachine(factory, Pool(num_blocks=32, block_size=4))
    for step in steps:
        machine.run(step)
    return machine


def made(move: Move, machine: AllocatorMachine) -> list[Step]:
    """The steps of a move; each is run before the next one is asked for."""
    steps = []
    for step in steps_of(move, machine, (f"n{number}" for number in itertools.count(1))):
        steps.append(step)
        machine.run(step)
    return steps


ADMIT_A = Step("admit", "a", tokens=(0, 1, 2, 3, 0))
ADMIT_B = Step("admit", "b", tokens=(100, 101), salt=SALTS[0])
TWO = (ADMIT_A, ADMIT_B)


@pytest.mark.parametrize(
    ("move", "steps"),
    [
        (Move("admit", prompt=Prompt((1,))), [Step("admit", "n1", tokens=(100, 101, 102, 103))]),
        (
            Move("admit", prompt=Prompt((0,)), salt=SALTS[0], chunk="half"),
            [Step("admit", "n1", tokens=(0, 1, 2, 3), num_tokens=2, salt=SALTS[0])],
        ),
        (
            Move("admit", prompt=Prompt((0,)), chunk="one"),
            [Step("admit", "n1", tokens=(0, 1, 2, 3), num_tokens=1)],
        ),
        (Move("admit", prompt=Prompt((), 1), chunk="one"), [Step("admit", "n1", tokens=(0,))]),
        (
            Move("abort", prompt=Prompt((), 1)),
            [Step("admit", "n1", tokens=(0,)), Step("free", "n1")],
        ),
        (Move("free", 0), [Step("free", "a")]),
        (Move("free", 1), [Step("free", "b")]),
        (Move("free", 2), [Step("free", "a")]),
        (Move("preempt", 1), [Step("preempt", "b")]),
        (Move("append", 0, count=2), [Step("append", "a", tokens=(1, 2))]),
        (Move("append", 0, count=4, page=1), [Step("append", "a", tokens=(101, 102, 103, 100))]),
        (Move("append_to_the_end", 0, count=0), [Step("append", "a", tokens=(1, 2, 3))]),
        (Move("append_to_the_end", 0, count=1), [Step("append", "a", tokens=(1, 2, 3, 0))]),
        (Move("append_to_the_end", 0, count=-1), [Step("append", "a", tokens=(1, 2))]),
        (
            Move("decode", page=0),
            [Step("append", "a", tokens=(1,)), Step("append", "b", tokens=(2,))],
        ),
        (
            Move("fork", 0, count=2),
            [Step("fork", "n1", parent="a"), Step("fork", "n2", parent="a")],
        ),
        (
            Move("beam", 0, count=2),
            [
                Step("fork", "n1", parent="a"),
                Step("append", "n1", tokens=(1,)),
                Step("fork", "n2", parent="a"),
                Step("append", "n2", tokens=(101,)),
                Step("free", "a"),
            ],
        ),
        (
            Move("replace", 1, prompt=Prompt((0,))),
            [Step("free", "b"), Step("admit", "n1", tokens=(0, 1, 2, 3), salt=SALTS[0])],
        ),
        (Move("admit_like", 0), [Step("admit", "n1", tokens=ADMIT_A.tokens)]),
        (Move("admit_like", 0, count=-1), [Step("admit", "n1", tokens=(0, 1, 2, 3))]),
        (Move("admit_like", 0, count=1), [Step("admit", "n1", tokens=(0, 1, 2, 3))]),
        (
            Move("admit_like", 0, change="last"),
            [Step("admit", "n1", tokens=(0, 1, 2, 3, 50))],
        ),
        (
            Move("admit_like", 0, salt=SALTS[0]),
            [Step("admit", "n1", tokens=ADMIT_A.tokens, salt=SALTS[0])],
        ),
        (Move("admit_like", 1, salt=""), [Step("admit", "n1", tokens=ADMIT_B.tokens)]),
        (
            Move("reset", page=1, count=1),
            [
                Step("reset"),
                Step("append", "a", tokens=(101, 102, 103, 100)),
                Step("append", "b", tokens=(102, 103, 100, 101)),
            ],
        ),
        (Move("settle"), [Step("settle")]),
        (Move("prefill", 0, count=1), []),  # nothing is left of its prompt
        (Move("resume"), []),
        (Move("swap_in"), []),
        (Move("admit_live", 1), [Step("admit_live", "b", tokens=(0, 1, 2, 3))]),
        (Move("fork_onto_live", 1), [Step("fork_onto_live", "b", parent="a")]),
        (Move("admit_negative"), [Step("admit_negative", NOBODY, tokens=(0, 1, 2, 3))]),
        (Move("free_twice"), [Step("free_twice")]),
    ],
    ids=str,
)
def test_a_move_becomes_steps_about_the_sequences_that_are_there(
    move: Move, steps: list[Step]
) -> None:
    assert made(move, machine_with(*TWO)) == steps


def test_prefill_goes_on_with_the_rest_of_the_prompt() -> None:
    part = Step("admit", "a", tokens=(9, 8, 7, 6, 5), num_tokens=2)
    assert made(Move("prefill", count=1), machine_with(part)) == [Step("append", "a", tokens=(7,))]
    (whole,) = made(Move("prefill", count=0), machine_with(part))
    assert whole.tokens == (7, 6, 5)
    (beyond,) = made(Move("append", count=4), machine_with(part))
    assert beyond.tokens == (7, 6, 5, 1)


def test_a_preempted_sequence_is_resumed_with_all_that_it_held() -> None:
    part = Step("admit", "a", tokens=(9, 8, 7), num_tokens=2, salt=SALTS[0])
    machine = machine_with(part, Step("preempt", "a"))
    assert made(Move("resume"), machine) == [Step("admit", "a", tokens=(9, 8, 7), salt=SALTS[0])]


def test_a_swapped_sequence_is_swapped_in() -> None:
    machine = machine_with(ADMIT_A, Step("swap_out", "a"), factory=swapping_allocator)
    assert made(Move("swap_in", 3), machine) == [Step("swap_in", "a")]


def test_a_prompt_that_is_too_long_is_as_long_as_the_pool_and_its_count() -> None:
    for count in (-1, 0, 1):
        (step,) = made(Move("admit", prompt=TOO_LONG, count=count), machine_with())
        assert len(step.tokens) == 32 * 4 + count


@pytest.mark.parametrize("kind", ["free", "append", "fork", "replace", "admit_like", "admit_live"])
def test_without_a_sequence_there_is_nothing_to_do(kind: str) -> None:
    assert made(Move(kind, 1, prompt=Prompt((0,)), count=1), machine_with()) == []


# Programs


def drawn_many(can: AllocatorCapabilities, count: int, **fixed: object) -> list[Drawn]:
    """Programs, the same in every run."""
    drawn: list[Drawn] = []

    @settings(
        max_examples=count,
        derandomize=True,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn_programs(can, **fixed))
    def collect(program: Drawn) -> None:
        drawn.append(program)

    with only_our_constants():
        collect()
    return drawn


def test_every_call_is_reached() -> None:
    calls: Counter[str] = Counter()
    draw = random.Random(0)
    for factory in (paged_allocator, swapping_allocator):
        for batching in (True, False):
            if capabilities_of_factory(factory).batching or not batching:
                table = move_table(capabilities_of_factory(factory), batching=batching)
                pool = Pool(num_blocks=12, block_size=4, batching=batching)
                machine = AllocatorMachine(factory, pool)
                run_drawn(Drawn(pool, tuple(draw.choices(table, k=600))), machine)
                calls.update(machine.calls)
    assert calls.keys() - {"copy"} == set(CALLS)
    assert calls["copy"]


@given(data=st.data(), can=DECLARED)
@examples(100)
def test_pool_is_one_that_the_allocator_does(
    data: st.DataObject, can: AllocatorCapabilities
) -> None:
    pool = data.draw(drawn_programs(can, max_moves=0)).pool
    assert pool.block_size in (can.block_sizes or BLOCK_SIZES)
    assert can.min_blocks <= pool.num_blocks
    assert pool.num_blocks < can.min_blocks + MAX_BLOCKS or pool.num_blocks in AMPLE_BLOCKS
    assert can.prefix_caching or not pool.prefix_caching
    assert can.batching or not pool.batching
    assert can.sliding_window or pool.window is None
    assert can.window_with_caching or pool.window is None or not pool.prefix_caching


def test_pools_are_of_every_kind() -> None:
    pools = [drawn.pool for drawn in drawn_many(PAGED, 400, max_moves=0)]
    assert {pool.prefix_caching for pool in pools} == {True, False}
    assert {pool.batching for pool in pools} == {True, False}
    assert {pool.window is None for pool in pools} == {True, False}
    assert {pool.block_size for pool in pools} == set(BLOCK_SIZES)
    assert set(AMPLE_BLOCKS) <= {pool.num_blocks for pool in pools}


@given(drawn=drawn_programs(PAGED, block_size=5, prefix_caching=False, window=None))
@examples(30)
def test_fixed_fields_are_not_drawn(drawn: Drawn) -> None:
    assert (drawn.pool.block_size, drawn.pool.prefix_caching) == (5, False)


def test_programs_have_at_most_so_many_moves_and_end_before_their_end() -> None:
    lengths = [len(drawn.moves) for drawn in drawn_many(PAGED, 60)]
    assert max(lengths) == MAX_MOVES
    assert {len(drawn.moves) for drawn in drawn_many(PAGED, 30, max_moves=2)} <= {0, 1, 2}
    for drawn in drawn_many(PAGED, 30):
        assert STOP not in drawn.moves


def test_no_more_sequences_run_at_once_than_may() -> None:
    most = fewer = 0

    def look(machine: AllocatorMachine) -> None:
        nonlocal most, fewer
        most = max(most, len(machine.lives))
        if len(machine.lives) > FEW and len(machine.steps) > 1:
            fewer += machine.steps[-1].call in ("append", "swap_in")

    for drawn in drawn_many(PAGED, 40, num_blocks=64):
        machine = AllocatorMachine(paged_allocator, drawn.pool)
        machine.on_step = look
        run_drawn(drawn, machine)
    assert most > 16, "a count of four bits"
    assert fewer == 0, "only a crowd is more than a few"


@given(data=st.data(), factory=st.sampled_from([paged_allocator, swapping_allocator]))
@examples(60)
def test_steps_that_were_recorded_make_the_same_calls_again(
    data: st.DataObject, factory: AllocatorFactory
) -> None:
    drawn = data.draw(drawn_programs(capabilities_of_factory(factory)))
    first = Recorded(factory)
    machine = AllocatorMachine(first, drawn.pool)
    steps: list[Step] = []
    finish = machine.finish
    machine.finish = lambda: (steps.extend(machine.steps), finish())
    run_drawn(drawn, machine)
    second = Recorded(factory)
    assert run_program(second, Program(drawn.pool, tuple(steps))) is None
    assert second.calls == first.calls


class Recorded:
    """A factory whose allocators write down every call and its answer."""

    def __init__(self, factory: AllocatorFactory):
        self.factory = factory
        self.capabilities = capabilities_of_factory(factory)
        self.calls: list[tuple[object, ...]] = []

    def __call__(self, *given: object, **named: object) -> object:
        return Recorder(self.factory(*given, **named), self.calls)


class Recorder:
    def __init__(self, allocator: object, calls: list[tuple[object, ...]]):
        self._allocator = allocator
        self._calls = calls

    def __getattr__(self, name: str) -> object:
        call = getattr(self._allocator, name)

        def recorded(*given: object, **named: object) -> object:
            self._calls.append((name, repr(given), repr(named)))
            answer = call(*given, **named)
            self._calls.append((name, "answered", repr(answer)))
            return answer

        return recorded


def test_a_finding_shrinks_to_the_move_that_shows_it() -> None:
    # Simplest first: nothing but what is needed is left when Hypothesis is done.
    found: list[Drawn] = []

    @settings(
        max_examples=200,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn_programs(PAGED))
    def forks(drawn: Drawn) -> None:
        if any(move.kind == "fork" for move in drawn.moves):
            found.append(drawn)
            raise AssertionError

    with only_our_constants(), pytest.raises(AssertionError):
        forks()
    assert [move.kind for move in found[-1].moves] == ["fork"]
    # Whether it batches decides which table moves are drawn from, so it does not shrink by itself.
    smallest = Pool(num_blocks=1, block_size=1, prefix_caching=False)
    assert replace(found[-1].pool, batching=False) == smallest


# Token ids and salts


def test_vocabularies_differ_where_a_shorter_integer_does_not() -> None:
    pages = [
        {
            *vocabulary.page_tokens(page, 0, 16, 16),
            *changed(vocabulary.page_tokens(page, 0, 1, 16), "last", vocabulary),
        }
        for vocabulary in VOCABULARIES
        for page in (0, 1)
    ]
    assert min(len(tokens) for tokens in pages) >= 16
    tokens = set().union(*pages)
    assert 0 <= min(tokens) <= max(tokens) < 2**31
    assert max(tokens) > 2**31 - 2**13
    for bits in (8, 16, 24):
        assert any(
            len({token % 2**bits for token in first | second}) < len(first | second)
            for first, second in itertools.pairwise(pages)
        ), bits


def test_salts_are_mistaken_for_each_other_in_every_way() -> None:
    one = SALTS[0]
    ways = {
        "beginning": lambda salt: salt[:6],
        "letter": lambda salt: salt[:1],
        "length": len,
        "letters": sorted,
        "case": str.lower,
        "space": str.strip,
    }
    assert len(set(SALTS)) == len(SALTS)
    for way, seen in ways.items():
        assert any(seen(one) == seen(other) for other in SALTS[1:]), way


def test_a_crowd_is_more_than_four_bits_count_and_goes_again() -> None:
    for kind, page in (("crowd", 0), ("crowd_like", 1)):
        machine = machine_with(Step("admit", "a", tokens=(0, 1, 2, 3, 0)))
        most = 0
        for step in steps_of(Move(kind, count=17, page=page), machine, map(str, range(99))):
            machine.run(step)
            most = max(most, len(machine.lives))
        assert most == 18
        assert machine.lives.keys() == {"a"}


def test_what_is_visited_again_was_cached_in_many_blocks() -> None:
    machine = machine_with()
    steps = made(Move("revisit", count=2), machine)
    admitted = [step.tokens for step in steps if step.call == "admit"]
    assert len(admitted) == 4
    assert admitted[:2] == admitted[2:]
    assert len(set(admitted)) == 2
    assert {len(tokens) for tokens in admitted} == {16 * 4 + 1}


def test_where_append_takes_one_token_it_is_asked_so_often() -> None:
    machine = machine_with(ADMIT_A)
    machine.can = replace(machine.can, single_appends=True)
    assert made(Move("append", count=3), machine) == [
        Step("append", "a", tokens=(token,)) for token in (1, 2, 3)
    ]
