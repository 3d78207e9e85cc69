"""Features of attention problems: what a problem shows of a kernel, by name.

A feature is what a kernel may or may not be able to do (`kv_dtype=e5m2`, `window`), or a kind of
batch that kernels like to get wrong (`mixed`, `shared_prefix`). Coverage is counted by them, and
expected failures are narrowed by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Final

from reference.attention.additions import records_of
from reference.attention.contract import Capabilities, everything
from reference.attention.kinds import STORES
from reference.attention.problem import (
    FP8_DTYPES,
    INPUT_KINDS,
    LARGEST_HEAD_DIM,
    LAYOUTS,
    MAX_BLOCK_SIZE,
    MIN_HEAD_DIM,
    QUERY_DTYPES,
    STRIDED,
    AttentionProblem,
    InvalidProblem,
    Request,
)
from reference.attention.records import CODECS
from reference.attention.strategies import BLOCK_SIZES, HEAD_DIMS, SHORT_QUERY
from reference.errors import BadInput


@dataclass(frozen=True, slots=True, eq=False)
class Feature:
    """Something that a problem shows. There is one object for each name: see `feature`."""

    name: str
    """As printed, and as written in an expected failure."""
    group: str
    """What it is one of, such as `head size`."""
    shown_by: Callable[[AttentionProblem], bool]
    """Whether a problem shows it."""
    supported_by: Callable[[Capabilities], bool]
    """Whether a kernel of these capabilities can be asked for it."""
    fields: Mapping[str, Any]
    """Of a problem: with these, most problems show it."""


class UnknownFeature(BadInput):
    """A name that is no feature; the message has those that are."""


def _always(_: Capabilities) -> bool:
    return True


_EQUAL: Final[dict[str, tuple[str, Callable[[Capabilities, Any], bool]]]] = {
    "dtype": ("query dtype", lambda able, name: name in able.dtypes),
    "kv_dtype": ("cache dtype", lambda able, name: name in able.kv_dtypes),
    "head_dim": (
        "head size",
        lambda able, size: (
            size <= able.max_head_dim and (able.head_dims is None or size in able.head_dims)
        ),
    ),
    "block_size": (
        "block size",
        lambda able, size: able.block_sizes is None or size in able.block_sizes,
    ),
    "inputs": ("inputs", lambda *_: True),
    "layout": ("layout", lambda able, name: f"layout={name}" not in able.declines),
}
"""By field of a problem: the group of its values' features, and who can be asked for one."""


def _equal(field: str, value: Any) -> Feature:
    group, supports = _EQUAL[field]
    return Feature(
        f"{field}={value}",
        group,
        lambda problem: getattr(problem, field) == value,
        lambda able: supports(able, value),
        {field: value},
    )


def _variant(
    name: str, shown_by: Callable[[AttentionProblem], bool], fields: Mapping[str, Any]
) -> Feature:
    return Feature(name, "variant", shown_by, lambda able: name in able.variants, fields)


def _batch(
    name: str,
    shown_by: Callable[[AttentionProblem], bool],
    supported_by: Callable[[Capabilities], bool] = _always,
) -> Feature:
    return Feature(name, "batch", shown_by, supported_by, {})


def _heads(
    name: str, shown_by: Callable[[AttentionProblem], bool], num_kv_heads: int, group_size: int
) -> Feature:
    fields = {"num_kv_heads": num_kv_heads, "group_size": group_size}
    return Feature(f"heads={name}", "heads", shown_by, _always, fields)


def _prefills(able: Capabilities) -> bool:
    return "prefill" in able.variants


def _unless_declined(name: str) -> Callable[[Capabilities], bool]:
    return lambda able: name not in able.declines


def _decodes(problem: AttentionProblem) -> bool:
    return any(r.query_len == 1 and r.seq_len > 0 for r in problem.requests)


