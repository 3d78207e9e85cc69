"""Judges each lane of each load and store against the shadow state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.interpreter.memory.findings import Fault, Finding, kernel_line
from kernels.interpreter.memory.regions import RANGE_BITS, AddressBook, Origin, Region

Addresses = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.integer[Any]]

_JudgeOne = Callable[[Origin, Integers, str], None]
"""Judges an operation on elements of one tensor."""

NOBODY: Final = ()
"""The owners of a program that has not yet said for whom it works."""

LOAD, STORE, ATOMIC = "load", "store", "atomic"


class Judge:
    """The shadow state of one watched call, and what is wrong so far.

    Programs are numbered through all launches of the call, from 1. An element's `writer` and
    `reader` are such numbers, so that whatever is at least `_launch` is of this launch: launches
    wait for each other, programs of one launch do not. `_launch` itself stands for several readers.
    """

    def __init__(self, book: AddressBook) -> None:
        self.book = book
        self.findings: dict[tuple[Any, ...], Finding] = {}
        self.launches = 0
        self.names_of_arguments: dict[int, str] = {}
        self.kernel = ""
        self._grid: tuple[int, int, int] = (1, 1, 1)
        self._program: tuple[int, int, int] | None = None
        self._launch = 0
        self._me = 0
        self._last = 0
        self._owners: tuple[int, ...] = NOBODY
        # What was done to owned rows before the program said for whom it works.
        self._pending: list[tuple[Origin, str, Integers, tuple[str, int]]] = []
        self._allowed: dict[tuple[int, str, tuple[int, ...]], Bools] = {}
        self._released: dict[int, set[int]] = {}
        self._synchronised: set[int] = set()

    # --- launches and programs -------------------------------------------------------------------

    def begin_launch(self, kernel: str) -> None:
        """A kernel is launched; what earlier launches did is settled."""
        self.launches += 1
        self.kernel = kernel
        self._program = None
        self._launch = self._last + 1
        self._last = self._launch
        self._released.clear()

    def end_launch(self) -> None:
        """The launch is over."""
        self._end_program()
        self._program = None

    def enter(self, program: tuple[int, int, int]) -> None:
        """The next access is this program's."""
        if program is self._program:
            return
        self._end_program()
        self._program = program
        self._last += 1
        self._me = self._last
        self._owners = NOBODY
        self._synchronised = set()

    def _end_program(self) -> None:
        pending, self._pending = self._pending, []
        if not self._owners:
            # It read no query: then the answer that it wrote says for whom it worked.
            for origin, operation, index, _ in pending:
                if operation is not LOAD and origin.region.owner is not None:
                    self._works_for(origin.region.owner[index])
        for origin, operation, index, line in pending:
            # A program that never said: whatever is somebody's may be its own.
            self._judge_owners(origin, operation, index, self._owners, line)

    # --- accesses --------------------------------------------------------------------------------

    def load(self, addresses: Addresses, mask: Bools, itemsize: int) -> tuple[Addresses, Bools]:
        """Judge a load of the lanes in the mask; returns real addresses, and the mask without bad
        lanes.
        """
        return self._split(addresses, mask, itemsize, LOAD, self._judge_load)

    def store(self, addresses: Addresses, mask: Bools, itemsize: int) -> tuple[Addresses, Bools]:
        """Judge a store; arguments and result are those of `load`."""
        return self._split(addresses, mask, itemsize, STORE, self._judge_store)

    def atomic(
        self,
        addresses: Addresses,
        mask: Bools,
        itemsize: int,
        order: str,
        *,
        loads: bool,
        stores: bool,
    ) -> tuple[Addresses, Bools]:
        """Judge an atomic access; `order` is the name of Triton's, such as ACQUIRE_RELEASE.

        Who acquires at a tensor has seen all that those did who released there.
        """

        def judge(origin: Origin, index: Integers, operation: str) -> None:
            region = origin.region
            if region.atomic is None:
                region.atomic = np.zeros(region.span, np.bool_)
            released = self._released.setdefault(id(region), set())
            if "ACQUIRE" in order:
                self._synchronised |= released
            if loads:
                self._judge_load(origin, index, operation)
            if stores:
                self._judge_store(origin, index, operation)
                region.atomic[index] = True
            if "RELEASE" in order:
                released |= self._synchronised | {self._me}

        return self._split(addresses, mask, itemsize, ATOMIC, judge)

    def undefined_lanes(self, count: int, of_lanes: int, address: int) -> None:
        """A load left lanes undefined: they are masked off, and nothing says what they hold."""
        origin = self.book.origin(address)
        self._report(
            Fault.UNDEFINED_LANES,
            LOAD,
            origin.name if origin else "a wild pointer",
            lanes=count,
            of_lanes=of_lanes,
            place="",
            held="a GPU leaves anything in them",
        )

    def _split(
        self, addresses: Addresses, mask: Bools, itemsize: int, operation: str, judge: _JudgeOne
    ) -> tuple[Addresses, Bools]:
        whole = bool(mask.all())
        active = addresses.reshape(-1) if whole else addresses[mask]
        if not active.size:
            return addresses, mask
        origin = self.book.origin(int(active[0]))
        if origin is not None:
            offset = active - origin.low
            index = self._elements(origin, offset, itemsize)
            if index is not None:
                judge(origin, index, operation)
                return addresses + origin.delta, mask
        return self._lane_by_lane(addresses, mask, itemsize, operation, judge)

    def _elements(self, origin: Origin, offset: Addresses, itemsize: int) -> Integers | None:
        """Elements of the region at byte offsets; None unless all lie in the tensor and fit."""
        size = origin.region.itemsize
        # An offset below the tensor wraps to a huge one.
        if int(offset.max()) > origin.end * size - itemsize:
            return None
        if origin.first and int(offset.min()) < origin.first * size:
            return None
        if itemsize > 1 and int(np.bitwise_or.reduce(offset)) & (itemsize - 1):
            return None
        index: Integers = (offset >> np.uint64(size.bit_length() - 1)).view(np.int64)
        if itemsize > size:
            index = (index[:, None] + np.arange(itemsize // size)).ravel()
        return index

    def _lane_by_lane(
        self, addresses: Addresses, mask: Bools, itemsize: int, operation: str, judge: _JudgeOne
    ) -> tuple[Addresses, Bools]:
        """The same where lanes lead outside, or to several tensors."""
        lanes = addresses.reshape(-1)
        active = mask.reshape(-1)
        real, legal = np.zeros_like(lanes), np.zeros(lanes.shape, np.bool_)
        origins = lanes >> np.uint64(RANGE_BITS)
        for number in np.unique(origins[active]).tolist():
            mine = np.flatnonzero(active & (origins == number))
            origin = self.book.origin(number << RANGE_BITS)
            if origin is None:
                self._wild(operation, lanes[mine], active)
                continue
            offset = lanes[mine] - origin.low
            size = origin.region.itemsize
            beyond = (offset > np.uint64(max(origin.end * size - itemsize, 0))) | (
                offset < np.uint64(origin.first * size)
            )
            if origin.end == origin.first:
                beyond[:] = True
            crooked = ~beyond & (offset & np.uint64(itemsize - 1) != 0)
            count = int(active.sum())
            for fault, wrong in ((Fault.OUT_OF_BOUNDS, beyond), (Fault.MISALIGNED, crooked)):
                if wrong.any():
                    self._report_lanes(
                        fault, operation, origin, offset[wrong].view(np.int64) // size, count
                    )
            good = ~(beyond | crooked)
            if good.any():
                index = self._elements(origin, offset[good], itemsize)
                assert index is not None
                judge(origin, index, operation)
                legal[mine[good]] = True
                real[mine[good]] = lanes[mine[good]] + origin.delta
        return real.reshape(addresses.shape), legal.reshape(mask.shape)

    # --- what is legal ---------------------------------------------------------------------------

    def _judge_load(self, origin: Origin, index: Integers, operation: str) -> None:
        region = origin.region
        region.count_load(index)
        self._judge_place(origin, operation, index)
        if region.owner is not None:
            self._works_for(region.owner[index])
        if region.readers is not None and operation is LOAD:
            self._judge_or_wait(origin, operation, index)
        if region.written is not None:
            written = region.written[index]
            if not written.all():
                self._report_lanes(Fault.UNWRITTEN, operation, origin, index[~written], index.size)
        if region.writer is not None and region.reader is not None:
            writer = region.writer[index]
            self._judge_race(origin, operation, index, writer, "stored", region.atomic)
            if operation is LOAD:
                reader = region.reader[index]
                alone = (reader < self._launch) | (reader == self._me)
                region.reader[index] = np.where(alone, self._me, self._launch)

    def _judge_store(self, origin: Origin, index: Integers, operation: str) -> None:
        region = origin.region
        region.count_store(index)
        if region.role.access == "read":
            self._report_lanes(Fault.READ_ONLY, operation, origin, index, index.size)
            return
        self._judge_place(origin, operation, index)
        if region.writers is not None:
            self._judge_or_wait(origin, operation, index)
        elif region.owner is not None:
            self._works_for(region.owner[index])
        if region.written is not None:
            region.written[index] = True
        if region.writer is None or region.reader is None:
            return
        if operation is STORE:
            lane = np.arange(index.size, dtype=np.int32)
            before = region.writer[index]
            region.writer[index] = lane
            lost = region.writer[index] != lane
            if lost.any():
                self._report_lanes(
                    Fault.DUPLICATE_LANES, operation, origin, index[lost], index.size
                )
        else:
            before = region.writer[index]
        self._judge_race(origin, operation, index, before, "stored", region.atomic)
        self._judge_race(origin, operation, index, region.reader[index], "loaded", None)
        region.writer[index] = self._me

    def _judge_place(self, origin: Origin, operation: str, index: Integers) -> None:
        inside = origin.region.inside
        if inside is None:
            return
        within = inside[index]
        if not within.all():
            self._report_lanes(Fault.BETWEEN_ROWS, operation, origin, index[~within], index.size)

    def _works_for(self, owners: Integers) -> None:
        low, high = int(owners.min()), int(owners.max())
        found = {low} if low == high else set(np.unique(owners).tolist())
        found -= {-1, *self._owners}
        if found:
            self._owners = tuple(sorted({*self._owners, *found}))

    def _judge_or_wait(self, origin: Origin, operation: str, index: Integers) -> None:
        if self._owners:
            self._judge_owners(origin, operation, index, self._owners, None)
        else:
            self._pending.append((origin, operation, index, kernel_line()))

    def _judge_owners(
        self,
        origin: Origin,
        operation: str,
        index: Integers,
        owners: tuple[int, ...],
        line: tuple[str, int] | None,
    ) -> None:
        region = origin.region
        groups = region.readers if operation is LOAD else region.writers
        assert groups is not None
        legal = self._allowed_groups(region, operation, owners)[groups[index]]
        if region.inside is not None:
            legal |= ~region.inside[index]  # found elsewhere
        if legal.all():
            return
        wrong = index[~legal]
        if not owners:
            whom = ""
        elif len(owners) == 1:
            whom = f", the program works for {region.role.owner} {owners[0]}"
        else:
            whom = f", the program works for {region.role.owner}s {', '.join(map(str, owners))}"
        self._report_lanes(
            Fault.NOT_OWNED, operation, origin, wrong, index.size, note=whom, line=line
        )

    def _allowed_groups(self, region: Region, operation: str, owners: tuple[int, ...]) -> Bools:
        key = id(region), operation, owners
        if key not in self._allowed:
            owned = region.role.readers if operation is LOAD else region.role.writers
            assert owned is not None
            theirs = owned.allowed[:, list(owners)] if owners else owned.allowed
            self._allowed[key] = np.asarray(theirs.any(axis=1))
        return self._allowed[key]

    def _judge_race(
        self,
        origin: Origin,
        operation: str,
        index: Integers,
        other: Integers,
        did: str,
        atomic: Bools | None,
    ) -> None:
        """Whether another program of this launch, of which nothing is known, was there as well."""
        racing = (other >= self._launch) & (other != self._me)
        if not racing.any():
            return
        if atomic is not None and operation is ATOMIC:
            racing &= ~atomic[index]
        if self._synchronised:
            racing &= ~np.isin(other, list(self._synchronised))
        if racing.any():
            self._report_lanes(
                Fault.RACE,
                operation,
                origin,
                index[racing],
                index.size,
                note=f", which another program {did} in the same launch",
            )

    # --- findings --------------------------------------------------------------------------------

    def _wild(self, operation: str, lanes: Addresses, active: Bools) -> None:
        self._report(
            Fault.WILD,
            operation,
            "a pointer",
            lanes=lanes.size,
            of_lanes=int(active.sum()),
            place=f"address {int(lanes[0]):#x}",
            held="which lies in no tensor that the kernel was given",
        )

    def _report_lanes(
        self,
        fault: Fault,
        operation: str,
        origin: Origin,
        wrong: Integers,
        of_lanes: int,
        *,
        note: str = "",
        line: tuple[str, int] | None = None,
    ) -> None:
        region, element = origin.region, int(wrong[0])
        shape = " x ".join(map(str, region.shape))
        place, held = region.place(element), f"element {element:,} of {shape}"
        within = 0 <= element < region.span and (region.inside is None or region.inside[element])
        if fault is Fault.OUT_OF_BOUNDS and origin.itemsize == region.itemsize:
            place, held = origin.beyond(element)
        elif within and region.role.contents is not None:
            held = region.role.contents(region.row(element))
        self._report(
            fault,
            operation,
            origin.name,
            lanes=wrong.size,
            of_lanes=of_lanes,
            place=place,
            held=held + note,
            line=line,
        )

    def _report(
        self,
        fault: Fault,
        operation: str,
        tensor: str,
        *,
        lanes: int,
        of_lanes: int,
        place: str,
        held: str,
        line: tuple[str, int] | None = None,
    ) -> None:
        file, number = line or kernel_line()
        key = fault, operation, tensor, self.kernel, file, number
        if key in self.findings:
            known = self.findings[key]
            self.findings[key] = replace(known, times=known.times + 1)
            return
        self.findings[key] = Finding(
            fault=fault,
            operation=operation,
            tensor=tensor,
            kernel=self.kernel,
            file=file,
            line=number,
            program=self._program or (0, 0, 0),
            lanes=lanes,
            of_lanes=of_lanes,
            place=place,
            held=held,
        )
