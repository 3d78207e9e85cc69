"""Benchmarks of a project's own subjects: kernels at its points, allocators serving its streams.

A kernel is called on batches as a server has them. Its output is that of a hostile batch, held
against float64 attention; where it launches interpreted Triton kernels, their memory accesses are
watched there, and the bytes of each tensor counted. An allocator serves a stream from a pool with
room for three quarters of the requests that run at once, so that it has to refuse and to evict.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.gate.benchmark import Benchmark, Count, Output, Prepared, of_group
from bench.gate.needs import Declined, Missing, check_need
from bench.gate.subjects import TREE_VARIABLE, Lengths, Subjects, key_of

if TYPE_CHECKING:
    from bench.gate.timers import Device
    from kernels.interpreter.memory.regions import Traffic
    from reference.allocator.contract import AllocatorCapabilities
    from reference.attention.contract import PagedBatch
    from reference.attention.problem import AttentionProblem
    from subjects.allocators.mixed_stream import Request, Served
    from subjects.attention.resolve import Subject

OURS: Final = __name__.removesuffix("bench.gate.subject_benchmarks")
"""What the names of our modules begin with; as `subjects.starting.PREFIX`, which old trees lack."""

MAX_RUNNING: Final = 16
ROOM: Final = 0.75
"""Sequences at once, and for what share of so many the pool has room."""

BLOCK_SIZE: Final = 16

FORKS: Final = 7
FORKED_TOKENS: Final = 100
TOKENS_EACH: Final = 20
"""Of the beams by which copies are counted."""


def subject_benchmarks(subjects: Subjects, *, device: Device = "cpu") -> tuple[Benchmark, ...]:
    """The benchmarks of a project's subjects; allocators run on the CPU only."""
    found = [
        Benchmark(
            key=key_of("kernel", name, point),
            title=f"{name} at {point}.",
            prepare=partial(_kernel, name, spec, device),
            needs=(
                f"{OURS}reference.attention.layout:usual",
                f"{OURS}reference.attention.tolerance:out_allowance",
                f"{OURS}subjects.attention.resolve:resolve_kernel",
            ),
            device=device,
            subject=name,
            problem=spec,
        )
        for name in subjects.kernels
        for point, spec in subjects.points.items()
    ]
    allocator = of_group(
        "allocator",
        f"{OURS}subjects.allocators.mixed_stream:serve",
        f"{OURS}subjects.allocators.resolve:open_allocator",
    )
    found += [
        allocator(
            key_of("allocator", name, stream).removeprefix("allocator/"),
            f"{name} serves {stream}.",
            partial(_allocator, name, lengths),
            subject=name,
        )
        for name in (subjects.allocators if device == "cpu" else ())
        for stream, lengths in subjects.streams.items()
    ]
    return tuple(found)


def check_origin(name: str) -> None:
    """Raise Missing where a subject's module is not the tree's own, or does not import.

    An installed copy of the package, found instead of one that the tree lacks, would be compared
    with itself.
    """
    where = name.rpartition(":")[0]
    tree = os.environ.get(TREE_VARIABLE)
    if not where or tree is None:
        return  # a built-in name
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise Missing(name)
        return
    spec = importlib.util.find_spec(where.partition(".")[0])
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    inside = Path(tree).resolve()
    if not any(place and Path(place).resolve().is_relative_to(inside) for place in places):
        raise Missing(name)
    try:
        check_need(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, Missing):
            raise
        raise Missing(f"{name} that imports ({type(error).__name__}: {error})") from None


