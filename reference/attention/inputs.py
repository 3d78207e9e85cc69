"""The tensors of a problem, contiguous: what an engine without paging would hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Self

import torch
from torch import Tensor

from reference.attention.chosen import Chosen, choose
from reference.attention.codecs import decode, encode, head_scales
from reference.attention.problem import AttentionProblem, InvalidProblem, Request
from reference.attention.records import CODECS
from reference.attention.size import check_reference

NEEDLE_LOGIT: Final = 24.0
"""Logit of the key that a needle query points at; the others' are near zero."""

SUNKEN_LOGIT: Final = -80_000.0
"""Where all logits of `sunken` inputs lie: below -50,000 and -65,504, which kernels and float16
offer as the lowest number (flashinfer issue 4267)."""

SUNKEN_OFFSET: Final = 4.0
"""What the elements of `sunken` keys have in common, in standard deviations."""

LOUD_GAIN: Final = 40.0
"""Standard deviation of the logits of `loud` inputs: some exceed 100 in every row."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A problem's tensors before they are laid out in pages."""

    problem: AttentionProblem
    """What they were made from."""
    query: Tensor
    """[num_tokens, num_q_heads, head_dim], the problem's dtype."""
    keys: Tensor
    values: Tensor
    """[cache_tokens, num_kv_heads, head_dim or value_size], the cache's dtype, sequence after
    sequence. A float8 cache holds the true value divided by `problem.k_scale` or `v_scale`. Of a
    latent cache the values are the first elements of the records, once more. With a codec they are
    records of bytes."""
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    """[num_q_heads] float32, or None."""
    query_mask: Tensor | None = None
    """[num_tokens, max_query_len] bool, as in `PagedBatch`; or None."""
    indices: Tensor | None = None
    """[num_tokens, 1, topk] int32, as in `PagedBatch`; or None."""
    causal_of: Tensor | None = None
    """[num_seqs] bool, as in `PagedBatch`; or None."""
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None
    """[num_kv_heads] float32, as in `PagedBatch`; or None."""

    def numbers(self, tokens: slice) -> tuple[Tensor, Tensor]:
        """What the keys and values of some tokens of the cache stand for, float64."""
        problem = self.problem
        k_scale, v_scale = _scales(problem, self.k_scales, self.v_scales)
        keys = _numbers(problem, self.keys[tokens], problem.head_dim, k_scale)
        if problem.codec and problem.rope is not None:
            return keys, keys[..., : problem.value_size]
        return keys, _numbers(problem, self.values[tokens], problem.value_size, v_scale)

    def select(self, picks: list[tuple[int, Request]]) -> Self:
        """Part of the batch: for each pick, a sequence's index and the request that replaces it.

        The new request keeps the first `seq_len` tokens of the sequence, and asks for the last
        `query_len` of those; their queries must be among the sequence's own.
        """
        query, keys, values = [], [], []
        none = self.query[:0]
        rows: list[int] = []
        q_starts, k_starts = self.problem.query_starts, self.problem.cache_starts
        for index, request in picks:
            old = self.problem.requests[index]
            last = q_starts[index + 1] - (old.seq_len - request.seq_len)
            lacks_query = request.query_len and last - request.query_len < q_starts[index]
            if request.seq_len > old.seq_len or lacks_query:
                raise ValueError(f"{request} asks for tokens that sequence {index}, {old}, lacks")
            rows += range(last - request.query_len, last)
            query.append(self.query[last - request.query_len : last] if request.query_len else none)
            span = slice(k_starts[index], k_starts[index] + request.seq_len)
            keys.append(self.keys[span])
            values.append(self.values[span])
        problem = self.problem.replace(requests=tuple(request for _, request in picks))
        mask, indices, causal = self.query_mask, self.indices, self.causal_of
        return replace(
            self,
            problem=problem,
            query_mask=None if mask is None else mask[rows, : problem.max_query_len],
            indices=None if indices is None else indices[rows],
            causal_of=None if causal is None else causal[[index for index, _ in picks]],
            query=torch.cat(query),
            keys=_cat(keys),
            values=_cat(values),
        )


