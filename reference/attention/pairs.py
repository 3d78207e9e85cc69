"""Pairs of what is active in a problem: two variants that each do something, at once.

A window that is longer than every sequence does nothing, and two variants that were each shown
alone say nothing of their meeting: sinks are right and windows are right, and a window that leaves
a split without keys counts the sink twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Final

from reference.attention.contract import Capabilities
from reference.attention.kinds import STORES
from reference.attention.problem import AttentionProblem, Request
from reference.attention.strategies import LONG_BLOCKS, SHORT_QUERY

CROWDED: Final = 9
"""Sequences of a batch from which they are many."""

LONG: Final = 512
"""Tokens of a context from which it is long."""


def _cuts(problem: AttentionProblem) -> bool:
    window = problem.window
    return window is not None and any(r.query_len and r.seq_len > window for r in problem.requests)


_ACTIVE: Final[Mapping[str, Callable[[AttentionProblem], bool]]] = {
    "window": _cuts,
    "noncausal": lambda p: not p.causal and p.max_query_len > 1,
    "softcap": lambda p: p.softcap is not None,
    "alibi": lambda p: p.alibi,
    "sinks": lambda p: p.sinks,
    "scale": lambda p: p.scale is not None,
    "float8": lambda p: p.quantised,
    "codec": lambda p: bool(p.codec),
    "decode": lambda p: any(r.query_len == 1 and r.seq_len for r in p.requests),
    "short query": lambda p: any(1 < r.query_len <= SHORT_QUERY for r in p.requests),
    "prefill": lambda p: p.max_query_len > SHORT_QUERY,
    "padding": lambda p: Request(1, 0) in p.requests,
    "waiting": lambda p: any(r.query_len == 0 for r in p.requests),
    "shared prefix": lambda p: p.shares_blocks,
    "many sequences": lambda p: len(p.requests) >= CROWDED,
    "long context": lambda p: p.max_seq_len >= LONG,
    "long blocks": lambda p: p.block_size in LONG_BLOCKS,
    "grouped heads": lambda p: p.group_size > 1,
    "far pages": lambda p: p.pool is not None,
    "tight table": lambda p: p.spare == 0,
    "layout": lambda p: bool(p.layout) and p.layout not in {"together", "apart"},
    "strides": lambda p: bool(p.strides),
}
"""What can be active, and whether it is."""

_OF_CACHES: Final = ("shared prefix", "long blocks", "far pages", "tight table", "layout")

_NEVER: Final = (
    {"float8", "codec"},
    {"window", "noncausal"},  # a window needs causal attention
    {"many sequences", "long context"},
    {"many sequences", "far pages"},
    {"long context", "padding"},  # lengths of a stream: no sequence is empty
    {"long context", "waiting"},
    {"many sequences", "shared prefix"},
)
"""Pairs that are not drawn at once, or by chance only."""


def active(problem: AttentionProblem) -> list[str]:
    """Names of what is active in a problem."""
    return [name for name, shown in _ACTIVE.items() if shown(problem)]


def pairs_of(problem: AttentionProblem) -> list[tuple[str, str]]:
    """The pairs that meet in a problem."""
    return list(combinations(active(problem), 2))


def pairs_for(able: Capabilities) -> set[tuple[str, str]]:
    """The pairs that are to meet in a search through a kernel's problems."""
    lacks = {
        name
        for name in ("window", "noncausal", "softcap", "alibi", "sinks")
        if name not in able.variants
    }
    lacks |= {name for name in ("padding", "waiting", "scale") if name in able.declines}
    if able.kind == "merge":
        lacks |= {*_OF_CACHES, "softcap", "alibi", "sinks", "scale", "float8"}
    if able.kind in STORES:
        lacks |= {"noncausal", "window", *("softcap", "alibi", "sinks", "scale"), "grouped heads"}
        lacks |= {"shared prefix", "tight table"}
    if "prefill" not in able.variants:
        lacks |= {"short query", "prefill", "noncausal"}
    if not able.kv_dtypes:
        lacks.add("float8")
    if not able.codecs:
        lacks.add("codec")
    if "pool" in able.declines:
        lacks.add("far pages")
    if able.group_sizes == frozenset({1}):
        lacks.add("grouped heads")
    if able.block_sizes is not None and not able.block_sizes & set(LONG_BLOCKS):
        lacks.add("long blocks")
    if "mixed_lengths" in able.declines:
        lacks |= {"waiting"}
    never = [*_NEVER]
    if "mixed_lengths" in able.declines:
        never += [{"decode", "short query"}, {"decode", "prefill"}, {"short query", "prefill"}]
    return {
        (one, other)
        for one, other in combinations(_ACTIVE, 2)
        if not lacks & {one, other}
        and {one, other} not in never
        and not any({one, other} == {*words.split()} for words in able.never_together)
    }
