"""From a name on the command line to a kernel.

A name is a built-in one, `module:function`, or `path/to/file.py:function`. Built-in are ours
(`torch`, `triton`, `triton-cascade`) and the peers, other people's kernels. Some of those need an
interpreter of their own, and the kernel's process then runs there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from reference.attention.contract import AttentionKernel, Capabilities, capabilities_of
from reference.attention.problem import LARGEST_HEAD_DIM, MAX_BLOCK_SIZE, MIN_HEAD_DIM
from subjects.environments import BuiltIn, engine_python
from subjects.loading import SubjectError, load, split
from subjects.starting import PREFIX

BUILT_IN: Final = {
    "torch": BuiltIn(f"{PREFIX}paged.attention:paged_attention"),
    "torch-latent": BuiltIn(f"{PREFIX}paged.latent:paged_latent_attention"),
    "torch-copy": BuiltIn(f"{PREFIX}paged.stores:copy"),
    "torch-merge": BuiltIn(f"{PREFIX}paged.merge:merge_states"),
    "torch-write": BuiltIn(f"{PREFIX}paged.stores:write"),
    "triton": BuiltIn(f"{PREFIX}kernels.attention:paged_attention"),
    "triton-latent": BuiltIn(f"{PREFIX}kernels.latent_attention:paged_latent_attention"),
    "triton-copy": BuiltIn(f"{PREFIX}kernels.stores:copy"),
    "triton-merge": BuiltIn(f"{PREFIX}kernels.merge_states:merge_states"),
    "triton-write": BuiltIn(f"{PREFIX}kernels.stores:write"),
    "triton-cascade": BuiltIn(f"{PREFIX}kernels.cascade:paged_attention_with_cascade"),
    "sdpa": BuiltIn(f"{PREFIX}subjects.attention.peers.sdpa:attention"),
    "flex": BuiltIn(f"{PREFIX}subjects.attention.peers.flex:attention"),
    "vllm-unified": BuiltIn(f"{PREFIX}subjects.attention.peers.vllm_unified:attention", "vllm"),
    "vllm-diffkv": BuiltIn(f"{PREFIX}subjects.attention.peers.vllm_diffkv:attention", "vllm"),
    "vllm-mla": BuiltIn(f"{PREFIX}subjects.attention.peers.vllm_mla:attention", "vllm"),
    "vllm-sparse": BuiltIn(f"{PREFIX}subjects.attention.peers.vllm_sparse:attention", "vllm"),
    "vllm-merge": BuiltIn(f"{PREFIX}subjects.attention.peers.vllm_merge:attention", "vllm"),
    "vllm-write": BuiltIn(f"{PREFIX}subjects.attention.peers.vllm_write:write", "vllm"),
    "sglang-decode": BuiltIn(f"{PREFIX}subjects.attention.peers.sglang_triton:decode", "sglang"),
    "sglang-mla": BuiltIn(f"{PREFIX}subjects.attention.peers.sglang_triton:latent", "sglang"),
    "sglang-extend": BuiltIn(f"{PREFIX}subjects.attention.peers.sglang_triton:extend", "sglang"),
    "sglang-merge": BuiltIn(f"{PREFIX}subjects.attention.peers.sglang_triton:merge", "sglang"),
    "flashinfer-merge": BuiltIn(
        f"{PREFIX}subjects.attention.peers.flashinfer_merge:attention", "flashinfer"
    ),
    "vllm-cpu": BuiltIn(f"{PREFIX}subjects.attention.peers.vllm_cpu:attention", "vllm"),
    "flash-attn": BuiltIn(f"{PREFIX}subjects.attention.peers.flash_attn:attention"),
    "flash-attn-3": BuiltIn(f"{PREFIX}subjects.attention.peers.flash_attn_3:attention"),
    "flash-attn-4": BuiltIn(f"{PREFIX}subjects.attention.peers.flash_attn_4:attention"),
    "flash-mla": BuiltIn(f"{PREFIX}subjects.attention.peers.flash_mla:attention"),
    "flashinfer": BuiltIn(f"{PREFIX}subjects.attention.peers.flashinfer:attention"),
}
"""Ours and the peers, on equal terms with everybody's: resolved by the same code."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A kernel under test."""

    name: str
    """As it was asked for."""
    kernel: AttentionKernel
    """The callable."""
    capabilities: Capabilities
    """What it declares, or everything."""


