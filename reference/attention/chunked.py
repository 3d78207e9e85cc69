"""Attention by chunks of the KV range in plain torch, wherever the keys lie.

One arithmetic for two caches: `reference.attention.contiguous` slices its keys, `paged.attention`
gathers them block by block, and the difference in time between the two is the price of paging.
Computed in float32 with an online softmax, so memory stays bounded by the chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from reference.attention.contract import AttentionCall

CHUNK_TOKENS: Final = 64
"""Keys of one sequence in a chunk. 32 sequences of 8 heads of 128 elements are then 8 MiB of keys
in float32, which stay in a CPU's cache between gathering and use; 256 took twice the time."""

Fetch = Callable[[Tensor, int, int], Iterable[Tensor]]
"""(sequences [n] int64, start, stop) -> keys, then values, each of the cache's dtype and of shape
[n, stop - start, num_kv_heads, head_dim or value_dim]. Rows past a sequence's end may hold
anything. Values are asked for once the keys have been copied: what is gathered is used while a
CPU's cache has it. Of a latent cache there are keys alone."""


@dataclass(slots=True)
class _Rows:
    """The running softmax of some sequences that have the same number of query tokens."""

    query: Tensor  # [n, heads, query_len * group, head_dim] float32
    sequence: Tensor  # [n] of the sequences in the batch
    token: Tensor  # [n, query_len] of the query tokens in the batch
    position: Tensor  # [n, query_len] of the query tokens in their sequence
    acc: Tensor
    denominator: Tensor
    maximum: Tensor


def attend_in_chunks(
    call: AttentionCall, fetch: Fetch, *, num_kv_heads: int, chunk: int = CHUNK_TOKENS
) -> None:
    """Fill `call.out` and `call.lse`, `chunk` keys of a sequence at a time.

    Decode rows are computed together, longest sequence first, so that a chunk that few sequences
    reach costs little. Sequences with more query tokens are computed one by one.
    """
    lengths = call.seq_lens.tolist()
    starts = call.query_start_loc.tolist()
    counts = [after - before for before, after in pairwise(starts)]
    decode = sorted((s for s, n in enumerate(counts) if n == 1), key=lambda s: -lengths[s])
    groups = [decode] if decode else []
    groups += [[sequence] for sequence, count in enumerate(counts) if count > 1]
    for group in groups:
        _attend_group(call, fetch, group, num_kv_heads, chunk)


def _attend_group(
    call: AttentionCall, fetch: Fetch, group: list[int], heads: int, chunk: int
) -> None:
    device = call.query.device
    sequences = torch.tensor(group, device=device)
    seq_len = call.seq_lens[sequences].long()
    first = call.query_start_loc[sequences].long()
    count = int(call.query_start_loc[group[0] + 1] - call.query_start_loc[group[0]])
    token = first.unsqueeze(1) + torch.arange(count, device=device)
    position = (seq_len - count).unsqueeze(1) + torch.arange(count, device=device)
    rows = _start(call, sequences, token, position, heads)

    first_key = torch.zeros_like(seq_len)
    if call.window:
        first_key = (position[:, 0] - call.window + 1).clamp(min=0)
    elif call.chunk:
        first_key = position[:, 0].clamp(min=0) // call.chunk * call.chunk
    # Room for a chunk in float32, used again by every one: memory that a CPU's allocator gives back
    # to the system is zeroed page by page when it is asked for again.
    shape = (len(group), heads, chunk)
    sizes = (call.query.shape[2], call.out.shape[2])
    room = tuple(torch.empty((*shape, size), device=device).flatten() for size in sizes)
    begin = int(first_key.min()) // chunk * chunk
    for start in range(begin, int(seq_len.max()), chunk):
        stop = min(start + chunk, int(seq_len.max()))
        # Longest first: those that reach this chunk lead, those whose window is past it as well.
        until = int((seq_len > start).sum())
        since = int((first_key >= stop).sum())
        if since >= until:
            continue  # a gap between the windows of a long and a short sequence
        active = slice(since, until)
        fetched = fetch(sequences[active], start, stop)
        copies = [_heads_first(*each) for each in zip(fetched, room, strict=False)]
        keys, values = copies[0], copies[-1][..., : sizes[1]]
        _fold(call, rows, active, start, keys, values, seq_len[active], first_key[active])
    _store(call, rows, token, heads)


