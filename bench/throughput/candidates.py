"""Who is timed: a name becomes something that makes a timed call of a batch.

What a serving engine does once for a step, or once for a cache, is no part of the call: a plan, a
mask, the layout that a kernel wants its cache in. It is done here, for each input, before the first
round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bench.machine.timing import Call
from bench.throughput.points import Point
from reference.attention.contiguous import contiguous_attention
from reference.attention.contract import AttentionKernel, Capabilities, PagedBatch, everything
from reference.attention.layout import contiguous_of
from reference.attention.problem import AttentionProblem
from subjects.attention.resolve import resolve_kernel
from subjects.loading import SubjectError

OURS: Final = {"cuda": "triton", "cpu": "torch"}
"""What is compared with the others, where nothing is named."""

DEFAULT: Final = {
    "cuda": (
        *("triton", "flashinfer", "flex", "vllm-unified"),
        *("flash-attn", "flash-attn-3", "flash-attn-4"),
    ),
    "cpu": ("torch", "contiguous", "flex"),
}
"""Ours first, then all that can be there."""

LATENT: Final = {
    "cuda": ("triton-latent", "vllm-mla", "flash-mla"),
    "cpu": ("torch-latent", "contiguous"),
}
"""The same, for points of a latent cache."""

CASCADE: Final = "triton-cascade"

COMPILED: Final = frozenset({"triton", "triton-latent", CASCADE})
"""Ours whose time means something on a GPU alone."""

CONTIGUOUS: Final = "contiguous"
"""torch over a contiguous cache, with the arithmetic of our paged torch: what paging costs."""

Planner = Callable[[PagedBatch], Call]
"""Does what is not timed for one input, and returns the timed call, which fills `batch.out`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One who can be timed."""

    name: str
    """As it was asked for, and for our Triton kernel the splits, `triton splits=8`."""
    subject: str
    """The name without that."""
    capabilities: Capabilities
    """What it declares."""
    num_splits: int | None = None
    """Programs that share a sequence's keys, where that was asked for."""

    def refusal(self, problem: AttentionProblem) -> str:
        """Why it is not run on a problem; empty if it is."""
        if self.num_splits is not None and problem.max_query_len > 1:
            return "prefill has no splits"
        if self.subject == CONTIGUOUS and problem.max_query_len > 1:
            return "is the baseline of decode"
        if self.subject == CONTIGUOUS:
            return everything(problem.kind).refusal(problem) or ""
        if self.subject == CASCADE and not problem.shares_blocks:
            return "nothing is shared"
        return self.capabilities.refusal(problem) or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """One who cannot be timed here, and why."""

    name: str
    why: str
    died: bool = False
    """Whether it ended the process that imported it."""


Found = list[tuple[Candidate, Planner]]


def default_names(points: Sequence[Point], device: str) -> tuple[str, ...]:
    """Who is timed where nothing is named."""
    latent = {point.problem.kind == "latent" for point in points}
    names = [*(DEFAULT[device] if False in latent else ())]
    names += LATENT[device] if True in latent else ()
    if device == "cuda" and any(point.problem.shares_blocks for point in points):
        names.append(CASCADE)
    return tuple(names)


def find_candidates(
    name: str, *, device: str, splits: Sequence[int | None] = (None,)
) -> Found | Absent:
    """Import what a name stands for, our Triton kernel with each of `splits`."""
    if name == CONTIGUOUS:
        candidate = Candidate(name=name, subject=name, capabilities=Capabilities())
        return [(candidate, _contiguous)]
    if name in COMPILED and device == "cpu":
        why = "is compiled for GPUs, and interpreted here: its time means nothing"
        return Absent(name=name, why=why)
    try:
        subject = resolve_kernel(name, device=device)
    except SubjectError as error:
        if ":" in name:
            raise
        return Absent(name=name, why=str(error).removeprefix(f"{name}: "))
    return [
        (
            Candidate(
                name=name if num_splits is None else f"{name} splits={num_splits}",
                subject=name,
                capabilities=subject.capabilities,
                num_splits=num_splits,
            ),
            _planner(name, subject.kernel, num_splits),
        )
        for num_splits in dict.fromkeys(splits if name == "triton" else [None])
    ]


def _planner(name: str, kernel: AttentionKernel, num_splits: int | None) -> Planner:
    from bench.throughput import planned

    planners: dict[str, Planner] = {
        "flash-mla": planned.flash_mla_call,
        "flashinfer": planned.flashinfer_call,
        "flex": planned.flex_call,
        "vllm-unified": planned.vllm_call,
        "triton-cascade": planned.cascade_call,
    }
    if name in planners:
        return planners[name]
    options: dict[str, Any] = {} if num_splits is None else {"num_splits": num_splits}
    return lambda batch: partial(kernel, batch, **options)


def _contiguous(batch: PagedBatch) -> Call:
    return partial(contiguous_attention, contiguous_of(batch))
