"""The process that a kernel has for itself: it is called there, and nothing is judged there.

It is started with the kernel's name, a device and the descriptor of a file that it shares with
whoever judges (`bench.check.apart`). Questions and answers are JSON lines; see `subjects.process`.
The introduction is {"capabilities": ...}, or {"error": ...} where the name leads to no kernel. A
question says where the tensors of a call lie in the file. It is answered once the kernel has
returned: {"done": true}, {"seen": ...} or {"moved": ...}, else {"raised": ...} or {"no_room": ...}.
"""

from __future__ import annotations

import json
import mmap
import sys
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

# Imported before the subject, to be found again afterwards: where it lies there may be folders of
# the same names.
import kernels as kernels_room
import paged as paged_room
from bench.check.watching import bytes_moved, watcher
from bench.machine.timing import is_lost
from bench.search.child import (
    answer_questions,
    end_with_parent,
    listen,
    open_answers,
    speak_when_dying,
)
from reference.attention.contract import (
    AttentionKernel,
    CopyBatch,
    MergeBatch,
    PagedBatch,
    WriteBatch,
)
from reference.attention.far import NoRoom, no_room_for_copies, room_for
from reference.attention.raised import said_of
from reference.stack import with_stack_room
from subjects.attention.resolve import Subject, resolve_kernel
from subjects.loading import SubjectError

ROOMS = (kernels_room, paged_room)

_CALLS: dict[str, Any] = {
    call.__name__: call for call in (PagedBatch, MergeBatch, WriteBatch, CopyBatch)
}
Question = dict[str, Any]


class Shelf:
    """The calls of one check, where they lie in the file."""

    def __init__(self, file: int, device: str) -> None:
        self._file = file
        self._device = torch.device(device)
        self.on_gpu = self._device.type == "cuda"
        self._memory = mmap.mmap(-1, 1)
        self._batches: dict[int, PagedBatch] = {}
        self._copies: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def batch(self, question: Question) -> PagedBatch:
        """The batch of a question with its contents of now, the same object in each of its calls.

        Raises NoRoom.
        """
        if question["room"] > len(self._memory):
            self._memory = mmap.mmap(self._file, question["room"])
        for kept in (self._batches, self._copies):
            for number in [number for number in kept if number < question["since"]]:
                del kept[number]
        number = question["call"]
        if number not in self._batches:
            self._copies[number] = []
            parts = [self._part(number, *part) for part in question["parts"]]
            tensors: dict[str, Any] = {}
            for name, where in question["tensors"].items():
                view = _view(parts[where.pop("part")], **where)
                field, _, one_of = name.partition("[")
                tensors[field] = (*tensors.get(field, ()), view) if one_of else view
            self._batches[number] = _CALLS[question["batch"]](**tensors, **question["options"])
        for copy, shared in self._copies[number]:
            copy.copy_(shared)
        return self._batches[number]

    def put_back(self, number: int) -> None:
        """Bring into the file what the kernel left of a call elsewhere."""
        for copy, shared in self._copies[number] if number in self._batches else ():
            shared.copy_(copy)

    def _part(
        self, number: int, start: int, size: int, extents: list[tuple[int, int]] | None
    ) -> Tensor:
        """All bytes of some tensors, in the file itself where they can be."""
        if extents is None and not self.on_gpu:
            return self._shared(start, size)
        memory = (
            torch.empty(size, dtype=torch.uint8, device=self._device)
            if extents is None
            else room_for(size, self._device)
        )
        for first, count in [(0, size)] if extents is None else extents:
            copy = memory[first : first + count]
            self._copies[number].append((copy, self._shared(start, count)))
            start += count
        return memory

    def _shared(self, start: int, size: int) -> Tensor:
        if not size:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._memory, dtype=torch.uint8, count=size, offset=start)


def _view(
    memory: Tensor, *, dtype: str, shape: list[int], stride: list[int], offset: int
) -> Tensor:
    view = torch.empty(0, dtype=getattr(torch, dtype), device=memory.device)
    return view.set_(memory.untyped_storage(), offset, shape, stride)


def answer(subject: Subject, shelf: Shelf, question: Question) -> dict[str, Any]:
    """Call the kernel as a question wants it."""
    try:
        said = _answer(subject.kernel, shelf.batch(question), question, on_gpu=shelf.on_gpu)
    except NoRoom as reason:
        said = {"no_room": str(reason)}
    shelf.put_back(question["call"])
    return {**said, "watchable": watcher() is not None}


def _answer(
    kernel: AttentionKernel, batch: PagedBatch, question: Question, *, on_gpu: bool
) -> dict[str, Any]:
    far = any(extents is not None for _, _, extents in question["parts"])
    watch = watcher()
    try:
        if question["what"] == "moved":
            return {"moved": bytes_moved(kernel, batch)}
        if question["what"] == "watch" and watch is not None:
            return {"seen": watch(kernel, batch)}
        with no_room_for_copies() if far and not on_gpu else nullcontext():
            kernel(batch)
        if on_gpu:
            # A launch returns at once: without this an illegal access would surface later, in a
            # problem that has nothing to do with it.
            torch.cuda.synchronize()
    except Exception as error:
        lost = on_gpu and is_lost(torch.cuda.synchronize)
        return {"raised": said_of(error), "lost": lost}
    return {"done": True}


def introduction(name: str, device: str = "cpu") -> tuple[Subject | None, dict[str, Any]]:
    """The kernel that a name stands for, and what is said of it."""
    try:
        subject = resolve_kernel(name, device=device)
    except SubjectError as error:
        return None, {"error": str(error)}
    if "triton" in sys.modules:
        # Anybody's Triton kernel gets the interpreter's corrections, not only ours.
        import kernels.interpreter  # noqa: F401
    return subject, introduction_of(subject)


def introduction_of(subject: Subject) -> dict[str, Any]:
    """What is said of a kernel that was found."""
    declared = {  # by hand, as a kernel's interpreter need not have pydantic
        name: sorted(value, key=str) if isinstance(value, frozenset | set) else value
        for name, value in asdict(subject.capabilities).items()
    }
    return {"capabilities": declared, "watchable": watcher() is not None}


@with_stack_room
def main() -> None:
    """Answer until standard input ends."""
    name, device, *file = sys.argv[1:]
    torch.set_num_threads(1)
    end_with_parent()
    speak_when_dying()
    questions = listen()
    with open_answers() as answers:
        subject, said = introduction(name, device)
        answers.write(json.dumps(said) + "\n")
        if subject is not None:
            shelf = Shelf(int(file[0]) if file else -1, device)
            answer_questions(answers, questions, partial(answer, subject, shelf))
