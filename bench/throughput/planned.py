"""Calls of peers that plan: what is done once for a step stands before the call, and is not timed.

The adapters of peers do it all in every call, which is right where only the answer
matters.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from bench.machine.timing import Call
from reference.attention.contract import PagedBatch
from subjects.attention.peers import flash_mla, flashinfer, vllm_unified

FLEX_QUERY_BLOCK = 128
"""Rows of a block of FlexAttention's mask, torch's default."""


def flashinfer_call(batch: PagedBatch) -> Call:
    """FlashInfer's `run`, planned; the cache is in FlashInfer's own layout, both halves in one."""
    decode = batch.max_query_len == 1 and batch.query.shape[0] == batch.seq_lens.shape[0]
    wrapper = flashinfer.decode_wrapper(batch) if decode else flashinfer.prefill_wrapper(batch)
    cache, query = flashinfer.both_halves(batch), batch.query.contiguous()
    return functools.partial(wrapper.run, query, cache, out=batch.out)


def vllm_call(batch: PagedBatch) -> Call:
    """The launcher of vLLM with the arguments that the adapter makes, scratch memory among them."""
    return functools.partial(vllm_unified.launcher(), **vllm_unified.arguments_of(batch))


def cascade_call(batch: PagedBatch) -> Call:
    """Our cascade where it pays, with the groups that an engine knows: looked for on the host."""
    from kernels.cascade import paged_attention_with_cascade
    from kernels.shared_prefix import PrefixGroups, find_prefix_groups

    lengths: dict[str, Any] = {
        "seq_lens": batch.seq_lens.tolist(),
        "query_lens": batch.query_start_loc.diff().tolist(),
        "block_size": batch.block_size,
    }
    shared = find_prefix_groups(batch.block_table.cpu(), **lengths)
    groups = PrefixGroups.of(shared, **lengths, device=batch.query.device) if shared else None
    return functools.partial(paged_attention_with_cascade, batch, groups=groups)


def flash_mla_call(batch: PagedBatch) -> Call:
    """FlashMLA's decode with its schedule made; it has no `out`, and its answer is copied there."""
    call = flash_mla.planned(batch)

    def run() -> None:
        batch.out.copy_(call()[0].squeeze(1))

    return run


def flex_call(batch: PagedBatch) -> Call:
    """FlexAttention, compiled, over torch's `PagedAttention`: all sequences in one call."""
    num_seqs, query_len = len(batch.seq_lens), batch.max_query_len
    if batch.query.shape[0] != num_seqs * query_len:
        raise ValueError("FlexAttention takes queries of one length")
    pages, lens = _pages(batch), batch.seq_lens.long()
    offset = lens - query_len
    size = batch.block_size

    def causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return kv_idx <= q_idx + offset[b]

    from torch.nn.attention import flex_attention

    logical = flex_attention.create_block_mask(
        causal,
        B=num_seqs,
        H=None,
        Q_LEN=query_len,
        KV_LEN=-(-batch.max_seq_len // size) * size,
        device=str(batch.query.device),
        BLOCK_SIZE=(FLEX_QUERY_BLOCK, size),
    )
    mask = pages.convert_logical_block_mask(logical, kv_len=lens)
    score_mod = pages.get_score_mod(None, kv_len=lens)
    query = batch.query.unflatten(0, (num_seqs, query_len)).transpose(1, 2)
    keys, values = _by_slot(batch.key_cache), _by_slot(batch.value_cache)
    out = batch.out.unflatten(0, (num_seqs, query_len))
    attend = _compiled_flex()

    def call() -> None:
        answer = attend(
            query,
            keys,
            values,
            score_mod=score_mod,
            block_mask=mask,
            scale=batch.scale,
            enable_gqa=batch.group_size > 1,
        )
        out.copy_(answer.transpose(1, 2))

    call()  # compiles, once for each shape
    return call


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Shapes as they are: kernels of unknown shapes are others, and slower.
    return torch.compile(flex_attention, dynamic=False)


def _by_slot(cache: Tensor) -> Tensor:
    """[blocks, block_size, heads, head_dim] -> [1, heads, blocks * block_size, head_dim]."""
    return cache.flatten(0, 1).transpose(0, 1).unsqueeze(0).contiguous()


def _pages(batch: PagedBatch) -> Any:
    """A `PagedAttention` as `reserve` would leave it had it chosen these pages."""
    from torch.nn.attention.experimental._paged_attention import PagedAttention

    device, size = batch.query.device, batch.block_size
    num_seqs = len(batch.seq_lens)
    pages = PagedAttention(
        batch.key_cache.shape[0], size, max_batch_size=num_seqs, device=str(device)
    )
    for row, seq_len in enumerate(batch.seq_lens.tolist()):
        count = -(-seq_len // size)
        blocks = batch.block_table[row, :count].long()
        pages.page_table[row, :count] = blocks
        pages.physical_to_logical[row, blocks] = torch.arange(count, device=device)
        pages.capacity[row] = count * size
    return pages
