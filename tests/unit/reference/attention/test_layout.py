"""Usual batches: shuffled pages, each with one owner, and the same tokens in contiguous rows."""

import pytest
import torch

from paged.attention import paged_attention
from reference.attention.contiguous import contiguous_attention
from reference.attention.layout import contiguous_of, usual
from reference.attention.problem import AttentionProblem

DECODE = AttentionProblem.parse("(q1 k70) (q1 k41) (q1 k16) (q1 k1) h2 g2 d16 b8 bf16")
PREFILL = AttentionProblem.parse("(q40 k40) (q3 k17) h2 g2 d16 b8 fp32")


def test_pages_are_shuffled_and_no_page_has_two_owners():
    batch = usual(DECODE, device="cpu", seed=0)
    used = [
        block
        for row, request in zip(batch.block_table.tolist(), DECODE.requests, strict=True)
        for block in row[: -(-request.seq_len // 8)]
    ]
    assert sorted(used) == list(range(len(batch.key_cache)))
    assert used != sorted(used)
    assert not torch.equal(batch.key_cache, batch.value_cache)
    assert (batch.max_query_len, batch.max_seq_len) == (1, 70)


def test_a_seed_is_a_batch_of_its_own():
    same, again, other = (usual(DECODE, device="cpu", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(same.key_cache, again.key_cache)
    assert not torch.equal(same.key_cache, other.key_cache)
    assert not torch.equal(same.block_table, other.block_table)


@pytest.mark.parametrize("problem", [DECODE, PREFILL], ids=str)
def test_contiguous_rows_hold_the_same_tokens(problem):
    paged = usual(problem, device="cpu", seed=0)
    rows = contiguous_of(paged)
    rows = rows.replace(out=torch.empty_like(rows.out))
    paged_attention(paged)
    contiguous_attention(rows)
    torch.testing.assert_close(rows.out, paged.out)


def test_a_float8_cache_keeps_its_dtype():
    batch = usual(DECODE.replace(kv_dtype="e4m3"), device="cpu", seed=0)
    assert contiguous_of(batch).key_cache.dtype == batch.key_cache.dtype == torch.float8_e4m3fn


def test_the_tokens_do_not_depend_on_the_size_of_a_page():
    of_1, of_16 = (
        contiguous_of(usual(DECODE.replace(block_size=size), device="cpu", seed=0))
        for size in (1, 16)
    )
    assert torch.equal(of_1.key_cache, of_16.key_cache)
    assert torch.equal(of_1.query, of_16.query)
