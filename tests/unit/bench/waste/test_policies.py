"""Policies as they are typed: what is written is read again, and what is wrong is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.waste.contiguous import ContiguousPolicy
from bench.waste.policies import (
    DEFAULT_POLICIES,
    expand_policies,
    format_policy,
    parse_policy,
    policy_name,
    policy_words,
)
from helpers.profiles import examples
from paged.policy import PagedPolicy
from reference.errors import BadInput

SOME = st.none() | st.integers(1, 10**6)
SHARE = st.floats(0, 1)


@st.composite
def contiguous(draw) -> ContiguousPolicy:
    return ContiguousPolicy(
        reservation=draw(st.sampled_from(["max", "pow2", "oracle"])),
        arena=draw(st.sampled_from(["buddy", "first-fit", "best-fit"])),
        max_model_len=draw(st.integers(1, 2**20)),
        look_ahead=draw(st.integers(0, 99)),
        max_running=draw(SOME),
    )


@st.composite
def paged(draw) -> PagedPolicy:
    options = {
        "block_size": draw(st.integers(1, 2**20)),
        "watermark": draw(SHARE),
        "look_ahead": draw(st.integers(0, 99)),
        "max_running": draw(SOME),
        "token_budget": draw(SOME),
        "preemption": draw(st.sampled_from(["recompute", "swap"])),
        "seed": draw(st.integers(0, 99)),
    }
    kind = draw(st.sampled_from(["plain", "window", "samples", "prefix"]))
    if kind == "window":
        options["sliding_window"] = draw(st.integers(1, 10**6))
        options["preemption"] = "recompute"
    if kind in ("samples", "prefix"):
        options["samples"] = draw(st.integers(2, 9))
    if kind == "samples":
        options["beam_keep"] = draw(st.none() | SHARE)
    if kind == "prefix":
        options["prefix_caching"] = True
        options["eviction"] = draw(st.sampled_from(["lru", "lfu", "fifo"]))
        tenants = draw(st.dictionaries(st.integers(0, 9), st.integers(0, 999), max_size=3))
        options["tenant_quotas"] = tuple(tenants.items())
    return PagedPolicy(**options)


@examples(300)
@given(policy=contiguous() | paged(), block_size=st.integers(1, 64))
def test_what_is_written_is_read_again_whatever_the_defaults_are(policy, block_size):
    spec = format_policy(policy)
    assert parse_policy(spec, block_size=block_size, max_model_len=77) == policy
    assert format_policy(parse_policy(spec)) == spec


@pytest.mark.parametrize(
    ("spec", "policy"),
    [
        ("max/buddy", ContiguousPolicy(reservation="max", arena="buddy", max_model_len=2048)),
        ("paged", PagedPolicy(block_size=16)),
        (
            "paged:block=32,watermark=0.01,prefix=lfu,preempt=swap,quota=0:256+1:128",
            PagedPolicy(
                block_size=32,
                watermark=0.01,
                prefix_caching=True,
                eviction="lfu",
                preemption="swap",
                tenant_quotas=((0, 256), (1, 128)),
            ),
        ),
        ("paged:samples=4,beam-keep=0.5", PagedPolicy(samples=4, beam_keep=0.5)),
        ("paged: window=4096 , seed = 3", PagedPolicy(sliding_window=4096, seed=3)),
    ],
)
def test_spec_means_this_policy(spec, policy):
    assert parse_policy(spec) == policy


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("pagd", ["'pagd'", "did you mean paged?", "RESERVATION/ARENA"]),
        ("buddy", ["'buddy'", "max, pow2 or oracle"]),
        ("pow3/buddy", ["'pow3'", "did you mean pow2?", "oracle"]),
        ("max/budy", ["'budy'", "did you mean buddy?"]),
        ("max/buddy/x", ["'buddy/x'"]),
        ("paged:blok=16", ["'blok'", "did you mean block?"]),
        ("max/buddy:watermark=0.1", ["'watermark'", "look-ahead"]),
        ("paged:prefix=lur", ["prefix", "'lur'", "did you mean lru?"]),
        ("paged:preempt=drop", ["preempt", "'drop'", "recompute, swap"]),
        ("paged:block=big", ["block", "'big'", "whole number"]),
        ("paged:watermark=5", ["watermark = 5", "share from 0 to 1"]),
        ("paged:watermark=few", ["'few'", "share from 0 to 1"]),
        ("paged:quota=3", ["'3'", "TENANT:BLOCKS"]),
        ("paged:block", ["'block'", "name=value"]),
        ("paged:", ["''", "name=value"]),
        ("paged:block=1,block=2", ["block is given twice"]),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(spec, parts):
    with pytest.raises(BadInput) as error:
        parse_policy(spec)
    for part in (repr(spec), *parts):
        assert part in str(error.value)


def test_only_policies_that_leave_the_block_size_open_get_one_each():
    specs = [*DEFAULT_POLICIES, "paged:block=64", "paged:block=16"]
    policies = expand_policies(specs, block_sizes=[16, 128], max_model_len=4096)
    assert [policy_name(policy) for policy in policies] == [
        "max/buddy",
        "pow2/buddy",
        "oracle/buddy",
        "oracle/first-fit",
        "paged:block=16",
        "paged:block=128",
        "paged:block=64",
    ]


@pytest.mark.parametrize(
    ("spec", "name", "words"),
    [
        ("max/buddy:max-model-len=9", "max/buddy", "max reservation, buddy"),
        ("paged:block=8,watermark=0.1", None, "paged, block 8, watermark=0.1"),
        ("oracle/buddy:look-ahead=2", None, "oracle reservation, buddy, look-ahead=2"),
    ],
)
def test_a_policy_has_a_name_and_words(spec, name, words):
    assert policy_name(parse_policy(spec)) == (name or spec)
    assert policy_words(parse_policy(spec)) == words
