"""Cache writes and block copies: what a kernel is given, and what memory must hold afterwards.

Sequences are laid out as for attention, and what the kernel is to store is put in its place. All of
that memory is what must be there after the call; for the call what is to be stored is taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Final

import torch
from torch import Tensor

from reference.attention.caches import PAD, Kept, Poison, bits_of, bytes_or_self, filler
from reference.attention.codecs import decode, error_bound
from reference.attention.comparing import Findings
from reference.attention.contract import CopyBatch, WriteBatch
from reference.attention.inputs import Inputs, make_inputs, quantise, store
from reference.attention.placement import Placement, place
from reference.attention.problem import AttentionProblem, Request

GAINS: Final = (-9, 9)
"""Of `loud` tokens in a codec the powers of two by which rows differ; one token is zero."""

LOUD: Final = 0.25
"""Of `loud` tokens the share of elements that lie at or beyond the end of what a cache holds."""

COARSER: Final = 2.5
"""Of a codec, how much more its scales may cost in the worst element than ours do: whoever chooses
them has elements within half a step of what they decode to."""

TIE: Final = 2.0**-21
"""Relative to an element: how much nearer another code may be. A division that a GPU approximates,
or a product with the reciprocal, lands on either side of the middle of two codes."""


@dataclass(frozen=True, slots=True)
class Target:
    """A cache, and what must be stored there."""

    name: str
    """The field of the call."""
    cache: Tensor
    """[num_blocks, block_size, num_kv_heads, head_dim]."""
    slots: Tensor
    """[rows] int64, what is written."""
    before: Tensor
    after: Tensor
    """[rows, num_kv_heads, head_dim] of the cache's dtype, what is there before and what must be
    afterwards."""
    row: Callable[[int], str]
    """What a row is, in words."""
    source: Tensor | None = None
    """Of a quantised cache [rows, num_kv_heads, head_dim]: what was given."""
    scale: float | Tensor = 1.0
    codec: str = ""
    rope: int = 0
    """How it is quantised, as in `records`."""

    def now(self) -> Tensor:
        """What is there."""
        block, offset = self._places()
        return bytes_or_self(self.cache)[block, offset].view(self.cache.dtype)

    def put(self, rows: Tensor) -> None:
        """Store something there."""
        block, offset = self._places()
        bytes_or_self(self.cache)[block, offset] = bytes_or_self(rows)

    def wrong(self) -> Tensor:
        """Elements that are not what they must be, [rows, num_kv_heads, head_dim] bool."""
        now = self.now()
        if self.source is None:
            return bits_of(now) != bits_of(self.after)
        source = self.source.double()
        got, best = self.numbers(now), self.numbers(self.after)
        off, allowed = (got - source).abs(), (best - source).abs() + TIE * source.abs()
        if not self.codec:
            return ~(off <= allowed)
        own, usual = (self._bound(records) for records in (now, self.after))
        sensible = own.amax(-1, keepdim=True) <= COARSER * usual.amax(-1, keepdim=True)
        return ~((off <= allowed) | (off <= own) & sensible)

    def numbers(self, rows: Tensor) -> Tensor:
        """What rows of the cache stand for, float64."""
        if not self.codec:
            return rows.double() * self.scale
        assert self.source is not None
        dim = self.source.shape[-1]
        return decode(self.codec, rows, dim, scale=self.scale, rope=self.rope)

    def _bound(self, records: Tensor) -> Tensor:
        assert self.source is not None
        dim = self.source.shape[-1]
        return error_bound(self.codec, records, dim, scale=self.scale, rope=self.rope)

    def _places(self) -> tuple[Tensor, Tensor]:
        size = self.cache.shape[1]
        return self.slots // size, self.slots % size


@dataclass(frozen=True, slots=True)
class Stored:
    """A write or a copy, ready for one call, and what must be there after it."""

    batch: WriteBatch | CopyBatch
    """The call."""
    targets: tuple[Target, ...]
    kept: tuple[Kept, ...]
    """All memory of the caches as it must be afterwards."""
    owned_slots: Tensor
    """As in `Placement`."""
    inputs_before: dict[str, Tensor]

    def reset(self) -> None:
        """Take out again what is to be stored."""
        for target in self.targets:
            target.put(target.before)

    def findings(self) -> Findings:
        """What is not as it must be. What is to be stored is put in its place."""
        findings = [each for target in self.targets for each in _of_rows(target, self.targets)]
        for target in self.targets:
            target.put(target.after)
        findings += list(self._strays())
        for name, before in self.inputs_before.items():
            if not torch.equal(getattr(self.batch, name), before):
                findings.append(f"wrote to `{name}`")
        return findings

    def _strays(self) -> Iterator[str]:
        """What was written that is not to be: the first slot of each cache, or beside all slots."""
        for kept in self.kept:
            if not kept.changed():
                continue
            found = [stray for target in self.targets if (stray := _stray(target, kept))]
            yield found[0] if found else "wrote beside the slots of the caches"


Lay = Callable[[Inputs], Placement]


def place_stores(
    inputs: Inputs, *, poison: Poison = "nan", far: bool = False, order_seed: int | None = None
) -> Stored:
    """Lay out a write or a copy on the device of its inputs, its tokens or pairs in another order
    where a seed of that is given. Raises far.NoRoom.
    """

    def lay(sequences: Inputs) -> Placement:
        return place(sequences, poison=poison, with_lse=False, far=far)

    make = _write if inputs.problem.kind == "write" else _copy
    batch, targets, placements = make(inputs, lay, order_seed)
    for target in targets:
        target.put(target.after)
    given = {field.name: getattr(batch, field.name) for field in fields(batch)}
    stored = Stored(
        batch=batch,
        targets=tuple(targets),
        kept=tuple(Kept.of(each.bits, each.ids) for placed in placements for each in placed.kept),
        owned_slots=placements[0].owned_slots,
        inputs_before={
            name: tensor.clone()
            for name, tensor in given.items()
            if isinstance(tensor, Tensor) and "cache" not in name
        },
    )
    stored.reset()
    return stored


def stored_rows(problem: AttentionProblem) -> Tensor:
    """[num_tokens] int64, which of the cached tokens each of this step's is; -1 for padding."""
    rows: list[int] = []
    for start, r in zip(problem.cache_starts, problem.requests, strict=False):
        first = start + r.seq_len - r.query_len
        rows += range(first, first + r.query_len) if r.seq_len else [-1] * r.query_len
    return torch.tensor(rows, dtype=torch.int64)


