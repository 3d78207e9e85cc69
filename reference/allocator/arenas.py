"""The contiguous cache: each request reserves one piece of the pool before its first token.

What engines did before paging, and what paging is compared with. How long the piece is, a
reservation says; where it lies and how much it is rounded up, an arena. A request that finds no
hole large enough waits, however much is free in all: that is external fragmentation.

    reserve = RESERVATIONS["pow2"]
    arena = ARENAS["buddy"](15_728)
    address = arena.allocate(reserve(161, 338, 2048))  # 161 + 512 = 673, in a chunk of 1024
    arena.free(address)

Addresses are slots, 0 to `slots - 1`, and everything is deterministic.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

ArenaName = Literal["buddy", "first-fit", "best-fit"]
ReservationName = Literal["max", "pow2", "oracle"]


class NotAllocated(ValueError):
    """An address was freed at which no piece begins: never allocated, or freed already."""

    def __init__(self, address: int) -> None:
        super().__init__(
            f"no piece begins at address {address!r}: "
            "free the addresses that allocate() returned, each of them once"
        )
        self.address = address


def reserve_max(prompt: int, output: int, max_model_len: int) -> int:
    """Reserve the model's maximal length: nothing is known of the output."""
    return max_model_len


def reserve_pow2(prompt: int, output: int, max_model_len: int) -> int:
    """Reserve the prompt and the output's next power of two (Kwon et al., SOSP 2023, 6.1)."""
    return min(prompt + _next_power_of_two(output), max_model_len)


def reserve_oracle(prompt: int, output: int, max_model_len: int) -> int:
    """Reserve what will be filled: the output's length is known beforehand."""
    return prompt + output


RESERVATIONS: Final[Mapping[ReservationName, Callable[[int, int, int], int]]] = {
    "max": reserve_max,
    "pow2": reserve_pow2,
    "oracle": reserve_oracle,
}
"""Slots that a request asks for, from its prompt and output tokens and `max_model_len`.

At least `prompt + output`, for every request of at most `max_model_len` tokens.
"""


class Arena(Protocol):
    """What places pieces in a pool."""

    slots: int
    """Slots of the pool."""
    num_free: int
    """Slots that no piece covers."""

    def __init__(self, slots: int) -> None: ...

    @property
    def largest_hole(self) -> int:
        """Largest size that can be allocated now; 0 where there is none."""

    def granted(self, size: int) -> int:
        """Slots that a piece of `size` takes from the pool."""

    def allocate(self, size: int) -> int | None:
        """Take a piece of at least `size` slots; return its address, None if no hole is as large.

        Raises ValueError where `size` is less than 1.
        """

    def free(self, address: int) -> None:
        """Give a piece back. Raises `NotAllocated` where none begins at `address`."""

    def holes(self) -> list[tuple[int, int]]:
        """Address and size of each hole, by address."""


