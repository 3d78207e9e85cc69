"""Arenas against a pool that is looked at slot by slot, and the sizes that requests reserve.

Which slots are free says where the next piece goes, so the model has no books of its own: it reads
the holes off an array of booleans.
"""

import random
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers.profiles import examples
from reference.allocator.arenas import (
    ARENAS,
    RESERVATIONS,
    Arena,
    ArenaName,
    NotAllocated,
    ReservationName,
)

Holes = list[tuple[int, int]]

SERVER_SLOTS = (
    15_728  # 12 GiB in tokens of 800 KiB: the pool of the PagedAttention paper's 13B model
)
EXACT_ARENAS = ("first-fit", "best-fit")


# The model


def runs_of_free_slots(taken: NDArray[np.bool_]) -> Holes:
    edges = np.flatnonzero(np.diff(np.concatenate(([True], taken, [True])).astype(np.int8)))
    return [
        (int(start), int(stop - start)) for start, stop in zip(edges[::2], edges[1::2], strict=True)
    ]


def chunks_of_free_slots(taken: NDArray[np.bool_]) -> Holes:
    """Halve the pool's powers of two until each part is free as a whole or taken as a whole."""
    found = []

    def look(start: int, size: int) -> None:
        part = taken[start : start + size]
        if not part.any():
            found.append((start, size))
        elif not part.all():
            look(start, size // 2)
            look(start + size // 2, size // 2)

    start = 0
    while start < taken.size:
        size = 2 ** int(np.log2(taken.size - start))
        look(start, size)
        start += size
    return found


def lowest(hole: tuple[int, int]) -> tuple[int, int]:
    return hole


def smallest(hole: tuple[int, int]) -> tuple[int, int]:
    return hole[1], hole[0]


def exactly(size: int) -> int:
    return size


def power_of_two(size: int) -> int:
    return next(2**order for order in range(size + 1) if 2**order >= size)


# What an arena takes for a size, its holes, and the order in which it tries them.
MODELS: dict[
    ArenaName,
    tuple[
        Callable[[int], int],
        Callable[[NDArray[np.bool_]], Holes],
        Callable[[tuple[int, int]], tuple[int, int]],
    ],
] = {
    "buddy": (power_of_two, chunks_of_free_slots, smallest),
    "first-fit": (exactly, runs_of_free_slots, lowest),
    "best-fit": (exactly, runs_of_free_slots, smallest),
}


def place(name: ArenaName, taken: NDArray[np.bool_], size: int) -> int | None:
    """Where the arena of this name must put a piece of `size` slots."""
    granted, holes_of, order = MODELS[name]
    fitting = [hole for hole in holes_of(taken) if hole[1] >= granted(size)]
    return min(fitting, key=order)[0] if fitting else None


def check_arena(name: ArenaName, arena: Arena, program: list[int], seed: int) -> None:
    """Run `program`: n > 0 allocates n slots, n <= 0 frees one of the pieces. Then free the rest.

    The pieces left at the end are freed in an order that `seed` draws.
    """
    granted, holes_of, _ = MODELS[name]
    taken = np.zeros(arena.slots, dtype=bool)
    pieces: dict[int, int] = {}
    initial = arena.holes()

    def free(address: int) -> None:
        arena.free(address)
        stop = address + pieces.pop(address)
        assert taken[address:stop].all()
        taken[address:stop] = False

    def check_state() -> None:
        holes = holes_of(taken)
        assert arena.holes() == holes, "holes"
        assert arena.num_free == np.count_nonzero(~taken), "conservation"
        assert arena.largest_hole == max((size for _, size in holes), default=0), "largest hole"

    check_state()
    for number in program:
        if number > 0:
            fits = arena.granted(number) <= arena.largest_hole
            expected = place(name, taken, number)
            address = arena.allocate(number)
            assert (address is not None) == fits, "refused although it fits, or the reverse"
            assert address == expected, "placement"
            if address is not None:
                size = arena.granted(number)
                assert size == granted(number), "granted"
                assert size >= number, "granted"
                assert address >= 0
                assert address + size <= arena.slots
                assert not taken[address : address + size].any(), "overlap"
                assert name != "buddy" or address % size == 0, "alignment"
                taken[address : address + size] = True
                pieces[address] = size
        elif pieces:
            free(list(pieces)[-number % len(pieces)])
        check_state()
    rest = list(pieces)
    random.Random(seed).shuffle(rest)
    for address in rest:
        free(address)
        check_state()
    assert arena.holes() == initial, "coalescing back to the beginning"
    assert arena.num_free == arena.slots


PROGRAMS = st.lists(st.integers(-8, 40) | st.sampled_from([1, 2, 3, 64, 65, 128]), max_size=40)
SLOTS = st.integers(1, 200) | st.sampled_from([1, 64, 127, 128, 129, 192])


@pytest.mark.parametrize("name", get_args(ArenaName))
@given(slots=SLOTS, program=PROGRAMS, seed=st.integers(0, 99))
@examples(120)
def test_arena_is_what_the_slots_say(
    name: ArenaName, slots: int, program: list[int], seed: int
) -> None:
    check_arena(name, ARENAS[name](slots), program, seed)


# Thirty per cent free, and a request cannot start


@pytest.mark.parametrize("name", EXACT_ARENAS)
def test_thirty_per_cent_free_and_31_slots_are_refused(name: ArenaName) -> None:
    arena = ARENAS[name](1000)
    addresses = [arena.allocate(size) for size in (70, 30) * 10]
    assert arena.num_free == 0
    for address in addresses[1::2]:
        assert address is not None
        arena.free(address)

    assert arena.num_free == 300
    assert arena.largest_hole == 30
    assert arena.holes() == [(70 + 100 * index, 30) for index in range(10)]
    assert arena.allocate(31) is None
    assert [arena.allocate(30) for _ in range(11)] == [*range(70, 1000, 100), None]


def test_half_of_a_buddy_arena_free_and_33_slots_are_refused() -> None:
    """The same for chunks, where holes of 32 that lie side by side need not be one of 64."""
    arena = ARENAS["buddy"](1000)
    addresses = {arena.allocate(30) for _ in range(31)}
    assert addresses == set(range(0, 992, 32))
    assert arena.holes() == [(992, 8)]
    for address in range(0, 992, 64):
        arena.free(address)

    assert arena.num_free == 16 * 32 + 8
    assert arena.largest_hole == 32
    assert arena.allocate(33) is None
    assert [arena.allocate(31) for _ in range(17)] == [*range(0, 992, 64), None]


def test_a_buddy_arena_takes_the_smallest_chunk_and_of_equal_ones_the_lowest() -> None:
    arena = ARENAS["buddy"](512 + 128 + 32)
    assert [arena.allocate(size) for size in (32, 100, 32, 32)] == [640, 512, 0, 32]
    assert arena.holes() == [(64, 64), (128, 128), (256, 256)]


# The buddy arena of the paper's server


def test_a_pool_of_any_size_begins_as_its_binary_digits() -> None:
    holes = ARENAS["buddy"](SERVER_SLOTS).holes()
    assert [size for _, size in holes] == [8192, 4096, 2048, 1024, 256, 64, 32, 16]
    assert [address for address, _ in holes] == [
        0, 8192, 12288, 14336, 15360, 15616, 15680, 15712,
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1025, 2048])
def test_exactly_seven_maximal_lengths_fit_the_papers_server(size: int) -> None:
    arena = ARENAS["buddy"](SERVER_SLOTS)
    addresses = [arena.allocate(size) for _ in range(8)]
    assert addresses == [12288, *range(8192, 12288, 2048), *range(0, 8192, 2048), None]
    assert arena.num_free == SERVER_SLOTS - 7 * 2048 == 1392


# Reservations


@pytest.mark.parametrize(
    ("name", "prompt", "output", "slots"),
    [
        ("max", 1, 1, 2048),
        ("max", 1024, 1024, 2048),
        ("oracle", 161, 338, 499),
        ("oracle", 0, 1, 1),
        ("pow2", 100, 25, 132),
        ("pow2", 100, 32, 132),
        ("pow2", 100, 33, 164),
        ("pow2", 100, 1, 101),
        ("pow2", 1000, 1025, 2048),
        ("pow2", 1024, 1024, 2048),
    ],
)
def test_reservation(name: ReservationName, prompt: int, output: int, slots: int) -> None:
    assert RESERVATIONS[name](prompt, output, 2048) == slots


@given(prompt=st.integers(0, 4096), output=st.integers(1, 4096), spare=st.integers(0, 5000))
@examples(100)
def test_every_reservation_holds_the_request_and_at_most_the_models_length(
    prompt: int, output: int, spare: int
) -> None:
    final, longest = prompt + output, prompt + output + spare
    oracle, pow2, most = (
        RESERVATIONS[name](prompt, output, longest) for name in ("oracle", "pow2", "max")
    )
    assert final == oracle <= pow2 <= most == longest
    assert pow2 - prompt < 2 * output


# Bad input


@pytest.mark.parametrize("arena", ARENAS.values(), ids=ARENAS)
@pytest.mark.parametrize("size", [0, -1])
def test_no_piece_and_no_pool_of_less_than_one_slot(arena: type[Arena], size: int) -> None:
    with pytest.raises(ValueError, match=rf"slots is {size}: .* at least 1"):
        arena(size)
    pool = arena(8)
    with pytest.raises(ValueError, match=rf"size is {size}: .* at least 1"):
        pool.allocate(size)
    assert pool.num_free == 8


@pytest.mark.parametrize("arena", ARENAS.values(), ids=ARENAS)
def test_an_address_is_freed_once_and_where_a_piece_begins(arena: type[Arena]) -> None:
    pool = arena(16)
    address = pool.allocate(4)
    assert address == 0
    for unknown in (1, 4, -1, 16):
        with pytest.raises(NotAllocated, match=f"address {unknown}: free the addresses that"):
            pool.free(unknown)
    assert pool.num_free == 12
    pool.free(address)
    with pytest.raises(NotAllocated, match="address 0: free the addresses that") as error:
        pool.free(address)
    assert error.value.address == 0
    assert pool.num_free == 16
    assert pool.allocate(16) == 0