def _strided(name: str) -> Feature:
    return Feature(
        f"strides={name}",
        "places",
        lambda problem: name in problem.strides,
        _unless_declined(f"strides={name}"),
        {"strides": (name,)},
    )


def _addition(
    name: str, shown_by: Callable[[AttentionProblem], bool], fields: Mapping[str, Any]
) -> Feature:
    return Feature(name, "addition", shown_by, lambda able: name in able.also, fields)


def _kind(name: str, fields: Mapping[str, Any]) -> Feature:
    return Feature(
        name,
        "addition",
        lambda problem: problem.kind == name,
        lambda able: able.kind == name,
        fields,
    )


def _codec(name: str) -> Feature:
    fields = {"codec": name, "kv_dtype": "", **(RECORD if CODECS[name].latent else {})}
    fields |= {"head_dim": 64, "value_dim": None} if CODECS[name].swizzled else {}
    return Feature(
        f"codec={name}",
        "codec",
        lambda problem: problem.codec == name,
        lambda able: name in able.codecs,
        fields,
    )


OF_KIND: Final[dict[str, dict[str, Any]]] = {
    "merge": {"parts": 2},
    "write": {"write": True},
    "copy": {"copy": 2},
}
"""Fields that make a problem one of a kind without attention."""

RECORD: Final = {"num_kv_heads": 1, "head_dim": 48, "rope": 16, "value_dim": None}
"""Fields of a small latent cache."""

ADDED: Final = (
    _kind("merge", OF_KIND["merge"]),
    Feature(
        "interleave",
        "addition",
        lambda problem: problem.interleave,
        lambda able: able.kind == "merge",
        {"parts": 2, "interleave": True},
    ),
    Feature(
        "unwritten",
        "addition",
        lambda problem: problem.unwritten,
        lambda able: able.kind == "merge" and "unwritten" not in able.declines,
        {"parts": 2, "unwritten": True},
    ),
    _kind("write", OF_KIND["write"]),
    _kind("copy", OF_KIND["copy"]),
    _kind("latent", RECORD),
    _addition("value_size", lambda p: p.value_dim is not None, {"value_dim": 32}),
    _addition("cross", lambda p: p.cross, {"cross": True}),
    _addition("chunk", lambda p: p.chunk is not None, {"chunk": 5}),
    _addition("query_mask", lambda p: bool(p.query_mask), {"query_mask": "tree"}),
    _addition("causal_each", lambda p: p.causal_each, {"causal_each": True}),
    _addition("sparse", lambda p: p.topk is not None, {"topk": 16, **RECORD}),
    _addition("records", lambda p: p.rope is not None and p.kind in STORES, RECORD),
    _addition("chained", lambda p: p.chained, {"chained": True}),
    *(_codec(name) for name in CODECS),
)
"""What is counted for kernels that say that they can do it, and for nobody else."""

