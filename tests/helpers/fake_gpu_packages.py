"""Packages that need a GPU, as far as their peers go: their signatures, and our answers.

A fake takes the parameters of the real function and no others, reads them as its documentation
says, and answers with `paged.attention` in the documented shapes: an argument that is translated
wrongly gives a wrong answer.
"""
# The parameters are the packages' own, booleans among them.
# ruff: noqa: FBT002, FBT003

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from paged.attention import paged_attention
from paged.latent import paged_latent_attention
from reference.attention.contract import PagedBatch


def solve(batch: PagedBatch) -> tuple[Tensor, Tensor]:
    """Stands for a kernel of a GPU: what a batch of these arguments has for an answer."""
    paged_attention(batch)
    assert batch.lse is not None
    return batch.out, batch.lse


def batch_of(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    window_left: int,
    causal: bool,
    **variant: Any,
) -> PagedBatch:
    """A batch of what a fake was given. Its table has no column that it was not given."""
    assert seq_lens.dtype == query_start_loc.dtype == block_table.dtype == torch.int32
    counts = query_start_loc.diff()
    # A decode kernel knows no mask: a query of one token sees all keys either way.
    return PagedBatch(
        query=query,
        key_cache=keys,
        value_cache=values,
        block_table=block_table,
        seq_lens=seq_lens,
        query_start_loc=query_start_loc,
        out=torch.full(query.shape, torch.nan, dtype=query.dtype),
        lse=torch.full(query.shape[:2], torch.nan),
        causal=causal,
        window=None if window_left < 0 else window_left + 1,
        max_query_len=int(counts.max()),
        max_seq_len=int(seq_lens.max()),
        **variant,
    )


class FlashAttn:
    """flash-attn 2.8.3's two functions: its parameters and shapes, and our answer.

    They are those of flash_attn/flash_attn_interface.py, as its docstrings describe them.
    """

    def __init__(self) -> None:
        self.called: list[str] = []

    def flash_attn_with_kvcache(
        self,
        q,
        k_cache,
        v_cache,
        k=None,
        v=None,
        rotary_cos=None,
        rotary_sin=None,
        cache_seqlens=None,
        cache_batch_idx=None,
        cache_leftpad=None,
        block_table=None,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        rotary_interleaved=True,
        alibi_slopes=None,
        num_splits=0,
        return_softmax_lse=False,
    ):
        self.called.append("decode")
        num_seqs, query_len = q.shape[:2]
        assert query_len == 1
        out, lse = solve(
            batch_of(
                q.squeeze(1),
                k_cache,
                v_cache,
                block_table=block_table,
                seq_lens=cache_seqlens,
                query_start_loc=torch.arange(num_seqs + 1, dtype=torch.int32),
                **self.variant(softmax_scale, causal, window_size, softcap, alibi_slopes),
            )
        )
        assert return_softmax_lse
        return out.unsqueeze(1), lse.unsqueeze(2)  # [num_seqs, num_q_heads, query_len]

    def flash_attn_varlen_func(
        self,
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
        block_table=None,
    ):
        self.called.append("varlen")
        seq_lens = cu_seqlens_k.diff()
        assert (max_seqlen_q, max_seqlen_k) == (cu_seqlens_q.diff().max(), seq_lens.max())
        out, lse = solve(
            batch_of(
                q,
                k,
                v,
                block_table=block_table,
                seq_lens=seq_lens,
                query_start_loc=cu_seqlens_q,
                **self.variant(softmax_scale, causal, window_size, softcap, alibi_slopes),
            )
        )
        assert dropout_p == 0.0
        assert return_attn_probs
        return out, lse.transpose(0, 1).contiguous(), None  # [num_q_heads, num_tokens]

    @staticmethod
    def variant(softmax_scale, causal, window_size, softcap, alibi_slopes):
        left, right = window_size
        assert (left < 0) == (right < 0)
        assert left < 0 or (right == 0 and causal)
        return {
            "scale": softmax_scale,
            "causal": causal,
            "window_left": left,
            "softcap": softcap or None,
            "alibi_slopes": alibi_slopes,
        }


class FlashAttn3:
    """flash-attention 3's function, as hopper/flash_attn_interface.py describes it; our answer."""

    def flash_attn_with_kvcache(
        self, q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None,
        cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, page_table=None,
        cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None,
        q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
        scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0,
        return_softmax_lse=False,
    ):  # fmt: skip
        assert max_seqlen_q == cu_seqlens_q.diff().max()
        assert return_softmax_lse
        variant = FlashAttn.variant(softmax_scale, causal, window_size, softcap, None)
        batch = batch_of(
            q, k_cache, v_cache, block_table=page_table, seq_lens=cache_seqlens,
            query_start_loc=cu_seqlens_q, **variant,
        )  # fmt: skip
        out, lse = solve(batch)
        return out, lse.transpose(0, 1).contiguous(), None, None


class FlashAttn4:
    """flash-attn-4 4.0.0b36: the function of flash_attn/cute/interface.py, and our answer."""

    def flash_attn_varlen_func(
        self, q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None,
        max_seqlen_k=None, min_seqlen_k=None, seqused_q=None, seqused_k=None,
        gather_kv_indices=None, page_table=None, softmax_scale=None, causal=False,
        window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None,
        deterministic=False, score_mod=None, score_mod_bwd=None, mask_mod=None,
        block_sparse_tensors=None, aux_tensors=None, aux_scalars=None, return_lse=False,
    ):  # fmt: skip
        assert max_seqlen_q == cu_seqlens_q.diff().max()
        assert return_lse
        window = (-1, -1) if window_size == (None, None) else window_size
        variant = FlashAttn.variant(softmax_scale, causal, window, softcap, None)
        batch = batch_of(
            q, k, v, block_table=page_table, seq_lens=seqused_k, query_start_loc=cu_seqlens_q,
            sinks=learnable_sink, **variant,
        )  # fmt: skip
        out, lse = solve(batch)
        return out, lse.transpose(0, 1).contiguous()