def make_inputs(problem: AttentionProblem, *, device: str = "cpu") -> Inputs:
    """Draw a problem's tensors from its seed; the same numbers on every device.

    Raises InvalidProblem: a check of it would not fit into memory, or its queries overflow.
    """
    check_reference(problem)
    rng = torch.Generator().manual_seed(problem.seed)
    heads, head_dim = problem.num_kv_heads, problem.head_dim
    sizes = (head_dim, problem.value_size)
    keys, values = (_cache_contents(problem, rng, size) for size in sizes)
    if problem.inputs == "sunken":
        keys += SUNKEN_OFFSET
    k_scales = v_scales = None
    if problem.codec and CODECS[problem.codec].outer == "head":
        k_scales, v_scales = head_scales(keys), head_scales(values)
    k_scale, v_scale = _scales(problem, k_scales, v_scales)
    keys, values = store(keys, problem, k_scale), store(values, problem, v_scale)
    if problem.rope is not None:
        values = keys[..., : problem.stored_sizes[1]].clone()
    chosen = choose(problem)
    query = torch.randn(problem.num_tokens, heads, problem.group_size, head_dim, generator=rng)
    if problem.inputs == "needle":
        numbers = _numbers(problem, keys, head_dim, k_scale, dtype=torch.float32)
        query = _point_at_keys(problem, numbers, rng, chosen)
    elif problem.inputs == "sunken":
        # Every key has a part along (1, 1, ...), and the query points the other way.
        offset = SUNKEN_LOGIT / (problem.softmax_scale * SUNKEN_OFFSET * head_dim)
        query = offset + query / (problem.softmax_scale * head_dim**0.5)
    elif problem.inputs == "loud":
        query = query * (LOUD_GAIN / (problem.softmax_scale * head_dim**0.5))
    else:
        query = query / (problem.softmax_scale * head_dim**0.5)
    num_q_heads = problem.num_q_heads
    query = query.to(problem.torch_dtype)
    if not query.isfinite().all():
        raise InvalidProblem(
            f"scale={problem.softmax_scale:g}: queries that give logits of the usual size overflow "
            f"{problem.dtype}; choose a larger scale, or bf16 or fp32"
        )
    slopes = 2.0 ** (-8.0 * torch.arange(1, num_q_heads + 1) / num_q_heads)
    sinks = torch.randn(num_q_heads, generator=rng)
    return Inputs(
        problem=problem,
        query=query.reshape(-1, num_q_heads, head_dim).to(device),
        keys=keys.to(device),
        values=values.to(device),
        alibi_slopes=slopes.to(device) if problem.alibi else None,
        sinks=sinks.to(device) if problem.sinks else None,
        query_mask=None if chosen.query_mask is None else chosen.query_mask.to(device),
        indices=None if chosen.indices is None else chosen.indices.to(device),
        k_scales=None if k_scales is None else k_scales.to(device),
        v_scales=None if v_scales is None else v_scales.to(device),
        causal_of=None if chosen.causal_of is None else chosen.causal_of.to(device),
    )


