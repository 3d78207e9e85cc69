"""A float8 cache is read exactly: every code, and every weight that can be seen in the answer."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from helpers.mutants import as_on_a_gpu
from helpers.profiles import examples
from kernels import interpreter
from kernels.attention import paged_attention
from kernels.sweep import as_half
from reference.attention.contract import PagedBatch

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
QUERIES = [torch.bfloat16, torch.float16, torch.float32]

assert interpreter.installed()  # bfloat16 and float8 are wrong without it


def decode_batch(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, scale: float = 1.0
) -> PagedBatch:
    """Queries [num_seqs, heads, head_dim] for sequences of keys [num_seqs, length, head_dim]."""
    num_seqs, length, _ = keys.shape
    return PagedBatch(
        query=query,
        key_cache=keys[:, :, None],
        value_cache=values[:, :, None],
        block_table=torch.arange(num_seqs, dtype=torch.int32)[:, None],
        seq_lens=torch.full((num_seqs,), length, dtype=torch.int32),
        query_start_loc=torch.arange(num_seqs + 1, dtype=torch.int32),
        out=torch.full(query.shape, torch.nan, dtype=query.dtype),
        lse=torch.full(query.shape[:2], torch.nan),
        scale=scale,
        max_query_len=1,
        max_seq_len=length,
    )


def codes(dtype: torch.dtype) -> torch.Tensor:
    """All 256 numbers of a float8 format, NaN and infinity included, [16, 16]."""
    return torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).view(16, 16)


@pytest.mark.parametrize("dtype", QUERIES)
@pytest.mark.parametrize("kv_dtype", FLOAT8)
def test_every_value_comes_out_as_it_is(kv_dtype, dtype):
    values = codes(kv_dtype)[:, None]
    query = torch.zeros(16, 1, 16, dtype=dtype)
    batch = decode_batch(query, torch.zeros_like(values), values)
    with as_on_a_gpu():
        paged_attention(batch)
    expected = values[:, 0].float().to(dtype)
    assert torch.equal(batch.out[:, 0].isnan(), expected.isnan())
    assert torch.equal(batch.out[:, 0].nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", QUERIES)
@pytest.mark.parametrize("kv_dtype", FLOAT8)
def test_every_key_counts_as_it_is(kv_dtype, dtype):
    # The log-sum-exp of a single key is its logit, and each head asks for one of its elements.
    keys = codes(kv_dtype).float()
    nans = int(keys.isnan().sum())
    assert nans == {torch.float8_e4m3fn: 2, torch.float8_e5m2: 6}[kv_dtype]
    expected = torch.cat([torch.where(keys.isfinite(), keys, 0), torch.zeros(nans, 16)])
    keys = expected.to(kv_dtype)
    keys[16:, 3] = codes(kv_dtype)[codes(kv_dtype).float().isnan()]
    expected[16:] = torch.nan  # a NaN reaches every head
    query = torch.eye(16, dtype=dtype).expand(16 + nans, 16, 16).contiguous()
    batch = decode_batch(query, keys[:, None], torch.zeros_like(keys)[:, None])
    with as_on_a_gpu():
        paged_attention(batch)
    torch.testing.assert_close(batch.lse, expected, rtol=3e-7, atol=3e-7, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [(torch.bfloat16, torch.float8_e4m3fn), (torch.float16, torch.float16)],
)
def test_many_weights_too_small_for_a_float16_count(dtype, kv_dtype):
    # 4,000 keys whose weight is 2^-26 of one key's: together a 17,000th, and all of the answer.
    length, block_size = 4001, 4096
    keys, values = torch.zeros(1, block_size, 16), torch.ones(1, block_size, 16)
    keys[0, 0, 0] = 26.0
    values[0, 0] = 0.0
    query = torch.zeros(1, 1, 16, dtype=dtype)
    query[0, 0, 0] = 1.0
    batch = decode_batch(query, keys.to(kv_dtype), values.to(kv_dtype), scale=float(np.log(2.0)))
    batch = batch.replace(seq_lens=torch.tensor([length], dtype=torch.int32), max_seq_len=length)
    paged_attention(batch, num_splits=1)
    expected = torch.full((16,), 4000 * 2.0**-26)
    torch.testing.assert_close(batch.out[0, 0].float(), expected, rtol=0.01, atol=0.0)


@triton.jit
def _halved(rows, halves, factors, ROWS: tl.constexpr, DIM: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * DIM + tl.arange(0, DIM)[None, :]
    half, undo = as_half(tl.load(rows + at))
    tl.store(halves + at, half)
    tl.store(factors + tl.arange(0, ROWS), undo)


def halved(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in float16, and what they are in float64 once their factors undo the scaling."""
    halves, factors = torch.empty(16, 16, dtype=torch.float16), torch.empty(16)
    with as_on_a_gpu():
        _halved[(1,)](rows, halves, factors, ROWS=16, DIM=16)
    assert (torch.frexp(factors)[0] == 0.5).all()  # powers of two
    return halves, halves.double() * factors.double()[:, None]


@examples(60)
@given(st.binary(min_size=512, max_size=512), st.lists(st.integers(0, 254), min_size=16))
def test_bfloat16_rows_in_float16(patterns, largest):
    """Exact within 2^-30 of a row's largest element; what is smaller is off by 2^-39 of that."""
    bits = np.frombuffer(patterns, dtype=np.uint16).reshape(16, 16)
    exponents = np.array(largest[:16])[:, None] - (bits >> 7) % 64  # of 64 binades in each row
    bits = (bits & 0x807F) | (exponents.clip(0) << 7).astype(np.uint16)
    rows = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    _, back = halved(rows)
    size, error = rows.double().abs(), (back - rows.double()).abs()
    largest = size.amax(1, keepdim=True)
    assert (error <= largest * 2.0**-39 + 2.0**-150).all()
    assert (error[(size >= largest * 2.0**-30) & (largest > 2.0**-110)] == 0).all()


def test_infinity_and_nan_stay_what_they_are():
    rows = torch.ones(16, 16, dtype=torch.bfloat16)
    rows[1, 3], rows[2, 4], rows[3, 5] = torch.inf, -torch.inf, torch.nan
    halves, _ = halved(rows)
    assert halves[1, 3] == torch.inf
    assert halves[2, 4] == -torch.inf
    assert halves[3, 5].isnan()
    assert halves.isfinite().sum() == 256 - 3