FEATURES: Final = (
    *(_equal("dtype", name) for name in QUERY_DTYPES),
    Feature(
        "kv_dtype=same",
        "cache dtype",
        lambda problem: not problem.quantised and not problem.codec,
        _always,
        {"kv_dtype": ""},
    ),
    *(_equal("kv_dtype", name) for name in FP8_DTYPES),
    *(_equal("head_dim", size) for size in HEAD_DIMS),
    *(_equal("block_size", size) for size in sorted(BLOCK_SIZES)),
    _variant(
        "noncausal", lambda problem: not problem.causal and not problem.cross, {"causal": False}
    ),
    _variant("window", lambda problem: problem.window is not None, {"window": 5}),
    _variant("softcap", lambda problem: problem.softcap is not None, {"softcap": 30.0}),
    _variant("alibi", lambda problem: problem.alibi, {"alibi": True}),
    _variant("sinks", lambda problem: problem.sinks, {"sinks": True}),
    # A kernel that can give a log-sum-exp is asked for one by every problem.
    _variant("lse", lambda problem: problem.num_tokens > 0, {}),
    Feature(
        "scale",
        "variant",
        lambda problem: problem.scale is not None,
        _unless_declined("scale"),
        {"scale": 0.125},
    ),
    _batch("decode", lambda problem: problem.max_query_len <= 1 and _decodes(problem)),
    _batch("prefill", lambda problem: problem.max_query_len > 1, _prefills),
    _batch("mixed", lambda problem: problem.max_query_len > 1 and _decodes(problem), _prefills),
    _batch(
        "chunked",
        lambda problem: any(1 < r.query_len < r.seq_len for r in problem.requests),
        _prefills,
    ),
    _batch(
        "short_query",
        lambda problem: any(1 < r.query_len <= SHORT_QUERY for r in problem.requests),
        _prefills,
    ),
    _batch(
        "padding",
        lambda problem: any(r == Request(1, 0) for r in problem.requests),
        _unless_declined("padding"),
    ),
    _batch(
        "waiting",
        lambda problem: any(r.query_len == 0 for r in problem.requests),
        _unless_declined("waiting"),
    ),
    _batch("shared_prefix", lambda problem: problem.shares_blocks),
    _heads("mha", lambda problem: problem.group_size == 1, 2, 1),
    _heads("mqa", lambda problem: problem.num_kv_heads == 1 and problem.group_size > 1, 1, 3),
    _heads("gqa", lambda problem: problem.num_kv_heads > 1 and problem.group_size > 1, 2, 3),
    *(_equal("inputs", kind) for kind in INPUT_KINDS),
    *(_equal("layout", name) for name in LAYOUTS),
    *(_strided(name) for name in STRIDED),
    Feature("tight", "places", lambda problem: problem.spare == 0, _always, {"spare": 0}),
    Feature(
        "pool",
        "places",
        lambda problem: problem.pool is not None,
        _unless_declined("pool"),
        {"pool": 2**27},
    ),
)
"""What is counted for every kernel; sizes that a kernel declares besides are added to them.

`prefill` is any query longer than one token, as in a kernel's capabilities; `mixed` holds decode
beside it, `chunked` a prefill with earlier tokens in the cache, `short_query` one of 2 to 8 tokens.
`padding` is a row q1 k0, `waiting` a sequence that has no query in this step. `tight` is a block
table without spare columns, `pool` one of more than 2^31 elements.
"""

_ALL: Final = (*FEATURES, *ADDED)
_BY_NAME: Final = {feature.name: feature for feature in _ALL}


