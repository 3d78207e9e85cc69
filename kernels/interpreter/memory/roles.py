"""What each tensor of a call is to the kernels: who may touch which part of it.

An *owner* is what a program works for: a sequence in attention, a token in a cache write, a pair in
a block copy. Rows of some tensors say for whom a program works (whoever reads the query of a
sequence works for it); rows of others belong to owners (the slots of a sequence).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reference.attention.contract import CopyBatch, MergeBatch, PagedBatch, WriteBatch

Call = PagedBatch | MergeBatch | WriteBatch | CopyBatch
"""What a kernel of any kind is given."""

Access = Literal["read", "write", "both"]
Bools = NDArray[np.bool_]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Owned:
    """Rows that belong to owners. Several owners may share a row: a common prefix is legal."""

    group: NDArray[np.int32]
    """[rows] int32. Rows of one group have the same owners; those of group 0 are nobody's."""
    allowed: Bools
    """[num_groups, num_owners] bool. Row 0 is False throughout."""


@dataclass(frozen=True, slots=True, eq=False)
class Role:
    """What a tensor is to the kernels of a call."""

    name: str
    """As findings call it."""
    tensor: Tensor
    """The tensor, or the view of a larger one: what lies between its rows is not part of it."""
    axes: tuple[str, ...]
    """Names of its dimensions, for findings. Those of a cache start with `block` and `offset`."""
    access: Access = "read"
    """What kernels may do with it."""
    written: bool = True
    """Whether it holds anything yet. What does not has to be written before it is read."""
    works_for: Integers | None = None
    """[size of the first dimension] int, the owner for whom a program works that touches the row;
    -1 for nobody. None where touching the tensor says nothing."""
    readers: Owned | None = None
    writers: Owned | None = None
    """Whose rows these are when they are loaded, and when they are stored to. None: anybody's. Rows
    are counted over the first dimension, of a cache over the first two: slots."""
    contents: Callable[[int], str] | None = None
    """What a row holds, in words."""
    owner: str = "sequence"
    """What the owners are called."""


