"""Watches the memory accesses of interpreted kernels: one context, one report.

with watch_memory(attention_roles(batch)) as memory:
paged_attention(batch)
assert memory.findings == []
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from kernels.interpreter.install import interpreting
from kernels.interpreter.memory.findings import Fault, Finding
from kernels.interpreter.memory.hooks import judged
from kernels.interpreter.memory.judge import Judge
from kernels.interpreter.memory.regions import AddressBook, Traffic
from kernels.interpreter.memory.roles import Call, Role, attention_roles
from reference.attention.caches import bits_of
from reference.attention.contract import CopyBatch, MergeBatch, WriteBatch


class MemoryReport:
    """What was seen of the memory accesses within a `watch_memory`."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    @property
    def launches(self) -> int:
        """Kernels that were launched."""
        return self._judge.launches

    @property
    def findings(self) -> list[Finding]:
        """Illegal accesses, in the order in which they were first seen."""
        return list(self._judge.findings.values())

    @property
    def traffic(self) -> dict[str, Traffic]:
        """Bytes moved, by name of the tensor; without a role, of the kernel and its parameter."""
        moved: dict[str, Traffic] = {}
        for region in self._judge.book.regions:
            name = region.role.name
            while name in moved:
                name += "'"
            moved[name] = region.moved()
        return moved


_watching: list[Judge] = []


@contextmanager
def watch_memory(roles: Iterable[Role] = ()) -> Iterator[MemoryReport]:
    """Within this context each lane of each load and store of an interpreted kernel is judged.

    Lanes that lead outside their tensor are left out, so that a wild pointer is a finding and not
    the end of the process. Tensors without a role may be read and written within their storage, and
    read only once they were written.

    Raises RuntimeError: if this process compiles kernels, or if something is watched already.
    """
    if not interpreting():
        raise RuntimeError("kernels are compiled here: start the process with TRITON_INTERPRET=1")
    if _watching:
        raise RuntimeError("memory is watched already: leave the other watch_memory first")
    judge = Judge(AddressBook(tuple(roles)))
    _watching.append(judge)
    try:
        with judged(judge):
            yield MemoryReport(judge)
    finally:
        _watching.remove(judge)


def watch_attention(kernel: Callable[[Any], object], batch: Call) -> list[str] | str | None:
    """Call an attention kernel and say what it touched that is not its to touch, a sentence each.

    A `reference.attention.checks.Watch`: None if no Triton kernel was launched, and why
    nothing was seen if none of the caches was read where they lie. Masked loads without `other`
    count only if what the lanes hold reaches the answer: kernels often leave them undefined and
    never use them. What the kernel raises is raised, unless it did something illegal before.
    """
    with watch_memory(attention_roles(batch)) as memory:
        try:
            kernel(batch)
        except Exception:
            if not memory.findings:
                raise
    if not memory.launches:
        return None
    findings = memory.findings
    if not findings and _should_read(batch) and not _was_read(memory):
        return "no access was to the caches that the kernel was given: it works on copies"
    if {finding.fault for finding in findings} == {Fault.UNDEFINED_LANES}:
        return [] if _same_without_watch(kernel, batch) else [str(each) for each in findings]
    return [str(finding) for finding in findings if finding.fault is not Fault.UNDEFINED_LANES]


def _should_read(batch: Call) -> bool:
    if isinstance(batch, WriteBatch):
        return bool((batch.slot_mapping >= 0).any())
    if isinstance(batch, CopyBatch):
        return batch.pairs.numel() > 0
    if isinstance(batch, MergeBatch):
        return batch.out.numel() > 0
    if batch.indices is not None:
        return bool((batch.indices >= 0).any())
    asked = batch.query_start_loc.diff() > 0
    return bool((asked & (batch.seq_lens > 0)).any())


def _was_read(memory: MemoryReport) -> bool:
    return any(
        moved.loaded or moved.stored
        for name, moved in memory.traffic.items()
        if name.startswith(("key_cache", "value_cache", "part_out"))
    )


def _same_without_watch(kernel: Callable[[Any], object], batch: Call) -> bool:
    """Whether zeros in undefined lanes, as the interpreter has them, give the same bits."""
    if isinstance(batch, CopyBatch):
        answers = [*batch.key_caches, *batch.value_caches]
    elif isinstance(batch, WriteBatch):
        answers = [batch.key_cache, batch.value_cache]
    else:
        answers = [batch.out] if batch.lse is None else [batch.out, batch.lse]
    watched = [answer.clone() for answer in answers]
    kernel(batch)
    return all(
        bool(((bits_of(one) == bits_of(other)) | (one.isnan() & other.isnan())).all())
        for one, other in zip(watched, answers, strict=True)
    )
