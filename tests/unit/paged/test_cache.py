"""The cache's tensors: what is written where, what is copied, and what is refused."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.profiles import examples
from paged.attention import paged_attention
from paged.cache import KVCache, as_pairs, copy_blocks, write_slots
from paged.errors import BadSize
from reference.attention.inputs import make_inputs, quantise
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.tolerance import worst_excess
from reference.attention.truth import attend

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def filled(dtype: torch.dtype = torch.float32, *, blocks: int = 5, block_size: int = 4) -> KVCache:
    """A cache of 2 heads of 16 elements, full of numbers that can be told apart."""
    cache = KVCache.allocate(
        num_blocks=blocks, block_size=block_size, num_kv_heads=2, head_dim=16, dtype=dtype
    )
    rng = torch.Generator().manual_seed(1)
    for tensor in (cache.key_cache, cache.value_cache):
        tensor.copy_(torch.randn(tensor.shape, generator=rng).to(dtype))
    return cache


def tokens(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(2)
    keys, values = torch.randn(2, count, 2, 16, generator=rng).to(dtype)
    return keys, values


def snapshot(cache: KVCache) -> tuple[Tensor, Tensor]:
    return as_bytes(cache.key_cache).clone(), as_bytes(cache.value_cache).clone()


def stored(new: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    return quantise(new, dtype, scale) if dtype in FLOAT8 else new.to(dtype)


@examples(100)
@given(st.data(), st.sampled_from(sorted(DTYPES)))
def test_write_stores_each_token_at_its_slot_and_touches_no_other(
    data: st.DataObject, name: str
) -> None:
    dtype = DTYPES[name]
    cache = filled(dtype)
    scales = {"k_scale": 0.5, "v_scale": 0.03} if dtype in FLOAT8 else {}
    expected_keys, expected_values = (part.flatten(0, 1) for part in snapshot(cache))
    slots = data.draw(
        st.lists(
            st.integers(0, 19) | st.sampled_from((-1, -(2**40))),
            unique_by=lambda slot: slot if slot >= 0 else object(),
        )
    )
    keys, values = tokens(len(slots))
    write_slots(
        cache.key_cache,
        cache.value_cache,
        keys,
        values,
        torch.tensor(slots, dtype=torch.int64),
        **scales,
    )
    for token, slot in enumerate(slots):
        if slot >= 0:
            expected_keys[slot] = as_bytes(stored(keys[token], dtype, scales.get("k_scale", 1.0)))
            expected_values[slot] = as_bytes(
                stored(values[token], dtype, scales.get("v_scale", 1.0))
            )
    written_keys, written_values = (part.flatten(0, 1) for part in snapshot(cache))
    assert torch.equal(written_keys, expected_keys)
    assert torch.equal(written_values, expected_values)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_the_slot_mapping_may_be_int32(index: torch.dtype) -> None:
    cache = filled()
    keys, values = tokens(2)
    cache.write(keys, values, torch.tensor([19, 4], dtype=index))
    assert torch.equal(cache.key_cache[4, 3], keys[0])
    assert torch.equal(cache.value_cache[1, 0], values[1])


@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16])
def test_a_float8_write_divides_saturates_and_rounds_once(wide: torch.dtype) -> None:
    cache = filled(torch.float8_e4m3fn)
    keys = torch.full((1, 2, 16), 1000.0, dtype=wide)
    keys[0, 0, :4] = torch.tensor([0.53125, -0.53125, 0.0, 232.0], dtype=wide)
    write_slots(
        cache.key_cache, cache.value_cache, keys, keys, torch.tensor([6]), k_scale=0.5, v_scale=4.0
    )
    # 1.0625 is the middle of 1 and 1.125: to even. 464 and 2000 are past the largest, 448.
    assert cache.key_cache[1, 2, 0, :4].float().tolist() == [1.0, -1.0, 0.0, 448.0]
    assert bool((cache.key_cache[1, 2, 1].float() == 448).all())
    assert bool((cache.value_cache[1, 2, 1].float() == 256).all())  # 250, to three bits


def test_wider_tokens_are_rounded_to_the_dtype_of_the_cache() -> None:
    cache = filled(torch.bfloat16)
    keys, values = tokens(1)
    cache.write(keys, values, torch.tensor([0]))
    assert torch.equal(cache.key_cache[0, 0], keys[0].bfloat16())
    assert not torch.equal(cache.key_cache[0, 0].float(), keys[0])


def strided(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Key and value views of one storage, keys beside values and every other block, and it all."""
    storage = torch.randn(10, 4, 2, 2, 16).to(dtype)
    return storage[::2, :, 0], storage[::2, :, 1], storage


