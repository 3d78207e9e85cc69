"""The memory arithmetic against a slot-by-slot count, published figures and the closed form."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.waste.figures.block_size import expected_internal_fraction
from bench.workloads.need import (
    LLAMA_3_8B,
    CacheGeometry,
    MemoryNeed,
    contiguous_need,
    default_max_model_len,
    paged_need,
)
from bench.workloads.stream import MAX_TOKENS, RequestStream
from helpers.profiles import examples

OPT_13B = CacheGeometry(num_layers=40, num_kv_heads=40, head_dim=128, bytes_per_element=2)

small_requests = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 30)), min_size=1, max_size=8
).filter(lambda requests: any(output for _, output in requests))


def stream(requests):
    prompt, output = zip(*requests, strict=True)
    return RequestStream(name="s", source="a test", prompt_tokens=prompt, output_tokens=output)


def resident_steps(requests):
    """Each step of each request, as (tokens in the cache, tokens at the end)."""
    for prompt, output in requests:
        for generated in range(1, output + 1):
            yield prompt + generated, prompt + output


@examples(100)
@given(requests=small_requests, spare=st.integers(0, 20), rounding=st.integers(0, 9))
def test_contiguous_classes_equal_a_slot_by_slot_count(requests, spare, rounding):
    reserved = max(1, *(prompt + output for prompt, output in requests)) + spare
    count = dict.fromkeys(("token", "reserve", "internal", "roundup"), 0)
    for current, final in resident_steps(requests):
        for slot in range(reserved + rounding):
            if slot < current:
                count["token"] += 1
            elif slot < final:
                count["reserve"] += 1
            elif slot < reserved:
                count["internal"] += 1
            else:
                count["roundup"] += 1
    need = contiguous_need(
        stream(requests), max_model_len=reserved, chunk_tokens=reserved + rounding
    )
    assert {name: getattr(need, name) for name in count} == count
    assert need.allocated == sum(count.values())
    assert need.granule_tokens == reserved + rounding
    assert need.waste_fraction == need.waste / need.allocated


@examples(100)
@given(requests=small_requests, block_size=st.integers(1, 20))
def test_paged_classes_equal_a_block_by_block_count(requests, block_size):
    token = allocated = 0
    for current, _ in resident_steps(requests):
        token += current
        allocated += block_size * len({position // block_size for position in range(current)})
    need = paged_need(stream(requests), block_size=block_size)
    assert (need.token, need.internal, need.allocated) == (token, allocated - token, allocated)
    assert need.reserve == need.roundup == 0
    assert need.request_steps == sum(output for _, output in requests)


@examples(100)
@given(
    block_size=st.integers(2, 128),
    shortest_in_blocks=st.integers(1, 8),
    spread_in_blocks=st.integers(1, 40),
    longest_output=st.integers(1, 2000),
    seed=st.integers(0, 2**32 - 1),
)
def test_internal_waste_of_a_large_stream_meets_the_closed_form(
    block_size, shortest_in_blocks, spread_in_blocks, longest_output, seed
):
    draw = np.random.default_rng(seed)
    shortest = shortest_in_blocks * block_size
    prompt = draw.integers(shortest, shortest + spread_in_blocks * block_size, size=40_000)
    output = draw.integers(1, longest_output + 1, size=prompt.size)
    need = paged_need(
        RequestStream(name="s", source="a test", prompt_tokens=prompt, output_tokens=output),
        block_size=block_size,
    )
    expected = expected_internal_fraction(need.tokens_per_request, block_size)
    assert need.internal / need.allocated == pytest.approx(expected, abs=0.003)


def test_the_closed_form_gives_the_published_internal_waste():
    """ShareGPT-like lengths with 462 tokens a request: what a separate simulation lost, in %."""
    for block_size, percent in {8: 0.75, 16: 1.60, 32: 3.25, 64: 6.39, 128: 12.09}.items():
        found = 100 * expected_internal_fraction(462, block_size)
        assert found == pytest.approx(percent, abs=0.01)


def test_one_request_by_hand():
    """A prompt of 3 and an output of 2 is resident with 4, then 5 tokens."""
    one = stream([(3, 2)])
    reserved = contiguous_need(one, max_model_len=10, chunk_tokens=16)
    assert (reserved.token, reserved.reserve, reserved.internal) == (9, 1, 10)
    assert (reserved.roundup, reserved.allocated) == (12, 32)
    paged = paged_need(one, block_size=4)
    assert (paged.token, paged.internal, paged.allocated) == (9, 3, 12)
    assert (paged.tokens_per_request, paged.waste_fraction) == (4.5, 0.25)
    assert paged.bytes_per_request == 6 * 131_072


def test_the_longest_possible_requests_do_not_overflow():
    """Each request here takes over 2**60 slot-steps, and 64 of them more than int64 holds."""
    longest = stream([(MAX_TOKENS, MAX_TOKENS)] * 64)
    token = 64 * (MAX_TOKENS * MAX_TOKENS + MAX_TOKENS * (MAX_TOKENS + 1) // 2)
    assert token > 2**63
    reserved = contiguous_need(longest)
    assert reserved.allocated == 64 * MAX_TOKENS * 2**31
    assert reserved.token == token
    # 2**31 - 2 tokens are whole blocks of 2; each odd step then wastes one slot of the last.
    for block_size, odd_steps in ((1, 0), (2, MAX_TOKENS // 2)):
        paged = paged_need(longest, block_size=block_size)
        assert (paged.token, paged.internal) == (token, 64 * odd_steps)
    assert paged_need(longest, block_size=2**31).allocated == 64 * MAX_TOKENS * 2**31


def test_bytes_per_token_are_the_published():
    assert LLAMA_3_8B.bytes_per_token == 131_072  # vAttention: 128 KB
    assert OPT_13B.bytes_per_token == 819_200  # PagedAttention, section 3: 800 KB


def test_a_12_gib_pool_holds_7_reservations_of_2048_tokens():
    """PagedAttention, table 1 and figures 2 and 13: 15.7K slots, 7.00 requests, 8.9 % left."""
    pool_bytes = 12 * 2**30
    slots = pool_bytes // OPT_13B.bytes_per_token
    need = contiguous_need(
        stream([(161, 338)]), max_model_len=2048, geometry=OPT_13B, pool_bytes=pool_bytes
    )
    assert slots == 15_728
    assert need.requests_in_pool == 7
    assert 100 * (slots - 7 * 2048) / slots == pytest.approx(8.9, abs=0.1)


def test_figure_2_of_paged_attention_follows_from_its_two_length_ratios():
    """E[o^2]/E[o] = 598 and E[i o]/E[o] = 159.6 are what the paper's Orca (Max) bar implies.

    A stream with those ratios must give back the bar: token 20.4, reserve 13.3, internal 57.3 % of
    the pool, of which 7 reservations of 2048 take 14,336 of 15,728 slots.
    """
    requests = [(160, 598)]
    need = contiguous_need(stream(requests), max_model_len=2048, geometry=OPT_13B)
    share = 100 * 7 * 2048 / 15_728 / need.allocated
    assert need.token * share == pytest.approx(20.4, abs=0.1)
    assert need.reserve * share == pytest.approx(13.3, abs=0.1)
    assert need.internal * share == pytest.approx(57.3, abs=0.3)


def test_a_pool_is_filled_with_whole_granules():
    slot = LLAMA_3_8B.bytes_per_token

    def fit(need, slots):
        return [need(pool_bytes=count * slot).requests_in_pool for count in slots]

    paged = partial(paged_need, stream([(4, 4)]), block_size=4)
    assert fit(paged, (0, 4, 8, 12, 16)) == [0, 0, 1, 1, 2]
    # A mean of 6 slots would fit into 7, but 7 slots are one block of 4.
    uneven = partial(paged_need, stream([(3, 2)]), block_size=4)
    assert fit(uneven, (7, 8)) == [0, 1]
    reserved = partial(contiguous_need, stream([(4, 4)]), max_model_len=8)
    assert fit(reserved, (4, 8, 12, 16)) == [0, 1, 1, 2]
    with pytest.raises(ValueError, match="pool_bytes is -1"):
        paged(pool_bytes=-1)


@pytest.mark.parametrize(
    ("final", "power"), [(1, 1), (2, 2), (3, 4), (2047, 2048), (2048, 2048), (2049, 4096)]
)
def test_the_default_reservation_is_the_power_of_two_that_holds_the_longest(final, power):
    requests = stream([(0, 1), (final - 1, 1)])
    assert default_max_model_len(requests) == power
    assert contiguous_need(requests).granule_tokens == power


def test_requests_without_output_are_never_resident():
    need = paged_need(stream([(100, 0), (3, 2)]), block_size=4)
    assert (need.request_steps, need.token) == (2, 9)
    for policy in (paged_need, contiguous_need):
        with pytest.raises(ValueError, match="no request of 's' generates a token"):
            policy(stream([(100, 0)]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"max_model_len": 11}, "request 1 of 's' ends with 12 tokens, more than max_model"),
        (
            {"max_model_len": 16, "chunk_tokens": 8},
            "chunk_tokens is 8; it must hold max_model_len, 16",
        ),
    ],
)
def test_what_does_not_fit_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        contiguous_need(stream([(1, 1), (8, 4)]), **sizes)


@pytest.mark.parametrize("size", [0, -16, 2**31 + 1])
def test_sizes_out_of_range_are_refused_with_the_value(size):
    one = stream([(1, 1)])
    for name, need in (
        ("block_size", partial(paged_need, one)),
        ("max_model_len", partial(contiguous_need, one)),
        ("chunk_tokens", partial(contiguous_need, one)),
    ):
        with pytest.raises(ValueError, match=f"{name} is {size}"):
            need(**{name: size})


@pytest.mark.parametrize("tokens", [0.0, -1.0, float("nan"), float("inf")])
def test_the_closed_form_refuses_lengths_that_are_none(tokens):
    with pytest.raises(ValueError, match="tokens_per_request is"):
        expected_internal_fraction(tokens, 16)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CacheGeometry)])
def test_a_geometry_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 0; it must be at least 1"):
        CacheGeometry(**{field: 0})


def test_a_record_that_does_not_add_up_cannot_be_made():
    need = paged_need(stream([(3, 2)]), block_size=4).model_dump()
    with pytest.raises(ValueError, match="is 13, not the 12 slot-steps allocated"):
        MemoryNeed(**{**need, "internal": need["internal"] + 1})
    with pytest.raises(ValueError, match="every allocated slot must be in one class"):
        MemoryNeed(**{**need, "internal": -1, "reserve": 4})