def _write(
    inputs: Inputs, lay: Lay, order_seed: int | None
) -> tuple[WriteBatch, list[Target], list[Placement]]:
    problem, device = inputs.problem, inputs.query.device
    order = _order(problem.num_tokens, order_seed)
    at = stored_rows(problem)[order].to(device)
    real = at >= 0
    given = [each[order].to(device) for each in _new_tokens(problem)]
    placed = lay(inputs)
    slots = torch.full_like(at, -1)
    slots[real] = placed.owned_slots[at[real]]
    token = real.nonzero().flatten().tolist()
    caches = {"key_cache": placed.batch.key_cache, "value_cache": placed.batch.value_cache}
    new = [torch.cat(given, -1)] if problem.rope is not None else given
    scales: tuple[float | Tensor | None, ...] = (problem.k_scale, problem.v_scale)
    if inputs.k_scales is not None:
        scales = (inputs.k_scales, inputs.v_scales)
    targets = []
    for (name, cache), each, scale in zip(caches.items(), new, scales, strict=False):
        assert scale is not None
        code = store(each[real], problem, scale)
        targets.append(
            Target(
                name=name,
                cache=cache,
                slots=slots[real],
                before=filler(problem, "nan", device).expand(code.shape).clone(),
                after=code,
                row=lambda row: f"token {token[row]}",
                source=each[real] if problem.quantised or problem.codec else None,
                scale=scale,
                codec=problem.codec,
                rope=problem.rope or 0,
            )
        )
    keys, values = _of_a_projection(given, problem)
    batch = WriteBatch(
        keys=keys,
        values=values,
        slot_mapping=slots,
        k_scale=problem.k_scale,
        v_scale=problem.v_scale,
        rope=problem.rope,
        codec=problem.codec,
        k_scales=inputs.k_scales,
        v_scales=inputs.v_scales,
        **caches,
    )
    return batch, targets, [placed]