@each_dtype
def test_writing_through_strided_views_reaches_their_storage(dtype: torch.dtype) -> None:
    keys_view, values_view, storage = strided(dtype)
    expected = as_bytes(storage).clone()
    keys, values = tokens(2)
    write_slots(keys_view, values_view, keys, values, torch.tensor([13, 2]))
    for token, (block, offset) in enumerate([(6, 1), (0, 2)]):
        expected[block, offset, 0] = as_bytes(stored(keys[token], dtype, 1.0))
        expected[block, offset, 1] = as_bytes(stored(values[token], dtype, 1.0))
    assert torch.equal(as_bytes(storage), expected)


@each_dtype
def test_copying_through_strided_views_reaches_their_storage(dtype: torch.dtype) -> None:
    keys_view, values_view, storage = strided(dtype)
    expected = as_bytes(storage).clone()
    copy_blocks(keys_view, values_view, torch.tensor([[1, 4], [0, 2]]))
    expected[8], expected[4] = expected[2].clone(), expected[0].clone()
    assert torch.equal(as_bytes(storage), expected)


def test_tokens_may_be_views_too() -> None:
    cache = filled()
    packed = torch.randn(3, 2, 2, 16)  # tokens, key or value, heads, elements
    cache.write(packed[:, 0], packed[:, 1], torch.tensor([5, 0, 9]))
    assert torch.equal(cache.key_cache.flatten(0, 1)[[5, 0, 9]], packed[:, 0])
    assert torch.equal(cache.value_cache.flatten(0, 1)[[5, 0, 9]], packed[:, 1])


def write(cache: KVCache, keys: Tensor, values: Tensor, slots: list[int]) -> None:
    cache.write(keys, values, torch.tensor(slots, dtype=torch.int64))


# What is wrong, and what the message must name.
BAD_WRITES: dict[str, tuple[Callable[[KVCache], None], str]] = {
    "slot past the end": (
        lambda c: write(c, *tokens(2), [3, 20]),
        "slot 20 lies outside a cache of 20 slots",
    ),
    "slot far past the end": (
        lambda c: write(c, *tokens(1), [2**40]),
        f"slot {2**40} lies outside a cache of 20 slots",
    ),
    "too few slots": (
        lambda c: write(c, *tokens(2), [1]),
        r"slot mapping \(1,\) for 2 tokens: one slot each",
    ),
    "slots in a matrix": (
        lambda c: c.write(*tokens(2), torch.tensor([[1], [2]])),
        r"slot mapping \(2, 1\) for 2 tokens",
    ),
    "other values than keys": (
        lambda c: write(c, tokens(2)[0], tokens(1)[1], [1, 2]),
        r"keys \(2, 2, 16\) and values \(1, 2, 16\)",
    ),
    "other heads": (
        lambda c: write(c, torch.zeros(1, 3, 16), torch.zeros(1, 3, 16), [1]),
        r"keys \(1, 3, 16\).*cache of \(5, 4, 2, 16\): heads and head size must agree",
    ),
    "other head size": (
        lambda c: write(c, torch.zeros(1, 2, 32), torch.zeros(1, 2, 32), [1]),
        "heads and head size must agree",
    ),
}


@each_dtype
@pytest.mark.parametrize(("bad", "message"), BAD_WRITES.values(), ids=BAD_WRITES)
def test_a_bad_write_is_refused_before_anything_is_written(
    bad: Callable[[KVCache], None], message: str, dtype: torch.dtype
) -> None:
    cache = filled(dtype)
    before = snapshot(cache)
    with pytest.raises(BadSize, match=message):
        bad(cache)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(cache), strict=True))


def test_a_value_cache_of_another_shape_than_the_key_cache_is_refused() -> None:
    cache, other = filled(), filled(blocks=10, block_size=2)
    before = snapshot(other)
    with pytest.raises(BadSize, match=r"\(10, 2, 2, 16\)"):
        write_slots(cache.key_cache, other.value_cache, *tokens(1), torch.tensor([5]))
    with pytest.raises(BadSize, match=r"\(10, 2, 2, 16\)"):
        copy_blocks(cache.key_cache, other.value_cache, torch.tensor([[0, 1]]))
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(other), strict=True))


@examples(100)
@given(st.data(), st.sampled_from(sorted(DTYPES)))
def test_copies_copy_whole_blocks_and_touch_no_other(data: st.DataObject, name: str) -> None:
    cache = filled(DTYPES[name])
    expected = [part.clone() for part in snapshot(cache)]
    blocks = data.draw(st.permutations(range(5)))
    count = data.draw(st.integers(0, 4))
    destinations, others = blocks[:count], blocks[count:]
    pairs = [(data.draw(st.sampled_from(others)), block) for block in destinations]
    cache.copy(pairs)
    for part in expected:
        for source, destination in pairs:
            part[destination] = part[source]
    assert all(torch.equal(a, b) for a, b in zip(expected, snapshot(cache), strict=True))


