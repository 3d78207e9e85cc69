"""Problems whose sequences begin with the same blocks, and ways to group them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from helpers.traffic import AttentionBytes
from kernels.launch import Tiles
from kernels.shared_prefix import CascadeLaunch, PrefixGroups, SharedPrefix
from reference.attention.contract import VARIANTS, Capabilities, PagedBatch
from reference.attention.problem import AttentionProblem, Request
from reference.attention.strategies import problems

NO_WINDOW = Capabilities(variants=frozenset(VARIANTS) - {"window"})


@st.composite
def sharing_problems(
    draw: st.DrawFn,
    /,
    *,
    capabilities: Capabilities = NO_WINDOW,
    prefill: bool | None = None,
    max_seqs: int = 5,
    max_blocks: int = 5,
    stranger: bool = False,
    **fields: Any,
) -> AttentionProblem:
    """Problems of which two sequences at least share whole blocks before their queries.

    Outsiders stand between them: shorter sequences, padding, and sequences that wait. With
    `stranger` one of them asks for something and shares no block. `fields` are fields of the
    problem that are set to a value.
    """
    problem = draw(
        problems(capabilities=capabilities, max_seqs=1, max_len=40, prefill=prefill)
    ).replace(**({"block_size": draw(st.sampled_from((16, 1, 2, 8, 32)))} | fields))
    prefix = problem.block_size * draw(st.integers(1, max_blocks))
    query_lens = st.integers(1, 9) if prefill is not False else st.just(1)

    def member() -> Request:
        query_len = draw(query_lens)
        return Request(query_len, prefix + query_len + draw(st.integers(0, 40)))

    def outsider() -> Request:
        seq_len = draw(st.integers(0, 2 * prefix))
        return Request(draw(st.integers(0, 1)), seq_len)

    batch = [member(), member(), *([Request(1, 1)] if stranger else [])]
    for _ in range(draw(st.integers(0, max_seqs - 2))):
        batch.append(member() if draw(st.booleans()) else outsider())
    return problem.replace(
        requests=tuple(draw(st.permutations(batch))),
        shared_prefix=prefix + draw(st.integers(0, problem.block_size - 1)),
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def groupings(draw: st.DrawFn, problem: AttentionProblem) -> list[SharedPrefix]:
    """Some groups of a problem's sequences: legal ones, not the best ones."""
    size = problem.block_size
    usable = [
        min(problem.shared_prefix, request.seq_len - request.query_len) // size
        for request in problem.requests
    ]
    members = [index for index, blocks in enumerate(usable) if blocks >= 1]
    members = draw(st.permutations(members))
    cut = len(members)
    if len(members) >= 4 and draw(st.booleans()):
        cut = draw(st.integers(2, len(members) - 2))
    groups = []
    for part in (members[:cut], members[cut:]):
        if len(part) >= 2:
            most = min(usable[member] for member in part)
            groups.append(SharedPrefix(tuple(part), draw(st.integers(1, most))))
    return groups


@st.composite
def launches(draw: st.DrawFn, problem: AttentionProblem) -> CascadeLaunch:
    """Small tiles and several splits, whatever would be chosen."""
    one = st.builds(
        Tiles,
        block_n=st.sampled_from((16, 32, 64)),
        block_m=st.sampled_from([rows for rows in (16, 32, 64) if rows >= problem.group_size]),
    )
    suffix_splits = draw(st.integers(1, 4))
    return CascadeLaunch(draw(one), draw(one), draw(st.integers(1, 5)), suffix_splits)


def grouped(problem: AttentionProblem, shared: list[SharedPrefix]) -> PrefixGroups:
    """The tensors of a problem's groups, on the CPU."""
    return PrefixGroups.of(
        shared,
        seq_lens=[request.seq_len for request in problem.requests],
        query_lens=[request.query_len for request in problem.requests],
        block_size=problem.block_size,
    )


def cascade_traffic(
    batch: PagedBatch, shared: list[SharedPrefix], launch: CascadeLaunch
) -> AttentionBytes:
    """The closed form: what a cascade loads of query, keys and values, and stores of the output.

    A prefix is loaded once for each tile of stacked rows of its group, so once where the group fits
    a tile. What follows it is loaded once for each query tile of its sequence that sees any of it.
    """
    query_lens = np.diff(batch.query_start_loc.numpy()).tolist()
    seq_lens = batch.seq_lens.tolist()
    prefix_q = launch.prefix_tiles.block_m // batch.group_size
    suffix_q = launch.suffix_tiles.block_m // batch.group_size
    suffix_q = suffix_q if batch.max_query_len > 1 else 1
    begins = [0] * len(seq_lens)
    keys = stacked = 0
    for group in shared:
        tokens = sum(query_lens[member] for member in group.members)
        stacked += tokens
        keys += -(-tokens // prefix_q) * group.num_blocks * batch.block_size
        for member in group.members:
            begins[member] = group.num_blocks * batch.block_size
    for begin, query_len, seq_len in zip(begins, query_lens, seq_lens, strict=True):
        for start in range(0, query_len, suffix_q):
            last = seq_len - query_len + min(start + suffix_q, query_len)
            keys += (last if batch.causal else seq_len) - begin
    num_tokens, num_q_heads, head_dim = batch.query.shape
    rows = stacked * launch.prefix_splits + num_tokens * launch.suffix_splits
    row = num_q_heads * head_dim * batch.query.element_size()
    slot = batch.num_kv_heads * head_dim * batch.key_cache.element_size()
    return AttentionBytes(
        query=rows * row, keys=keys * slot, values=keys * slot, out=num_tokens * row
    )


def with_rows(launch: CascadeLaunch, rows: int) -> CascadeLaunch:
    """The same launch with prefix tiles of another height."""
    return replace(launch, prefix_tiles=replace(launch.prefix_tiles, block_m=rows))