def _copy(
    inputs: Inputs, lay: Lay, order_seed: int | None
) -> tuple[CopyBatch, list[Target], list[Placement]]:
    problem, device = inputs.problem, inputs.query.device
    size = problem.block_size
    pairs, lengths = _pairs(problem)
    pairs = pairs[_order(len(pairs), order_seed)].to(device)
    requests = tuple(Request(1, length * size) for length in lengths)
    grown = problem.replace(requests=requests, copy=None, chained=False)
    targets: list[Target] = []
    placements: list[Placement] = []
    caches: dict[str, list[Tensor]] = {"key_caches": [], "value_caches": []}
    physical = pairs
    for layer in range(problem.copy or 0):
        full = make_inputs(grown.replace(seed=problem.seed + layer), device=str(device))
        placed = lay(replace(full, problem=grown))
        physical = placed.owned_slots[::size][pairs] // size
        slots = physical[:, 1:] * size + torch.arange(size, device=device)
        for name in ("key", "value") if problem.rope is None else ("key",):
            cache = getattr(placed.batch, f"{name}_cache")
            after, before = (
                bytes_or_self(cache)[side].flatten(0, 1).view(cache.dtype)
                for side in physical.unbind(1)
            )
            targets.append(
                Target(
                    name=f"{name}_caches, layer {layer}",
                    cache=cache,
                    slots=slots.flatten(),
                    before=before,
                    after=after,
                    row=lambda row: f"pair {row // size}, offset {row % size}",
                )
            )
            caches[f"{name}_caches"].append(cache)
        placements.append(placed)
    table = physical.t().contiguous().t() if "table" in problem.strides else physical
    batch = CopyBatch(**{name: tuple(each) for name, each in caches.items()}, pairs=table)
    return batch, targets, placements


