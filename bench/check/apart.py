"""A kernel in a process of its own, as whoever judges it sees it: called like a function.

Inputs go out and outputs come back as bytes of one file in memory; what is said beside them is
JSON. The judge alone decides what lies where. It copies a call's memory back once, when the kernel
says that it is done: what is written later counts for nothing, and is found out.
`bench.check.subject` is the other side.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from bench.check.children import CAPABILITIES
from reference.attention.comparing import Findings
from reference.attention.contract import Capabilities, PagedBatch
from reference.attention.far import NoRoom, memory_file, touched
from reference.attention.raised import RaisedElsewhere
from subjects.process import SubjectDied, SubjectProcess

ALIGNED: Final = 64
"""Bytes: where torch's own tensors begin."""

MOST_WORDS: Final = 1 << 16
"""Characters of an answer: what is said of a call is some sentences."""

LATE: Final = "wrote to the memory of a call after it had returned"
"""A finding: threads, or work that nobody waited for."""

Moved = dict[str, dict[str, int]]

_ANSWERS: Final[dict[str, TypeAdapter[Any]]] = {
    "done": TypeAdapter(bool),
    "raised": TypeAdapter(str),
    "no_room": TypeAdapter(str),
    "seen": TypeAdapter(list[str] | str | None),
    "moved": TypeAdapter(Moved | None),
}
"""What a kernel's process may answer to a call, one of them."""


class Gone(BaseException):
    """The kernel's process died, or broke the protocol. Nothing that catches what a kernel raises
    stops it: no check goes on.
    """

    def __init__(self, how: str, *, timed_out: bool) -> None:
        super().__init__(how)
        self.how = how
        self.timed_out = timed_out


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor's whole memory, or of far memory what is touched, and where its copy lies."""

    memory: Tensor
    """All bytes."""
    extents: list[tuple[int, int]] | None
    """(first, count) of the bytes that cross; None for all."""
    start: int
    """In the file."""
    size: int

    def pieces(self) -> list[Tensor]:
        """The bytes that cross, in the order in which they lie in the file."""
        if self.extents is None:
            return [self.memory]
        return [self.memory[first : first + count] for first, count in self.extents]


@dataclass(slots=True)
class _Call:
    """A call that was made in the current check."""

    number: int
    """Counted over all checks."""
    batch: PagedBatch
    """Kept, so that no other gets its addresses before the check ends."""
    parts: list[_Part]
    after: list[Tensor]
    """What lay there when the kernel was done."""