class FlashMLA:
    """FlashMLA's two functions, as flash_mla/flash_mla_interface.py describes them; our answer."""

    def get_mla_metadata(self, *args, **kwargs):
        self.schedule = object()
        return self.schedule, None

    def flash_mla_with_kvcache(
        self, q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata,
        num_splits=None, softmax_scale=None, causal=False, is_fp8_kvcache=False, indices=None,
    ):  # fmt: skip
        assert tile_scheduler_metadata is self.schedule
        assert (num_splits, indices, is_fp8_kvcache, q.shape[1]) == (None, None, False, 1)
        assert k_cache.shape[1:] == (64, 1, 576)
        batch = batch_of(
            q.squeeze(1),
            k_cache,
            k_cache[..., :head_dim_v],
            block_table=block_table,
            seq_lens=cache_seqlens,
            query_start_loc=torch.arange(len(q) + 1, dtype=torch.int32),
            window_left=-1,
            causal=causal,
            scale=softmax_scale,
            rope=64,
        )
        batch = batch.replace(out=batch.out[..., :head_dim_v].contiguous())
        paged_latent_attention(batch)
        return batch.out.unsqueeze(1), batch.lse.unsqueeze(2)


class Wrapper:
    """What FlashInfer's two wrappers have in common: the pages, `run`, and our answer.

    Parameters and shapes are those of flashinfer-python 0.7.2.post1, prefill.py and decode.py.
    """

    def __init__(self, workspace, layout):
        assert workspace.dtype == torch.uint8
        assert not workspace.any(), "decode counts in it"
        assert layout == "NHD"
        self.planned: dict[str, Any] = {}

    def keep(
        self, starts, blocks, last_lens, heads, kv_heads, head_dim, page_size, query_start_loc,
        causal, sm_scale, window_left, logits_soft_cap, q_data_type, kv_data_type,
    ):  # fmt: skip
        counts = starts.diff()
        assert len(blocks) == starts[-1]
        assert ((last_lens >= 1) & (last_lens <= page_size))[counts > 0].all()
        table = torch.full((len(counts), max(int(counts.max()), 1)), -1, dtype=torch.int32)
        for row, (first, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=False)):
            table[row, :count] = blocks[first : first + count]
        self.planned = {
            "block_table": table,
            "seq_lens": torch.where(counts > 0, (counts - 1) * page_size + last_lens, 0).int(),
            "query_start_loc": query_start_loc,
            "causal": causal,
            "scale": sm_scale,
            "window_left": window_left,
            "softcap": logits_soft_cap or None,
        }
        self.shape = (heads, kv_heads, head_dim, page_size, q_data_type, kv_data_type)

    def run(
        self, q, paged_kv_cache, *, q_scale=None, k_scale=None, v_scale=None, out=None, lse=None,
        return_lse=False, enable_pdl=None, window_left=None, sinks=None, kv_cache_sf=None,
        skip_softmax_threshold_scale_factor=None,
    ):  # fmt: skip
        _, two, page_size, kv_heads, head_dim = paged_kv_cache.shape
        assert two == 2
        assert q.is_contiguous()
        assert paged_kv_cache.is_contiguous()
        assert self.shape == (
            q.shape[1], kv_heads, head_dim, page_size, q.dtype, paged_kv_cache.dtype,
        )  # fmt: skip
        keys, values = paged_kv_cache.unbind(1)
        scales = {"k_scale": k_scale or 1.0, "v_scale": v_scale or 1.0}
        answer, log_sum = solve(batch_of(q, keys, values, **self.planned, **scales))
        assert return_lse
        return answer, log_sum / math.log(2.0)


class Prefill(Wrapper):
    def plan(
        self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads,
        num_kv_heads, head_dim_qk, page_size, head_dim_vo=None, custom_mask=None,
        packed_custom_mask=None, causal=False, pos_encoding_mode="NONE",
        use_fp16_qk_reduction=False, sm_scale=None, window_left=-1, logits_soft_cap=None,
        rope_scale=None, rope_theta=None, q_data_type="float16", kv_data_type=None,
    ):  # fmt: skip
        self.keep(
            paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
            head_dim_qk, page_size, qo_indptr, causal, sm_scale, window_left, logits_soft_cap,
            q_data_type, kv_data_type,
        )  # fmt: skip


class Decode(Wrapper):
    def __init__(
        self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, use_tensor_cores=False
    ):
        super().__init__(float_workspace_buffer, kv_layout)
        self.tensor_cores = use_tensor_cores

    def plan(
        self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, *,
        pos_encoding_mode="NONE", window_left=-1, logits_soft_cap=None, q_data_type="float16",
        kv_data_type=None, sm_scale=None,
    ):  # fmt: skip
        assert self.tensor_cores or num_qo_heads // num_kv_heads in {1, 2, 3, 4, 6, 8, 16}
        self.keep(
            indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size,
            torch.arange(len(indptr), dtype=torch.int32), True, sm_scale, window_left,
            logits_soft_cap, q_data_type, kv_data_type,
        )  # fmt: skip


FLASHINFER = SimpleNamespace(
    BatchPrefillWithPagedKVCacheWrapper=Prefill, BatchDecodeWithPagedKVCacheWrapper=Decode
)
"""The package `flashinfer`."""
