"""Lays a problem out in pages, as badly as the contract allows.

Pages are shuffled; blocks, slots and table columns that belong to nobody hold what a correct
kernel never reads; everything a kernel may not write lies between canaries. The query is a part of
a fused projection and the block table of a wider buffer, as in an engine, so no two tensors have
the same strides. `reference.attention.caches` has the layouts of keys and values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor

from reference.attention.caches import (
    GUARD_BLOCKS,
    LARGE,
    Kept,
    Poison,
    bits_of,
    bytes_or_self,
    far_caches,
    near_caches,
)
from reference.attention.codecs import swizzle
from reference.attention.contract import MergeBatch, PagedBatch, options_of
from reference.attention.far import far_ids, far_rows
from reference.attention.inputs import Inputs
from reference.attention.problem import AttentionProblem
from reference.attention.records import CODECS
from reference.attention.truth import Parts

__all__ = [
    "CANARY",
    "GUARD_BLOCKS",
    "GUARD_ROWS",
    "LARGE",
    "Placement",
    "Poison",
    "place",
    "place_parts",
    "unwritten",
]

GUARD_ROWS: Final = 2
"""Rows before and after `out` and `lse`; their rows have guards at the end too."""

CANARY: Final = -24576.0
"""What guards of `out` and `lse` hold; exact in every dtype."""

WATCHED: Final = (
    "query", "block_table", "seq_lens", "query_start_loc", "alibi_slopes", "sinks", "query_mask",
    "indices", "causal_of", "k_scales", "v_scales",
)  # fmt: skip
"""Inputs of a call that a kernel may not change, besides the caches."""

_UNWRITTEN: Final = {2: 0x7FE5, 4: 0x7FE5A5A5}
"""Bits of the NaN that outputs are full of, by bytes of an element: no computation gives these, so
that a row which nobody wrote can be told from one that came out as NaN."""

MOST_FAR_ROWS: Final = 256
"""Query tokens whose rows can lie far apart: each is a page of memory at least."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A problem in pages, ready for one call, and what must still be there after it."""

    batch: PagedBatch
    """The call; of a merge a `MergeBatch`, which has `out` and `lse` too."""
    owned_slots: Tensor
    """[cache_tokens] int64, the slot of each token, sequence after sequence. Tokens of a shared
    prefix have the same slot in every sequence."""
    num_blocks: int
    """Size of the pool, blocks."""
    guarded_out: Tensor
    guarded_lse: Tensor
    kept: tuple[Kept, ...]
    """What the caches held: all of them, or of a far pool the blocks that are known."""
    inputs_before: dict[str, Tensor]

    @property
    def storages(self) -> tuple[Tensor, ...]:
        """The bits of the caches' whole memory; of a far pool there is too much."""
        return tuple(kept.bits for kept in self.kept)

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
        if any(kept.changed() for kept in self.kept):
            damage.append("wrote to the key or value cache")
        for name, input_before in self.inputs_before.items():
            if not torch.equal(bits_of(getattr(self.batch, name)), bits_of(input_before)):
                damage.append(f"wrote to `{name}`")
        return damage

    def reset(self) -> None:
        """Fill the outputs with NaN again, for another call on the same placement."""
        for answer in (self.batch.out, self.batch.lse):
            if answer is not None:
                bits_of(answer).fill_(_UNWRITTEN[answer.element_size()])


def unwritten(answer: Tensor) -> Tensor:
    """Rows (token, head) of an answer of which nothing was written, [num_tokens, num_q_heads]."""
    missing = bits_of(answer) == _UNWRITTEN[answer.element_size()]
    return missing.all(-1) if answer.dim() == 3 else missing


