"""Shadow state of the memory behind each tensor, and addresses that say which tensor they are of.

While accesses are watched a kernel gets no real pointers. Each tensor argument has an address range
of its own, 2^48 bytes wide, with the tensor in the middle. Whatever a kernel does to such a pointer
(add, broadcast, choose, cast, put into a descriptor), its upper bits name the tensor that it was
derived from. Only an offset beyond 2^47 bytes could be taken for another tensor's, and that lands
in the middle of one with a chance of the tensor's size in 2^48.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor

from kernels.interpreter.memory.roles import Owned, Role

Bools = NDArray[np.bool_]
Integers = NDArray[np.integer[Any]]
Addresses = NDArray[np.uint64]

RANGE_BITS: Final = 48
"""Bits of an address within one tensor's range. The other 16 number the tensors, from 1."""

KEPT_BITS: Final = 12
"""Lowest bits of an address that are the real one's: descriptors look at its alignment."""

MOST_TENSORS: Final = 2 ** (64 - RANGE_BITS) - 1


@dataclass(slots=True, eq=False)
class Traffic:
    """Bytes that kernels moved of one tensor."""

    loaded: int = 0
    stored: int = 0
    """Lanes of all loads (stores) times the size of an element; lanes that are masked off move
    nothing. Atomic operations count as both."""
    loaded_distinct: int = 0
    stored_distinct: int = 0
    """Bytes that were loaded (stored) at least once."""


class Region:
    """The elements between the first and the last one of a tensor, and what is known of each."""

    def __init__(self, role: Role, *, known: bool = True) -> None:
        tensor = role.tensor
        self.role = role
        self.known = known
        """Whether the caller said what the tensor is; otherwise it was met at a launch."""
        self.address = tensor.data_ptr()
        self.itemsize = tensor.element_size()
        self.shape = tuple(tensor.shape)
        self.strides = tuple(tensor.stride())
        self.span = _span(self.shape, self.strides)
        """Elements from the first to the last, those between the rows included. All arrays are over
        these: which are the tensor's, which hold something, for whom a program works that touches
        one, of which group of `Owned.group` it is. None where it holds of all, or says nothing."""
        self.traffic = Traffic()
        dense = self.span == tensor.numel()
        self.inside = (
            None if dense else self._spread(np.ones((), np.bool_), np.zeros(self.span, np.bool_))
        )
        self.written: Bools | None = None if role.written else np.zeros(self.span, np.bool_)
        self.owner: NDArray[np.int32] | None = None
        if role.works_for is not None:
            start = np.full(self.span, -1, np.int32)
            self.owner = self._spread(self._by_row(role.works_for.astype(np.int32), 1), start)
        self.readers = self._groups(role.readers)
        self.writers = self._groups(role.writers)
        shared = role.access != "read"
        self.writer = np.zeros(self.span, np.int32) if shared else None
        self.reader = np.zeros(self.span, np.int32) if shared else None
        """The last program that stored to (loaded from) an element; see `Judge`."""
        self.atomic: Bools | None = None
        self._loaded = np.zeros(self.span, np.bool_)
        self._stored = np.zeros(self.span, np.bool_) if shared else None

    def count_load(self, index: Integers) -> None:
        """Count the bytes of elements that are loaded."""
        self.traffic.loaded += index.size * self.itemsize
        self._loaded[index] = True

    def count_store(self, index: Integers) -> None:
        """Count the bytes of elements that are stored."""
        if self._stored is None:
            self._stored = np.zeros(self.span, np.bool_)
        self.traffic.stored += index.size * self.itemsize
        self._stored[index] = True

    def moved(self) -> Traffic:
        """The bytes so far, with the distinct ones counted."""
        traffic = self.traffic
        traffic.loaded_distinct = int(np.count_nonzero(self._loaded)) * self.itemsize
        if self._stored is not None:
            traffic.stored_distinct = int(np.count_nonzero(self._stored)) * self.itemsize
        return traffic

    def mark_written(self, tensor: Tensor) -> None:
        """The host wrote to a tensor that may be a part of this one."""
        if self.written is None:
            return
        first, rest = divmod(tensor.data_ptr() - self.address, self.itemsize)
        end = first + _span(tuple(tensor.shape), tuple(tensor.stride()))
        if rest or first < 0 or end > self.span or tensor.element_size() != self.itemsize:
            self.written[max(first, 0) : max(end, 0)] = True
            return
        part = self.written[first:]
        as_strided(part, tensor.shape, tensor.stride())[...] = True

    def place(self, element: int) -> str:
        """Where an element lies, in the words of the role's axes."""
        return self.words(_index(element, self.shape, self.strides))

    def words(self, index: list[int]) -> str:
        """An index in the words of the role's axes, if it has so many."""
        axes = self.role.axes if len(index) == len(self.shape) else ()
        names = axes or tuple(f"index {axis}" for axis in range(len(index)))
        return ", ".join(f"{name} {at:,}" for name, at in zip(names, index, strict=False))

    def row(self, element: int) -> int:
        """The row of an element as `Owned` counts them; of a cache its slot."""
        index = _index(element, self.shape, self.strides)
        return index[0] * self.shape[1] + index[1] if self._rows_are_slots else index[0]

    @property
    def _rows_are_slots(self) -> bool:
        return self.role.axes[:2] == ("block", "offset")

    def _groups(self, owned: Owned | None) -> NDArray[np.int32] | None:
        if owned is None:
            return None
        rows = self._by_row(owned.group, 2 if self._rows_are_slots else 1)
        groups: NDArray[np.int32] = self._spread(rows, np.zeros(self.span, np.int32))
        return groups

    def _by_row(self, rows: NDArray[Any], dimensions: int) -> NDArray[Any]:
        rest = (1,) * (len(self.shape) - dimensions)
        return rows.reshape(*self.shape[:dimensions], *rest)

    def _spread(self, values: NDArray[Any], over: NDArray[Any]) -> Any:
        """Put values, one for each row, where the tensor's elements lie."""
        if over.size:
            strides = tuple(stride * over.itemsize for stride in self.strides)
            as_strided(over, self.shape, strides)[...] = values
        return over


