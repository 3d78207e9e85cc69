"""Lays a problem out in pages, as badly as the contract allows.

Pages are shuffled; blocks, slots and table columns that belong to nobody hold what a correct
kernel never reads; everything a kernel may not write lies between canaries. The query is a part of
a fused projection and the block table of a wider buffer, as in an engine, so no two tensors have
the same strides; keys and values lie side by side in one storage, or apart with strides of their
own, by turns of the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from reference.attention.contract import PagedBatch, options_of
from reference.attention.inputs import Inputs
from reference.attention.problem import AttentionProblem

GUARD_BLOCKS: Final = 2
"""Blocks before and after the pool. An index outside the pool lands here, on poison, and not in
another allocation: a wrong kernel is caught and the process lives."""

GUARD_ROWS: Final = 2
"""Rows before and after `out` and `lse`; their rows have guards at the end too."""

CANARY: Final = -24576.0
"""What guards of `out` and `lse` hold; exact in every dtype."""

LARGE: Final = 16384.0
"""Poison for kernels that need finite numbers everywhere: times any weight but zero, it shows."""

WATCHED: Final = (
    "query", "block_table", "seq_lens", "query_start_loc", "alibi_slopes", "sinks",
)  # fmt: skip
"""Inputs of a call that a kernel may not change, besides the caches."""

Poison = Literal["nan", "large"]
Layout = Literal["together", "apart"]


@dataclass(frozen=True, slots=True)
class Placement:
    """A problem in pages, ready for one call, and what must still be there after it."""

    batch: PagedBatch
    """The call."""
    owned_slots: Tensor
    """[cache_tokens] int64, the slot of each token, sequence after sequence. Tokens of a shared
    prefix have the same slot in every sequence."""
    num_blocks: int
    """Size of the pool, blocks."""
    guarded_out: Tensor
    guarded_lse: Tensor
    storages: tuple[Tensor, ...]
    storages_before: tuple[Tensor, ...]
    inputs_before: dict[str, Tensor]

    def overwritten(self) -> list[str]:
        """What the kernel wrote although it is not its to write; empty if all is well."""
        damage = []
        heads = self.batch.out.shape[1]
        for name, guarded in (("out", self.guarded_out), ("lse", self.guarded_lse)):
            guards = {
                "to the rows before": guarded[:GUARD_ROWS],
                "to the rows after": guarded[-GUARD_ROWS:],
                "between the rows of": guarded[:, heads:],
            }
            damage += [
                f"wrote {where} `{name}`"
                for where, guard in guards.items()
                if bool((guard != CANARY).any())
            ]
        for now, before in zip(self.storages, self.storages_before, strict=True):
            if not torch.equal(now, before):
                damage.append("wrote to the key or value cache")
        for name, input_before in self.inputs_before.items():
            if not torch.equal(_bits(getattr(self.batch, name)), _bits(input_before)):
                damage.append(f"wrote to `{name}`")
        return damage

    def reset(self) -> None:
        """Fill the outputs with NaN again, for another call on the same placement."""
        for answer in (self.batch.out, self.batch.lse):
            if answer is not None:
                answer.fill_(torch.nan)


def place(
    inputs: Inputs,
    *,
    seed: int | None = None,
    poison: Poison = "nan",
    with_lse: bool = True,
    share_prefix: bool = True,
    spare_blocks: int = 3,
    spare_columns: int = 2,
) -> Placement:
    """Lay a problem out in pages, on the device of its inputs.

    `seed` decides the order of the pages and the layout of the cache; the problem's own if None.
    `poison` is what unowned slots hold. With `share_prefix` the whole blocks of the problem's
    shared prefix are stored once. `spare_blocks` are of nobody, `spare_columns` behind the longest
    row of the block table.
    """
    problem = inputs.problem
    device = inputs.query.device
    seed = problem.seed if seed is None else seed
    rng = torch.Generator().manual_seed(seed)
    reached = min(problem.shared_prefix, problem.max_seq_len)
    shared_blocks = reached // problem.block_size if share_prefix else 0
    logical = _logical_blocks(problem, shared_blocks)
    used = 1 + max((int(blocks.max()) for blocks in logical if len(blocks)), default=-1)
    num_blocks = used + spare_blocks
    physical = torch.randperm(num_blocks, generator=rng)

    width = max(len(blocks) for blocks in logical) + spare_columns
    outside = torch.tensor([-1, num_blocks, num_blocks + 1, -2], dtype=torch.int32)
    wide_table = outside[torch.randint(0, 4, (len(logical), width + 3), generator=rng)]
    table = wide_table[:, :width]
    slots = []
    for row, (blocks, request) in enumerate(zip(logical, problem.requests, strict=True)):
        table[row, : len(blocks)] = physical[blocks].int()
        token = torch.arange(request.seq_len)
        block = physical[blocks[token // problem.block_size]] if request.seq_len else token
        slots.append(block * problem.block_size + token % problem.block_size)
    owned_slots = torch.cat(slots).to(device)

    storages, caches = _poisoned_caches(
        problem, num_blocks + 2 * GUARD_BLOCKS, poison, device, layout=LAYOUTS[seed % 2]
    )
    key_cache, value_cache = (cache[GUARD_BLOCKS : GUARD_BLOCKS + num_blocks] for cache in caches)
    block, offset = owned_slots // problem.block_size, owned_slots % problem.block_size
    for cache, contents in ((key_cache, inputs.keys), (value_cache, inputs.values)):
        _bytes_or_self(cache)[block, offset] = _bytes_or_self(contents)

    rows = problem.num_tokens
    # Wider than a row of the fused query: whatever stride a kernel assumes, it hits a canary.
    width_out = problem.num_q_heads + 2 * problem.num_kv_heads + 1
    guarded_out = torch.full(
        (rows + 2 * GUARD_ROWS, width_out, problem.head_dim),
        CANARY,
        dtype=problem.torch_dtype,
        device=device,
    )
    guarded_lse = torch.full(guarded_out.shape[:2], CANARY, dtype=torch.float32, device=device)
    bits = tuple(_bits(storage) for storage in storages)
    batch = PagedBatch(
        query=_part_of_a_projection(inputs.query, problem),
        key_cache=key_cache,
        value_cache=value_cache,
        block_table=wide_table.to(device)[:, :width],
        seq_lens=_int32([request.seq_len for request in problem.requests], device),
        query_start_loc=_int32(problem.query_starts, device),
        out=_within(guarded_out, problem),
        lse=_within(guarded_lse, problem) if with_lse else None,
        alibi_slopes=_copy(inputs.alibi_slopes),
        sinks=_copy(inputs.sinks),
        **options_of(problem),
    )
    inputs_before = {name: getattr(batch, name) for name in WATCHED}
    placement = Placement(
        batch=batch,
        owned_slots=owned_slots,
        num_blocks=num_blocks,
        guarded_out=guarded_out,
        guarded_lse=guarded_lse,
        storages=bits,
        storages_before=tuple(storage.clone() for storage in bits),
        inputs_before={
            name: tensor.clone() for name, tensor in inputs_before.items() if tensor is not None
        },
    )
    placement.reset()
    return placement


LAYOUTS: Final[tuple[Layout, ...]] = ("together", "apart")


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


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _within(guarded: Tensor, problem: AttentionProblem) -> Tensor:
    """What a kernel fills: the middle rows, the first heads."""
    return guarded[GUARD_ROWS:-GUARD_ROWS, : problem.num_q_heads]


def _part_of_a_projection(query: Tensor, problem: AttentionProblem) -> Tensor:
    """The query as the first heads of [num_tokens, q heads + k heads + v heads, head_dim]."""
    heads = problem.num_q_heads + 2 * problem.num_kv_heads
    fused = query.new_full((problem.num_tokens, heads, problem.head_dim), torch.nan)
    fused[:, : problem.num_q_heads] = query
    return fused[:, : problem.num_q_heads]


def _poisoned_caches(
    problem: AttentionProblem,
    num_blocks: int,
    poison: Poison,
    device: torch.device,
    *,
    layout: Layout,
) -> tuple[list[Tensor], list[Tensor]]:
    """Storages full of poison, and key and value cache as parts of them.

    `together` is [num_blocks, 2, block_size, heads, head_dim], as vLLM keeps them: a kernel that
    takes the cache for contiguous reads values as keys. `apart` gives the values a head more than
    they need: a kernel that takes the strides of the keys for them misses.
    """
    slot = (problem.num_kv_heads, problem.head_dim)
    shapes: list[tuple[int, ...]]
    if layout == "together":
        shapes = [(num_blocks, 2, problem.block_size, *slot)]
    else:
        shapes = [(num_blocks, problem.block_size, slot[0] + extra, slot[1]) for extra in (0, 1)]
    dtype = problem.torch_kv_dtype
    filler = torch.nan if poison == "nan" else min(LARGE, torch.finfo(dtype).max)
    element = torch.tensor([filler]).to(dtype).to(device)
    storages = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
    for storage in storages:
        _bytes_or_self(storage)[...] = _bytes_or_self(element)
    if layout == "together":
        return storages, list(storages[0].unbind(1))
    return storages, [storage[:, :, : slot[0]] for storage in storages]


def _bytes_or_self(tensor: Tensor) -> Tensor:
    # Indexing and filling have no float8 kernels in torch; on bytes they do the same.
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def _bits(tensor: Tensor) -> Tensor:
    # Poison is NaN, and NaN differs from itself: an untouched cache is recognised by its bits.
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


def _int32(numbers: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)