class ApartKernel:
    """A kernel that runs in a process of its own.

    `start` is given the descriptor of the file to share. `time_limit_s` is for all calls of one
    check. `declared` is what the kernel said before, and has to say again. Calls raise
    RaisedElsewhere, NoRoom, or Gone.
    """

    def __init__(
        self,
        start: Callable[[int], SubjectProcess],
        *,
        time_limit_s: float,
        declared: Capabilities | None = None,
    ) -> None:
        self._limit_s = time_limit_s
        self._declared = declared
        self._file = memory_file()
        self._process = start(self._file)
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self._count = 0
        self._calls: list[_Call] = []
        self._deadline = 0.0
        self._lost = False
        self.watchable = False
        """Whether the kernel's process can watch its accesses."""
        self.capabilities = Capabilities()
        """What the kernel declares."""

    def introduce(self) -> str | None:
        """Begin a check, with a new process where there is none: why there is no kernel, or None.

        Raises Gone, NotStarted.
        """
        self._deadline = time.monotonic() + self._limit_s
        self._calls, self._used = [], 0
        try:
            said = self._process.introduce()
        except SubjectDied as death:
            raise Gone(death.how, timed_out=death.timed_out) from None
        if "error" in said:
            return str(said["error"])
        try:
            self.capabilities = CAPABILITIES.validate_python(said.get("capabilities"))
        except ValidationError:
            raise self._violated(said) from None
        self._declared = self._declared or self.capabilities
        if self.capabilities != self._declared:
            self.close()
            raise Gone("declares other capabilities than it did before", timed_out=False)
        self.watchable = self.watchable or said.get("watchable") is True
        return None

    def __call__(self, batch: PagedBatch) -> None:
        """Call the kernel on a batch."""
        self._ask("call", batch, "done")

    def watch(self, _: object, batch: PagedBatch) -> Findings | str | None:
        """A `reference.attention.checks.Watch`, done where the kernel runs."""
        seen: Findings | str | None = self._ask("watch", batch, "seen")
        return seen

    def moved(self, batch: PagedBatch) -> Moved | None:
        """Bytes that the kernel moves of each tensor; None where nothing can be seen."""
        moved: Moved | None = self._ask("moved", batch, "moved")
        return moved

    def late(self) -> Findings:
        """End a check: what was written to its calls' memory after they had returned."""
        late = any(self._changed(call) for call in self._calls)
        self._calls = []
        if self._lost:
            self.close()  # nothing runs there any more; the next check gets a new process
        return [LATE] if late else []

    def kill(self) -> None:
        """End the process for good, from any thread."""
        self._process.kill()

    def close(self) -> None:
        """End the process, if there is one."""
        self._process.close()
        self._lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        os.close(self._file)

    def _ask(self, what: str, batch: PagedBatch, wanted: str) -> Any:
        call = next((call for call in self._calls if call.batch is batch), None)
        if call is None:
            call = _Call(self._count, batch, self._parts(batch), [])
            self._calls.append(call)
            self._count += 1
        late = self._changed(call)
        for part in call.parts:
            _join(part.pieces(), self._bytes[part.start : part.start + part.size])
        left_s = max(self._deadline - time.monotonic(), 0.001)
        question = {"what": what, **self._described(call)}
        try:
            reply = self._process.ask(question, limit_s=left_s)
        except SubjectDied as death:
            how = death.how.replace(f"{left_s:g} s", f"{self._limit_s:g} s", 1)
            raise Gone(how, timed_out=death.timed_out) from None
        self._take_back(call)
        self.watchable = reply.pop("watchable", None) is True
        self._lost = reply.pop("lost", None) is True
        return self._answer(reply, wanted, late=late)

    def _answer(self, reply: dict[str, Any], wanted: str, *, late: bool) -> Any:
        if len(reply) != 1 or not reply.keys() <= {wanted, "raised", "no_room"}:
            raise self._violated(reply)
        if len(str(reply)) > MOST_WORDS:
            raise self._violated(reply)
        kind, said = next(iter(reply.items()))
        try:
            said = _ANSWERS[kind].validate_python(said, strict=True)
        except ValidationError:
            raise self._violated(reply) from None
        if late:
            raise RaisedElsewhere(LATE)
        if kind == "raised":
            raise RaisedElsewhere(said)
        if kind == "no_room":
            raise NoRoom(said)
        return said

    def _violated(self, reply: dict[str, Any]) -> Gone:
        self.close()
        return Gone(f"broke the protocol: {str(reply)[:200]} is no answer", timed_out=False)

    def _parts(self, batch: PagedBatch) -> list[_Part]:
        """Room for the memory of a batch's tensors, once where they share it."""
        parts: dict[int, _Part] = {}
        for tensor in _tensors(batch).values():
            address, size = _memory_of(tensor)
            if address in parts:
                continue
            extents = touched(address, size)
            crossing = size if extents is None else sum(count for _, count in extents)
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            parts[address] = _Part(whole, extents, self._used, crossing)
            self._used += -(-crossing // ALIGNED) * ALIGNED
        if self._used > len(self._bytes):
            self._grow(2 * self._used)
        return list(parts.values())

    def _grow(self, size: int) -> None:
        os.ftruncate(self._file, size)
        self._bytes = torch.frombuffer(mmap.mmap(self._file, size), dtype=torch.uint8)

    def _described(self, call: _Call) -> dict[str, Any]:
        addresses = [part.memory.data_ptr() for part in call.parts]
        tensors = {
            name: {
                "part": addresses.index(_memory_of(tensor)[0]),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": tensor.shape,
                "stride": tensor.stride(),
                "offset": tensor.storage_offset(),
            }
            for name, tensor in _tensors(call.batch).items()
        }
        options = {
            field.name: getattr(call.batch, field.name)
            for field in dataclasses.fields(call.batch)
            if field.name not in tensors and f"{field.name}[0]" not in tensors
        }
        parts = [(part.start, len(part.memory), part.extents) for part in call.parts]
        return {
            "call": call.number,
            "since": self._calls[0].number,
            "room": len(self._bytes),
            "batch": type(call.batch).__name__,
            "parts": parts,
            "tensors": tensors,
            "options": options,
        }

    def _take_back(self, call: _Call) -> None:
        """Copy what the kernel left: all that is judged."""
        call.after = [self._now(part).clone() for part in call.parts]
        for part, left in zip(call.parts, call.after, strict=True):
            sizes = [len(piece) for piece in part.pieces()]
            for piece, each in zip(part.pieces(), left.split(sizes), strict=True):
                piece.copy_(each)

    def _changed(self, call: _Call) -> bool:
        pairs = zip(call.parts, call.after, strict=False)  # nothing before the first call
        return any(not torch.equal(self._now(part), left) for part, left in pairs)

    def _now(self, part: _Part) -> Tensor:
        return self._bytes[part.start : part.start + part.size]


def _join(pieces: list[Tensor], into: Tensor) -> None:
    for piece, room in zip(pieces, into.split([len(piece) for piece in pieces]), strict=True):
        room.copy_(piece)


def _tensors(batch: PagedBatch) -> dict[str, Tensor]:
    """The tensors of a call by name; of a field with several `NAME[0]` and so on."""
    tensors: dict[str, Tensor] = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        several = value if isinstance(value, tuple) else ()
        tensors |= {f"{field.name}[{index}]": each for index, each in enumerate(several)}
        tensors |= {field.name: value} if isinstance(value, Tensor) else {}
    return tensors


def _memory_of(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
