"""What a problem costs in memory, judged before any of it is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from reference.attention.problem import MAX_POOL, AttentionProblem, InvalidProblem

SHARE_OF_MEMORY: Final = 0.75
"""Of the machine's memory, what one problem may take: the rest holds torch, the kernel's own
copies and everything else. Beyond it the system ends processes, and not always the right one."""

BEYOND: Final = 2**31
"""Elements that a 32-bit offset counts."""

ADDRESSES: Final = 2**40
"""Bytes that a call may span that is only compiled: what is never written costs no memory, but the
system does not lend addresses without end."""

_ITEM_BYTES: Final = {"fp32": 4, "fp16": 2, "bf16": 2, "e4m3": 1, "e5m2": 1}

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


def far_pool(problem: AttentionProblem) -> int:
    """Blocks of a pool that passes 2^16 blocks and, by an eighth, 2^31 elements."""
    elements = problem.block_size * problem.num_kv_heads * problem.stored_sizes[0]
    return min(max(2**17, 9 * BEYOND // 8 // elements), MAX_POOL)


def shared_blocks(problem: AttentionProblem) -> list[int]:
    """Blocks that each sequence can have of the longest one's; none for that one."""
    lens = [request.seq_len for request in problem.requests]
    longest = lens.index(max(lens))
    return [
        0 if row == longest else min(problem.shared_prefix, seq_len) // problem.block_size
        for row, seq_len in enumerate(lens)
    ]


def call_bytes(problem: AttentionProblem) -> int:
    """Bytes of a call's tensors: query, out and log-sum-exp, the paged cache and its table."""
    rows = problem.num_tokens * problem.num_q_heads
    widest = max(problem.head_dim, problem.value_size)
    cached = problem.cache_tokens * problem.num_kv_heads * widest
    query = rows * (2 * widest * _ITEM_BYTES[problem.dtype] + 4)
    return query + 2 * cached * _ITEM_BYTES[problem.kv_dtype] + 4 * problem.cache_tokens


def reference_bytes(problem: AttentionProblem) -> int:
    """Bytes of all that a check holds at once.

    Keys and values are drawn in float32, stored, and laid out in pages; the truth has those of one
    sequence in float64, and three times its logits.
    """
    width = problem.num_kv_heads * max(problem.head_dim, problem.value_size)
    drawn = 8 * problem.cache_tokens * width + 12 * problem.num_tokens * width * problem.group_size
    stored = 2 * call_bytes(problem)
    truth = max(
        16 * request.seq_len * width
        + 3 * 8 * request.query_len * request.seq_len * problem.num_q_heads
        for request in problem.requests
    )
    return drawn + stored + truth


def check_reference(problem: AttentionProblem) -> None:
    """Raise InvalidProblem where a check of a problem does not fit into memory."""
    check_size(reference_bytes(problem), problem)


def check_call(problem: AttentionProblem) -> None:
    """Raise InvalidProblem where a call of which only the block table is written does not fit."""
    columns = problem.max_seq_len // problem.block_size + 1
    check_size(4 * len(problem.requests) * columns, problem)
    check_size(call_bytes(problem), problem, memory=ADDRESSES)


def check_size(needed: int, problem: AttentionProblem, *, memory: int | None = None) -> None:
    """Raise InvalidProblem where a problem that needs so many bytes does not fit into `memory`."""
    memory = machine_memory() if memory is None else memory
    if needed > SHARE_OF_MEMORY * memory:
        raise InvalidProblem(
            f"{str(problem)[:80]}: it needs about {needed / 1e9:,.1f} GB, and may have "
            f"{SHARE_OF_MEMORY:.0%} of {memory / 1e9:,.1f} GB; shorten the lengths or the batch"
        )


def machine_memory() -> int:
    """Bytes that this process may use: the machine's, or what its container is given of them."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(physical, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):
        return physical