def _kernel(name: str, spec: str, device: Device) -> Prepared:
    from reference.attention.layout import usual
    from reference.attention.problem import AttentionProblem
    from subjects.attention.resolve import resolve_kernel

    check_origin(name)
    subject = resolve_kernel(name, device=device)
    problem = AttentionProblem.parse(spec)
    if reason := subject.capabilities.refusal(problem):
        raise Declined(f"{name} declares that it cannot do {reason}")
    hostile = _Hostile(subject, problem, device)
    batch = usual(problem, device=device, seed=0)
    return Prepared(
        call=lambda: subject.kernel(batch),
        outputs=hostile.outputs,
        counters=hostile.counters,
        interpreted=hostile.interpreted,
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a call left behind."""

    batch: PagedBatch
    launches: int = 0
    """Triton kernels that were interpreted."""
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    """Bytes of each tensor, and what the kernel touched that is not its own."""


class _Hostile:
    """The call of a kernel on the hostile batch of a problem, made when it is first asked about."""

    def __init__(self, subject: Subject, problem: AttentionProblem, device: Device) -> None:
        self._subject = subject
        self._problem = problem
        self._device = device

    @cached_property
    def _seen(self) -> _Seen:
        from reference.attention.inputs import make_inputs
        from reference.attention.placement import place

        can = self._subject.capabilities
        batch = place(
            make_inputs(self._problem, device=self._device),
            poison="large" if can.needs_finite_cache else "nan",
            with_lse="lse" in can.variants,
        ).batch
        if not self._in_the_interpreter():
            self._subject.kernel(batch)
            return _Seen(batch)
        from kernels.interpreter.memory import Fault, attention_roles, watch_memory

        with watch_memory(attention_roles(batch)) as memory:
            self._subject.kernel(batch)
        # What undefined lanes hold may well never be used: that is for `pagedbench check`.
        said = [str(each) for each in memory.findings if each.fault is not Fault.UNDEFINED_LANES]
        return _Seen(batch, memory.launches, memory.traffic, tuple(said))

    def _in_the_interpreter(self) -> bool:
        """Whether Triton kernels would be interpreted here; what is no Triton may be called."""
        if self._device != "cpu" or "triton" not in sys.modules:
            return False
        from kernels.interpreter import interpreting

        return interpreting()

    def interpreted(self) -> bool:
        """Whether a call launches interpreted Triton kernels."""
        return self._in_the_interpreter() and self._seen.launches > 0

    def outputs(self) -> Mapping[str, Output]:
        """Of the call, each with what the truth allows and has against it."""
        from reference.attention.inputs import make_inputs
        from reference.attention.tolerance import lse_allowance, out_allowance, worst_excess
        from reference.attention.truth import attend

        truth = attend(make_inputs(self._problem))
        out = self._seen.batch.out.cpu()
        lse = None if self._seen.batch.lse is None else self._seen.batch.lse.cpu()
        excess = worst_excess(self._problem, truth, out, lse)
        said = (*self._seen.findings, *([] if excess is None else [str(excess)]))
        allowed = out_allowance(self._problem, truth).unsqueeze(-1).expand(out.shape)
        found = {
            "out": Output(out.float().numpy(), allowed=allowed.numpy(), wrong="; ".join(said[:2]))
        }
        if lse is not None:
            found["lse"] = Output(lse.numpy(), allowed=lse_allowance(truth).numpy())
        return found

    def counters(self) -> Mapping[str, Count]:
        """Bytes of each tensor and launches, where Triton kernels are interpreted."""
        if not self.interpreted():
            return {}
        counts = {"launches": Count(self._seen.launches, "launches")}
        for name, moved in self._seen.traffic.items():
            tensor = name.replace(" ", "_")
            counts[f"loaded.{tensor}"] = Count(moved.loaded, "bytes")
            counts[f"stored.{tensor}"] = Count(moved.stored, "bytes")
        return counts


def _allocator(name: str, lengths: Lengths) -> Prepared:
    from subjects.allocators.mixed_stream import serve
    from subjects.allocators.resolve import open_allocator

    check_origin(name)
    with open_allocator(name, in_process=True) as subject:
        factory, can = subject.factory, subject.capabilities
    requests = requests_of(lengths)
    pool = Pool.of(lengths, can)

    def made() -> Any:
        return factory(
            pool.num_blocks, pool.block_size, prefix_caching=can.prefix_caching, window=None
        )

    def served(allocator: Any) -> Served:
        return serve(allocator, requests, max_running=MAX_RUNNING, commits=can.commit)

    def counters() -> Mapping[str, Count]:
        watched = Watched(made(), block_size=pool.block_size)
        found = served(watched)
        counts = {
            "operations": Count(found.operations, "operations"),
            "hits": Count(found.hit_tokens, "tokens", more_is_better=True),
            "preemptions": Count(found.preemptions, "preemptions"),
            "peak_blocks": Count(watched.peak_blocks, "blocks"),
            "wasted_slots": Count(watched.wasted_slots, "slots"),
        }
        evictions = getattr(watched.allocator, "num_evictions", None)
        if isinstance(evictions, int):
            counts["evictions"] = Count(evictions, "evictions")
        return {**counts, **(_beams(made(), can) if can.fork else {})}

    return Prepared(
        call=lambda: served(made()),
        # All requests were served, or serving them raised.
        outputs=lambda: {"requests": Output.exact(len(requests))},
        counters=counters,
    )


def requests_of(lengths: Lengths) -> list[Request]:
    """The requests of a stream, with token ids that agree exactly as far as their prefixes do."""
    from subjects.allocators.mixed_stream import Request

    size = lengths.tokens_per_block
    # Behind all that prefix blocks stand for.
    own = size * (1 + max((max(ids, default=0) for ids in lengths.prefix), default=0))
    requests = []
    rows = zip(lengths.prompt_tokens, lengths.output_tokens, lengths.prefix, strict=True)
    for prompt, output, ids in rows:
        shared = [id_ * size + offset for id_ in ids for offset in range(size)][:prompt]
        rest = prompt - len(shared)
        requests.append(Request([*shared, *range(own, own + rest)], output))
        own += rest
    return requests


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool that an allocator serves a stream from."""

    num_blocks: int
    block_size: int

    @classmethod
    def of(cls, lengths: Lengths, can: AllocatorCapabilities) -> Pool:
        """Room for a part of what runs at once, and in any case for the longest request."""
        sizes = can.block_sizes or {BLOCK_SIZE}
        size = BLOCK_SIZE if BLOCK_SIZE in sizes else max(sizes)
        blocks = [
            -(-(prompt + output) // size) + 1
            for prompt, output in zip(lengths.prompt_tokens, lengths.output_tokens, strict=True)
        ]
        part = math.ceil(ROOM * MAX_RUNNING * sum(blocks) / len(blocks))
        return cls(max(part, *blocks) + can.min_blocks + can.spare_blocks, size)


class Watched:
    """An allocator, and what can be seen of it from outside while it serves."""

    def __init__(self, allocator: Any, *, block_size: int) -> None:
        self.allocator = allocator
        self.peak_blocks = 0
        self.wasted_slots = 0
        """Of used blocks, those that hold no token, summed over the moments before a request
        goes."""
        self._block_size = block_size
        self._tokens: dict[str, int] = {}
        if hasattr(allocator, "commit"):
            self.commit = allocator.commit

    def admit(self, sequence: str, tokens: Sequence[int], **how: Any) -> int | None:
        """As the allocator does."""
        hit: int | None = self.allocator.admit(sequence, tokens, **how)
        if hit is not None:
            self._tokens[sequence] = len(tokens)
            self._look()
        return hit

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        """As the allocator does."""
        granted: bool = self.allocator.append(sequence, tokens)
        if granted:
            self._tokens[sequence] += len(tokens)
            self._look()
        return granted

    def free(self, sequence: str) -> None:
        """As the allocator does."""
        held: set[int] = set()
        for name, tokens in self._tokens.items():
            held.update(list(self.allocator.slots(name))[:tokens])
        held.discard(-1)
        used = self.allocator.counts()[2]
        self.wasted_slots += used * self._block_size - len(held)
        self.allocator.free(sequence)
        del self._tokens[sequence]

    def _look(self) -> None:
        self.peak_blocks = max(self.peak_blocks, self.allocator.counts()[2])


def _beams(allocator: Any, can: AllocatorCapabilities) -> Mapping[str, Count]:
    """A prompt and its forks, each of which grows: what that copies and holds."""
    names = ["b0", *(f"b{number + 1}" for number in range(FORKS))]
    copies = 0
    if allocator.admit("b0", list(range(FORKED_TOKENS)), num_tokens=FORKED_TOKENS, salt="") is None:
        return {}
    if can.commit:
        allocator.commit("b0")
    for child in names[1:]:
        allocator.fork("b0", child)
    peak = 0
    for token in range(TOKENS_EACH):
        for name in names:
            if not allocator.append(name, [token]):
                return {}
            copies += len(allocator.take_copies())
            if can.commit:
                allocator.commit(name)
        peak = max(peak, allocator.counts()[2])
    return {
        "copies": Count(copies, "blocks"),
        "peak_blocks.forked": Count(peak, "blocks"),
    }
