"""The Triton cache write and block copy, interpreted, bit for bit against torch's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernels.interpreter  # noqa: F401 - corrects the interpreter
from helpers.profiles import examples
from kernels import cache_ops
from paged import cache as torch_ops

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}


@st.composite
def caches(draw):
    """A pair of equal caches, `[2, num_blocks, block_size, heads, head_dim]` in any layout."""
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    num_blocks, block_size = draw(st.integers(1, 9)), draw(st.sampled_from((1, 2, 16, 64)))
    heads, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from((16, 80, 128)))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    joint = draw(st.booleans())  # keys and values of a block side by side in memory
    shape = (num_blocks, 2) if joint else (2, num_blocks)
    storage = torch.randn(*shape, block_size, heads, head_dim, generator=rng).to(DTYPES[dtype])
    return dtype, storage, 1 if joint else 0, rng


def unbind(storage, dim):
    return storage.clone().unbind(dim)


def same_bits(one, other):
    return all(
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(one, other, strict=True)
    )


@examples(60)
@given(caches(), st.integers(0, 20), st.sampled_from((1.0, 0.5, 0.03, 1.7)), st.booleans())
def test_write_gives_torch_bits(drawn, num_tokens, scale, extreme):
    dtype, storage, dim, rng = drawn
    num_slots = storage.shape[1 - dim] * storage.shape[2]
    num_tokens = min(num_tokens, num_slots)
    new_dtype = DTYPES[dtype] if dtype in {"fp32", "fp16", "bf16"} else torch.bfloat16
    shape = (num_tokens, *storage.shape[3:])
    keys, values = (
        torch.randn(shape, generator=rng).mul(1000.0 if extreme else 1.0).to(new_dtype)
        for _ in "kv"
    )
    slots = torch.randperm(num_slots, generator=rng)[:num_tokens]
    slots[::5] = -1  # padding
    scales = {"k_scale": scale, "v_scale": 2 * scale} if storage.element_size() == 1 else {}
    expected, got = unbind(storage, dim), unbind(storage, dim)
    torch_ops.write_slots(*expected, keys, values, slots, **scales)
    cache_ops.write_slots(*got, keys, values, slots, **scales)
    assert same_bits(expected, got)


@examples(40)
@given(caches(), st.integers(0, 4))
def test_copy_gives_torch_bits(drawn, count):
    _, storage, dim, rng = drawn
    blocks = torch.randperm(storage.shape[1 - dim], generator=rng)
    count = min(count, len(blocks) // 2)
    sources, destinations = blocks[:count], blocks[count : 2 * count]
    pairs = torch.stack([sources, destinations], dim=1)
    expected, got = unbind(storage, dim), unbind(storage, dim)
    torch_ops.copy_blocks(*expected, pairs)
    cache_ops.copy_blocks(*got, pairs)
    assert same_bits(expected, got)


def test_one_source_may_be_copied_to_several_blocks():
    storage = torch.randn(2, 4, 16, 2, 16)
    expected, got = unbind(storage, 0), unbind(storage, 0)
    pairs = torch.tensor([[0, 1], [0, 3]])
    torch_ops.copy_blocks(*expected, pairs)
    cache_ops.copy_blocks(*got, pairs)
    assert same_bits(expected, got)
    assert torch.equal(got[0][1], got[0][3])


def test_nan_and_infinity_keep_their_meaning_in_float8():
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0]).repeat(4).view(1, 1, 16)
    for dtype in ("e4m3", "e5m2"):
        keys, values = torch.zeros(2, 1, 1, 1, 16).to(DTYPES[dtype]).unbind(0)
        cache_ops.write_slots(keys, values, special, special, torch.tensor([0]))
        stored = keys[0, 0, 0, :4].float()
        largest = torch.finfo(DTYPES[dtype]).max
        assert stored[0].isnan()
        assert stored[1:].tolist() == [largest, -largest, 0.0]


def test_slots_past_two_to_the_31_elements():
    num_blocks, block_size, heads, head_dim = 2**31 // (16 * 8 * 128) + 2, 16, 8, 128
    keys, values = (
        torch.empty(num_blocks, block_size, heads, head_dim, dtype=torch.uint8).view(DTYPES["e4m3"])
        for _ in "kv"
    )
    new = torch.randn(3, heads, head_dim)
    last = num_blocks * block_size - 1
    slots = torch.tensor([last, 5, last - block_size])
    cache_ops.write_slots(keys, values, new, 2 * new, slots)
    for token, slot in enumerate(slots.tolist()):
        block, offset = divmod(slot, block_size)
        assert torch.equal(keys[block, offset].float(), new[token].to(keys.dtype).float())
        assert torch.equal(values[block, offset].float(), (2 * new[token]).to(keys.dtype).float())
    cache_ops.copy_blocks(keys, values, torch.tensor([[num_blocks - 1, 1]]))
    assert torch.equal(keys[1, -1].float(), keys[-1, -1].float())


def test_heads_apart_are_refused_by_the_copy():
    cache = torch.zeros(4, 16, 4, 16)[:, :, ::2]
    with pytest.raises(ValueError, match="contiguous"):
        cache_ops.copy_blocks(cache, cache, torch.tensor([[0, 1]]))