def place(
    inputs: Inputs,
    *,
    seed: int | None = None,
    poison: Poison = "nan",
    with_lse: bool = True,
    share_prefix: bool = True,
    spare_blocks: int = 3,
    spare_columns: int = 2,
    far: bool = False,
) -> Placement:
    """Lay a problem out in pages, on the device of its inputs.

    `seed` decides the order of the pages and the layout of the cache; the problem's own if None.
    `poison` is what unowned slots hold. With `share_prefix` the whole blocks of the problem's
    shared prefix are stored once. `spare_blocks` are of nobody, `spare_columns` behind the longest
    row of the block table, where the problem does not say how many. Only with `far` does a problem
    with a pool get one: it is not for whoever keeps books of every element.

    Raises far.NoRoom: no such pool can be had here.
    """
    problem = inputs.problem
    device = inputs.query.device
    seed = problem.seed if seed is None else seed
    far = far and problem.pool is not None
    rng = torch.Generator().manual_seed(seed)
    reached = min(problem.shared_prefix, problem.max_seq_len)
    shared_blocks = reached // problem.block_size if share_prefix else 0
    logical = _logical_blocks(problem, shared_blocks)
    used = 1 + max((int(blocks.max()) for blocks in logical if len(blocks)), default=-1)
    if far:
        assert problem.pool is not None
        num_blocks = problem.pool
        physical = far_ids(problem, used, rng)
    else:
        num_blocks = used + spare_blocks
        physical = torch.randperm(num_blocks, generator=rng)

    table = _table(problem, logical, physical, num_blocks, spare_columns, rng)
    slots = []
    for blocks, request in zip(logical, problem.requests, strict=True):
        token = torch.arange(request.seq_len)
        block = physical[blocks[token // problem.block_size]] if request.seq_len else token
        slots.append(block * problem.block_size + token % problem.block_size)
    owned_slots = torch.cat(slots).to(device)

    layout = problem.layout or ("together", "apart")[seed % 2]
    if far:
        caches = far_caches(problem, layout, num_blocks, physical, poison, device)
    else:
        caches = near_caches(problem, layout, num_blocks, poison, device)
    block, offset = owned_slots // problem.block_size, owned_slots % problem.block_size
    for cache, contents in ((caches.keys, inputs.keys), (caches.values, inputs.values)):
        bytes_or_self(cache)[block, offset] = bytes_or_self(contents)
    if problem.codec and CODECS[problem.codec].swizzled:
        pages, codes = block.unique(), CODECS[problem.codec].code_bytes(problem.value_size)
        caches.values[pages, :, :, codes:] = swizzle(caches.values[pages][..., codes:])

    apart = far and 3 <= problem.num_tokens <= MOST_FAR_ROWS
    guarded_out = _guarded(problem, device, "out", far=apart)
    guarded_lse = _guarded(problem, device, "lse")
    batch = PagedBatch(
        query=_part_of_a_projection(inputs.query, problem, far=apart),
        key_cache=caches.keys,
        value_cache=caches.values,
        block_table=_on(table, device),
        seq_lens=_int32([request.seq_len for request in problem.requests], device),
        query_start_loc=_int32(problem.query_starts, device),
        out=_within(guarded_out, problem),
        lse=_within(guarded_lse, problem) if with_lse else None,
        alibi_slopes=_copy(inputs.alibi_slopes),
        sinks=_copy(inputs.sinks),
        query_mask=_copy(inputs.query_mask),
        indices=_copy(inputs.indices),
        causal_of=_copy(inputs.causal_of),
        k_scales=_copy(inputs.k_scales),
        v_scales=_copy(inputs.v_scales),
        **options_of(problem),
    )
    inputs_before = {name: getattr(batch, name) for name in WATCHED}
    placement = Placement(
        batch=batch,
        owned_slots=owned_slots,
        num_blocks=num_blocks,
        guarded_out=guarded_out,
        guarded_lse=guarded_lse,
        kept=tuple(Kept.of(bits, ids) for bits, ids in caches.memory),
        inputs_before={
            name: tensor.clone() for name, tensor in inputs_before.items() if tensor is not None
        },
    )
    placement.reset()
    return placement


def place_parts(
    problem: AttentionProblem,
    parts: Parts,
    *,
    device: str,
    base: str = "e",
    with_lse: bool = True,
) -> Placement:
    """Lay out what is to be merged: NaN beside every row, and guards around the answer."""
    where = torch.device(device)
    lse = parts.lse if base == "e" else (parts.lse.double() / math.log(2)).float()
    guarded_out, guarded_lse = (_guarded(problem, where, name) for name in ("out", "lse"))
    batch = MergeBatch(
        part_out=_beside_nan(parts.out.to(where), by_head="out" in problem.strides),
        part_lse=_beside_nan(lse.to(where), by_head="lse" in problem.strides),
        out=_within(guarded_out, problem),
        lse=_within(guarded_lse, problem) if with_lse else None,
    )
    placement = Placement(
        batch=cast("PagedBatch", batch),
        owned_slots=torch.empty(0, dtype=torch.int64),
        num_blocks=0,
        guarded_out=guarded_out,
        guarded_lse=guarded_lse,
        kept=(),
        inputs_before={n: getattr(batch, n).clone() for n in ("part_out", "part_lse")},
    )
    placement.reset()
    return placement


def _beside_nan(given: Tensor, *, by_head: bool) -> Tensor:
    """[parts, num_tokens, num_heads, ...] with a row of NaN after each of them."""
    given = given.transpose(1, 2) if by_head else given
    parts, rows, columns, *inner = given.shape
    wide = given.new_full((parts, rows, columns + 1, *inner), torch.nan)
    wide[:, :, :columns] = given
    view = wide[:, :, :columns]
    return view.transpose(1, 2) if by_head else view


def _table(
    problem: AttentionProblem,
    logical: list[Tensor],
    physical: Tensor,
    num_blocks: int,
    spare_columns: int,
    rng: torch.Generator,
) -> Tensor:
    """The block table; what is of no sequence holds an index outside the pool."""
    tight = problem.spare is not None
    spare = spare_columns if problem.spare is None else problem.spare
    width = max(max(len(blocks) for blocks in logical) + spare, 1 if tight else 0)
    outside = torch.tensor([-1, num_blocks, num_blocks + 1, -2], dtype=torch.int32)
    held = outside[torch.randint(0, 4, (len(logical), width + 3), generator=rng)]
    for row, blocks in enumerate(logical):
        held[row, : len(blocks)] = physical[blocks].int()
    # Tight: memory of its own, which ends with the last column of the last row.
    held = held[:, :width].clone() if tight else held
    if "table" in problem.strides:
        held = held.t().contiguous().t()
    return held[:, :width]


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


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    """A view on another device, with its strides."""
    if tensor.device == device:
        return tensor
    whole = tensor.as_strided((tensor.untyped_storage().nbytes() // 4,), (1,), 0).to(device)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _guarded(
    problem: AttentionProblem, device: torch.device, name: str, *, far: bool = False
) -> Tensor:
    """Rows of an answer, full of canaries, with rows before and after and heads beside them."""
    rows = problem.num_tokens + 2 * GUARD_ROWS
    # Wider than a row of the fused query: whatever stride a kernel assumes, it hits a canary.
    width = problem.num_q_heads + 2 * problem.num_kv_heads + 1
    shape = (rows, width, *((problem.value_size,) if name == "out" else ()))
    dtype = problem.torch_dtype if name == "out" else torch.float32
    order = (1, 0, *range(2, len(shape))) if name in problem.strides else tuple(range(len(shape)))
    if far:
        return far_rows(shape, problem.num_tokens, dtype, device).fill_(CANARY)
    dense = torch.full([shape[axis] for axis in order], CANARY, dtype=dtype, device=device)
    return dense.permute(order)  # the first two change places, or nothing does


def _within(guarded: Tensor, problem: AttentionProblem) -> Tensor:
    """What a kernel fills: the middle rows, the first heads."""
    return guarded[GUARD_ROWS:-GUARD_ROWS, : problem.num_q_heads]


def _part_of_a_projection(query: Tensor, problem: AttentionProblem, *, far: bool) -> Tensor:
    """The query as the first heads of [num_tokens, q heads + k heads + v heads, head_dim]."""
    heads = problem.num_q_heads + 2 * problem.num_kv_heads
    shape = (problem.num_tokens, heads, problem.head_dim)
    if far:
        fused = far_rows(shape, problem.num_tokens, query.dtype, query.device).fill_(torch.nan)
    elif "query" in problem.strides:
        fused = query.new_full((heads, problem.num_tokens, problem.head_dim), torch.nan)
        fused = fused.transpose(0, 1)
    else:
        fused = query.new_full(shape, torch.nan)
    fused[:, : problem.num_q_heads] = query
    return fused[:, : problem.num_q_heads]


def _int32(numbers: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)