class FirstFitArena:
    """Pieces of exactly the size asked for, each in the lowest hole that is large enough.

    Neighbouring holes are one. Raises ValueError: `slots` is less than 1.
    """

    __slots__ = ("_addresses", "_pieces", "_sizes", "num_free", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = self.num_free = _at_least_one("slots", slots)
        self._addresses = [0]
        self._sizes = [slots]
        self._pieces: dict[int, int] = {}

    @property
    def largest_hole(self) -> int:
        """Largest size that can be allocated now; 0 where there is none."""
        return max(self._sizes, default=0)

    def granted(self, size: int) -> int:
        """Return `size`: nothing is rounded."""
        return size

    def allocate(self, size: int) -> int | None:
        """As in `Arena`; the piece has `size` slots."""
        if size < 1:
            _at_least_one("size", size)
        index = self._choose(size)
        if index is None:
            return None
        addresses, sizes = self._addresses, self._sizes
        address = addresses[index]
        if sizes[index] == size:
            del addresses[index], sizes[index]
        else:
            addresses[index] = address + size
            sizes[index] -= size
        self._pieces[address] = size
        self.num_free -= size
        return address

    def free(self, address: int) -> None:
        """Give a piece back. Raises `NotAllocated` where none begins at `address`."""
        size = self._pieces.pop(address, 0)
        if not size:
            raise NotAllocated(address)
        self.num_free += size
        addresses, sizes = self._addresses, self._sizes
        index = bisect_left(addresses, address)
        touches_next = index < len(addresses) and addresses[index] == address + size
        if index and addresses[index - 1] + sizes[index - 1] == address:
            sizes[index - 1] += size
            if touches_next:
                sizes[index - 1] += sizes[index]
                del addresses[index], sizes[index]
        elif touches_next:
            addresses[index] = address
            sizes[index] += size
        else:
            addresses.insert(index, address)
            sizes.insert(index, size)

    def holes(self) -> list[tuple[int, int]]:
        """Address and size of each hole, by address."""
        return list(zip(self._addresses, self._sizes, strict=True))

    def _choose(self, size: int) -> int | None:
        """Index of the hole to cut the piece from; None where none is large enough."""
        for index, hole in enumerate(self._sizes):
            if hole >= size:
                return index
        return None


class BestFitArena(FirstFitArena):
    """Pieces of exactly the size asked for, each in the smallest hole, of equal ones the lowest."""

    __slots__ = ()

    def _choose(self, size: int) -> int | None:
        fitting = [hole for hole in self._sizes if hole >= size]
        return self._sizes.index(min(fitting)) if fitting else None


class BuddyArena:
    """Chunks of a power of two, each at a multiple of its size, halved and merged again in pairs.

    The pool may have any size: it begins as its binary digits, the largest chunk first. 15,728
    slots are 8192 + 4096 + 2048 + 1024 + 256 + 64 + 32 + 16, and hold exactly seven chunks of 2048.
    A hole is a free chunk: two that lie side by side and are no pair stay two. The smallest that is
    large enough is taken; of equal ones, the lowest. Raises ValueError: `slots` is less than 1.
    """

    __slots__ = ("_free", "_orders", "_pieces", "num_free", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = self.num_free = _at_least_one("slots", slots)
        # By order, the addresses of the free chunks of 2**order slots. Bit `order` of _orders is
        # set where there is one.
        self._free: list[set[int]] = [set() for _ in range(slots.bit_length())]
        self._orders = slots
        self._pieces: dict[int, int] = {}
        address = 0
        for order in reversed(range(slots.bit_length())):
            if slots >> order & 1:
                self._free[order].add(address)
                address += 1 << order

    @property
    def largest_hole(self) -> int:
        """Largest size that can be allocated now; 0 where there is none."""
        return 1 << self._orders.bit_length() >> 1

    def granted(self, size: int) -> int:
        """Return the next power of two."""
        return _next_power_of_two(size)

    def allocate(self, size: int) -> int | None:
        """As in `Arena`; the piece is a chunk."""
        if size < 1:
            _at_least_one("size", size)
        order = (size - 1).bit_length()
        enough = self._orders >> order
        if not enough:
            return None
        found = order + (enough & -enough).bit_length() - 1
        free = self._free
        chunks = free[found]
        address = min(chunks)
        chunks.remove(address)
        if not chunks:
            self._orders ^= 1 << found
        # The lowest part is handed out; one upper half of each order on the way there stays free.
        for half in range(order, found):
            free[half].add(address + (1 << half))
        self._orders |= (1 << found) - (1 << order)
        self._pieces[address] = order
        self.num_free -= 1 << order
        return address

    def free(self, address: int) -> None:
        """Give a chunk back. Raises `NotAllocated` where none begins at `address`."""
        order = self._pieces.pop(address, None)
        if order is None:
            raise NotAllocated(address)
        self.num_free += 1 << order
        free = self._free
        # A chunk of the beginning has no partner in the pool, so none is looked up wrongly.
        while (partner := address ^ (1 << order)) in free[order]:
            free[order].remove(partner)
            if not free[order]:
                self._orders ^= 1 << order
            address &= partner
            order += 1
        free[order].add(address)
        self._orders |= 1 << order

    def holes(self) -> list[tuple[int, int]]:
        """Address and size of each free chunk, by address."""
        return sorted(
            (address, 1 << order) for order, free in enumerate(self._free) for address in free
        )


ARENAS: Final[Mapping[ArenaName, type[Arena]]] = {
    "buddy": BuddyArena,
    "first-fit": FirstFitArena,
    "best-fit": BestFitArena,
}
"""The arenas by name."""


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _at_least_one(name: str, number: int) -> int:
    if number < 1:
        raise ValueError(f"{name} is {number!r}: give a whole number of slots, at least 1")
    return number