def _start(
    call: AttentionCall, sequence: Tensor, token: Tensor, position: Tensor, heads: int
) -> _Rows:
    query = call.query[token].float()
    n, count, q_heads, head_dim = query.shape
    grouped = query.view(n, count, heads, q_heads // heads, head_dim).transpose(1, 2)
    flat = grouped.reshape(n, heads, count * (q_heads // heads), head_dim)
    return _Rows(
        query=flat,
        sequence=sequence,
        token=token,
        position=position,
        acc=flat.new_zeros((*flat.shape[:3], call.out.shape[2])),
        denominator=torch.zeros_like(flat[..., 0]),
        maximum=torch.full_like(flat[..., 0], -torch.inf),
    )


def _fold(
    call: AttentionCall,
    rows: _Rows,
    active: slice,
    start: int,
    keys: Tensor,
    values: Tensor,
    seq_len: Tensor,
    first_key: Tensor,
) -> None:
    n, heads, length, _ = keys.shape
    key_at = torch.arange(start, start + length, device=keys.device)
    owned = (key_at < seq_len.unsqueeze(1)) & (key_at >= first_key.unsqueeze(1))
    if not bool(owned.all()):
        # What nobody owns may be NaN, and a weight of zero does not silence NaN. By index: most
        # of a chunk is owned, and a mask would go through all of it again.
        sequence, key = (~owned).nonzero(as_tuple=True)
        keys[sequence, :, key] = 0.0
        values[sequence, :, key] = 0.0
    position = rows.position[active]
    count = position.shape[1]
    logits = torch.matmul(rows.query[active], keys.transpose(2, 3))
    logits *= call.scale * call.k_scale
    if call.softcap is not None:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    per_token = logits.view(n, heads, count, -1, length)
    if call.alibi_slopes is not None:
        distance = (position.unsqueeze(2) - key_at).abs().float()
        slopes = call.alibi_slopes.view(1, heads, 1, -1, 1)
        per_token -= slopes * distance.view(n, 1, count, 1, length)
    seen = owned.unsqueeze(1)
    if call.query_mask is not None:
        # What is before this step all of it sees.
        step = key_at - position[:, :1]
        of_step = call.query_mask[rows.token[active]]
        within = step.clamp(0, of_step.shape[2] - 1).unsqueeze(1).expand(-1, count, -1)
        seen = seen & ((step < 0).unsqueeze(1) | of_step.gather(2, within))
    elif call.causal_of is not None:
        later = ~call.causal_of[rows.sequence[active]].view(-1, 1, 1)
        seen = seen & ((key_at <= position.unsqueeze(2)) | later)
    elif call.causal:
        seen = seen & (key_at <= position.unsqueeze(2))
    if call.window is not None:
        seen = seen & (key_at > position.unsqueeze(2) - call.window)
    if call.chunk is not None:
        seen = seen & (key_at // call.chunk == position.unsqueeze(2) // call.chunk)
    if not bool(seen.all()):
        per_token.masked_fill_(~seen.view(n, 1, -1, 1, length), -torch.inf)

    before = rows.maximum[active]
    maximum = torch.maximum(before, logits.amax(-1))
    reference = torch.where(maximum.isinf(), 0.0, maximum)
    weights = torch.exp(logits - reference.unsqueeze(-1))
    rescale = torch.exp(before - reference)
    rows.denominator[active] = rows.denominator[active] * rescale + weights.sum(-1)
    rows.acc[active] = rows.acc[active] * rescale.unsqueeze(-1) + torch.matmul(weights, values)
    rows.maximum[active] = maximum


def _heads_first(chunk: Tensor, room: Tensor) -> Tensor:
    """[n, length, heads, dim] in any dtype -> [n, heads, length, dim], a float32 copy in `room`."""
    turned = chunk.permute(0, 2, 1, 3)
    return room[: chunk.numel()].view(turned.shape).copy_(turned)


def _store(call: AttentionCall, rows: _Rows, token: Tensor, heads: int) -> None:
    n, count = token.shape
    if call.sinks is not None:
        sink = call.sinks.view(1, heads, 1, -1).expand(n, heads, count, -1).reshape(n, heads, -1)
        maximum = torch.maximum(rows.maximum, sink)
        rescale = torch.exp(rows.maximum - maximum)
        rows.denominator = rows.denominator * rescale + torch.exp(sink - maximum)
        rows.acc *= rescale.unsqueeze(-1)
        rows.maximum = maximum
    empty = rows.denominator == 0
    denominator = torch.where(empty, 1.0, rows.denominator)
    out = rows.acc * (call.v_scale / denominator).unsqueeze(-1)
    lse = torch.where(empty, -torch.inf, rows.maximum + denominator.log())
    call.out[token] = _tokens_first(out, count).to(call.out.dtype)
    if call.lse is not None:
        call.lse[token] = _tokens_first(lse, count)


def _tokens_first(rows: Tensor, count: int) -> Tensor:
    """[n, heads, count * group, ...] -> [n, count, heads * group, ...]."""
    per_token: Tensor = rows.unflatten(2, (count, -1))
    return per_token.transpose(1, 2).flatten(2, 3)
