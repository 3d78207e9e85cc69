"""vLLM's unified attention in Triton: one kernel for all batches, and a split one for decode.

The launcher, `unified_attention`, is called as `TritonAttentionImpl.forward` does
(vllm/v1/attention/backends/triton_attn.py). What that class declares is declared here. Small
batches of decode take the split path, 16 segments of each sequence and `reduce_segments` after
them, as `TritonAttentionMetadataBuilder` has it; all others take the other one.

In float32 Triton multiplies matrices in tf32 unless told otherwise, and vLLM does not say. Here it
is told to use float32, so that the kernel's own errors show; docs/peers.md has how far off tf32 is.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor

from reference.attention.codecs import views_of
from reference.attention.contract import Capabilities, PagedBatch, capabilities_of, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.vllm_wheel import (
    KVQuantMode,
    check_gpu,
    load_int4_attention,
    load_unified_attention,
    minor_release,
)

NUM_SEGMENTS: Final = 16
"""`NUM_PAR_SOFTMAX_SEGMENTS` of vLLM's backend."""

MIN_LAUNCH_GRID_SIZE_2D: Final = 128
"""Of vLLM's backend: a batch of decode that gives fewer programs is split."""

NON_CAUSAL_SINCE: Final = 24
"""Minor release; those before it assert that attention is causal."""

MODES: Final = {
    "e4m3-token-head": KVQuantMode.FP8_PER_TOKEN_HEAD,
    "int8-token-head": KVQuantMode.INT8_PER_TOKEN_HEAD,
    "int4-token-head": KVQuantMode.INT4_PER_TOKEN_HEAD,
}
"""What vLLM calls the codecs that it reads."""

_launcher: Any = None
_takes: frozenset[str] = frozenset()
"""What the launcher takes: before 0.20 no `kv_quant_mode`, it goes by the cache's type."""


def _prepare(device: str) -> None:
    check_gpu("vllm-unified", device)
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    global _launcher, _takes  # noqa: PLW0603 - one kernel in one process
    release = minor_release()
    _launcher = load_unified_attention().unified_attention
    _takes = frozenset(inspect.signature(_launcher).parameters)
    known = capabilities_of(attention)
    if release < NON_CAUSAL_SINCE:
        known = replace(known, variants=known.variants - {"noncausal"})
    if "k_scale_cache" not in _takes:
        known = replace(known, codecs=frozenset())
    if "qq_bias" not in _takes:
        known = replace(known, also=known.also - {"query_mask"})
    if "k_scale_cache" in _takes and load_int4_attention() is None:
        known = replace(known, codecs=known.codecs - {"int4-token-head"})
    vars(attention)["capabilities"] = known


@prepared_by(_prepare)
@declares(
    Capabilities(
        head_dims=frozenset({32, 64, 80, 96, 128, 256}),
        block_sizes=frozenset({16, 32, 64, 128, 256}),
        variants=frozenset({"prefill", "noncausal", "window", "softcap", "alibi", "sinks"}),
        codecs=frozenset(MODES),
        never_together=frozenset({"codec=int4-token-head noncausal"}),
        also=frozenset({"query_mask"}),
        declines=frozenset({"strides=table"}),
        promises=frozenset({"deterministic", "relabelling"}),
    )
)
def attention(batch: PagedBatch) -> None:
    """Fill `batch.out`. A mask is one for the whole call: each sequence then has a call."""
    if batch.query_mask is None:
        launcher()(**arguments_of(batch))
        return
    for index, rows in enumerate(pairwise(batch.query_start_loc.tolist())):
        if rows[1] > rows[0]:
            alone, seen = _sequence(batch, index, slice(*rows)), batch.query_mask[slice(*rows)]
            bias = torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, -torch.inf)
            bias = bias[:, : len(seen)].contiguous()
            launcher()(**arguments_of(alone), qq_bias=bias)


def _sequence(batch: PagedBatch, index: int, rows: slice) -> PagedBatch:
    """The call for one sequence of a batch: views of the same tensors."""

    def of(tensor: Tensor) -> Tensor:
        return tensor[index : index + 1]

    count = rows.stop - rows.start
    starts = torch.tensor([0, count], dtype=torch.int32, device=batch.query.device)
    return replace(
        batch,
        query=batch.query[rows],
        out=batch.out[rows],
        block_table=of(batch.block_table),
        seq_lens=of(batch.seq_lens),
        query_start_loc=starts,
        causal=True,
        query_mask=None,
        max_query_len=count,
        max_seq_len=int(batch.seq_lens[index]),
    )


def launcher() -> Any:
    """The host function of vLLM, once the subject was prepared."""
    return _launcher


def arguments_of(batch: PagedBatch, takes: frozenset[str] | None = None) -> dict[str, Any]:
    """Of what vLLM's backend gives a launcher for a batch, that which it takes (None: the unified
    one); the scratch memory is made here, once a step.
    """
    num_tokens, num_q_heads, head_dim = batch.query.shape
    device = batch.query.device
    takes = _takes if takes is None else takes
    scratch = (num_tokens, num_q_heads, NUM_SEGMENTS)
    padded = 1 << (batch.value_dim - 1).bit_length()
    # One scale for the whole tensor, shown to the kernel as one for each sequence and head.
    scales = (batch.seq_lens.shape[0], batch.num_kv_heads)
    k_scale, v_scale = (
        torch.full((), scale, dtype=torch.float32, device=device).expand(scales)
        for scale in (batch.k_scale, batch.v_scale)
    )
    mode, of_codec = KVQuantMode.NONE, {}
    if batch.codec:
        mode = MODES[batch.codec]
        keys, k_scale_cache = views_of(batch.codec, batch.key_cache, head_dim)
        values, v_scale_cache = views_of(batch.codec, batch.value_cache, batch.value_dim)
        of_codec = {"k": keys, "v": values}
        of_codec |= {"k_scale_cache": k_scale_cache, "v_scale_cache": v_scale_cache}
    elif batch.key_cache.element_size() == 1:
        mode = KVQuantMode.FP8_PER_TENSOR
    everything = {
        "q": batch.query,
        "k": batch.key_cache,
        "v": batch.value_cache,
        "out": batch.out,
        "cu_seqlens_q": batch.query_start_loc,
        "max_seqlen_q": batch.max_query_len,
        "seqused_k": batch.seq_lens,
        "max_seqlen_k": batch.max_seq_len,
        "softmax_scale": batch.scale,
        "causal": batch.causal,
        "alibi_slopes": batch.alibi_slopes,
        "window_size": (-1, -1) if batch.window is None else (batch.window - 1, 0),
        "block_table": batch.block_table,
        "softcap": batch.softcap or 0,
        "q_descale": None,
        "k_descale": k_scale,
        "v_descale": v_scale,
        "seq_threshold_3D": MIN_LAUNCH_GRID_SIZE_2D // batch.num_kv_heads,
        "num_par_softmax_segments": NUM_SEGMENTS,
        "softmax_segm_output": torch.empty((*scratch, padded), dtype=torch.float32, device=device),
        "softmax_segm_max": torch.empty(scratch, dtype=torch.float32, device=device),
        "softmax_segm_expsum": torch.empty(scratch, dtype=torch.float32, device=device),
        "sinks": batch.sinks,
        "kv_quant_mode": mode,
        **of_codec,
    }
    return {name: value for name, value in everything.items() if name in takes}