def quantise(tensor: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    """What a float8 cache stores: tensor / scale in float32, saturated, rounded to nearest even."""
    largest = torch.finfo(dtype).max
    return (tensor.float() / scale).clamp(-largest, largest).to(dtype)


def _cache_contents(problem: AttentionProblem, rng: torch.Generator, size: int) -> Tensor:
    shape = (problem.cache_tokens, problem.num_kv_heads, size)
    contents = torch.randn(shape, generator=rng)
    longest = min(problem.shared_prefix, problem.max_seq_len)
    prefix = torch.randn((longest, *shape[1:]), generator=rng)
    if problem.codec:
        run = CODECS[problem.codec].run or size
        contents, prefix = (each * _gains(each, run, rng) for each in (contents, prefix))
    for start, request in zip(problem.cache_starts, problem.requests, strict=False):
        length = min(longest, request.seq_len)
        contents[start : start + length] = prefix[:length]
    return contents


def _gains(contents: Tensor, run: int, rng: torch.Generator) -> Tensor:
    """Factors of 1/2, 1 and 2 for all that has one scale, so that scales differ."""
    tokens, heads, size = contents.shape
    powers = torch.randint(-1, 2, (tokens, heads, -(-size // run)), generator=rng)
    return torch.exp2(powers).repeat_interleave(run, -1)[..., :size]


def _scales(
    problem: AttentionProblem, k_scales: Tensor | None, v_scales: Tensor | None
) -> tuple[float | Tensor, float | Tensor]:
    """The scales beside the cache, of all of it or of each head."""
    if k_scales is None or v_scales is None:
        return problem.k_scale, problem.v_scale
    return k_scales, v_scales


def store(tensor: Tensor, problem: AttentionProblem, scale: float | Tensor) -> Tensor:
    """What the cache of a problem holds of keys or values."""
    if problem.codec:
        return encode(problem.codec, tensor, scale=scale, rope=problem.rope or 0)
    if problem.quantised:
        assert isinstance(scale, float)
        return quantise(tensor, problem.torch_kv_dtype, scale)
    return tensor.to(problem.torch_kv_dtype)


def _numbers(
    problem: AttentionProblem,
    stored: Tensor,
    size: int,
    scale: float | Tensor,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """What keys or values of so many elements stand for."""
    if problem.codec:
        rope = problem.rope or 0
        return decode(problem.codec, stored, size, scale=scale, rope=rope, dtype=dtype)
    return stored.to(dtype) * scale


def _point_at_keys(
    problem: AttentionProblem, keys: Tensor, rng: torch.Generator, chosen: Chosen
) -> Tensor:
    """Queries that each pick out one visible key, mostly one where addressing errs.

    Favoured are the first and the last visible key and the two sides of a block boundary: off by
    one in a mask, a tile or a page shows there. The rest fall anywhere.
    """
    shape = (problem.num_kv_heads, problem.group_size)
    rows = []
    for index, request in enumerate(problem.requests):
        start, count = problem.cache_starts[index], request.query_len
        kind = torch.randint(0, 5, (count, *shape), generator=rng)
        share = torch.rand((count, *shape), generator=rng)
        if request.seq_len == 0:
            rows.append(torch.randn(count, *shape, problem.head_dim, generator=rng))
            continue
        position = torch.arange(request.seq_len - count, request.seq_len).view(-1, 1, 1)
        causal = problem.causal if chosen.causal_of is None else chosen.causal_of[index]
        last = position if causal else torch.full_like(position, request.seq_len - 1)
        first = (
            (last - problem.window + 1).clamp(min=0) if problem.window else torch.zeros_like(last)
        )
        anywhere = (first + (share * (last - first + 1)).long()).clamp(max=last)
        boundary = anywhere // problem.block_size * problem.block_size
        before, behind = ((boundary - off).clamp(min=first) for off in (0, 1))
        if problem.chunk is not None:
            first = last // problem.chunk * problem.chunk
            anywhere, before, behind = (x.clamp(min=first) for x in (anywhere, before, behind))
        choices = [first, last, before, behind, anywhere]
        target = torch.stack([c.expand(count, *shape) for c in choices])
        target = target.gather(0, kind.unsqueeze(0)).squeeze(0)
        target = chosen.seen_instead(problem, index, target)
        head = torch.arange(problem.num_kv_heads).view(1, -1, 1)
        key = keys[start + target, head]
        norm = key.square().sum(-1, keepdim=True).clamp(min=1e-6)
        rows.append(key * (NEEDLE_LOGIT / problem.softmax_scale) / norm)
    return torch.cat(rows)


def _cat(parts: list[Tensor]) -> Tensor:
    # torch.cat has no float8 kernel on the CPU for an empty list of rows; bytes always work.
    if parts[0].element_size() == 1:
        return torch.cat([part.view(torch.uint8) for part in parts]).view(parts[0].dtype)
    return torch.cat(parts)