def python_of(name: str) -> str | None:
    """The interpreter of a built-in kernel; None for pagedbench's own. Raises SubjectError."""
    known = BUILT_IN.get(name)
    if known is None or not known.environment:
        return None
    return str(engine_python(known.environment))


def check_name(name: str, *, also: Sequence[str] = ()) -> None:
    """Raise SubjectError where a name, not `also` known, cannot lead to a kernel. Nothing is
    imported.
    """
    known = (*BUILT_IN, *also)
    if name not in known:
        split(name, what="kernel", built_in=known)


def resolve_kernel(name: str, *, device: str = "cpu") -> Subject:
    """Import the kernel that a name stands for.

    A kernel may have an attribute `prepare`. It is called once with the device's name, before the
    kernel gets its first problem, and raises SubjectError where it lacks something. What it finds
    may narrow the capabilities that the kernel declares.

    Raises SubjectError: as `load` and `as_subject`.
    """
    known = BUILT_IN.get(name)
    where = known.where if known is not None else name
    return as_subject(load(where, what="kernel", built_in=tuple(BUILT_IN)), name, device=device)


def as_subject(kernel: Any, name: str, *, device: str = "cpu") -> Subject:
    """Take a kernel that is at hand for a subject, and prepare it.

    Raises SubjectError: not callable, something lacks here, or no problem could be given to it.
    """
    if not callable(kernel):
        raise SubjectError(
            f"{name} is {type(kernel).__name__}, not callable: "
            f"name a function that takes a PagedBatch"
        )
    try:
        capabilities = capabilities_of(kernel)
    except TypeError as error:
        raise SubjectError(str(error)) from None
    for complaint in _complaints(capabilities):
        raise SubjectError(f"{name}: its capabilities' {complaint}")
    prepare: Callable[[str], object] | None = getattr(kernel, "prepare", None)
    if prepare is not None:
        prepare(device)
        capabilities = capabilities_of(kernel)
    return Subject(name, kernel, capabilities)


def _complaints(capabilities: Capabilities) -> Iterator[str]:
    """What leaves no problem to draw, or no problem of the contract."""
    if not capabilities.dtypes:
        yield "dtypes is empty, so there is nothing to check; name at least one"
    largest = capabilities.max_head_dim
    if not isinstance(largest, int) or largest < MIN_HEAD_DIM:
        yield f"max_head_dim is {largest!r}; the smallest head size is {MIN_HEAD_DIM}"
    head_dims = capabilities.head_dims
    if head_dims is not None and not _all(
        lambda size: MIN_HEAD_DIM <= size <= LARGEST_HEAD_DIM and size % 8 == 0, head_dims
    ):
        yield (
            f"head_dims is {_shown(head_dims)}; name multiples of 8 from {MIN_HEAD_DIM} to "
            f"{LARGEST_HEAD_DIM}, or None for all"
        )
    elif head_dims is not None and max(head_dims) > largest:
        yield f"head_dims has {max(head_dims)}, but max_head_dim is {largest}; raise or drop it"
    sizes = capabilities.block_sizes
    if sizes is not None and not _all(
        lambda size: 1 <= size <= MAX_BLOCK_SIZE and not size & (size - 1), sizes
    ):
        yield (
            f"block_sizes is {_shown(sizes)}; name powers of two from 1 to {MAX_BLOCK_SIZE}, or "
            f"None for all"
        )


def _all(check: Callable[[int], bool], values: object) -> bool:
    # Annotations bind nobody: a list, or a single number, may stand where a frozenset should.
    if not isinstance(values, Collection) or not values:
        return False
    return all(isinstance(value, int) and check(value) for value in values)


def _shown(values: object) -> str:
    return repr(sorted(values, key=repr)) if isinstance(values, Collection) else repr(values)
