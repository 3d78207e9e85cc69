"""Lays a problem out in pages, as badly as the contract allows.

Pages are shuffled; blocks, slots and table columns that belong to nobody hold what a correct
kernel never reads; everything a kernel may not write lies between canaries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from reference.contract import PagedBatch
from reference.inputs import Inputs
from reference.problem import AttentionProblem

GUARD_BLOCKS: Final = 2
"""Blocks before and after the pool. An index outside the pool lands here, on poison, and not in
another allocation: a wrong kernel is caught and the process lives."""

GUARD_ROWS: Final = 2
"""Rows before and after `out` and `lse`."""

CANARY: Final = -24576.0
"""What guards of `out` and `lse` hold; exact in every dtype."""

LARGE: Final = 16384.0
"""Poison for kernels that need finite numbers everywhere: times any weight but zero, it shows."""

Poison = Literal["nan", "large"]


@dataclass(frozen=True, slots=True)
class Placement:
    """A problem in pages, ready for one call, and what must still be there after it.

    Attributes
    ----------
    batch
        The call.
    owned_slots
        [cache_tokens] int64, the slot of each token, sequence after sequence. Tokens of a shared
        prefix have the same slot in every sequence.
    num_blocks
        Size of the pool, blocks.
    """

    batch: PagedBatch
    owned_slots: Tensor
    num_blocks: int
    guarded_out: Tensor
    guarded_lse: Tensor
    cache: Tensor
    cache_before: Tensor

    def overwritten(self) -> list[str]:
        """What the kernel wrote although it is not its to write; empty if all is well."""
        damage = []
        for name, guarded in (("out", self.guarded_out), ("lse", self.guarded_lse)):
            for side, rows in (("before", guarded[:GUARD_ROWS]), ("after", guarded[-GUARD_ROWS:])):
                if bool((rows != CANARY).any()):
                    damage.append(f"wrote to the rows {side} `{name}`")
        if not torch.equal(self.cache, self.cache_before):
            damage.append("wrote to the key or value cache")
        return damage

    def reset(self) -> None:
        """Fill the outputs with NaN again, for another call on the same placement."""
        for guarded in (self.guarded_out, self.guarded_lse):
            guarded[GUARD_ROWS:-GUARD_ROWS] = torch.nan


def place(
    inputs: Inputs,
    *,
    seed: int | None = None,
    poison: Poison = "nan",
    share_prefix: bool = True,
    spare_blocks: int = 3,
    spare_columns: int = 2,
) -> Placement:
    """Lay a problem out in pages.

    Parameters
    ----------
    inputs
        The contiguous tensors; the placement lies on their device.
    seed
        Order of the pages; the problem's own seed if None.
    poison
        What unowned slots hold.
    share_prefix
        Whether the whole blocks of the problem's shared prefix are stored once.
    spare_blocks, spare_columns
        Blocks of the pool that nobody uses, and columns of the block table past the longest
        sequence.
    """
    problem = inputs.problem
    device = inputs.query.device
    rng = torch.Generator().manual_seed(problem.seed if seed is None else seed)
    shared_blocks = problem.shared_prefix // problem.block_size if share_prefix else 0
    logical = _logical_blocks(problem, shared_blocks)
    used = 1 + max((int(blocks.max()) for blocks in logical if len(blocks)), default=-1)
    num_blocks = used + spare_blocks
    physical = torch.randperm(num_blocks, generator=rng)

    width = max(len(blocks) for blocks in logical) + spare_columns
    outside = torch.tensor([-1, num_blocks, num_blocks + 1, -2], dtype=torch.int32)
    table = outside[torch.randint(0, 4, (len(logical), width), generator=rng)]
    slots = []
    for row, (blocks, request) in enumerate(zip(logical, problem.requests, strict=True)):
        table[row, : len(blocks)] = physical[blocks].int()
        token = torch.arange(request.seq_len)
        block = physical[blocks[token // problem.block_size]] if request.seq_len else token
        slots.append(block * problem.block_size + token % problem.block_size)
    owned_slots = torch.cat(slots).to(device)

    cache = _poisoned_cache(problem, num_blocks, poison, device)
    key_cache, value_cache = (
        half[GUARD_BLOCKS : GUARD_BLOCKS + num_blocks] for half in cache.unbind(1)
    )
    for half, contents in ((key_cache, inputs.keys), (value_cache, inputs.values)):
        block, offset = owned_slots // problem.block_size, owned_slots % problem.block_size
        _bytes_or_self(half)[block, offset] = _bytes_or_self(contents)

    rows = problem.num_tokens
    guarded_out = torch.full(
        (rows + 2 * GUARD_ROWS, problem.num_q_heads, problem.head_dim),
        CANARY,
        dtype=problem.torch_dtype,
        device=device,
    )
    guarded_lse = torch.full(guarded_out.shape[:2], CANARY, dtype=torch.float32, device=device)
    flat_cache = _bytes_or_self(cache)
    flat_cache = (
        flat_cache
        if flat_cache.dtype == torch.uint8
        else flat_cache.view(_SAME_SIZE[flat_cache.dtype])
    )
    placement = Placement(
        batch=PagedBatch(
            query=inputs.query.clone(),
            key_cache=key_cache,
            value_cache=value_cache,
            block_table=table.to(device),
            seq_lens=_int32([request.seq_len for request in problem.requests], device),
            query_start_loc=_int32(problem.query_starts, device),
            out=guarded_out[GUARD_ROWS:-GUARD_ROWS],
            lse=guarded_lse[GUARD_ROWS:-GUARD_ROWS],
            max_query_len=problem.max_query_len,
            max_seq_len=problem.max_seq_len,
            scale=problem.softmax_scale,
            causal=problem.causal,
            window=problem.window,
            softcap=problem.softcap,
            alibi_slopes=inputs.alibi_slopes,
            sinks=inputs.sinks,
            k_scale=problem.k_scale,
            v_scale=problem.v_scale,
        ),
        owned_slots=owned_slots,
        num_blocks=num_blocks,
        guarded_out=guarded_out,
        guarded_lse=guarded_lse,
        cache=flat_cache,
        cache_before=flat_cache.clone(),
    )
    placement.reset()
    return placement


# Poison is NaN, and NaN differs from itself: an untouched cache is recognised by its bits.
_SAME_SIZE: Final = {
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def _logical_blocks(problem: AttentionProblem, shared_blocks: int) -> list[Tensor]:
    """Numbers the blocks of each sequence, the shared ones first and the same for all."""
    blocks, following = [], shared_blocks
    for request in problem.requests:
        count = -(-request.seq_len // problem.block_size)
        # A block is shared if the sequence fills it: what it appends must go elsewhere.
        shared = min(shared_blocks, request.seq_len // problem.block_size)
        own = torch.arange(following, following + count - shared)
        blocks.append(torch.cat([torch.arange(shared), own]))
        following += count - shared
    return blocks


def _poisoned_cache(
    problem: AttentionProblem, num_blocks: int, poison: Poison, device: torch.device
) -> Tensor:
    """[guards + num_blocks + guards, 2, block_size, heads, head_dim], full of poison.

    Keys and values lie side by side in one storage, as vLLM keeps them: a kernel that takes the
    cache for contiguous reads values as keys.
    """
    shape = (
        num_blocks + 2 * GUARD_BLOCKS,
        2,
        problem.block_size,
        problem.num_kv_heads,
        problem.head_dim,
    )
    dtype = problem.torch_kv_dtype
    filler = torch.nan if poison == "nan" else min(LARGE, torch.finfo(dtype).max)
    element = torch.tensor(filler).to(dtype).to(device)
    cache = torch.empty(shape, dtype=dtype, device=device)
    _bytes_or_self(cache)[...] = _bytes_or_self(element.reshape(1))
    return cache


def _bytes_or_self(tensor: Tensor) -> Tensor:
    # Indexing and filling have no float8 kernels in torch; on bytes they do the same.
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def _int32(numbers: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)