@dataclass(slots=True)
class Origin:
    """A tensor argument as a kernel sees it: a range of addresses, and what lies behind."""

    region: Region
    """The memory."""
    name: str
    """As findings call it."""
    virtual: int
    """Address that a kernel gets instead of the tensor's own."""
    low: np.uint64
    """Address that a kernel would see for the region's first element."""
    delta: np.uint64
    """What makes a real address of one that the kernel sees."""
    first: int
    end: int
    """Elements of the region between which the tensor lies."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Of the tensor, which may be a view of a part of the region."""
    itemsize: int

    def beyond(self, element: int) -> tuple[str, str]:
        """Where an element of the region is that is none of this tensor, and what it is of it."""
        inside = element - self.first
        shape = " x ".join(map(str, self.shape))
        place = self.region.words(_index(inside, self.shape, self.strides))
        return place, f"element {inside:,} of {shape}"


@dataclass(slots=True)
class AddressBook:
    """All tensors that kernels of one watched call were given."""

    roles: tuple[Role, ...]
    regions: list[Region] = field(init=False)
    origins: list[Origin] = field(default_factory=list)
    _known: dict[tuple[Any, ...], Origin] = field(default_factory=dict)
    _empty: set[int] = field(default_factory=set)
    _kept: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.regions = [Region(role) for role in self.roles if role.tensor.numel()]

    def virtual_address(self, tensor: Tensor, kernel: str, parameter: str) -> int:
        """The address that a kernel gets for a tensor as one of its parameters."""
        key = tensor.data_ptr(), tensor.element_size(), tensor.shape, tensor.stride(), parameter
        if key not in self._known:
            if len(self.origins) == MOST_TENSORS:
                raise RuntimeError(f"{MOST_TENSORS:,} tensors in one watched call: watch less")
            self._known[key] = self._introduce(tensor, kernel, parameter)
        return self._known[key].virtual

    def origin(self, address: int) -> Origin | None:
        """The tensor that an address was derived from; None if from no argument."""
        number = address >> RANGE_BITS
        return self.origins[number - 1] if 0 < number <= len(self.origins) else None

    def fresh(self, tensor: Tensor) -> None:
        """The host allocated a tensor and put nothing into it."""
        # Kept: while it lives nobody else gets its memory, whose state would be this one's.
        self._kept.append(tensor)
        self._empty.add(tensor.untyped_storage().data_ptr())

    def overwritten(self, tensor: Tensor) -> None:
        """The host wrote to a tensor."""
        storage = tensor.untyped_storage().data_ptr()
        here = [r for r in self.regions if r.role.tensor.untyped_storage().data_ptr() == storage]
        if not here and storage in self._empty:
            here = [self._unknown(tensor, "scratch")]
            self.regions += here
        for region in here:
            region.mark_written(tensor)

    def _introduce(self, tensor: Tensor, kernel: str, parameter: str) -> Origin:
        region = self._region_of(tensor)
        if region is None:
            region = self._unknown(tensor, f"{kernel}.{parameter}")
            self.regions.append(region)
        number = len(self.origins) + 1
        real = tensor.data_ptr()
        virtual = (number << RANGE_BITS) + 2 ** (RANGE_BITS - 1) + real % 2**KEPT_BITS
        first = (real - region.address) // region.itemsize
        span = _span(tuple(tensor.shape), tuple(tensor.stride())) * tensor.element_size()
        origin = Origin(
            region=region,
            name=region.role.name if region.known else parameter,
            virtual=virtual,
            low=np.uint64(virtual - (real - region.address)),
            delta=np.uint64((real - virtual) % 2**64),
            first=first,
            end=first + -(-span // region.itemsize),
            shape=tuple(tensor.shape),
            strides=tuple(tensor.stride()),
            itemsize=tensor.element_size(),
        )
        self.origins.append(origin)
        return origin

    def _region_of(self, tensor: Tensor) -> Region | None:
        """The region in which a tensor lies; of several that interleave, the one it starts in, and
        the first where one is a part of another, as values are of a latent cache.
        """
        storage, best = tensor.untyped_storage().data_ptr(), None
        for region in self.regions:
            if region.role.tensor.untyped_storage().data_ptr() != storage:
                continue
            element, rest = divmod(tensor.data_ptr() - region.address, region.itemsize)
            if element == 0 and not rest:
                return region
            within = 0 <= element < region.span and not rest
            if best is None and within and (region.inside is None or region.inside[element]):
                best = region
        return best

    def _unknown(self, tensor: Tensor, name: str) -> Region:
        """A tensor of which nobody said what it is: the whole of its storage."""
        size = tensor.element_size()
        storage = tensor.untyped_storage()
        whole = tensor.as_strided((storage.nbytes() // size,), (1,), 0)
        empty = storage.data_ptr() in self._empty
        role = Role(name, whole, (), "both", written=not empty)
        return Region(role, known=False)


def _index(element: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """Index of an element by dimension; one outside the tensor has an index outside."""
    order = sorted(range(len(shape)), key=lambda axis: -strides[axis])
    index, rest = [0] * len(shape), element
    for axis in order:
        if strides[axis] and (shape[axis] > 1 or axis == order[-1]):
            index[axis], rest = divmod(rest, strides[axis])
    return index


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a strided tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