def _pairs(problem: AttentionProblem) -> tuple[Tensor, list[int]]:
    """What is copied where, [num_pairs, 2], in blocks counted over sequences, the sources' and then
    the copies', and of how many blocks each of those is.
    """
    sources = [-(-request.seq_len // problem.block_size) for request in problem.requests]
    # Every other sequence is copied twice.
    copied = [
        (sum(sources[: index + 1]), count)
        for index, count in enumerate(problem.copied_blocks)
        for _ in range(1 + index % 2)
    ]
    source = torch.cat([torch.arange(end - count, end) for end, count in copied])
    pairs = torch.stack([source, torch.arange(len(source)) + sum(sources)], 1)
    pairs = pairs[_order(len(pairs), problem.seed)]
    if problem.chained and len(pairs) > 1 and pairs[0, 0] != pairs[-1, 0]:
        pairs[0, 1] = pairs[-1, 0]
    return pairs, [*sources, *(count for _, count in copied)]


def _order(count: int, seed: int | None) -> Tensor:
    if seed is None:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _new_tokens(problem: AttentionProblem) -> list[Tensor]:
    """Keys and values of this step, or latents and rotary parts, in the working type."""
    rng = torch.Generator().manual_seed(problem.seed)
    sizes = problem.head_dim, problem.value_size
    if problem.rope is not None:
        sizes = problem.value_size, problem.rope
    new = []
    for size, scale in zip(sizes, (problem.k_scale, problem.v_scale), strict=True):
        drawn = torch.randn(problem.num_tokens, problem.num_kv_heads, size, generator=rng)
        if problem.inputs == "loud" and problem.codec:
            drawn *= torch.exp2(torch.randint(*GAINS, (*drawn.shape[:2], 1), generator=rng))
            drawn[:1] = 0.0
        elif problem.inputs == "loud":
            end = torch.finfo(problem.torch_kv_dtype).max * scale
            largest = torch.finfo(problem.torch_dtype).max
            beyond = drawn.sign() * (end * (1 + drawn.abs())).clamp(max=largest)
            drawn = torch.where(torch.rand(drawn.shape, generator=rng) < LOUD, beyond, drawn)
        new.append(drawn.to(problem.torch_dtype))
    return new


def _of_a_projection(given: list[Tensor], problem: AttentionProblem) -> list[Tensor]:
    """Two tensors as parts of one row for each token, or for each head, with NaN around them."""
    turned = "query" in problem.strides
    parts = [each.transpose(0, 1) if turned else each for each in given]
    row = [each.flatten(1) for each in parts]
    beside = row[0].new_full((len(row[0]), PAD), torch.nan)
    whole = torch.cat([beside, row[0], row[1], beside], 1)
    starts = (PAD, PAD + row[0].shape[1])
    views = [
        whole[:, start : start + each.shape[1]].unflatten(1, part.shape[1:])
        for start, each, part in zip(starts, row, parts, strict=True)
    ]
    return [view.transpose(0, 1) if turned else view for view in views]


def _of_rows(target: Target, all_of_them: tuple[Target, ...]) -> Iterator[str]:
    wrong = target.wrong()
    if not bool(wrong.any()):
        return
    missing = (bits_of(target.now()) == bits_of(target.before)).all(-1) & wrong.any(-1)
    if bool(missing.any()):
        row, head = missing.nonzero()[0].tolist()
        yield (
            f"`{target.name}` is not written: {int(missing.sum()):,} of {missing.numel():,} rows, "
            f"the first of {target.row(row)}, head {head}"
        )
    wrong &= ~missing.unsqueeze(-1)
    if bool(wrong.any()):
        row, head, element = at = tuple(wrong.nonzero()[0].tolist())
        got, wanted = (float(target.numbers(each)[at]) for each in (target.now(), target.after))
        where = f"{target.row(row)}, head {head}, element {element}"
        yield (
            f"`{target.name}` holds {got:.6g} where {wanted:.6g} belongs: {where}, and "
            f"{int(wrong.sum()) - 1:,} more{_why(target, all_of_them)}"
        )


def _why(target: Target, all_of_them: tuple[Target, ...]) -> str:
    """What all that a cache holds would be right for, where that is known."""
    now = bits_of(target.now())
    for other in all_of_them:
        if other is not target and torch.equal(now, bits_of(other.after)):
            return f": all of it is what belongs into `{other.name}`"
    own = target.scale
    if target.source is None or target.codec or not isinstance(own, float):
        return ""
    for scale in (1.0, 1 / own, *(float(other.scale) for other in all_of_them)):
        code = quantise(target.source, target.after.dtype, scale)
        if scale != own and torch.equal(now, bits_of(code)):
            return f": all of it is right for the scale {scale:.4g} in place of {own:.4g}"
    return ""


def _stray(target: Target, kept: Kept) -> str:
    """A slot of a cache that was written to and is not to be, in words; or nothing."""
    cache = target.cache
    if kept.bits.untyped_storage().data_ptr() != cache.untyped_storage().data_ptr():
        return ""
    if kept.ids is None:
        changed = (kept.bits != kept.before).flatten()
        changed = changed.as_strided(cache.shape, cache.stride(), cache.storage_offset())
    else:
        changed = kept.bits[kept.ids] != kept.before
    if not bool(changed.any()):
        return ""
    block, offset, head, _ = changed.nonzero()[0].tolist()
    block = block if kept.ids is None else int(kept.ids[block])
    where = f"block {block}, offset {offset}, head {head}"
    return f"wrote to `{target.name}` where nothing belongs: {where}"
