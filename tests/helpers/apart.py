"""A kernel's process that is none: the same questions and answers, in this process."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from bench.check import subject as other_side
from bench.check.apart import ApartKernel
from reference.attention.contract import AttentionKernel
from subjects.attention.resolve import as_subject, resolve_kernel


class InThisProcess:
    def __init__(self, kernel: str | AttentionKernel, file: int) -> None:
        named = isinstance(kernel, str)
        self.subject = resolve_kernel(kernel) if named else as_subject(kernel, "kernel")
        self.shelf = other_side.Shelf(file, "cpu")

    def introduce(self) -> dict:
        return json.loads(json.dumps(other_side.introduction_of(self.subject)))

    def ask(self, question: dict, *, limit_s: float) -> dict:
        question = json.loads(json.dumps(question))
        return json.loads(json.dumps(other_side.answer(self.subject, self.shelf, question)))

    def close(self) -> None: ...


@contextmanager
def apart_here(kernel: str | AttentionKernel) -> Iterator[ApartKernel]:
    with ApartKernel(lambda file: InThisProcess(kernel, file), time_limit_s=60.0) as apart:
        yield apart
