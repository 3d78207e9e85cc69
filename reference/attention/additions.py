"""Draws what a kernel says that it can do besides: kinds and variants that nobody else is asked.

They come after everything else was drawn, so that the problems of other kernels stay what they are.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from hypothesis import strategies as st

from reference.attention.contract import Capabilities
from reference.attention.kinds import STORED_STRIDES, STORES
from reference.attention.problem import (
    QUERY_MASKS,
    AttentionProblem,
    InvalidProblem,
    Request,
)
from reference.attention.records import CODECS

RECORDS: Final = ((48, 16), (576, 64), (32, 0), (128, 48), (320, 64))
"""(record, rotary part) of latent caches; the second is everybody's."""

LATENT_HEADS: Final = (1, 2, 16, 7, 24, 128)
"""Query heads over a record."""

VALUE_DIMS: Final = (64, 32, 16, 48, 128, 256)
PARTS: Final = (2, 3, 1, 8, 17)
LAYERS: Final = (1, 2, 3)
STORED_TOKENS: Final = (5, 5, 5, 1, 8, 5, 200, 36)
"""Most tokens of a step that are stored: each is a program, as a rule, and takes milliseconds.
Now and then there are more than a tile of a hundred has."""

LARGE_BLOCK: Final = 2**12
"""Elements of a head's block from which it is copied in one layer, and of one head."""
TOPKS: Final = (64, 16, 1, 128)
CHUNKS: Final = (1, 3, 16, 17, 64)

_WITHOUT_A_CACHE: Final[dict[str, Any]] = {
    "block_size": 16, "kv_dtype": "", "k_scale": 1.0, "v_scale": 1.0, "layout": "", "spare": None,
    "shared_prefix": 0, "softcap": None, "alibi": False, "sinks": False, "scale": None,
}  # fmt: skip
"""What is the same for all merges: how the parts came about, of which only masks show."""

_DEFAULTS: Final = {field.name: field.default for field in fields(AttentionProblem)}

_LAYERS: Final = st.sampled_from(LAYERS)
_STORED_TOKENS: Final = st.sampled_from(STORED_TOKENS)
_PARTS: Final = st.sampled_from(PARTS)
_FEW: Final = st.sampled_from((2, 1))
_OFTEN: Final = st.sampled_from((False, True))
_HEADS: Final = st.sampled_from(LATENT_HEADS)
_SCALES: Final = st.sampled_from((1.0, 0.5, 0.03, 1.7))


def records_of(capabilities: Capabilities) -> list[tuple[int, int]]:
    """(record, rotary part) of the latent caches that a kernel declares, or the usual ones.

    Raises ValueError: it declares none.
    """
    sizes, values = capabilities.head_dims, capabilities.value_dims
    found = [
        (size, rope)
        for size, rope in RECORDS
        if (sizes is None or size in sizes) and (values is None or size - rope in values)
    ]
    if not found and sizes:
        wanted = values or {max(size - 64, 16) for size in sizes}
        found = [(size, size - each) for size in sorted(sizes) for each in wanted if size >= each]
    if not found:
        raise ValueError(
            f"capabilities.head_dims={sizes} with capabilities.value_dims={values} leaves no latent"
            f" record: name the size of a record, such as 576, and of its value, such as 512"
        )
    return found