BAD_COPIES = {
    "source past the end": ([(5, 1)], r"\[\[5, 1\]\] leave the cache of 5 blocks: .* 0 to 4"),
    "destination past the end": ([(0, 1), (1, 5)], "leave the cache of 5 blocks"),
    "negative source": ([(-1, 1)], "leave the cache of 5 blocks"),
    "negative destination": ([(1, -5)], "leave the cache of 5 blocks"),
    "one destination twice": ([(0, 3), (1, 3)], r"\[\[0, 3\], \[1, 3\]\] depend on their order"),
    "the same pair twice": ([(0, 3), (0, 3)], "depend on their order"),
    "a chain": ([(0, 1), (1, 2)], "split them into several calls"),
    "a swap": ([(0, 1), (1, 0)], "split them into several calls"),
    "onto itself": ([(2, 2)], "depend on their order"),
}


@pytest.mark.parametrize(("pairs", "message"), BAD_COPIES.values(), ids=BAD_COPIES)
def test_a_bad_copy_is_refused_before_anything_is_copied(
    pairs: list[tuple[int, int]], message: str
) -> None:
    cache = filled()
    before = snapshot(cache)
    with pytest.raises(BadSize, match=message):
        cache.copy(pairs)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(cache), strict=True))


def test_pairs_become_a_matrix() -> None:
    cpu = torch.device("cpu")
    for given_ in ([(0, 3), (1, 2)], torch.tensor([[0, 3], [1, 2]], dtype=torch.int32)):
        pairs = as_pairs(given_, cpu)
        assert pairs.tolist() == [[0, 3], [1, 2]]
        assert pairs.dtype == torch.int64
    assert as_pairs([], cpu).shape == (0, 2)


@pytest.mark.parametrize("wrong", [[(0, 1, 2), (3, 4, 5)], [0, 1, 2, 3], [(0,), (1,)]])
def test_what_is_no_list_of_pairs_is_refused(wrong: list[tuple[int, ...]]) -> None:
    with pytest.raises(BadSize, match="pairs"):
        as_pairs(wrong, torch.device("cpu"))  # type: ignore[arg-type]


@each_dtype
def test_an_allocated_cache_has_the_shape_it_was_asked_for(dtype: torch.dtype) -> None:
    cache = KVCache.allocate(num_blocks=7, block_size=16, num_kv_heads=3, head_dim=80, dtype=dtype)
    assert cache.key_cache.shape == cache.value_cache.shape == (7, 16, 3, 80)
    assert cache.key_cache.dtype == cache.value_cache.dtype == dtype
    assert cache.num_slots == 112
    assert (cache.k_scale, cache.v_scale) == (1.0, 1.0)
    assert cache.key_cache.data_ptr() != cache.value_cache.data_ptr()


SIZES = {"num_blocks": 2, "block_size": 4, "num_kv_heads": 1, "head_dim": 16}


# What is asked for besides SIZES, and what the message must name.
REFUSED = [
    *(({name: n}, f"{name}={n}: a cache needs at least one") for name in SIZES for n in (0, -3)),
    *(
        ({"dtype": torch.float8_e4m3fn, name: scale}, f"{name}={scale}")
        for name in ("k_scale", "v_scale")
        for scale in (0.0, -1.0, math.nan, math.inf)
    ),
    ({"k_scale": 0.5}, "k_scale=0.5"),  # of a cache that is not quantised
    ({"v_scale": 0.5}, "v_scale=0.5"),
    *(({"dtype": dtype}, str(dtype)) for dtype in (torch.int8, torch.float64, torch.bool)),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_cache_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSize, match=re.escape(message)):
        KVCache.allocate(**{**SIZES, "dtype": torch.float16, **changes})


@pytest.mark.parametrize("kv", ["", "kv=e4m3 kscale=0.03 vscale=1.7", "kv=e5m2 kscale=0.5"])
def test_what_was_written_slot_by_slot_is_what_attention_reads(kv: str) -> None:
    problem = AttentionProblem.parse(f"(q1 k37) (q3 k9) (q1 k0) h2 g2 d16 b4 bf16 {kv}")
    inputs = make_inputs(problem)
    placement = place(inputs)
    cache = KVCache.allocate(
        num_blocks=placement.num_blocks,
        block_size=4,
        num_kv_heads=2,
        head_dim=16,
        dtype=problem.torch_kv_dtype,
        k_scale=problem.k_scale,
        v_scale=problem.v_scale,
    )
    for tensor in (cache.key_cache, cache.value_cache):
        tensor.view(torch.uint8).fill_(255)  # NaN, in each of these dtypes
    # What a float8 cache stands for divides back exactly into what it stores.
    keys = inputs.keys.float() * problem.k_scale
    values = inputs.values.float() * problem.v_scale
    cache.write(keys, values, placement.owned_slots)
    paged_attention(
        placement.batch.replace(key_cache=cache.key_cache, value_cache=cache.value_cache)
    )
    batch = placement.batch
    assert worst_excess(problem, attend(inputs), batch.out, batch.lse) is None
