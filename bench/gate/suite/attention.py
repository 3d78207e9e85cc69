"""Attention in torch, paged and contiguous, and the float64 truth that kernels are held against.

Small shapes spend their time in dispatching, larger ones in memory; each has a benchmark of its
own, because a change may well help one and cost the other. Outputs lie in preallocated tensors.

The `llama` entries are of one layer of Llama-3-8B: too large for the gate's turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from bench.gate.benchmark import Benchmark, Output, Prepared, computed, of_group
from bench.gate.suite.batches import Shape, contiguous_batch, paged_batch

if TYPE_CHECKING:
    from reference.attention.contract import AttentionCall

SMALL_DECODE: Final = Shape(num_seqs=2, query_len=1, seq_len=32, num_kv_heads=1, head_dim=32)
LARGE_DECODE: Final = Shape(num_seqs=2, query_len=1, seq_len=512, group_size=2)
PREFILL: Final = Shape(num_seqs=1, query_len=32, seq_len=128, group_size=2)

LLAMA_DECODE: Final = Shape(
    num_seqs=8, query_len=1, seq_len=512, num_kv_heads=8, group_size=4, head_dim=128
)
LLAMA_PREFILL: Final = replace(LLAMA_DECODE, num_seqs=1, query_len=128)
CONTEXTS: Final = (512, 2048)
BLOCK_SIZES: Final = (1, 16, 128)

TRUTH_SPEC: Final = "(q8 k48) (q1 k33) h2 g2 d32 b16 fp32"


def rounded(tensor: torch.Tensor) -> Output:
    """A tensor whose type rounds: both sides may round differently."""
    return Output(tensor.float().cpu().numpy().copy(), torch.finfo(tensor.dtype).eps / 2)


def answer(call: AttentionCall) -> Mapping[str, Output]:
    """Both outputs of a call."""
    assert call.lse is not None
    # The log-sum-exp is float32, of logits of what the query's type holds.
    return {"out": rounded(call.out), "lse": rounded(call.lse)}


def _paged(shape: Shape) -> Prepared:
    from paged.attention import paged_attention

    batch = paged_batch(shape)
    return Prepared(call=lambda: paged_attention(batch), outputs=lambda: answer(batch))


def _contiguous(shape: Shape) -> Prepared:
    from reference.attention.contiguous import contiguous_attention

    batch = contiguous_batch(shape)
    return Prepared(call=lambda: contiguous_attention(batch), outputs=lambda: answer(batch))


def _torch_sdpa(shape: Shape) -> Prepared:
    """One sequence after the other by torch itself: what both are compared with."""
    batch = contiguous_batch(shape)
    attend = torch.nn.functional.scaled_dot_product_attention

    def call() -> None:
        for row in range(shape.num_seqs):
            query = batch.query[row, None, :, None]
            keys, values = (
                cache[row, None].transpose(1, 2) for cache in (batch.key_cache, batch.value_cache)
            )
            batch.out[row] = attend(query, keys, values, enable_gqa=True)[0, :, 0]

    return Prepared(call=call, outputs=lambda: {"out": rounded(batch.out)})


def _truth() -> Prepared:
    from reference.attention.inputs import make_inputs
    from reference.attention.problem import AttentionProblem
    from reference.attention.truth import attend

    inputs = make_inputs(AttentionProblem.parse(TRUTH_SPEC))
    round_off = torch.finfo(torch.float64).eps / 2
    return computed(
        lambda: attend(inputs),
        lambda truth: {
            name: Output(getattr(truth, name).numpy().copy(), round_off) for name in ("out", "lse")
        },
    )


def _draw() -> Prepared:
    from reference.attention.inputs import make_inputs
    from reference.attention.placement import Placement, place
    from reference.attention.problem import AttentionProblem

    problem = AttentionProblem.parse(TRUTH_SPEC)

    def outputs(placed: Placement) -> Mapping[str, Output]:
        contents = placed.batch.key_cache.flatten(0, 1)[placed.owned_slots].float()
        return {
            "query": Output(placed.batch.query.float().numpy().copy()),
            "keys": Output(contents.numpy().copy()),
        }

    return computed(lambda: place(make_inputs(problem)), outputs)


_benchmark = of_group("attention", "reference.attention.contract:PagedBatch")


def _llama() -> Iterator[Benchmark]:
    for context in CONTEXTS:
        for kind, shape, what in (
            ("decode", LLAMA_DECODE, f"A decode step of 8 sequences of {context:,} tokens"),
            ("prefill", LLAMA_PREFILL, f"128 tokens at the end of one of {context:,}"),
        ):
            for size in BLOCK_SIZES:
                yield _benchmark(
                    f"paged-{kind}[llama,block={size},context={context}]",
                    f"{what}, blocks of {size}.",
                    partial(_paged, replace(shape, seq_len=context, block_size=size)),
                    PAGED,
                    gated=False,
                )
            yield _benchmark(
                f"contiguous-{kind}[llama,context={context}]",
                f"{what}, a contiguous cache.",
                partial(_contiguous, replace(shape, seq_len=context)),
                CONTIGUOUS,
                gated=False,
            )
        yield _benchmark(
            f"torch-sdpa-decode[llama,context={context}]",
            f"A decode step of 8 sequences of {context:,} tokens by torch's own attention.",
            partial(_torch_sdpa, replace(LLAMA_DECODE, seq_len=context)),
            CONTIGUOUS,
            gated=False,
        )


PAGED: Final = "paged.attention:paged_attention"
CONTIGUOUS: Final = "reference.attention.contiguous:contiguous_attention"

BENCHMARKS: Final = (
    _benchmark(
        "paged-decode[small]",
        "A decode step of 2 sequences of 32 tokens: dispatching.",
        partial(_paged, SMALL_DECODE),
        PAGED,
    ),
    _benchmark(
        "paged-decode[large]",
        "A decode step of 2 sequences of 512 tokens, 512 KiB of keys and values: memory.",
        partial(_paged, LARGE_DECODE),
        PAGED,
    ),
    _benchmark(
        "paged-prefill",
        "A chunk of 32 tokens at the end of a sequence of 128.",
        partial(_paged, PREFILL),
        PAGED,
    ),
    _benchmark(
        "contiguous-decode[large]",
        "The decode step of 2 sequences of 512 tokens over a contiguous cache.",
        partial(_contiguous, LARGE_DECODE),
        CONTIGUOUS,
    ),
    _benchmark(
        "truth",
        "Float64 attention of a drawn problem of two sequences.",
        _truth,
        "reference.attention.truth:attend",
        "reference.attention.inputs:make_inputs",
    ),
    _benchmark(
        "draw",
        "The tensors of a problem of two sequences, laid out in pages.",
        _draw,
        "reference.attention.placement:place",
        "reference.attention.inputs:make_inputs",
    ),
    *_llama(),
)