def attention_roles(batch: Call) -> list[Role]:
    """Roles in an attention call, or one of another kind; owners are sequences.

    A slot belongs to every sequence whose block table leads to it within the sequence's length: the
    tail of its last block is nobody's.
    """
    if isinstance(batch, MergeBatch):
        return _merge_roles(batch)
    if isinstance(batch, WriteBatch):
        roles = write_roles(
            batch.key_cache, batch.value_cache, batch.keys, batch.values, batch.slot_mapping
        )
        return [role for role in roles if batch.rope is None or role.name != "value_cache"]
    if isinstance(batch, CopyBatch):
        values = batch.value_caches or batch.key_caches
        caches = zip(batch.key_caches, values, strict=True)
        layers = [copy_roles(*each, batch.pairs) for each in caches]
        return [layers[0][0], *_of_layers(layers, latent=not batch.value_caches)]
    lengths = batch.seq_lens.numpy().astype(np.int64)
    num_seqs = len(lengths)
    table = batch.block_table.numpy()
    sequence = np.repeat(np.arange(num_seqs), lengths)
    token = np.arange(len(sequence)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    size = batch.block_size
    slot = table[sequence, token // size].astype(np.int64) * size + token % size
    owned = _owned(slot, sequence, batch.key_cache.shape[0] * size, num_seqs)
    starts = batch.query_start_loc.numpy()
    of_token = np.repeat(np.arange(num_seqs), np.diff(starts))

    def contents(row: int) -> str:
        return _slot_in_words(row, slot, sequence, token, table, lengths, size)

    in_head, in_slot = ("token", "head", "dim"), ("block", "offset", "head", "dim")
    rows = _owned(np.arange(num_seqs), np.arange(num_seqs), num_seqs, num_seqs)
    answers = _owned(np.arange(len(of_token)), of_token, batch.query.shape[0], num_seqs)
    roles = [
        Role("query", batch.query, in_head, works_for=of_token),
        Role("key_cache", batch.key_cache, in_slot, readers=owned, contents=contents),
        Role("value_cache", batch.value_cache, in_slot, readers=owned, contents=contents),
        Role("block_table", batch.block_table, ("sequence", "column"), readers=rows),
        Role("seq_lens", batch.seq_lens, ("sequence",)),
        Role("query_start_loc", batch.query_start_loc, ("sequence",)),
        _answer("out", batch.out, in_head, answers, of_token),
    ]
    if batch.lse is not None:
        roles.append(_answer("lse", batch.lse, in_head[:2], answers, of_token))
    if batch.query_mask is not None:
        roles.append(Role("query_mask", batch.query_mask, ("token", "of step"), works_for=of_token))
    if batch.indices is not None:
        axes = ("token", "head", "chosen")
        roles.append(Role("indices", batch.indices, axes, works_for=of_token))
    of_heads = ("alibi_slopes", "sinks", "k_scales", "v_scales")
    for name, axis in (*((name, "head") for name in of_heads), ("causal_of", "sequence")):
        tensor = getattr(batch, name)
        if tensor is not None:
            roles.append(Role(name, tensor, (axis,)))
    return roles


def _of_layers(layers: list[list[Role]], *, latent: bool) -> list[Role]:
    """Roles of the caches of each layer; of a latent cache, of its records."""
    return [
        replace(role, name=f"{role.name}, layer {number}")
        for number, roles in enumerate(layers)
        for role in roles[1 : 2 if latent else 3]
    ]


def _merge_roles(batch: MergeBatch) -> list[Role]:
    """Roles in a merge; owners are tokens."""
    tokens = np.arange(len(batch.out))
    rows = _owned(tokens, tokens, len(tokens), len(tokens))
    in_head = ("token", "head", "dim")
    roles = [
        Role("part_out", batch.part_out, ("part", *in_head)),
        Role("part_lse", batch.part_lse, ("part", *in_head[:2])),
        _answer("out", batch.out, in_head, rows, tokens, owner="token"),
    ]
    if batch.lse is not None:
        roles.append(_answer("lse", batch.lse, in_head[:2], rows, tokens, owner="token"))
    return roles


def write_roles(
    key_cache: Tensor, value_cache: Tensor, keys: Tensor, values: Tensor, slot_mapping: Tensor
) -> list[Role]:
    """Roles in a cache write, as in `paged.cache.write_slots`: a slot is of its token."""
    slots = slot_mapping.numpy()
    tokens = np.arange(len(slots))
    real = slots >= 0
    num_slots = key_cache.shape[0] * key_cache.shape[1]
    owned = _owned(slots[real], tokens[real], num_slots, len(slots))

    def contents(row: int) -> str:
        there = np.flatnonzero(slots == row)
        return f"the slot of token {there[0]}" if len(there) else "a slot to which nothing goes"

    new, in_slot = ("token", "head", "dim"), ("block", "offset", "head", "dim")
    cache = {"access": "write", "writers": owned, "contents": contents, "owner": "token"}
    return [
        Role("new keys", keys, new, works_for=tokens),
        Role("new values", values, new, works_for=tokens),
        Role("key_cache", key_cache, in_slot, **cache),  # type: ignore[arg-type]
        Role("value_cache", value_cache, in_slot, **cache),  # type: ignore[arg-type]
        Role("slot_mapping", slot_mapping, ("token",), works_for=tokens),
    ]


def copy_roles(key_cache: Tensor, value_cache: Tensor, pairs: Tensor) -> list[Role]:
    """Roles in a block copy, as in `paged.cache.copy_blocks`: blocks are of their pairs."""
    size, num_slots = key_cache.shape[1], key_cache.shape[0] * key_cache.shape[1]
    numbers = pairs.numpy()
    owners = np.repeat(np.arange(len(numbers)), size)

    def of(blocks: Integers) -> Owned:
        slots = (blocks[:, None] * size + np.arange(size)).ravel()
        return _owned(slots, owners, num_slots, len(numbers))

    def contents(row: int) -> str:
        block = row // size
        to, source = (np.flatnonzero(numbers[:, side] == block) for side in (1, 0))
        words = [f"the destination of pair {to[0]}"] if len(to) else []
        words += [f"the source of pair {source[0]}"] if len(source) else []
        return " and ".join(words) or "a block of no pair"

    readers, writers = of(numbers[:, 0]), of(numbers[:, 1])
    axes = ("block", "offset", "head", "dim")
    cache = {"readers": readers, "writers": writers, "contents": contents, "owner": "pair"}
    return [
        Role("pairs", pairs, ("pair", "side"), works_for=np.arange(len(numbers))),
        Role("key_cache", key_cache, axes, "both", **cache),  # type: ignore[arg-type]
        Role("value_cache", value_cache, axes, "both", **cache),  # type: ignore[arg-type]
    ]


def _answer(
    name: str,
    tensor: Tensor,
    axes: tuple[str, ...],
    writers: Owned,
    works_for: Integers,
    *,
    owner: str = "sequence",
) -> Role:
    return Role(
        name,
        tensor,
        axes,
        "both",
        written=False,
        works_for=works_for,
        writers=writers,
        owner=owner,
    )


def _owned(rows: Integers, owners: Integers, num_rows: int, num_owners: int) -> Owned:
    """Group rows by their owners; (rows, owners) are pairs, a row may stand in several."""
    holders = np.bincount(rows, minlength=num_rows)
    group = np.zeros(num_rows, np.int32)
    single = holders[rows] == 1
    group[rows[single]] = owners[single] + 1
    alone = np.vstack([np.zeros(num_owners, np.bool_), np.eye(num_owners, dtype=np.bool_)])
    if single.all():
        return Owned(group, alone)
    shared, position = np.unique(rows[~single], return_inverse=True)
    member = np.zeros((len(shared), num_owners), np.bool_)
    member[position, owners[~single]] = True
    together, kind = np.unique(member, axis=0, return_inverse=True)
    group[shared] = 1 + num_owners + kind.ravel()
    return Owned(group, np.vstack([alone, together]))


def _slot_in_words(
    row: int,
    slot: Integers,
    sequence: Integers,
    token: Integers,
    table: Integers,
    lengths: Integers,
    size: int,
) -> str:
    holders = np.flatnonzero(slot == row)
    if len(holders):
        first = holders[0]
        rest = f", shared by {len(holders)}" if len(holders) > 1 else ""
        return f"token {token[first]} of sequence {sequence[first]}{rest}"
    for index, length in enumerate(lengths.tolist()):
        if length % size and table[index, length // size] == row // size:
            return f"past the {length} tokens of sequence {index}, in its last block"
    return "a slot that no sequence owns"