@st.composite
def additions(
    draw: st.DrawFn, problem: AttentionProblem, capabilities: Capabilities
) -> AttentionProblem:
    """A drawn problem, with what the kernel says that it can do besides."""
    also = capabilities.also
    if capabilities.kind in STORES:
        return draw(stores(problem, capabilities))
    if capabilities.kind == "merge":
        return problem.replace(
            **_WITHOUT_A_CACHE,
            strides=tuple(name for name in problem.strides if name in ("lse", "out")),
            parts=draw(_FEW if "many_parts" in capabilities.declines else _PARTS),
            interleave=draw(_OFTEN),
            unwritten=draw(_OFTEN) and "unwritten" not in capabilities.declines,
        )
    fields: dict[str, Any] = {}
    if capabilities.kind == "latent":
        size, rope = draw(st.sampled_from(records_of(capabilities)))
        fields |= {"num_kv_heads": 1, "head_dim": size, "rope": rope, "value_dim": None}
        groups = capabilities.group_sizes
        heads = _HEADS if groups is None else st.sampled_from(sorted(groups))
        fields["group_size"] = draw(heads)
    elif "value_size" in also and draw(_OFTEN):
        fields["value_dim"] = draw(st.sampled_from(sorted(capabilities.value_dims or VALUE_DIMS)))
    choices: list[str] = [
        name for name in ("cross", "chunk", "query_mask", "causal_each") if name in also
    ]
    if "sparse" in also:
        choices = ["sparse", "sparse", *choices]
    if "dense" not in capabilities.declines:
        choices = ["", *choices]
    chosen = draw(st.sampled_from(choices or [""]))
    causal = {"causal": True, "cross": False, "window": None}
    if chosen == "cross":
        few = draw(st.integers(0, problem.max_query_len))
        fields |= {"cross": True, "causal": False, "window": None, "alibi": False}
        fields["requests"] = tuple(_longer(r, few) for r in problem.requests)
    elif chosen == "chunk":
        fields |= {**causal, "chunk": draw(st.sampled_from(CHUNKS))}
    elif chosen == "query_mask":
        mask = draw(st.sampled_from(tuple(reversed(QUERY_MASKS))))
        fields |= {**causal, "query_mask": mask, "alibi": False}
    elif chosen == "causal_each":
        fields |= {**causal, "causal_each": True, "alibi": False}
    elif chosen == "sparse":
        fields |= {**causal, "topk": draw(st.sampled_from(TOPKS))}
    problem = problem.replace(**fields)
    if bool(capabilities.codecs) and draw(_OFTEN):
        problem = draw(_encoded(problem, capabilities.codecs))
    return problem


@st.composite
def _encoded(
    draw: st.DrawFn, problem: AttentionProblem, codecs: frozenset[str]
) -> AttentionProblem:
    """A drawn problem with its cache in a codec, or as it is where none of them is possible."""
    plain = problem.replace(kv_dtype=problem.dtype, k_scale=1.0, v_scale=1.0)
    possible = []
    for name in CODECS:
        try:
            possible += [plain.replace(codec=name)] if name in codecs else []
        except InvalidProblem:
            continue  # of another kind, or its scales are not swizzled in such a block
    if not possible:
        return problem
    chosen = draw(st.sampled_from(possible))
    if CODECS[chosen.codec].outer == "tensor" and chosen.copy is None:
        chosen = chosen.replace(k_scale=draw(_SCALES), v_scale=draw(_SCALES))
    return chosen


@st.composite
def stores(
    draw: st.DrawFn, problem: AttentionProblem, capabilities: Capabilities
) -> AttentionProblem:
    """What is to be stored of a drawn problem, without what says nothing of it."""
    kind, also = capabilities.kind, capabilities.also
    fields = {name: value for name, value in _DEFAULTS.items() if name not in STORES[kind]}
    fields["strides"] = tuple(name for name in problem.strides if name == STORED_STRIDES[kind])
    fields["requests"] = _with_few(problem.requests, draw(_STORED_TOKENS))
    if kind == "copy":
        fields["copy"] = draw(_LAYERS)
        if problem.block_size * problem.head_dim >= LARGE_BLOCK:
            fields |= {"copy": 1, "num_kv_heads": 1}
        fields["chained"] = "chained" in also and draw(_OFTEN)
    else:
        fields |= {"write": True, "inputs": "loud" if draw(_OFTEN) else "flat"}
    choice = draw(
        st.sampled_from(
            [each for each in ("", "records", "value_size") if not each or each in also]
        )
    )
    if choice == "records":
        size, rope = draw(st.sampled_from(records_of(capabilities)))
        fields |= {"num_kv_heads": 1, "head_dim": size, "rope": rope}
    elif choice == "value_size":
        fields["value_dim"] = draw(st.sampled_from(sorted(capabilities.value_dims or VALUE_DIMS)))
    problem = problem.replace(**fields)
    if bool(capabilities.codecs) and draw(_OFTEN):
        problem = draw(_encoded(problem, capabilities.codecs))
    return problem


def _with_few(requests: tuple[Request, ...], most: int) -> tuple[Request, ...]:
    """As many of the sequences, and of their queries, as have no more than `most` tokens."""
    kept = []
    for request in requests:
        few = min(request.query_len, most)
        most -= few
        if few or not request.query_len:
            kept.append(Request(few, request.seq_len))
    return tuple(kept)


def _longer(request: Request, few: int) -> Request:
    """The same with a query that may be longer than its keys."""
    if request.query_len < 2:
        return request
    return Request(request.query_len, min(request.seq_len, few))