@cache
def feature(name: str) -> Feature:
    """The feature of a name, such as `head_dim=N` for each legal N, or raise UnknownFeature."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    kind, _, size = name.partition("=")
    if kind in {"head_dim", "block_size"} and size.isascii() and size.isdecimal():
        number = int(size)
        if kind == "head_dim" and MIN_HEAD_DIM <= number <= LARGEST_HEAD_DIM and number % 8 == 0:
            return _equal(kind, number)
        if kind == "block_size" and 1 <= number <= MAX_BLOCK_SIZE and not number & (number - 1):
            return _equal(kind, number)
    raise UnknownFeature(
        f"{name!r} is no feature of a problem; use one of {', '.join(_BY_NAME)}, or another legal "
        f"head_dim=N or block_size=N"
    )


def features_of(problem: AttentionProblem) -> frozenset[str]:
    """Names of all features that a problem shows."""
    shown = {feature.name for feature in _ALL if feature.shown_by(problem)}
    sizes = {f"head_dim={problem.head_dim}", f"block_size={problem.block_size}"}
    return frozenset(shown | sizes)


def features_for(capabilities: Capabilities, seen: Iterable[str] = ()) -> list[Feature]:
    """All features to report for a kernel, group by group, those that problems showed included."""
    declared = {f"head_dim={size}" for size in capabilities.head_dims or ()}
    declared |= {f"block_size={size}" for size in capabilities.block_sizes or ()}
    usual = [*_usual(capabilities.kind), *(f for f in ADDED if f.supported_by(capabilities))]
    others = [feature(name) for name in {*declared, *seen} - {each.name for each in usual}]
    groups = {feature.group: number for number, feature in reversed([*enumerate(_ALL)])}

    def place(feature: Feature) -> tuple[int, int]:
        value = feature.name.partition("=")[2]
        return groups[feature.group], int(value) if value.isdecimal() else 0

    return sorted([*usual, *others], key=place)


@cache
def _usual(kind: str) -> tuple[Feature, ...]:
    """What every kernel of a kind is counted for: a merge has no cache, and no variants of one."""
    if kind not in OF_KIND:
        return FEATURES
    able = everything(kind)
    shown = (each for each in FEATURES if next(witnesses(able, (each,)), None))
    return tuple(each for each in shown if each.name != "lse" or kind == "merge")


def witnesses(
    capabilities: Capabilities, features: tuple[Feature, ...] = ()
) -> Iterator[AttentionProblem]:
    """Small problems within capabilities that show features, of every kind of batch that does.

    Where none of them shows something that a check needs, no drawn problem does either.
    """
    known = [name for name in LAYOUTS if f"layout={name}" not in capabilities.declines]
    usual = "" if {"together", "apart"}.issubset(known) else next(iter(known), "")
    for dtype, block_size, head_dim in _bases(capabilities):
        for candidate in _candidates(dtype, block_size, head_dim, capabilities.kind, features):
            problem = candidate.replace(layout=candidate.layout or usual) if usual else candidate
            if capabilities.refusal(problem) is None and all(f.shown_by(problem) for f in features):
                yield problem


def _bases(capabilities: Capabilities) -> Iterator[tuple[str, int, int]]:
    """Dtypes, block sizes and head sizes to start from: the first, and those that exclude each
    other.
    """
    named = {word for words in capabilities.never_together for word in words.split()}

    def some(kind: str, values: list[Any]) -> list[Any]:
        unnamed = [value for value in values if f"{kind}={value}" not in named]
        return [*unnamed[:1], *(value for value in values if value not in unnamed)]

    dtypes = [name for name in QUERY_DTYPES if name in capabilities.dtypes]
    # In the order in which they are drawn, the usual ones first.
    blocks = BLOCK_SIZES if capabilities.block_sizes is None else sorted(capabilities.block_sizes)
    heads = HEAD_DIMS if capabilities.head_dims is None else sorted(capabilities.head_dims)
    if capabilities.kind == "latent":
        return product(dtypes[:1], [*blocks][:1], records_of(capabilities))
    return product(some("dtype", dtypes), some("block_size", [*blocks]), some("head_dim", [*heads]))


@cache
def _candidates(
    dtype: str, block_size: int, head_dim: Any, kind: str, features: tuple[Feature, ...]
) -> tuple[AttentionProblem, ...]:
    fields: dict[str, Any] = {"dtype": dtype, "block_size": block_size, "head_dim": head_dim}
    fields |= OF_KIND.get(kind, {})
    if kind == "latent":
        fields |= {"head_dim": head_dim[0], "rope": head_dim[1]}
    for wanted in features:
        fields |= wanted.fields
    size = int(fields["block_size"])
    long = 2 * size + 3
    batches = (
        (Request(1, long),),
        (Request(1, long), Request(1, long)),
        (Request(3, long),),
        (Request(3, 3), Request(3, long)),
        (Request(3, long), Request(1, long)),
        (Request(1, long), Request(1, long), Request(1, 0), Request(0, long)),
        (Request(3, long), Request(1, long), Request(1, 0), Request(0, long)),
    )
    found = []
    for requests, shared, causal in product(batches, (0, size), (True, False)):
        try:
            problem = AttentionProblem(
                requests=requests, **{"shared_prefix": shared, "causal": causal, **fields}
            )
        except InvalidProblem:
            continue  # a window needs causal attention
        found.append(problem)
    return tuple(dict.fromkeys(found))
