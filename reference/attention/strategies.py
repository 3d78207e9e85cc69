"""Hypothesis strategies that draw attention problems.

Drawn problems are small, ragged and awkward: lengths sit on and beside block and tile boundaries,
batches mix padding rows, decode, chunked and whole prefill, and every variant of the contract
occurs. They shrink towards one short decode request without any variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from hypothesis import reject
from hypothesis import strategies as st

from reference.attention.contract import Capabilities
from reference.attention.problem import (
    FP8_DTYPES,
    INPUT_KINDS,
    MAX_HEAD_DIM,
    MIN_HEAD_DIM,
    QUERY_DTYPES,
    AttentionProblem,
    Request,
)

HEAD_DIMS: Final = (16, 32, 64, 80, 96, 128, 256)
BLOCK_SIZES: Final = (16, 1, 2, 4, 8, 32, 64, 128, 256)
GROUP_SIZES: Final = (1, 2, 3, 4, 5, 8, 20)
TILE: Final = 64
"""Lengths are drawn near multiples of this too: kernels like to work on so many keys at once."""

_EVERYTHING = Capabilities()

# Strategies are made once: Hypothesis examines each new one before it draws from it, which takes
# longer than the drawing.

_RARELY: Final = st.sampled_from((False, False, False, True))
"""True about once in four draws, so that variants meet each other but not all at once."""
_WINDOWS: Final = st.none() | st.none() | st.integers(1, 100)


@cache
def seq_lens(block_size: int, *, max_len: int) -> st.SearchStrategy[int]:
    """Lengths from 0 to `max_len`, every other one on or next to a boundary."""
    steps = sorted({block_size, TILE})
    near = st.builds(
        lambda step, count, off: min(max(step * count + off, 0), max_len),
        st.sampled_from(steps),
        st.integers(1, 4),
        st.sampled_from((0, 1, -1)),
    )
    return st.integers(0, max_len) | near


@st.composite
def requests(draw: st.DrawFn, *, block_size: int, max_len: int, prefill: bool) -> Request:
    """One sequence: padding, waiting, decode, a chunk of a prefill, or a whole one."""
    seq_len = draw(seq_lens(block_size, max_len=max_len))
    kinds = ["decode", "chunk", "prefill"] if prefill else ["decode"]
    kind = draw(st.sampled_from(kinds))
    if kind == "decode" or seq_len == 0:
        # Now and then a sequence waits: it keeps its cache and has no query in this step.
        return Request(draw(st.sampled_from((1, 1, 1, 0))), seq_len)
    if kind == "chunk":
        return Request(draw(st.integers(1, min(seq_len, 24))), seq_len)
    # A whole prefill costs its length squared: keep it shorter.
    seq_len = min(seq_len, max(max_len // 2, 1))
    return Request(seq_len, seq_len)


@st.composite
def stream_requests(
    draw: st.DrawFn, *, lengths: Sequence[tuple[int, int]], max_len: int, prefill: bool
) -> Request:
    """One request of a stream, (prompt, output) tokens, at its prompt's last chunk or a decode
    step.
    """
    prompt, output = draw(st.sampled_from(lengths))
    if prefill and draw(st.booleans()):
        seq_len = min(prompt, max_len)
        return Request(min(seq_len, draw(st.integers(1, 24))), seq_len)
    return Request(1, min(prompt + draw(st.integers(1, max(output, 1))), max_len))


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    capabilities: Capabilities = _EVERYTHING,
    max_seqs: int = 4,
    max_len: int = 150,
    prefill: bool | None = None,
    max_kv_heads: int = 2,
    lengths: Sequence[tuple[int, int]] | None = None,
) -> AttentionProblem:
    """Problems that a kernel of these capabilities must solve.

    Nothing outside the capabilities is drawn. `prefill` says whether queries may be longer than one
    token; by default they are in about half of the batches. `lengths` are (prompt tokens, output
    tokens) of real requests: contexts are theirs then, instead of lengths near boundaries.
    """
    variants = capabilities.variants
    if prefill is None:
        prefill = draw(st.booleans())
    prefill = prefill and "prefill" in variants
    dtype = draw(_among(QUERY_DTYPES, capabilities.dtypes, "dtypes"))
    block_size = draw(_among(BLOCK_SIZES, capabilities.block_sizes, "block_sizes"))
    head_dim = draw(st.sampled_from(_head_dims(capabilities)))
    if lengths is None:
        batches = _batches(block_size, max_len, max_seqs, prefill=prefill)
    else:
        one = stream_requests(lengths=lengths, max_len=max_len, prefill=prefill)
        batches = st.lists(one, min_size=1, max_size=max_seqs)
    batch = draw(batches)
    fields: dict[str, Any] = draw(_variant(variants))
    fields.update(draw(_quantisation(dtype, capabilities.kv_dtypes)))
    if len(batch) > 1:
        longest = max(request.seq_len for request in batch)
        fields["shared_prefix"] = draw(st.just(0) | st.integers(0, longest))
    problem = AttentionProblem(
        requests=tuple(batch),
        num_kv_heads=draw(st.integers(1, max_kv_heads)),
        group_size=draw(st.sampled_from(GROUP_SIZES)),
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        inputs=draw(st.sampled_from(INPUT_KINDS)),
        seed=draw(st.integers(0, 999)),
        **fields,
    )
    if capabilities.never_together and capabilities.refusal(problem) is not None:
        reject()
    return problem


@cache
def _batches(
    block_size: int, max_len: int, max_seqs: int, *, prefill: bool
) -> st.SearchStrategy[list[Request]]:
    one = requests(block_size=block_size, max_len=max_len, prefill=prefill)
    return st.lists(one, min_size=1, max_size=max_seqs)


def _head_dims(capabilities: Capabilities) -> list[int]:
    """Sizes that kernel and contract both allow: all that are declared, or the usual ones."""
    declared = HEAD_DIMS if capabilities.head_dims is None else sorted(capabilities.head_dims)
    largest = min(capabilities.max_head_dim, MAX_HEAD_DIM)
    sizes = [size for size in declared if MIN_HEAD_DIM <= size <= largest and size % 8 == 0]
    if not sizes:
        raise ValueError(
            f"capabilities.head_dims={capabilities.head_dims} with capabilities.max_head_dim="
            f"{capabilities.max_head_dim} leaves nothing to draw: "
            f"use multiples of 8 from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"
        )
    return sizes


@cache
@st.composite
def _variant(draw: st.DrawFn, variants: frozenset[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    # Always the same draws, so that a variant that does not matter shrinks away by itself.
    noncausal, window = draw(_RARELY), draw(_WINDOWS)
    if noncausal and "noncausal" in variants:
        fields["causal"] = False
    elif window is not None and "window" in variants:
        fields["window"] = window
    if "softcap" in variants and draw(_RARELY):
        fields["softcap"] = draw(st.sampled_from((30.0, 50.0, 5.0)))
    for flag in ("alibi", "sinks"):
        if flag in variants and draw(_RARELY):
            fields[flag] = True
    if draw(_RARELY):
        fields["scale"] = draw(st.sampled_from((0.125, 0.05, 1.0)))
    return fields


@cache
@st.composite
def _quantisation(draw: st.DrawFn, dtype: str, kv_dtypes: frozenset[str]) -> dict[str, Any]:
    choices = [name for name in FP8_DTYPES if name in kv_dtypes]
    kv_dtype = draw(st.sampled_from([dtype, *choices]))
    if kv_dtype == dtype:
        return {}
    scales = st.sampled_from((1.0, 0.5, 0.03, 1.7))
    return {"kv_dtype": kv_dtype, "k_scale": draw(scales), "v_scale": draw(scales)}


def _among(known: Any, allowed: frozenset[Any] | None, name: str) -> st.SearchStrategy[Any]:
    choices = [value for value in known if allowed is None or value in allowed]
    if not choices:
        raise ValueError(
            f"capabilities.{name}={set(allowed or ())} leaves nothing to draw: use {list(known)}"
        )
    return st.sampled_from(choices)
